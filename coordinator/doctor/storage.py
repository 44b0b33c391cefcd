"""Check that the registry uses our object store, that it keeps versions, and that pods own all repositories in it.

Not here: what the pod's key is permitted to do (key.py).
"""

from coordinator.doctor.registry import failed_push_parts
from coordinator.doctor.results import Part, make_finding, proved, refuted
from coordinator.doctor.visit import Push, Visit
from coordinator.domain.findings import Check, Finding
from coordinator.domain.perimeter import NAMES_LIMIT, describe_unowned
from coordinator.perimeter import root_listing
from coordinator.storage.trial import ENABLED

QUARANTINE = (
    "The bucket keeps no versions, so Baleen hides a blob by moving its bytes to quarantine/. That is as safe, and "
    "costs a copy of each collected blob."
)


def check_same_root(visit: Visit) -> Finding:
    """Look in the shared bucket and root for what was pushed."""
    parts = [*failed_push_parts(visit), *(_storage_part(visit, push) for push in visit.pushes if push.error is None)]
    return make_finding(Check.SAME_ROOT, parts, visit.pod_facts)


def _storage_part(visit: Visit, push: Push) -> Part:
    where, store = str(push.place), visit.instruments.store
    there, missing = visit.find_keys(push)
    root = f"bucket {store.bucket}, root /{store.root.rstrip('/')}"
    if missing:
        return refuted(
            where,
            f"of {len(there) + len(missing)} objects of a pushed image, {len(missing)} are not in {root}, "
            f"such as {missing[0]}",
        )
    kind = visit.pod.kind
    what = "bytes and links" if kind.links_in_store else "blobs" if kind.has_registry_database else "bytes"
    return proved(where, f"all {what} of a pushed image, {len(there)} objects, are in {root}")


def check_versioned(visit: Visit) -> Finding:
    """Read the bucket's versioning, and do to a scratch blob what GC does: delete it, and restore it."""
    store = visit.instruments.store
    status = store.read_versioning()
    if status != ENABLED:
        sentence = "has no versioning" if status is None else f"has its versioning {status.lower()}"
        part = proved("", f"bucket {store.bucket} {sentence}")
        return make_finding(Check.VERSIONED, [part], visit.pod_facts, meaning=QUARANTINE)
    blob = visit.scratch.make_layer()
    key = visit.scratch.store_blob(blob)
    with visit.scratch.remove_for_block(blob):
        hidden = store.head(key) is None
        kept = [version for version in store.list_versions(key) if not version.is_marker]
        marker = next((version for version in store.list_versions(key) if version.is_marker and version.latest), None)
        restored = marker is not None and store.remove_marker(key, marker.version) and store.get(key) == blob.content
    sentence = (
        f"bucket {store.bucket} has versioning {status}; after the delete of a scratch blob the bucket "
        f"{'did not serve it' if hidden else 'still served it'} and kept {len(kept)} versions; removing the marker "
        f"{'restored it' if restored else 'did not restore it'}"
    )
    part = proved("", sentence) if hidden and len(kept) == 1 and restored else refuted("", sentence)
    return make_finding(Check.VERSIONED, [part], visit.pod_facts)


def check_repositories_owned(visit: Visit) -> Finding:
    """List the root for repositories that no pod owns, as each GC run does, and write the listing."""
    listing = root_listing.update_listing(visit.instruments.connections, visit.instruments.store)
    if not listing.names_to_show:
        owned = proved("", "a listing of the root shows no repository that no pod owns")
        return make_finding(Check.REPOSITORIES_OWNED, [owned], visit.pod_facts)
    sentence = describe_unowned(listing, NAMES_LIMIT)
    # `make_finding` shortens its parts; the proof is to have all the names that are known.
    found = make_finding(Check.REPOSITORIES_OWNED, [refuted("", sentence)], visit.pod_facts)
    return found._replace(proof=sentence)
