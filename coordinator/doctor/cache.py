"""Check that the registry does not answer from a cache that a hidden blob exists (scenario 17).

A registry with a database confirms mounts and manifests by its rows. There GC hides no blob that has a row
(gc/claims.py), so it is enough that Baleen sees each of these rows, and that HEAD looks at storage.
"""

from collections.abc import Callable

from coordinator.doctor.registry import failed_push_parts
from coordinator.doctor.results import RUN_AGAIN, Part, make_finding, not_tried, proved, refuted, unproved
from coordinator.doctor.visit import Place, Visit
from coordinator.domain.findings import Check, Finding, Result
from coordinator.domain.names import parse_digest
from coordinator.errors import BaleenError
from coordinator.registry.client import RegistryError, RegistryUnreachableError
from coordinator.registry.images import Image, Layer

#: The first HEAD may fill a cache; the second may be answered from it.
HEADS = 2
CONFIRMED_BY_ROWS = (
    "The registry confirms mounts and manifests by rows that Baleen sees, so GC keeps each blob that has one; for all "
    "else it looks at storage."
)
WRONG_DATABASE = (
    "Give Baleen the URL of the database that every process of the registry uses, and remove `redis.cache` from the "
    "registry's configuration if it is there."
)


def check_no_descriptor_cache(visit: Visit) -> Finding:
    """Fill the caches at every place, delete the blob and ask again; then restore it and ask again."""
    places = visit.places
    if not places:
        return make_finding(Check.NO_DESCRIPTOR_CACHE, [], visit.pod_facts)
    blob = visit.scratch.make_layer()
    image = visit.scratch.make_image([blob])
    try:
        for each in image.blobs:
            visit.scratch.push_blob(places[0].client, each)
        warm = [place for place in places if all(_has_blob(visit, place, blob) for _ in range(HEADS))]
    except RegistryError as error:
        stuck = failed_push_parts(visit) or [unproved(str(places[0]), str(error), RUN_AGAIN)]
        return make_finding(Check.NO_DESCRIPTOR_CACHE, stuck, visit.pod_facts)
    cold = [
        unproved(str(place), "it answers that it does not have a blob that was pushed", RUN_AGAIN)
        for place in places
        if place not in warm
    ]
    if not visit.scratch.is_stored(blob):
        sentence = "a pushed blob is not in the shared bucket, so the doctor cannot delete it"
        parts = [not_tried(str(place), sentence, Check.SAME_ROOT) for place in places]
        return make_finding(Check.NO_DESCRIPTOR_CACHE, parts, visit.pod_facts)
    with visit.scratch.remove_for_block(blob):
        gone = [_try_without_blob(visit, place, blob, image) for place in warm]
    back = [_try_restored_blob(visit, place, blob, part) for place, part in zip(warm, gone, strict=True)]
    found = make_finding(Check.NO_DESCRIPTOR_CACHE, [*cold, *back], visit.pod_facts)
    if visit.pod.kind.confirms_by_rows and found.result is Result.PROVED:
        return found._replace(meaning=CONFIRMED_BY_ROWS)
    return found


def _try_without_blob(visit: Visit, place: Place, blob: Layer, image: Image) -> Part:
    """Try HEAD, a mount, and a push of a manifest, while the blob's bytes are gone."""
    where = str(place)
    try:
        wrong = ["HEAD answers 200"] if _has_blob(visit, place, blob) else []
        confirmed = []
        if _is_accepted(lambda: visit.scratch.mount(place.client, blob)):
            confirmed.append("a mount answers 201")
        if _is_accepted(lambda: visit.scratch.put_manifest(place.client, image)):
            confirmed.append("a manifest that lists it answers 201")
    except RegistryError as error:
        return unproved(where, str(error), RUN_AGAIN)
    if confirmed and not wrong and visit.pod.kind.confirms_by_rows:
        return _try_rows(visit, where, image, confirmed)
    if wrong or confirmed:
        return refuted(where, f"for a blob whose bytes are gone, {', '.join([*wrong, *confirmed])}")
    return proved(
        where,
        f"for a blob that {HEADS} HEADs had found and whose bytes are gone, HEAD answers 404, a mount answers 202, "
        "and a manifest that lists it is refused",
    )


def _try_rows(visit: Visit, where: str, image: Image, confirmed: list[str]) -> Part:
    """Look for the row of each blob that the registry confirmed: GC then sees that it must keep the blob."""
    blobs = [parse_digest(blob.digest) for blob in image.blobs]
    try:
        known = visit.instruments.databases.of(visit.pod.name).find_known(blobs)
    except BaleenError:
        return not_tried(where, "the registry's database could not be read", Check.REGISTRY_DATABASE)
    answered = f"for a blob whose bytes are gone, HEAD answers 404, and {', '.join(confirmed)}"
    if known != set(blobs):
        return refuted(where, f"{answered}, though the database that Baleen reads has no row of it", WRONG_DATABASE)
    return proved(where, f"{answered}; its row is in the database that Baleen reads")


def _try_restored_blob(visit: Visit, place: Place, blob: Layer, part: Part) -> Part:
    """Return the part if the place serves the restored blob; that belongs to the proof."""
    try:
        if _has_blob(visit, place, blob):
            return part
    except RegistryError as error:
        return unproved(str(place), str(error), RUN_AGAIN)
    return refuted(str(place), "HEAD still answers 404 for a blob whose bytes are back")


def _has_blob(visit: Visit, place: Place, blob: Layer) -> bool:
    return place.client.has_blob(visit.scratch.repository, blob.digest)


def _is_accepted(request: Callable[[], bool | None]) -> bool:
    """Whether the registry answers 201 to a request; False from the request says that it did not."""
    try:
        return request() is not False
    except RegistryUnreachableError:
        raise
    except RegistryError:
        return False
