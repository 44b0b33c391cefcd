"""What a manifest lists: its config, its layers, its child manifests.

Route: `parse_manifest(bytes)` when a registry did not say, `from_descriptors` when its event did.
A manifest's `subject` is not a reference: a registry accepts it before the subject exists (OCI distribution
specification, "Pushing Manifests with Subject"), and the subject does not need the referrer.
"""

import json
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from coordinator.domain.names import Digest, parse_digest
from coordinator.errors import BaleenError, InvalidNameError

BLOB_MEDIA_TYPE = "application/octet-stream"

#: Distribution refuses manifests over 4 MiB (`maxManifestBodySize`), so a larger one is not a manifest.
MANIFEST_BYTES_LIMIT = 4 * 1024 * 1024
#: Each reference takes at least 80 bytes of JSON, so this bound follows from the one above.
REFERENCES_LIMIT = 50_000


class ManifestKind(IntEnum):
    """How to read a manifest's list of references. The numbers are stored: never reuse one."""

    #: The first reference is the config, the others are layers.
    IMAGE = 1
    #: All references are child manifests.
    INDEX = 2
    #: All references are layers: docker schema 1, artifact manifests.
    LAYERS = 3


class ReferenceKind(IntEnum):
    CONFIG = 1
    LAYER = 2
    CHILD = 3
    SELF = 4


MANIFEST_KINDS = {
    "application/vnd.oci.image.manifest.v1+json": ManifestKind.IMAGE,
    "application/vnd.docker.distribution.manifest.v2+json": ManifestKind.IMAGE,
    "application/vnd.oci.image.index.v1+json": ManifestKind.INDEX,
    "application/vnd.docker.distribution.manifest.list.v2+json": ManifestKind.INDEX,
    "application/vnd.docker.distribution.manifest.v1+json": ManifestKind.LAYERS,
    "application/vnd.docker.distribution.manifest.v1+prettyjws": ManifestKind.LAYERS,
    "application/vnd.oci.artifact.manifest.v1+json": ManifestKind.LAYERS,
}


#: Where each kind keeps its list.
_LISTS = {
    ManifestKind.IMAGE: frozenset({"layers"}),
    ManifestKind.INDEX: frozenset({"manifests"}),
    ManifestKind.LAYERS: frozenset({"fsLayers", "blobs"}),
}
_ALL_LISTS = frozenset[str]().union(*_LISTS.values())


class Reference(NamedTuple):
    """One entry of a manifest; `size` in bytes as the manifest claims it, None where it does not say."""

    digest: Digest
    size: int | None


class ManifestContent(NamedTuple):
    """What a manifest lists, in its order, each digest once."""

    kind: ManifestKind
    references: tuple[Reference, ...]


#: The names that Baleen reads, by how they look to those who do not tell small letters from capital ones.
_NAMES = {
    name.casefold(): name
    for name in ("mediaType", "config", "layers", "manifests", "fsLayers", "blobs", "digest", "blobSum", "size")
}


class MalformedManifestError(BaleenError):
    """Bytes that claim to be a manifest, and are not."""


def reference_kind(kind: ManifestKind, position: int) -> ReferenceKind:
    """Return what the reference at the position (from 0) of a manifest of this kind is."""
    if kind is ManifestKind.INDEX:
        return ReferenceKind.CHILD
    return ReferenceKind.CONFIG if kind is ManifestKind.IMAGE and position == 0 else ReferenceKind.LAYER


def unique(references: Sequence[Reference]) -> tuple[Reference, ...]:
    """Keep the first of each digest: a layer listed twice is still one reference."""
    first: dict[Digest, Reference] = {}
    for reference in references:
        first.setdefault(reference.digest, reference)
    return tuple(first.values())


