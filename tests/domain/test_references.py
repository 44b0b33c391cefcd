"""What a manifest lists, read from its bytes."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.domain.names import Digest, format_digest
from coordinator.domain.references import (
    MANIFEST_KINDS,
    REFERENCES_LIMIT,
    MalformedManifestError,
    ManifestContent,
    ManifestKind,
    Reference,
    ReferenceKind,
    parse_manifest,
    reference_kind,
    unique_references,
)

OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
A, B, C = (Digest(bytes([n]) * 32) for n in (1, 2, 3))


def descriptor(digest: Digest, size: Any = 5) -> dict[str, Any]:
    return {"mediaType": "a/b", "size": size, "digest": format_digest(digest)}


def parsed(document: Any, media_type: str | None = None) -> ManifestContent:
    return parse_manifest(json.dumps(document).encode(), media_type)


IMAGE = {"schemaVersion": 2, "config": descriptor(A), "layers": [descriptor(B), descriptor(C)]}
LIST = {"schemaVersion": 2, "manifests": [descriptor(A), descriptor(B)]}
FS_LAYERS = {"schemaVersion": 1, "fsLayers": [{"blobSum": format_digest(A)}, {"blobSum": format_digest(B)}]}
BLOBS = {"blobs": [descriptor(A)]}


@pytest.mark.parametrize(
    ("document", "media_type", "kind", "listed"),
    [
        (IMAGE, OCI_IMAGE, ManifestKind.IMAGE, [A, B, C]),
        (IMAGE, DOCKER_IMAGE, ManifestKind.IMAGE, [A, B, C]),
        (IMAGE, None, ManifestKind.IMAGE, [A, B, C]),
        (IMAGE | {"mediaType": DOCKER_IMAGE}, None, ManifestKind.IMAGE, [A, B, C]),
        (IMAGE | {"subject": descriptor(Digest(bytes(32)))}, OCI_IMAGE, ManifestKind.IMAGE, [A, B, C]),
        (IMAGE | {"layers": None}, OCI_IMAGE, ManifestKind.IMAGE, [A]),
        (IMAGE | {"layers": [descriptor(B), descriptor(B), descriptor(A)]}, OCI_IMAGE, ManifestKind.IMAGE, [A, B]),
        (LIST, OCI_INDEX, ManifestKind.INDEX, [A, B]),
        (LIST, DOCKER_LIST, ManifestKind.INDEX, [A, B]),
        (LIST, None, ManifestKind.INDEX, [A, B]),
        (LIST | {"mediaType": OCI_INDEX}, "application/json", ManifestKind.INDEX, [A, B]),
        ({"manifests": []}, OCI_INDEX, ManifestKind.INDEX, []),
        ({"manifests": None}, OCI_INDEX, ManifestKind.INDEX, []),
        (FS_LAYERS, SCHEMA_1, ManifestKind.LAYERS, [A, B]),
        (FS_LAYERS, None, ManifestKind.LAYERS, [A, B]),
        (BLOBS | {"subject": descriptor(B)}, ARTIFACT, ManifestKind.LAYERS, [A]),
        (BLOBS, None, ManifestKind.LAYERS, [A]),
        (BLOBS | {"fsLayers": None}, ARTIFACT, ManifestKind.LAYERS, [A]),
        (FS_LAYERS | {"blobs": [descriptor(C)]}, ARTIFACT, ManifestKind.LAYERS, [A, B, C]),
        (FS_LAYERS | {"blobs": [descriptor(C)]}, SCHEMA_1, ManifestKind.LAYERS, [A, B, C]),
    ],
)
def test_lists(document: Any, media_type: str | None, kind: ManifestKind, listed: list[Digest]) -> None:
    """Each kind of manifest lists its references, each digest once, in order; a subject is none of them."""
    content = parsed(document, media_type)
    assert content.kind is kind
    assert [reference.digest for reference in content.references] == listed


@pytest.mark.parametrize(
    ("size", "read"),
    [
        (5, 5),
        (0, 0),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        (-1, None),
        (1.5, None),
        ("5", None),
        (True, None),
        (None, None),
    ],
)
def test_size(size: Any, read: int | None) -> None:
    """A size that the table cannot hold counts as unknown."""
    assert parsed(LIST | {"manifests": [descriptor(A, size)]}).references == (Reference(A, read),)


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ([], None),
        ("x", None),
        (None, OCI_IMAGE),
        ({}, None),
        ({}, OCI_IMAGE),
        ({}, OCI_INDEX),
        ({"mediaType": ["x"]}, None),
        ({"config": None}, OCI_IMAGE),
        ({"config": {}}, OCI_IMAGE),
        (IMAGE | {"layers": {}}, OCI_IMAGE),
        (IMAGE | {"layers": ["x"]}, OCI_IMAGE),
        (IMAGE | {"layers": [{"digest": 5}]}, OCI_IMAGE),
        (IMAGE | {"layers": [{"digest": "sha512:" + "a" * 128}]}, OCI_IMAGE),
        (IMAGE | {"layers": [{"digest": "\ud800"}]}, OCI_IMAGE),
        ({"fsLayers": [{"digest": format_digest(A)}]}, SCHEMA_1),
        ({"fsLayers": ["x"]}, SCHEMA_1),
        # Read as one kind, these would lose what they list as the other.
        (IMAGE, OCI_INDEX),
        (IMAGE | LIST, OCI_IMAGE),
        (IMAGE | LIST, OCI_INDEX),
        (IMAGE | LIST, None),
        (LIST, SCHEMA_1),
        (IMAGE | FS_LAYERS, SCHEMA_1),
    ],
)
def test_malformed(document: Any, media_type: str | None) -> None:
    """A document that is no manifest, or lists wrong digests, is refused with a message that can be stored."""
    with pytest.raises(MalformedManifestError) as refused:
        parsed(document, media_type)
    str(refused.value).encode()


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (b'"layers"', b'"Layers"'),
        (b'"layers"', b'"layers":[],"LAYERS"'),
        (b'"layers"', b'"layers":[],"layers"'),
        (b'"layers"', b'"layer\xc5\xbf"'),
        (b'"digest"', b'"Digest"'),
        (b'"config"', b'"CONFIG"'),
    ],
)
def test_names_that_go_reads_otherwise(written: bytes, instead: bytes) -> None:
    """A manifest whose names Go, and so a registry, reads differently than JSON says is refused."""
    body = json.dumps(IMAGE, separators=(",", ":")).encode()
    assert written in body
    with pytest.raises(MalformedManifestError):
        parse_manifest(body.replace(written, instead))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"\x00", b"[" * 100_000, b'{"a":' * 100_000, b'{"size":' + b"9" * 5000]
)
def test_no_json(body: bytes) -> None:
    """Bytes that are no JSON, or are nested too deeply, are refused."""
    with pytest.raises(MalformedManifestError):
        parse_manifest(body)


def test_too_many() -> None:
    """A manifest with more references than the limit is refused, even if digests are repeated."""
    layers = [descriptor(Digest(number.to_bytes(32))) for number in range(REFERENCES_LIMIT - 1)]
    assert len(parsed(IMAGE | {"layers": layers}).references) == REFERENCES_LIMIT
    with pytest.raises(MalformedManifestError, match=str(REFERENCES_LIMIT)):
        parsed(IMAGE | {"layers": [*layers, layers[0]]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(format_digest(A)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["digest", "size", "blobSum", "mediaType"]) | st.text(max_size=3), inner, max_size=4
        )
    ),
    max_leaves=12,
)
keys = st.sampled_from(["mediaType", "config", "layers", "manifests", "fsLayers", "blobs", "subject", "schemaVersion"])
types = st.none() | st.sampled_from(sorted(MANIFEST_KINDS)) | st.text(max_size=5)


@given(st.dictionaries(keys, json_values, max_size=6) | json_values, types)
@example({"mediaType": {"a": [1]}}, None)
def test_any_document(document: Any, media_type: str | None) -> None:
    """Any JSON is read or refused; what is read has each digest once and only sizes that can be stored."""
    with contextlib.suppress(MalformedManifestError):
        content = parsed(document, media_type)
        assert len({reference.digest for reference in content.references}) == len(content.references)
        assert all(r.size is None or 0 <= r.size < 2**63 for r in content.references)


@given(st.binary(max_size=200), types)
def test_any_bytes(body: bytes, media_type: str | None) -> None:
    """Any bytes are read or refused, never anything else."""
    with contextlib.suppress(MalformedManifestError):
        parse_manifest(body, media_type)


@pytest.mark.parametrize("depth", [50, 500, 900, 990, 2000])
def test_nested(depth: int) -> None:
    """A document of any nesting depth is read or refused."""
    nested = b"[" * depth + b"]" * depth
    for name in (b"mediaType", b"config", b"layers", b"manifests"):
        with contextlib.suppress(MalformedManifestError):
            parse_manifest(b'{"manifests": [], "' + name + b'": ' + nested + b"}")


@given(st.lists(st.sampled_from([A, B, C])), st.integers(0, 9))
def test_unique(digests: list[Digest], size: int) -> None:
    """Of each digest the first is kept, in order."""
    kept = unique_references([Reference(digest, size + n) for n, digest in enumerate(digests)])
    assert [reference.digest for reference in kept] == list(dict.fromkeys(digests))
    assert all(reference.size == size + digests.index(reference.digest) for reference in kept)


def test_kinds_of_references() -> None:
    """An image's first reference is its config, an index lists children, all else are layers."""
    assert [reference_kind(ManifestKind.IMAGE, n) for n in (0, 1)] == [ReferenceKind.CONFIG, ReferenceKind.LAYER]
    assert [reference_kind(ManifestKind.INDEX, n) for n in (0, 1)] == [ReferenceKind.CHILD, ReferenceKind.CHILD]
    assert [reference_kind(ManifestKind.LAYERS, n) for n in (0, 1)] == [ReferenceKind.LAYER, ReferenceKind.LAYER]
