"""Make the pushes that every measurement in this folder uses: a CI system that builds images all day.

Each manifest lists ten blobs: a new configuration and two new layers, and seven layers
out of 2 000 base layers of which few are popular and most are rare. One of 20 000 repositories holds it,
drawn evenly. The same seed gives the same pushes on every machine.

Route: `make_manifests` -> `make_envelope_event` (a registry's notification) or `manifest_bytes` (a client's upload)
Not here: time, Kafka, databases. Digests are random bytes, not hashes of `manifest_bytes`.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple

REPOSITORIES = 20_000
APPS_PER_TEAM = 100
BASE_LAYERS = 2_000
BASE_LAYERS_PER_MANIFEST = 7
REFERENCES_PER_MANIFEST = BASE_LAYERS_PER_MANIFEST + 3

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

Reference = tuple[bytes, int]
"""Digest and size."""


class Manifest(NamedTuple):
    """One push. `references[0]` is the configuration, the rest are layers."""

    repository: str
    digest: bytes
    size: int
    references: tuple[Reference, ...]

    @property
    def tag(self) -> str:
        """A new tag for each build, as CI tags by commit."""
        return self.digest[:4].hex()


def make_manifests(seed: int, count: int, pods: int = 4) -> Iterator[Manifest]:
    """Yield `count` manifests; the first n of a longer run are the n of a shorter one."""
    rng = Random(seed)
    names = make_repositories(pods)
    base = [(rng.randbytes(32), rng.randrange(10_000_000, 100_000_000)) for _ in range(BASE_LAYERS)]
    draw, randbytes, number = rng.random, rng.randbytes, int.from_bytes
    for _ in range(count):
        raw = randbytes(140)
        # The number of digits of each size is fixed, so that every payload has the same length.
        references = [
            (raw[32:64], 1_000 + number(raw[128:130]) % 9_000),
            (raw[64:96], 1_000_000 + number(raw[130:133]) % 9_000_000),
            (raw[96:128], 1_000_000 + number(raw[133:136]) % 9_000_000),
        ]
        picks: set[int] = set()
        while len(picks) < BASE_LAYERS_PER_MANIFEST:
            x = draw()
            picks.add(int(BASE_LAYERS * x * x * x))  # the cube: a tenth of the layers gets nearly half of the uses
        references[1:1] = [base[pick] for pick in picks]
        yield Manifest(names[number(raw[136:140]) % REPOSITORIES], raw[:32], PAYLOAD_BYTES, tuple(references))


def make_pod_names(pods: int) -> list[str]:
    """`pod-a`, `pod-b`, …: each is also the repository prefix that the pod owns."""
    if not 1 <= pods <= 26:
        raise ValueError("Ask for 1 to 26 pods: each is named by one letter.")
    return [f"pod-{chr(ord('a') + n)}" for n in range(pods)]


def make_repositories(pods: int) -> list[str]:
    """All repository names; a team lives in one pod."""
    names = make_pod_names(pods)
    return [
        f"{names[team % pods]}/team-{team}/app-{app}"
        for team in range(REPOSITORIES // APPS_PER_TEAM)
        for app in range(APPS_PER_TEAM)
    ]


def make_envelope_event(manifest: Manifest, timestamp: datetime, instance_id: str) -> dict[str, Any]:
    """The push event that distribution puts into its notification envelope for this manifest.

    Its id follows from the digest, so the same manifest given twice is a repeated delivery.
    """
    name, digest = manifest.repository, f"sha256:{manifest.digest.hex()}"
    unique = manifest.digest.hex()
    time = timestamp.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    return {
        "id": _make_uuid(unique),
        "timestamp": f"{time}000Z",
        "action": "push",
        "target": {
            "mediaType": MANIFEST_TYPE,
            "size": manifest.size,
            "digest": digest,
            "length": manifest.size,
            "repository": name,
            "url": f"/v2/{name}/manifests/{digest}",
            "tag": manifest.tag,
            "references": descriptors(manifest),
        },
        "request": {
            "id": _make_uuid(unique[32:]),
            "addr": "127.0.0.1:36676",
            "host": "127.0.0.1:5001",
            "method": "PUT",
            "useragent": "skopeo/1.18.0",
        },
        "actor": {},
        "source": {"addr": "registry:5001", "instanceID": instance_id},
    }


def descriptors(manifest: Manifest) -> list[dict[str, Any]]:
    """The references as OCI descriptors, the configuration first."""
    found = [
        {"mediaType": LAYER_TYPE, "size": size, "digest": f"sha256:{digest.hex()}"}
        for digest, size in manifest.references
    ]
    found[0]["mediaType"] = CONFIG_TYPE
    return found


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest's own JSON, as a client would upload it."""
    config, *layers = descriptors(manifest)
    document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    return json.dumps(document, separators=(",", ":")).encode()


def _make_uuid(text: str) -> str:
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:32]}"


def _payload_bytes() -> int:
    blank, base = bytes(32), [(bytes(32), 10_000_000)] * BASE_LAYERS_PER_MANIFEST
    new = [(blank, 1_000_000)] * 2
    return len(manifest_bytes(Manifest("", blank, 0, ((blank, 1_000), *base, *new))))


PAYLOAD_BYTES = _payload_bytes()
