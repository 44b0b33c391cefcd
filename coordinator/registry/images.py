"""Build container images in memory, without a network and without a container engine.

Route: make_layer -> make_image -> make_index -> RegistryClient.push_image
Invariant: the same seed and sizes give the same digests in every process (with one version of zlib).
Not here: pushing (client.py); choosing which images a demonstration or a test needs.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Descriptor = dict[str, Any]


def sha256_digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class ImageFormat:
    """The media types of one family of images."""

    manifest: str
    index: str
    config: str
    layer: str


OCI = ImageFormat(
    manifest="application/vnd.oci.image.manifest.v1+json",
    index="application/vnd.oci.image.index.v1+json",
    config="application/vnd.oci.image.config.v1+json",
    layer="application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER = ImageFormat(
    manifest="application/vnd.docker.distribution.manifest.v2+json",
    index="application/vnd.docker.distribution.manifest.list.v2+json",
    config="application/vnd.docker.container.image.v1+json",
    layer="application/vnd.docker.image.rootfs.diff.tar.gzip",
)


@dataclass(frozen=True)
class Layer:
    """One blob with its media type: a layer, or an image's configuration."""

    content: bytes = field(repr=False)
    media_type: str
    diff_id: str = ""  # digest of the uncompressed tar, which an image's configuration lists

    @cached_property
    def digest(self) -> str:
        return sha256_digest(self.content)

    @property
    def descriptor(self) -> Descriptor:
        return {"mediaType": self.media_type, "size": len(self.content), "digest": self.digest}

    def with_media_type(self, media_type: str) -> "Layer":
        """Return the same bytes, and so the same digest, with the media type of another format."""
        return Layer(self.content, media_type, self.diff_id)


@dataclass(frozen=True)
class Image:
    """A manifest of one platform: `content` is the manifest's exact bytes."""

    content: bytes = field(repr=False)
    media_type: str
    config: Layer
    layers: tuple[Layer, ...]
    platform: dict[str, str] | None = None

    @cached_property
    def digest(self) -> str:
        return sha256_digest(self.content)

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """The blobs that must be in the repository before the manifest: layers first, as clients push them."""
        return (*self.layers, self.config)

    @property
    def descriptor(self) -> Descriptor:
        plain: Descriptor = {"mediaType": self.media_type, "size": len(self.content), "digest": self.digest}
        return plain | ({"platform": self.platform} if self.platform else {})


@dataclass(frozen=True)
class Index:
    """An OCI index or a docker manifest list: `content` is its exact bytes."""

    content: bytes = field(repr=False)
    media_type: str
    manifests: tuple["Image | Index", ...]

    @cached_property
    def digest(self) -> str:
        return sha256_digest(self.content)

    @property
    def descriptor(self) -> Descriptor:
        return {"mediaType": self.media_type, "size": len(self.content), "digest": self.digest}


def make_layer(seed: str, size: int = 2_000, kind: ImageFormat = OCI) -> Layer:
    """Make a gzipped tar of one file of `size` bytes that do not compress, all derived from the seed."""
    content = hashlib.shake_256(seed.encode()).digest(size)
    entry = tarfile.TarInfo("bin/" + hashlib.sha256(seed.encode()).hexdigest()[:12])
    entry.size, entry.mode = size, 0o755
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(content))
    raw = buffer.getvalue()
    return Layer(gzip.compress(raw, 1, mtime=0), kind.layer, sha256_digest(raw))


def make_image(
    seed: str,
    layers: Sequence[Layer] | None = None,
    *,
    sizes: Sequence[int] = (2_000, 500),
    kind: ImageFormat = OCI,
    architecture: str = "amd64",
) -> Image:
    """Make an image of the given layers, or of new ones of `sizes`; the seed is in its configuration."""
    if layers is None:
        layers = [make_layer(f"{seed}/{number}", size, kind) for number, size in enumerate(sizes)]
    typed = tuple(layer.with_media_type(kind.layer) for layer in layers)
    platform = {"architecture": architecture, "os": "linux"}
    configuration = {
        "created": "2024-01-01T00:00:00Z",
        **platform,
        "config": {"Cmd": ["/bin/app"], "Labels": {"seed": seed}},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in typed]},
        "history": [{"created_by": "make_image"} for _ in typed],
    }
    config = Layer(_encode_json(configuration), kind.config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind.manifest,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in typed],
    }
    return Image(_encode_json(manifest), kind.manifest, config, typed, platform)


def make_index(manifests: Sequence[Image | Index], kind: ImageFormat = OCI) -> Index:
    content = {
        "schemaVersion": 2,
        "mediaType": kind.index,
        "manifests": [manifest.descriptor for manifest in manifests],
    }
    return Index(_encode_json(content), kind.index, tuple(manifests))


def _encode_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
