"""Read what a manifest lists: its config, its layers, its child manifests.

Route: `read_manifest(bytes)` accepts whatever a registry may have accepted; `parse_manifest(bytes)` gives the exact
list or an error.

Registries in Go accept manifests that `parse_manifest` refuses: names in other letter case, a name twice, values nested
thousands deep, digests of other algorithms. Everything that such a manifest can need is named in its bytes, since a
registry stores nothing else of it. So `read_manifest` then gives every string in the bytes that is a digest: at least
what the manifest lists. It reports if even that may be incomplete; then the links of the repository decide
(coordinator/reconcile/link_keeper.py).

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
    #: Every digest in the manifest's bytes, in any place: at least what it lists, in any role.
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


#: The fields that have each kind's list.
_LISTS = {
    ManifestKind.IMAGE: frozenset({"layers"}),
    ManifestKind.INDEX: frozenset({"manifests"}),
    ManifestKind.LAYERS: frozenset({"fsLayers", "blobs"}),
}
#: Kinds of manifests that may list other manifests.
PARENTS = (ManifestKind.INDEX, ManifestKind.NAMED)
_ALL_LISTS = frozenset[str]().union(*_LISTS.values())


class Reference(NamedTuple):
    """One entry of a manifest; `size` in bytes as the manifest states it, None if it does not."""

    digest: Digest
    size: int | None


class ManifestContent(NamedTuple):
    """What a manifest lists, in its order, each digest once."""

    kind: ManifestKind
    references: tuple[Reference, ...]


#: The field names that Baleen reads, by their case-folded form: Go ignores case in names.
_NAMES = {
    name.casefold(): name
    for name in ("mediaType", "config", "layers", "manifests", "fsLayers", "blobs", "digest", "blobSum", "size")
}


class MalformedManifestError(BaleenError):
    """The bytes are not a manifest that can be read exactly."""


class ManifestNeeds(NamedTuple):
    """What a manifest can need, read from its own bytes."""

    content: ManifestContent
    #: Why `content` is of kind NAMED, all that the bytes name; None where it is the exact list.
    why: str | None = None
    #: Digests of other algorithms in the bytes, as they are written there.
    others: tuple[str, ...] = ()
    #: The bytes name all that the manifest can need. False for bytes that no known registry accepts as a manifest.
    complete: bool = True


def reference_kind(kind: ManifestKind, position: int) -> ReferenceKind:
    """Return the kind of the reference at a position (from 0) in a manifest of this kind."""
    if kind is ManifestKind.INDEX:
        return ReferenceKind.CHILD
    return ReferenceKind.CONFIG if kind is ManifestKind.IMAGE and position == 0 else ReferenceKind.LAYER


def unique_references(references: Sequence[Reference]) -> tuple[Reference, ...]:
    """Keep the first of each digest: a layer listed twice is still one reference."""
    first: dict[Digest, Reference] = {}
    for reference in references:
        first.setdefault(reference.digest, reference)
    return tuple(first.values())


def parse_manifest(body: bytes, media_type: str | None = None) -> ManifestContent:
    """Parse a manifest's bytes into the exact list of its references.

    `media_type` comes from the registry; without it, the body's own `mediaType` or its shape decides.
    Raises MalformedManifestError with the reason.
    """
    try:
        document = json.loads(_decode_text(body), object_pairs_hook=_make_object, parse_int=_parse_integer)
    except (ValueError, RecursionError) as error:
        raise MalformedManifestError(f"The manifest is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise MalformedManifestError("The manifest is not a JSON object.")
    kind = MANIFEST_KINDS.get(media_type or "") or _kind_by_content(document)
    if not _LISTS[kind].issuperset(_ALL_LISTS.intersection(document)):
        # Distribution refuses these, too: a reader of one kind would miss what the other kind lists.
        raise MalformedManifestError("The manifest is of two kinds at once.")
    if kind is ManifestKind.INDEX and "manifests" not in document:
        raise MalformedManifestError("The manifest claims to be an index, and lists no manifests.")
    references = [_parse_reference(entry) for entry in _entries_of(kind, document)]
    if len(references) > REFERENCES_LIMIT:
        raise MalformedManifestError(f"The manifest lists more than {REFERENCES_LIMIT} references.")
    return ManifestContent(kind, unique_references(references))


def read_manifest(body: bytes) -> ManifestNeeds:
    """Read what a manifest lists or, if the exact list is not certain, every digest that its bytes name."""
    try:
        return ManifestNeeds(parse_manifest(body))
    except MalformedManifestError as error:
        why = str(error)
    digests: dict[Digest, None] = {}
    others: dict[str, None] = {}
    texts: set[str] = set()
    too_long = False
    for text in _find_strings(body):
        if (digest := _digest_or_none(text)) is not None:
            digests[digest] = None
        elif _OTHER_DIGEST.fullmatch(text):
            others[text] = None
            too_long = too_long or len(text) > _OTHER_LIMIT
        elif len(text) < _FORM_LIMIT:
            texts.add(text.casefold())
    references = tuple(Reference(digest, None) for digest in digests)
    complete = not too_long and _is_known_form(body) and not texts.isdisjoint(_FORMS)
    return ManifestNeeds(ManifestContent(ManifestKind.NAMED, references), why, tuple(others), complete)


def is_manifest(body: bytes) -> bool:
    """Whether a registry could serve these bytes as a manifest; True if that is not certain.

    Distribution accepts `schemaVersion` 1 or 2. Indexes list other content, too: BuildKit's caches list their layers.
    """
    try:
        # Objects as tuples, to see repeated names: Go ignores a later null, so the first value may count.
        document = json.loads(_decode_text(body), object_pairs_hook=tuple)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        return True
    if not isinstance(document, tuple):
        return False
    versions = [value for name, value in document if name.casefold() == "schemaversion"]
    return any(value in {1, 2} for value in versions if isinstance(value, int | float))


#: A digest of any algorithm, as the OCI image specification writes it ("Digests").
_OTHER_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]{32,}")
#: Characters of such a digest: a longer one is in no key of a store.
_OTHER_LIMIT = 200
#: A string of JSON, or the rest of the bytes if it does not end, so that the search is linear.
_STRING = re.compile(rb'"((?:[^"\\]++|\\.)*+)("|\\?\Z)', re.DOTALL)
#: The longest digest that is searched for, with each of its letters written as an escape.
_STRING_LIMIT = 6 * 300
_FORM_LIMIT = 32
#: Every manifest of a known kind has one of these names.
_FORMS = frozenset(name.casefold() for name in {"config", *_ALL_LISTS})


def _find_strings(body: bytes) -> Iterator[str]:
    """Give every string of a JSON text that may be a digest or a name, at any depth: only strings have quotes."""
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


def _digest_or_none(text: str) -> Digest | None:
    try:
        return parse_digest(text)
    except InvalidNameError:
        return None


def _is_known_form(body: bytes) -> bool:
    """Whether a known registry may have accepted this: a JSON object with no unknown media type."""
    try:
        document = json.loads(_decode_text(body), parse_int=_parse_integer)
    except RecursionError:
        return True
    except ValueError:
        return False
    media_type = document.get("mediaType") if isinstance(document, dict) else None
    return isinstance(document, dict) and (not isinstance(media_type, str) or media_type in {"", *MANIFEST_KINDS})


def _parse_integer(text: str) -> int | None:
    """Parse a number: Python refuses one with thousands of digits, and Go accepts it in fields that it ignores."""
    return int(text) if len(text) < 25 else None


def _decode_text(body: bytes) -> str:
    """Decode bytes as Go's JSON does: invalid UTF-8 becomes a replacement character, and is no error."""
    return body.decode(errors="replace")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse names that Go may read differently: it takes `Layers` for `layers`, and the last of two values."""
    document = dict(pairs)
    for name in document:
        if (spelled := _NAMES.get(name.casefold(), name)) != name:
            raise MalformedManifestError(f"The manifest has {name[:100]!r} for {spelled!r}.")
    if len(document) != len(pairs):
        raise MalformedManifestError("The manifest has a name twice.")
    return document


def _kind_by_content(document: dict[str, Any]) -> ManifestKind:
    media_type = document.get("mediaType")
    if isinstance(media_type, str) and (kind := MANIFEST_KINDS.get(media_type)) is not None:
        return kind
    if isinstance(media_type, str) and media_type:
        raise MalformedManifestError(
            f"The manifest is of the media type {media_type[:100]!r}, which Baleen does not know."
        )
    if "manifests" in document:
        return ManifestKind.INDEX
    if "config" in document:
        return ManifestKind.IMAGE
    if "fsLayers" in document or "blobs" in document:
        return ManifestKind.LAYERS
    raise MalformedManifestError("The manifest is of no known kind.")


def _entries_of(kind: ManifestKind, document: dict[str, Any]) -> list[Any]:
    if kind is ManifestKind.INDEX:
        return _list_in(document, "manifests")
    if kind is ManifestKind.IMAGE:
        return [document.get("config"), *_list_in(document, "layers")]
    # Schema 1 has the first list, an artifact the second: if a manifest has both, both count.
    sums = [
        {"digest": entry.get("blobSum")} if isinstance(entry, dict) else entry
        for entry in _list_in(document, "fsLayers")
    ]
    return sums + _list_in(document, "blobs")


def _list_in(document: dict[str, Any], name: str) -> list[Any]:
    # Go programs write an empty list as JSON null.
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedManifestError(f"The manifest's {name!r} is not a list.")
    return value


def _parse_reference(entry: Any) -> Reference:
    if not isinstance(entry, dict) or not isinstance(entry.get("digest"), str):
        raise MalformedManifestError("The manifest lists something without a digest.")
    try:
        digest = parse_digest(entry["digest"])
    except InvalidNameError as error:
        raise MalformedManifestError(f"The manifest lists a digest that Baleen cannot follow: {error}") from error
    size = entry.get("size")
    # JSON has true, and numbers of any length; the table has 64 bits.
    return Reference(digest, size if type(size) is int and 0 <= size < 2**63 else None)
