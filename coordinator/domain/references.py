"""What a manifest lists: its config, its layers, its child manifests.

Route: `read_manifest(bytes)`, which takes whatever a registry may have accepted; `parse_manifest(bytes)` for those who
need an exact list or an error.

Registries in Go accept manifests that this reader does not take for sure: names in other letters, a name twice, values
nested thousands deep, digests of other algorithms. All that such a manifest can need is named in its bytes, since a
registry stores nothing else of it. So `read_manifest` then gives every digest that any string in the bytes is: at least
what the manifest lists. It says so where even that may not be all: the links of the repository decide then
(coordinator/reconcile/kept.py).

A manifest's `subject` is not a reference: a registry accepts it before the subject exists (OCI distribution
specification, "Pushing Manifests with Subject"), and the subject does not need the referrer.
"""

import json
import re
from collections.abc import Iterator, Sequence
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
    #: Every digest that the manifest's bytes name, in whatever place: at least what it lists, of any role.
    NAMED = 4


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
#: Kinds of manifests that may list other manifests.
PARENTS = (ManifestKind.INDEX, ManifestKind.NAMED)
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


class Reading(NamedTuple):
    """What a manifest's own bytes say that it can need."""

    content: ManifestContent
    #: Why `content` is all that the bytes name, of kind NAMED; None where it is the exact list.
    why: str | None = None
    #: Digests of other algorithms that the bytes name, as they are written there.
    others: tuple[str, ...] = ()
    #: The bytes name all that the manifest can need. False for what no registry that we know takes for a manifest.
    complete: bool = True


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
        document = json.loads(_text(body), object_pairs_hook=_object, parse_int=_integer)
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


def read_manifest(body: bytes) -> Reading:
    """Read what a manifest lists or, where the exact list cannot be told, every digest that its bytes name."""
    try:
        return Reading(parse_manifest(body))
    except MalformedManifestError as error:
        why = str(error)
    digests: dict[Digest, None] = {}
    others: dict[str, None] = {}
    words: set[str] = set()
    too_long = False
    for text in _strings(body):
        if (digest := _digest(text)) is not None:
            digests[digest] = None
        elif _OTHER_DIGEST.fullmatch(text):
            others[text] = None
            too_long = too_long or len(text) > _OTHER_LIMIT
        elif len(text) < _WORD_LIMIT:
            words.add(text.casefold())
    references = tuple(Reference(digest, None) for digest in digests)
    complete = not too_long and _is_known_form(body) and not words.isdisjoint(_FORMS)
    return Reading(ManifestContent(ManifestKind.NAMED, references), why, tuple(others), complete)


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


#: A digest of any algorithm, as the OCI image specification writes it ("Digests").
_OTHER_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]{32,}")
#: A string of JSON, or what is left of the bytes if it does not end: so the search is linear.
#: A longer one is in no key of a store.
_OTHER_LIMIT = 200
_STRING = re.compile(rb'"((?:[^"\\]++|\\.)*+)("|\\?\Z)', re.DOTALL)
#: The longest digest that is looked for, each of its letters written as an escape.
_STRING_LIMIT = 6 * 300
_WORD_LIMIT = 32
#: One of these names stands in every manifest of a known kind.
_FORMS = frozenset(name.casefold() for name in {"config", *_ALL_LISTS})


def _strings(body: bytes) -> Iterator[str]:
    """Give every string of a JSON text that may be a digest or a name, however deep: quotes stand nowhere else."""
    for found in _STRING.finditer(body):
        raw, end = found.groups()
        if end != b'"' or len(raw) > _STRING_LIMIT:
            continue
        if b"\\" not in raw:
            yield raw.decode(errors="replace")
            continue
        try:
            yield json.loads(b'"' + raw + b'"', strict=False)
        except ValueError:
            continue


def _digest(text: str) -> Digest | None:
    try:
        return parse_digest(text)
    except InvalidNameError:
        return None


def _is_known_form(body: bytes) -> bool:
    """Whether a registry of the kinds that are known may have accepted this: a JSON object of no other media type."""
    try:
        document = json.loads(_text(body), parse_int=_integer)
    except RecursionError:
        return True
    except ValueError:
        return False
    said = document.get("mediaType") if isinstance(document, dict) else None
    return isinstance(document, dict) and (not isinstance(said, str) or said in {"", *MANIFEST_KINDS})


def _integer(text: str) -> int | None:
    """Python refuses numbers of thousands of digits; Go takes them wherever it does not need them."""
    return int(text) if len(text) < 25 else None


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
    if isinstance(said, str) and said:
        raise MalformedManifestError(f"The manifest is of the media type {said[:100]!r}, which Baleen does not know.")
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
