"""Read a manifest as CNCF distribution 2.8 reads it, for the model registry.

Not taken from `coordinator.domain.references`, because that is tested against this model.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from coordinator.domain.names import parse_digest
from coordinator.errors import InvalidNameError
from coordinator.stack.model_storage import digest_of

IMAGE_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
REFERENCE_FIELDS = ("mediaType", "size", "digest", "urls", "annotations")


class NotAManifestError(ValueError):
    """The bytes are not a manifest that distribution 2.8 accepts."""


@dataclass(frozen=True)
class ModelManifest:
    content: bytes
    digest: str
    media_type: str
    is_index: bool
    references: list[dict[str, Any]]  # what it needs, in the order of the events; a `subject` is not needed

    @classmethod
    def parse(cls, content: bytes) -> Self:
        try:
            manifest = json.loads(content)
            is_index = "manifests" in manifest
            listed = manifest["manifests"] if is_index else [manifest["config"], *manifest["layers"]]
            references = [drop_empty({name: each.get(name) for name in REFERENCE_FIELDS}) for each in listed]
            for reference in references:
                parse_digest(reference["digest"])
        except (ValueError, LookupError, TypeError, AttributeError, InvalidNameError) as error:
            raise NotAManifestError from error
        known = INDEX_TYPES if is_index else IMAGE_TYPES
        media_type = manifest.get("mediaType") or known[0]
        if manifest.get("schemaVersion") != 2 or media_type not in known:
            raise NotAManifestError
        return cls(content, digest_of(content), media_type, is_index, references)


def drop_empty(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is zero or empty, as Go's `omitempty` does: an empty blob's event has no size."""
    return {name: value for name, value in fields.items() if value}
