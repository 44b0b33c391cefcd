"""Whether the registry uses our object store, whether that keeps versions, and what the pod's key is let do."""

import json
from collections.abc import Callable

from coordinator.domain.findings import Check, Finding, Verdict
from coordinator.domain.pods import Linker
from coordinator.pods.doctor.registry import failed
from coordinator.pods.doctor.texts import Patient, endpoint_option
from coordinator.pods.doctor.verdicts import Part, finding, proved, refuted, unproved
from coordinator.pods.doctor.visit import Push, Visit
from coordinator.pods.images import Layer
from coordinator.storage.layout import BLOBS
from coordinator.storage.trial import ENABLED, Attempt, TrialStore

QUARANTINE = (
    "The bucket keeps no versions, so quarantine copies will be used: a blob is hidden by moving its bytes aside. That "
    "is as safe, and costs a copy of each blob that is collected."
)


def same_root(visit: Visit) -> Finding:
    """Look in the shared bucket and root for what was pushed."""
    parts = [*failed(visit), *(_stored(visit, push) for push in visit.pushes if push.error is None)]
    return finding(Check.SAME_ROOT, parts, visit.patient)


def _stored(visit: Visit, push: Push) -> Part:
    where, store = str(push.place), visit.instruments.store
    there, missing = visit.stored(push)
    root = f"bucket {store.bucket}, root /{store.root.rstrip('/')}"
    if missing:
        return refuted(
            where,
            f"of {len(there) + len(missing)} objects that an image leaves, {len(missing)} are not in {root}, "
            f"such as {missing[0]}",
        )
    what = "bytes and links" if visit.pod.linker is Linker.LINK else "bytes"
    return proved(where, f"all {what} of an image, {len(there)} objects, are in {root}")


def versioned(visit: Visit) -> Finding:
    """Ask the bucket, and try on a blob what garbage collection does: delete it, and bring it back."""
    store = visit.instruments.store
    status = store.versioning()
    if status != ENABLED:
        told = "has no versioning" if status is None else f"has its versioning {status.lower()}"
        part = proved("", f"bucket {store.bucket} {told}")
        return finding(Check.VERSIONED, [part], visit.patient, meaning=QUARANTINE)
    blob = visit.scratch.layer()
    key = visit.scratch.put(blob)
    with visit.scratch.vanished(blob):
        hidden = store.head(key) is None
        kept = [version for version in store.versions(key) if not version.is_marker]
        marker = next((version for version in store.versions(key) if version.is_marker and version.latest), None)
        restored = marker is not None and store.remove_marker(key, marker.version) and store.get(key) == blob.content
    told = (
        f"bucket {store.bucket} has versioning {status}; of a scratch blob that was deleted, "
        f"{'nothing' if hidden else 'something'} was served and {len(kept)} versions were kept, and without the marker "
        f"{'it was back' if restored else 'it was not back'}"
    )
    part = proved("", told) if hidden and len(kept) == 1 and restored else refuted("", told)
    return finding(Check.VERSIONED, [part], visit.patient)


def cannot_delete(visit: Visit) -> Finding:
    """Try with the key that was given to delete a scratch blob in every way there is. It may write it, though."""
    key = visit.instruments.pod_store
    mend = policy(visit.patient)
    if key is None:
        part = unproved("", "the pod's key was not given")
        given = (
            "Give the key that the registry uses for the bucket (its secret Baleen must not know otherwise), for this "
            f"command alone:\nBALEEN_POD_ACCESS_KEY=… BALEEN_POD_SECRET_KEY=… baleen pods doctor {visit.pod.name}\n"
            "It is proved once that key may not delete:"
        )
        return finding(Check.CANNOT_DELETE, [part], visit.patient, mend=f"{given}\n{mend}")
    blob = visit.scratch.layer()
    # Nothing ties it to the registry's own: whoever reads this compares the two.
    parts = [proved("", f"tried with the access key {visit.instruments.settings.pod_access_key}")]
    parts += [_refused(visit, blob, what, attempt) for what, attempt in _ways(visit, key)]
    parts.append(_may_write(visit, key, blob))
    status = visit.instruments.store.versioning()
    if status is not None:
        switched = key.attempt_versioning(status)
        told = f"setting the bucket's versioning: {switched.said}"
        parts.append(_verdict(told, switched, changed=switched.allowed))
    worst = any(part.verdict is not Verdict.PROVED for part in parts)
    return finding(Check.CANNOT_DELETE, parts, visit.patient, mend=mend if worst else None)


