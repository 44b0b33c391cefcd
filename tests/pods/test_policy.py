"""The policy of a pod's key, as data."""

from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.pods.policy import KeyOwner, PolicyLine, bucket_policy, pod_policy

ROOT = "arn:aws:s3:::b/shared/docker/registry/v2"
#: Of a registry without a database.
LINES = [line for line in PolicyLine if line is not PolicyLine.LOCK_FILES]


def lines(policy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["Sid"]: each for each in policy["Statement"]}


def test_what_it_allows() -> None:
    """A key may read and write blobs and, below the pod's prefixes, delete objects, and nothing else."""
    policy = lines(pod_policy("b", "/shared/", KeyOwner(["team-a", "apps/one"])))
    assert list(policy) == LINES
    own = [f"{ROOT}/repositories/team-a/*", f"{ROOT}/repositories/apps/one/*"]
    assert {each["Effect"] for each in policy.values()} == {"Allow"}
    assert policy[PolicyLine.BLOBS]["Resource"] == [f"{ROOT}/blobs/*"]
    assert policy[PolicyLine.BLOBS]["Action"] == ["s3:GetObject", "s3:PutObject"]
    assert policy[PolicyLine.REPOSITORIES]["Resource"] == own
    assert policy[PolicyLine.LIST]["Condition"]["StringLike"]["s3:prefix"] == [
        f"{each.removeprefix('arn:aws:s3:::b/')}" for each in (f"{ROOT}/blobs/*", *own)
    ]
    deleting = [line for line, each in policy.items() if any("Delete" in action for action in each["Action"])]
    assert deleting == [PolicyLine.REPOSITORIES]
    assert not any("Version" in action or "*" in action for each in policy.values() for action in each["Action"])


def test_lock_files() -> None:
    """The key of a registry with a database may also read, list and write its lock files, and never delete them."""
    policy = lines(pod_policy("b", "/shared/", KeyOwner(["team-a"], has_lock_files=True)))
    locks = "shared/docker/registry/lockfiles/*"
    assert list(policy) == list(PolicyLine)
    assert policy[PolicyLine.LOCK_FILES]["Resource"] == [f"arn:aws:s3:::b/{locks}"]
    assert policy[PolicyLine.LOCK_FILES]["Action"] == ["s3:GetObject", "s3:PutObject"]
    assert locks in policy[PolicyLine.LIST]["Condition"]["StringLike"]["s3:prefix"]


def test_a_bucket_has_one_policy() -> None:
    """The policy of a bucket has the statements of every pod, each for its own principal."""
    policy = bucket_policy("b", "", {"arn:a": KeyOwner(["team-a"]), "arn:b": KeyOwner(["team-b"])})
    found = policy["Statement"]
    assert len({each["Sid"] for each in found}) == len(found) == 2 * len(LINES)
    assert all(each["Sid"].isalnum() for each in found)
    of_a = [each for each in found if each["Principal"] == {"AWS": ["arn:a"]}]
    assert len(of_a) == len(LINES)
    assert not any("team-b" in str(each) for each in of_a)
    assert list(lines(bucket_policy("b", "", {"arn:a": KeyOwner(["team-a"])}))) == LINES


@pytest.mark.parametrize("root", ["shared*", "sha?red", "${aws:username}"])
def test_a_root_that_would_be_a_pattern(root: str) -> None:
    """A root that a policy would read as a pattern is refused."""
    with pytest.raises(UsageError, match="No policy can name the root"):
        pod_policy("b", root, KeyOwner(["team-a"]))
