"""A real registry as a pod on the embedded store."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import httpx
import pytest

from coordinator.stack.distribution import DistributionRegistry, Notifications, Storage
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import StackEndpoints
from tests.services.s3 import s3_storage

pytestmark = pytest.mark.registry
LAYER = b"the bytes of a layer" * 1000
DIGEST = "sha256:" + hashlib.sha256(LAYER).hexdigest()


def test_a_blob_that_one_pod_stored_is_served_by_another(
    embedded_stack: StackEndpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two registries on one bucket and root share uploads and links; neither leaks a secret by its repr."""
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/bundle.pem")  # makes the program panic if it gets it
    ports = Ports(tmp_path / "ports.json", "127.0.0.1")
    storage = s3_storage(embedded_stack, "test-distribution")
    events = Notifications(url="http://127.0.0.1:9/v1/events/pod-a", token="event-token-value")
    pods = [
        DistributionRegistry(
            name=name,
            directory=tmp_path / name,
            port=ports.take(name),
            storage=storage,
            http_secret="the-shared-secret",
            notifications=events,
        )
        for name in ("pod-a", "pod-b")
    ]
    running = [pod.process().start() for pod in pods]
    try:
        with httpx.Client(base_url=pods[0].url, timeout=10) as first, httpx.Client(timeout=10) as second:
            started = first.post("/v2/team/app/blobs/uploads/")
            assert started.status_code == 202
            # A session that one pod began is finished on the other: they share http.secret.
            session = f"{pods[1].url}{started.headers['Location']}&digest={DIGEST}"
            done = second.put(session, content=LAYER)
            assert done.status_code == 201
            assert first.get(f"/v2/team/app/blobs/{DIGEST}").content == LAYER
            assert first.delete(f"/v2/team/app/blobs/{DIGEST}").status_code == 202
    finally:
        for process in running:
            process.stop()
    assert not any(process.is_alive() for process in running)
    assert stat.S_IMODE((tmp_path / "pod-a" / "pod-a.yml").stat().st_mode) == 0o600
    assert not any(
        secret in repr(pods) + repr(running)
        for secret in ("the-shared-secret", "event-token-value", storage.secret_key)
    )


def test_no_pod_caches_blob_descriptors(tmp_path: Path) -> None:
    """The configuration has no cache, which would serve a purged blob for ever."""
    storage = Storage(endpoint_url="https://s3.example", bucket="b", root="r", access_key="a", secret_key="s")
    pod = DistributionRegistry(name="p", directory=tmp_path, port=1, storage=storage, http_secret="h")
    kept = pod.configuration()["storage"]
    assert isinstance(kept, dict)
    assert "cache" not in kept
    assert kept["s3"]["rootdirectory"] == "/r"
    assert kept["s3"]["secure"] is True