#: Tries to delete the object of a key, of which this is the version that is served, if there are versions.
_Way = Callable[[str, str | None], Attempt]


def _ways(visit: Visit, key: TrialStore) -> list[tuple[str, _Way]]:
    ways: list[tuple[str, _Way]] = [
        ("DELETE", lambda name, _: key.attempt_delete(name)),
        ("DELETE of many", lambda name, _: key.attempt_delete_many(name)),
    ]
    if visit.instruments.store.versioning() is not None:
        ways += [
            ("DELETE of its version", key.attempt_delete),
            ("DELETE of many versions", key.attempt_delete_many),
        ]
    return ways


def _refused(visit: Visit, blob: Layer, what: str, attempt: _Way) -> Part:
    """Try one way on a blob that is there; the bytes decide, whatever the store said."""
    store = visit.instruments.store
    name = visit.scratch.put(blob)
    version = next((each.version for each in store.versions(name) if each.latest), None)
    tried = attempt(name, version)
    after = next((each for each in store.versions(name) if each.latest and not each.is_marker), None)
    is_there = after is not None and after.version == version and store.head(name) is not None
    told = f"{what} of a scratch blob: {tried.said}, and it is {'still there' if is_there else 'gone'}"
    return _verdict(told, tried, changed=not is_there)


def _verdict(told: str, tried: Attempt, *, changed: bool) -> Part:
    """Only that it was forbidden is a proof: whatever else kept it from happening may be otherwise the next time."""
    if changed:
        return refuted("", told)
    return proved("", told) if tried.is_forbidden else unproved("", told)


def _may_write(visit: Visit, key: TrialStore, blob: Layer) -> Part:
    name = visit.scratch.put(blob)
    written = key.attempt_put(name, blob.content)
    told = f"PUT of the same bytes with the pod's key: {written.said}"
    return proved("", told) if written.allowed else unproved("", f"{told}. Is it the key that the registry uses?")


def policy(patient: Patient) -> str:
    """The bucket policy that keeps a pod's key from deleting blobs, as JSON."""
    root = f"{patient.root.strip('/')}/" if patient.root.strip("/") else ""
    users = {"AWS": ["arn:aws:iam::000000000000:user/POD-USER"]}
    statements = [
        {
            "Sid": "BaleenAloneDeletesBlobs",
            "Effect": "Deny",
            "Principal": users,
            "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
            "Resource": [f"arn:aws:s3:::{patient.bucket}/{root}{BLOBS.removesuffix('sha256/')}*"],
        },
        {
            "Sid": "BaleenAloneConfiguresTheBucket",
            "Effect": "Deny",
            "Principal": users,
            "Action": [
                "s3:PutBucketVersioning",
                "s3:PutLifecycleConfiguration",
                "s3:PutBucketPolicy",
                "s3:DeleteBucketPolicy",
            ],
            "Resource": [f"arn:aws:s3:::{patient.bucket}"],
        },
    ]
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    return (
        "Give the pod a user of its own, and the bucket this policy (aws s3api put-bucket-policy"
        f"{endpoint_option(patient)} --bucket {patient.bucket} --policy file://policy.json), with the users of all "
        "pods' keys in place of POD-USER, and your account in place of 000000000000 (which it is for SeaweedFS): "
        f"neither does Baleen know.\n{document}"
    )
