"""OCI artifacts, such as signatures and SBOMs, to push to a registry."""

import hashlib
import json

from coordinator.registry.images import OCI, Descriptor, Image, Layer


def make_artifact(
    seed: str,
    *,
    subject: Descriptor | None = None,
    artifact_type: str = "application/vnd.example.signature",
    size: int = 100,
) -> Image:
    """Make an artifact: one plain blob, the empty configuration, a `subject`."""
    content = Layer(hashlib.shake_256(seed.encode()).digest(size), "application/octet-stream")
    config = Layer(b"{}", "application/vnd.oci.empty.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI.manifest,
        "config": config.descriptor,
        "layers": [content.descriptor],
        "artifactType": artifact_type,
    }
    if subject is not None:
        manifest["subject"] = {name: subject[name] for name in ("mediaType", "size", "digest")}
    return Image(json.dumps(manifest, separators=(",", ":")).encode(), OCI.manifest, config, (content,))
