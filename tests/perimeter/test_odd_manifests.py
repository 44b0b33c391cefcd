"""Unusual manifests that registries accept: none blocks GC, and none loses a layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from coordinator.stack.distribution import DistributionRegistry
from tests.conftest import temporary_directory
from tests.registries.harness import Baleen
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def baleen() -> Iterator[Baleen]:
    with temporary_directory() as directory, Baleen.started(directory) as running:
        yield running


class Client:
    """Plain HTTP: what no tool would push."""

    def __init__(self, url: str, repository: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=120, trust_env=False)
        self._base = f"/v2/{repository}"

    def upload(self, body: bytes, algorithm: str = "sha256") -> str:
        digest = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
        location = httpx.URL(self._http.post(f"{self._base}/blobs/uploads/").headers["location"])
        answer = self._http.put(location.copy_merge_params({"digest": digest}), content=body)
        assert answer.status_code == 201, answer.text
        return digest

    def push(self, body: bytes, tag: str, media_type: str = IMAGE) -> str:
        answer = self._http.put(f"{self._base}/manifests/{tag}", content=body, headers={"content-type": media_type})
        assert answer.status_code == 201, answer.text
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def unlink(self, digest: str) -> None:
        assert self._http.delete(f"{self._base}/blobs/{digest}").status_code == 202

    def pulls(self, digest: str) -> bool:
        return self._http.get(f"{self._base}/blobs/{digest}").status_code == 200


def image(config: str, *layers: str, size: Any = 3, more: str = "") -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": {"mediaType": "a/b", "digest": config, "size": 2},
        "layers": [{"mediaType": "a/b", "digest": layer, "size": size} for layer in layers],
    }
    return (json.dumps(document)[:-1] + more + "}").encode()


def test_odd_manifests_block_nothing_and_keep_their_layers(baleen: Baleen) -> None:
    """Attempt 14: none of these pushes blocks GC, and each of their layers counts as needed."""
    pod = baleen.add_pod("odd")
    registry = baleen.registry(DistributionRegistry, pod)
    client = Client(registry.url, "odd/app")
    needed: list[str] = []

    def layer(name: str) -> str:
        digest = client.upload(name.encode())
        needed.append(digest)
        return digest

    config = client.upload(b"{}")
    client.push(image(config, layer("negative"), size=-1), "negative")
    client.push(image(config, layer("huge"), size=2**63 - 1), "huge")
    client.push(image(config, layer("deep"), more=', "x": ' + "[" * 9000 + "]" * 9000), "deep")
    client.push(image(config, layer("long number"), more=', "x": ' + "1" * 5000), "number")
    client.push(image(config, layer("twice")).replace(b'"layers"', b'"layers": [], "layers"'), "twice")
    client.push(image(config, layer("escaped")).replace(b"sha256:", b"\\u0073ha256:"), "escaped")
    # Of each of these letters a registry makes six bytes: the event has 23 MB.
    client.push(image(config, layer("large")).replace(b'"a/b"', b'"' + b"<" * 1_900_000 + b'"'), "large")
    client.push(b'{"schemaVersion": 2, "mediaType": "%s", "Manifests": []}' % INDEX.encode(), "empty", INDEX)
    child = image(config, layer("child"))
    client.push(child, "child")
    entry = {"mediaType": IMAGE, "size": len(child), "digest": f"sha256:{hashlib.sha256(child).hexdigest()}"}
    odd_index = {"schemaVersion": 2, "mediaType": INDEX, "Manifests": [entry]}
    client.push(json.dumps(odd_index).encode(), "index", INDEX)
    by_512 = client.upload(b"by another name", "sha512")
    needed.append(f"sha256:{hashlib.sha256(b'by another name').hexdigest()}")
    client.push(image(config, by_512), "sha512")
    gone = client.upload(b"its name goes", "sha512")
    needed.append(f"sha256:{hashlib.sha256(b'its name goes').hexdigest()}")
    client.push(image(config, gone), "gone")
    client.unlink(gone)

    def resolved() -> bool:
        found = baleen.rows("SELECT count(*) FROM repository_manifests h WHERE h.links_pending")
        return found == [(0,)] and baleen.status().get("unread_manifests") == 0

    eventually(lambda: len(baleen.holdings()) >= 12, why=baleen.holdings)
    baleen.await_applied()
    eventually(resolved, why=baleen.status)
    assert baleen.dead_letters() == []
    # What an upload counts for runs out: only what is kept, and what manifests need, is left.
    baleen.rows("DELETE FROM repository_blobs WHERE NOT kept RETURNING 1")
    for digest in needed:
        counted = baleen.rows(
            "SELECT b.reference_count + (SELECT count(*) FROM repository_blobs l WHERE l.blob_id = b.id) FROM blobs b"
            " WHERE b.digest = decode(%s, 'hex')",
            digest.removeprefix("sha256:"),
        )
        assert counted[0][0] > 0, digest
        assert client.pulls(digest)


def test_a_false_report_is_corrected_by_the_next_reconcile(baleen: Baleen) -> None:
    """Attempt 16: references that a pod invents for another pod's manifest go with the next reconcile of its holder."""
    pod, liar = baleen.add_pod("honest"), baleen.add_pod("liar")
    registry = baleen.registry(DistributionRegistry, pod)
    client = Client(registry.url, "honest/app")
    config, layer = client.upload(b"{}"), client.upload(b"honest layer")
    body = image(config, layer)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    invented = [f"sha256:{number:064x}" for number in range(1, 1001)]
    target = {"mediaType": IMAGE, "digest": digest, "repository": "liar/x", "size": 7}
    event = {"id": "lie", "action": "push", "timestamp": "2026-11-01T00:00:00Z", "target": target}
    target["references"] = [{"mediaType": "a/b", "digest": each, "size": 1} for each in invented]  # type: ignore[assignment]
    baleen.post(liar, event)
    client.push(body, "v1")
    eventually(lambda: baleen.holds("honest/app", digest), why=baleen.holdings)
    baleen.await_applied()
    baleen.reconcile(pod)

    def listed() -> int:
        found = baleen.rows(
            "SELECT cardinality(m.refs) FROM manifests m JOIN blobs b USING (id) WHERE b.digest = decode(%s, 'hex')",
            digest.removeprefix("sha256:"),
        )
        return int(found[0][0])

    assert listed() == 2
    assert baleen.rows("SELECT p.name, f.count FROM false_reports f JOIN pods p ON p.id = f.pod_id") == [("liar", 1)]
    baleen.post(liar, event | {"id": "again"})
    baleen.await_applied()
    assert listed() == 2
    assert baleen.blob(invented[0])["reference_count"] == 0
