"""Generate the S3 policy of a pod's key: an allow-list of what the pod's registry needs.

A pod's key may read and write `blobs/`, may not delete there, and has all rights on the repositories below the pod's
prefixes. A registry with a metadata database may also read and write the lock files by which it refuses to start
without it. Everything else is forbidden, since it is not listed: other pods' repositories, `quarantine/`, the mark
(`collected-by.json`), versions of objects, and the settings of the bucket.

`pod_policy` is the policy of one user (IAM). `bucket_policy` is a bucket policy, for stores or operators that use
these: a bucket has one policy, so it has the statements of all pods.
Each line has a name (`PolicyLine`), which the doctor's findings refer to. The lines were tried on docker-registry 2.8.2
for push, pull, mount, delete, tags, and uploads that are resumed and cancelled (tests/perimeter/test_keys_of_pods.py).
Not here: whether a key has this policy (doctor/key.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from coordinator.errors import UsageError
from coordinator.storage.layout import BLOBS, LOCK_FILES, REPOSITORIES

VERSION = "2012-10-17"
#: Characters that a policy reads as a pattern or a variable.
_PATTERNS = frozenset("*?$")
#: Every blob has its folder there.
_ALL_BLOBS = f"{BLOBS.removesuffix('sha256/')}*"


class PolicyLine(StrEnum):
    """The statements of the policy, by their `Sid`."""

    #: A registry lists below a name to find out whether it exists. With this right the store answers 404 for a missing
    #: object.
    LIST = "ListBlobsAndOwnRepositories"
    #: To resume an upload, a registry looks for its parts. Stores have no condition on the prefix for this call.
    UPLOADS = "FindUploads"
    #: No right to delete: only Baleen deletes blobs.
    BLOBS = "ReadAndWriteBlobs"
    REPOSITORIES = "OwnRepositories"
    LOCK_FILES = "LockFiles"


class KeyOwner(NamedTuple):
    """The pod of a key."""

    prefixes: Sequence[str]
    has_lock_files: bool = False


def pod_policy(bucket: str, root: str, owner: KeyOwner) -> dict[str, Any]:
    """Return the policy for the user of one pod's key; raises UsageError if the root cannot be written in one."""
    return {"Version": VERSION, "Statement": list(_make_statements(bucket, root, owner))}


def bucket_policy(bucket: str, root: str, pods: Mapping[str, KeyOwner]) -> dict[str, Any]:
    """Return the policy of a bucket, for the pod of each principal; raises UsageError as `pod_policy`."""
    statements: list[dict[str, Any]] = []
    for number, (principal, owner) in enumerate(pods.items(), 1):
        for each in _make_statements(bucket, root, owner):
            # Names of statements must be unique, and of letters and digits.
            name = each["Sid"] if len(pods) == 1 else f"{each['Sid']}{number}"
            statements.append(each | {"Sid": name, "Principal": {"AWS": [principal]}})
    return {"Version": VERSION, "Statement": statements}


def _make_statements(bucket: str, root: str, owner: KeyOwner) -> Iterable[dict[str, Any]]:
    if _PATTERNS & set(root):
        raise UsageError(f"No policy can name the root {root!r}: move the layer to a root without `*`, `?` and `$`.")
    base = f"{root.strip('/')}/" if root.strip("/") else ""
    blobs, own = f"{base}{_ALL_BLOBS}", [f"{base}{REPOSITORIES}{prefix}/*" for prefix in owner.prefixes]
    locks = [f"{base}{LOCK_FILES}*"] if owner.has_lock_files else []
    arn = f"arn:aws:s3:::{bucket}"
    yield _make_statement(PolicyLine.LIST, ["s3:ListBucket"], [arn]) | {
        "Condition": {"StringLike": {"s3:prefix": [blobs, *own, *locks]}}
    }
    yield _make_statement(PolicyLine.UPLOADS, ["s3:ListBucketMultipartUploads", "s3:GetBucketLocation"], [arn])
    yield _make_statement(PolicyLine.BLOBS, ["s3:GetObject", "s3:PutObject"], [f"{arn}/{blobs}"])
    yield _make_statement(
        PolicyLine.REPOSITORIES,
        [
            "s3:GetObject",
            "s3:PutObject",
            "s3:DeleteObject",
            "s3:ListMultipartUploadParts",
            "s3:AbortMultipartUpload",
        ],
        [f"{arn}/{each}" for each in own],
    )
    if locks:
        yield _make_statement(
            PolicyLine.LOCK_FILES, ["s3:GetObject", "s3:PutObject"], [f"{arn}/{each}" for each in locks]
        )


def _make_statement(line: PolicyLine, actions: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Sid": str(line), "Effect": "Allow", "Action": actions, "Resource": resources}
