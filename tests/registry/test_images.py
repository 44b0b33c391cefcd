"""The images that demonstrations and tests push."""

import gzip
import io
import json
import tarfile

from coordinator.registry.images import DOCKER, OCI, make_image, make_index, make_layer, sha256_digest
from tests.support.artifacts import make_artifact


def test_same_seed_same_bytes() -> None:
    """The same seed gives the same digests, another seed others."""
    assert make_image("app") == make_image("app")
    assert make_image("app").digest != make_image("other").digest
    assert make_image("app").layers[0].digest != make_image("app").layers[1].digest


def test_layer_is_a_tar_of_the_given_size() -> None:
    """A layer unpacks to one file of the given size, and its diff_id is the digest of the tar."""
    layer = make_layer("base", 12_345)
    raw = gzip.decompress(layer.content)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        (entry,) = tar.getmembers()
    assert entry.size == 12_345
    assert layer.diff_id == sha256_digest(raw)
    assert len(layer.content) >= 12_345  # it does not compress: sizes mean what they say


def test_manifest_lists_its_blobs() -> None:
    """A manifest lists the configuration and the layers with the media types of its format."""
    for kind in (OCI, DOCKER):
        base = make_layer("base", 1_000)
        image = make_image("app", [base, make_layer("app")], kind=kind)
        manifest = json.loads(image.content)
        assert manifest["mediaType"] == kind.manifest
        assert manifest["config"] == image.config.descriptor
        assert manifest["layers"] == [layer.descriptor for layer in image.layers]
        assert image.layers[0].digest == base.digest
        assert {layer.media_type for layer in image.layers} == {kind.layer}
        assert json.loads(image.config.content)["rootfs"]["diff_ids"] == [layer.diff_id for layer in image.layers]


def test_index_lists_platforms() -> None:
    """An index lists its manifests with their platforms."""
    children = [make_image("app", architecture=name) for name in ("amd64", "arm64")]
    listed = json.loads(make_index(children).content)["manifests"]
    assert [entry["digest"] for entry in listed] == [child.digest for child in children]
    assert [entry["platform"]["architecture"] for entry in listed] == ["amd64", "arm64"]


def test_artifact_has_a_subject() -> None:
    """An artifact names its subject by a plain descriptor."""
    image = make_image("app")
    manifest = json.loads(make_artifact("signature", subject=image.descriptor).content)
    assert manifest["subject"] == {
        "mediaType": image.media_type,
        "size": len(image.content),
        "digest": image.digest,
    }
