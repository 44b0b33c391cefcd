"""Check that the registry uses our object store, that it keeps versions, and that pods own all repositories in it.

Not here: what the pod's key is permitted to do (key.py).
"""

from coordinator.doctor.registry import failed
from coordinator.doctor.results import Part, finding, proved, refuted
from coordinator.doctor.visit import Push, Visit
from coordinator.domain.findings import Check, Finding
from coordinator.domain.perimeter import NAMES_LIMIT, unowned
from coordinator.gc import root_listing as perimeter
from coordinator.storage.trial import ENABLED

QUARANTINE = (
    "The bucket keeps no versions, so Baleen hides a blob by moving its bytes to quarantine/. That is as safe, and "
    "costs a copy of each collected blob."
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
            f"of {len(there) + len(missing)} objects of a pushed image, {len(missing)} are not in {root}, "
            f"such as {missing[0]}",
        )
    what = "bytes and links" if visit.pod.kind.links_in_store else "bytes"
    return proved(where, f"all {what} of a pushed image, {len(there)} objects, are in {root}")


def versioned(visit: Visit) -> Finding:
    """Read the bucket's versioning, and do to a scratch blob what GC does: delete it, and restore it."""
    store = visit.instruments.store
    status = store.versioning()
    if status != ENABLED:
        sentence = "has no versioning" if status is None else f"has its versioning {status.lower()}"
        part = proved("", f"bucket {store.bucket} {sentence}")
        return finding(Check.VERSIONED, [part], visit.patient, meaning=QUARANTINE)
    blob = visit.scratch.layer()
    key = visit.scratch.put(blob)
    with visit.scratch.vanished(blob):
        hidden = store.head(key) is None
        kept = [version for version in store.versions(key) if not version.is_marker]
        marker = next((version for version in store.versions(key) if version.is_marker and version.latest), None)
        restored = marker is not None and store.remove_marker(key, marker.version) and store.get(key) == blob.content
    sentence = (
        f"bucket {store.bucket} has versioning {status}; after the delete of a scratch blob the bucket "
        f"{'did not serve it' if hidden else 'still served it'} and kept {len(kept)} versions; removing the marker "
        f"{'restored it' if restored else 'did not restore it'}"
    )
    part = proved("", sentence) if hidden and len(kept) == 1 and restored else refuted("", sentence)
    return finding(Check.VERSIONED, [part], visit.patient)


def repositories_owned(visit: Visit) -> Finding:
    """List the root for repositories that no pod owns, as each GC run does, and write the listing."""
    listing = perimeter.update(visit.instruments.connections, visit.instruments.store)
    if not listing.names:
        owned = proved("", "a listing of the root shows no repository that no pod owns")
        return finding(Check.REPOSITORIES_OWNED, [owned], visit.patient)
    sentence = unowned(listing, NAMES_LIMIT)
    # `finding` shortens its parts; the proof is to have all the names that are known.
    found = finding(Check.REPOSITORIES_OWNED, [refuted("", sentence)], visit.patient)
    return found._replace(proof=sentence)