def parse_manifest(body: bytes, media_type: str | None = None) -> ManifestContent:
    """Read what a manifest lists from its bytes.

    `media_type` is what the registry said; without it, the body's own `mediaType` or its shape decides.
    Raises MalformedManifestError with the reason.
    """
    try:
        document = json.loads(_text(body), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise MalformedManifestError(f"The manifest is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise MalformedManifestError("The manifest is not a JSON object.")
    kind = MANIFEST_KINDS.get(media_type or "") or _kind_by_content(document)
    if not _LISTS[kind].issuperset(_ALL_LISTS.intersection(document)):
        # Distribution refuses these too: who reads it as one kind would miss what it lists as the other.
        raise MalformedManifestError("The manifest is of two kinds at once.")
    if kind is ManifestKind.INDEX and "manifests" not in document:
        raise MalformedManifestError("The manifest claims to be an index, and lists no manifests.")
    references = [_reference(entry) for entry in _entries(kind, document)]
    if len(references) > REFERENCES_LIMIT:
        raise MalformedManifestError(f"The manifest lists more than {REFERENCES_LIMIT} references.")
    return ManifestContent(kind, unique(references))


def is_manifest(body: bytes) -> bool:
    """Whether a registry could serve these bytes as a manifest; what cannot be read for sure is one.

    Distribution takes what says `schemaVersion` 1 or 2. Indexes list other things, too: BuildKit's caches their layers.
    """
    try:
        # Objects as tuples: what is said twice may be said the first time only, as null says nothing to Go.
        document = json.loads(_text(body), object_pairs_hook=tuple)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        return True
    if not isinstance(document, tuple):
        return False
    said = [value for name, value in document if name.casefold() == "schemaversion"]
    return any(value in {1, 2} for value in said if isinstance(value, int | float))


def _text(body: bytes) -> str:
    """Read bytes as Go's JSON does: what is not UTF-8 is a replacement character, and no error."""
    return body.decode(errors="replace")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what registries in Go may read otherwise: to them `Layers` is `layers`, and of two the last wins."""
    document = dict(pairs)
    for name in document:
        if (spelled := _NAMES.get(name.casefold(), name)) != name:
            raise MalformedManifestError(f"The manifest says {name[:100]!r} for {spelled!r}.")
    if len(document) != len(pairs):
        raise MalformedManifestError("The manifest says something twice.")
    return document


def _kind_by_content(document: dict[str, Any]) -> ManifestKind:
    said = document.get("mediaType")
    if isinstance(said, str) and (kind := MANIFEST_KINDS.get(said)) is not None:
        return kind
    if "manifests" in document:
        return ManifestKind.INDEX
    if "config" in document:
        return ManifestKind.IMAGE
    if "fsLayers" in document or "blobs" in document:
        return ManifestKind.LAYERS
    raise MalformedManifestError("The manifest is of no known kind.")


def _entries(kind: ManifestKind, document: dict[str, Any]) -> list[Any]:
    if kind is ManifestKind.INDEX:
        return _list(document, "manifests")
    if kind is ManifestKind.IMAGE:
        return [document.get("config"), *_list(document, "layers")]
    # Schema 1 has one of these lists, an artifact the other: whoever has both lists both.
    sums = [
        {"digest": entry.get("blobSum")} if isinstance(entry, dict) else entry for entry in _list(document, "fsLayers")
    ]
    return sums + _list(document, "blobs")


def _list(document: dict[str, Any], name: str) -> list[Any]:
    # JSON null stands for an empty list in manifests that Go programs write.
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedManifestError(f"The manifest's {name!r} is not a list.")
    return value


def _reference(entry: Any) -> Reference:
    if not isinstance(entry, dict) or not isinstance(entry.get("digest"), str):
        raise MalformedManifestError("The manifest lists something without a digest.")
    try:
        digest = parse_digest(entry["digest"])
    except InvalidNameError as error:
        raise MalformedManifestError(f"The manifest lists a digest that Baleen cannot follow: {error}") from error
    size = entry.get("size")
    # JSON has true, and numbers of any length; the table has 64 bits.
    return Reference(digest, size if type(size) is int and 0 <= size < 2**63 else None)
