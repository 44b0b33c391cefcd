"""Leftovers of a real registry are deleted, and the registry works on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from coordinator.gc.leftovers import LeftoverKind
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Storage
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.gc.test_leftovers import Litter, of
from tests.services.databases import Databases

pytestmark = pytest.mark.registry
BOTH = pytest.mark.parametrize("store", ["s3", "s3-versioned"], indirect=True)


@pytest.fixture
def registry(store: S3ObjectStore, embedded_stack: StackEndpoints, tmp_path: Path) -> Iterator[httpx.Client]:
    """A registry on the store's bucket and root."""
    ports = Ports(tmp_path / "ports.json", "127.0.0.1")
    storage = Storage(
        endpoint_url=embedded_stack.s3_endpoint_url,
        bucket=store.bucket,
        root=store.root,
        access_key=embedded_stack.s3_access_key,
        secret_key=embedded_stack.s3_secret_key,
    )
    made = DistributionRegistry(
        name="leaves", directory=tmp_path, port=ports.take("leaves"), storage=storage, http_secret="a"
    )
    with Children() as children, httpx.Client(base_url=made.url, timeout=30, trust_env=False) as client:
        children.start(made.process())
        yield client


def begin(registry: httpx.Client, repository: str) -> str:
    answer = registry.post(f"/v2/{repository}/blobs/uploads/")
    assert answer.status_code == 202
    return answer.headers["Location"]


def upload(registry: httpx.Client, repository: str, body: bytes) -> str:
    """Push a blob in two pieces; returns its digest."""
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    half = len(body) // 2
    answer = registry.patch(begin(registry, repository), content=body[:half])
    assert answer.status_code == 202
    place = httpx.URL(answer.headers["Location"]).copy_merge_params({"digest": digest})
    answer = registry.put(place, content=body[half:])
    assert answer.status_code == 201
    return digest


@BOTH
def test_what_a_real_registry_leaves(store: S3ObjectStore, registry: httpx.Client, databases: Databases) -> None:
    """Unfinished sessions, open parts and noncurrent copies are deleted; blobs and later pushes are not affected."""
    with Litter(databases.migrated(), store) as litter:
        repository = litter.repository("r")
        bodies = [b"small", bytes(12 << 20)]
        digests = [upload(registry, repository, body) for body in bodies]
        begin(registry, repository)
        left = registry.patch(begin(registry, repository), content=bytes(11 << 20))
        assert left.status_code == 202
        done = litter.collect_as_planned()
        assert of(done, LeftoverKind.UPLOADS)["count"] == 2
        assert (of(done, LeftoverKind.VERSIONS)["bytes"] >= 12 << 20) == litter.versioned
        assert litter.states(f"{litter.path('r')}_uploads/") == []
        assert list(store.list_unfinished("")) == []
        # A client that goes on with an aborted upload is refused, and starts again.
        assert registry.patch(left.headers["Location"], content=b"more").status_code == 404
        for digest, body in zip(digests, bodies, strict=True):
            assert registry.get(f"/v2/{repository}/blobs/{digest}").content == body
        again = upload(registry, repository, b"again")
        assert registry.get(f"/v2/{repository}/blobs/{again}").content == b"again"
