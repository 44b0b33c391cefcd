"""Registries with caches, own collections and unusual manifests, and what manifests do not say of what they need.

Not here: whether the doctor finds out (tests/doctor), events that are late or lost (test_events_that_do_not_come.py).
"""

import datetime as dt
import json
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pytest
from msgspec.structs import replace as changed

from coordinator.compose import command as compose_command
from coordinator.compose import scheduler as compose_scheduler
from coordinator.db.connection import Connections
from coordinator.doctor.examine import examine
from coordinator.domain.findings import Check, Result
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import RepositoryName, parse_digest, parse_pod
from coordinator.reconcile.presence import Presence
from coordinator.registry.images import make_image, make_index, make_layer
from coordinator.settings import Secret
from coordinator.stack.distribution import DistributionRegistry
from coordinator.storage.layout import blob_key, layer_link_key
from coordinator.table import statements
from tests.doctor.harness import Caching, of
from tests.gc.harness import Garbage
from tests.registries.harness import HTTP_SECRET
from tests.registries.s3_proxy import Call, S3Proxy
from tests.scenarios.harness import KEYS, Stage
from tests.support.registries import collect_as_registry
from tests.support.wait import eventually


@pytest.mark.registry
@pytest.mark.parametrize("name", [b"Mueller", b"M\xfcller"], ids=["utf-8", "latin-1"])
def test_an_index_of_children_that_were_uploaded_as_blobs(stage: Stage, here: str, name: bytes) -> None:
    """A registry looks for the children of an index among its blobs, too: it takes the index, and serves the child that
    no event calls a manifest. Here what that child lists is needed as that of any other, also where its bytes are no
    UTF-8, which registries do not mind.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}"
    plain = make_image(here)
    child = replace(plain, content=plain.content[:-1] + b', "annotations": {"by": "' + name + b'"}}')
    index = make_index([child])
    for content in (*(blob.content for blob in child.blobs), child.content):
        client.push_blob(app, content)
    client.put_manifest(app, "v1", index.media_type, index.content)
    stage.await_held(stage.a, here, index)
    eventually(lambda: stage.holds(app, child.digest))
    stage.expire_links()
    stage.report()
    stage.collect()
    stage.report()
    stage.collect()
    assert client.get_manifest(app, child.digest).content == child.content
    assert all(client.get_blob(app, blob.digest) == blob.content for blob in child.blobs)
    client.delete_manifest(app, index.digest)
    client.delete_manifest(app, child.digest)
    eventually(lambda: not stage.holds(app, index.digest) and not stage.holds(app, child.digest))
    stage.expire_links()
    stage.purge(child.digest, *(blob.digest for blob in child.blobs))


@pytest.mark.registry
def test_scenario_10_a_manifest_of_bytes_that_are_gone(stage: Stage, here: str) -> None:
    """A manifest's push made rows of blobs whose bytes were gone, and the loss was hidden; here counts say nothing
    about bytes: what is missing stays so, whatever references it, until its bytes were seen in storage.
    """
    layer = make_layer(here, 20_000)
    first, second = (make_image(f"{here}/{name}", [layer]) for name in ("first", "second"))
    stage.push(stage.a, here, first)
    stage.b.webhook.away = True
    try:
        stage.b.client.push_image(f"{stage.b.name}/{here}", second, "v1")
        stage.store.delete(blob_key(parse_digest(layer.digest)))
        assert [each["digest"] for each in stage.audit().missing.examples] == [layer.digest]
    finally:
        stage.b.webhook.away = False
    stage.await_held(stage.b, here, second)
    assert stage.blob(layer.digest)["reference_count"] == 2
    assert stage.state(layer.digest) is BlobState.MISSING
    stage.report()
    stage.collect()
    assert stage.state(layer.digest) is BlobState.MISSING
    stage.a.client.push_image(f"{stage.a.name}/{here}", first, "v2")
    with compose_scheduler.open_audit(stage.settings) as parts:
        parts.presence.round()
    assert stage.state(layer.digest) is BlobState.LIVE
    assert stage.b.client.pull_image(f"{stage.b.name}/{here}", "v1").digest == second.digest


@pytest.mark.registry
def test_scenario_17_a_registry_that_remembers_blobs(stage: Stage, here: str) -> None:
    """A registry with a cache said "layer already exists" of what was collected, and images were broken; here a pod
    that is not proved to have none keeps everything from being collected.
    """
    image = make_image(here)
    stage.push(stage.a, here, image)
    stage.abandon(stage.a, here, image)
    stage.restart(stage.b, Caching)
    try:
        stage.await_death(stage.b)
        stage.report()
        name = parse_pod(stage.b.name)
        settings = changed(
            stage.settings,
            safety_clock_skew=1.0,
            unsafe_times=True,
            pod_access_key=KEYS[stage.b.name].access,
            pod_secret_key=Secret(KEYS[stage.b.name].secret),
        )
        with compose_command.open_instruments(settings, name, patience=60) as instruments:
            report = examine(instruments, name, lambda what: None)
        assert of(report, "no-descriptor-cache").result is Result.REFUTED
        # The embedded broker is refuted, too, which is not what is asked here.
        stage.rows(
            "UPDATE findings SET result = 'proved' WHERE \"check\" = %s RETURNING pod_id", str(Check.KAFKA_DURABLE)
        )
        stage.report()
        run = stage.collect()
        held = [why for why in run.progress["blocked_by"] if "no-descriptor-cache is refuted" in why]
        assert len(held) == len(run.progress["blocked_by"]) == 1, run.progress
        assert stage.states(image) == {BlobState.UNREFERENCED}
        assert stage.served(image.layers[0].digest)
    finally:
        stage.restart(stage.b)
        stage.admit(stage.b)
        stage.await_death(stage.b)
    stage.hide(image.digest)


@pytest.mark.registry
def test_scenario_18_children_without_a_tag(stage: Stage, here: str) -> None:
    """Children of an index were collected because no tag names them; here an index needs its children as an image its
    layers, also children that were deleted alone, and no tag matters.
    """
    app = f"{stage.a.name}/{here}"
    inner = make_index([make_image(f"{here}/{arch}", architecture=arch) for arch in ("amd64", "arm64")])
    outer = make_index([inner, make_image(f"{here}/riscv64", architecture="riscv64")])
    stage.push(stage.a, here, outer)
    stage.expire_links()
    stage.report()
    stage.collect()
    assert stage.a.client.pull_image(app, "v1").digest == outer.digest
    lone = inner.manifests[0]
    stage.a.client.delete_manifest(app, lone.digest)
    eventually(lambda: stage.is_implied(app, lone.digest))
    stage.report()
    stage.collect()
    assert stage.ledger(lone.digest) == []
    assert stage.served(lone.digest)
    # Without its index it is garbage as any other.
    stage.a.client.delete_manifest(app, outer.digest)
    stage.abandon(stage.a, here, inner)
    stage.hide(lone.digest, inner.digest, outer.digest)


@pytest.mark.registry
def test_scenario_21_the_garbage_collection_of_a_registry(stage: Stage, here: str) -> None:
    """A registry's own `garbage-collect` deleted from storage that others share; here a pod's key neither lists
    other pods' repositories nor deletes a blob, and what is garbage stays until all pods have reported.
    """
    image = make_image(here)
    blobs = [image.digest, *(blob.digest for blob in image.blobs)]
    stage.push(stage.a, here, image)
    stage.abandon(stage.a, here, image)
    before = {digest: stage.store.list_versions(blob_key(parse_digest(digest))) for digest in blobs}
    done = collect_as_registry(stage.b.registry._made)
    # It lists all repositories before anything else, which a pod's key may not.
    assert done.returncode != 0
    assert "AccessDenied" in done.stderr
    assert {digest: stage.store.list_versions(blob_key(parse_digest(digest))) for digest in blobs} == before
    assert all(stage.served(digest) for digest in blobs)
    stage.hide(*blobs)


@dataclass(frozen=True, kw_only=True)
class PullThrough(DistributionRegistry):
    """A registry that caches another one."""

    remote: str

    def configuration(self) -> dict[str, Any]:
        return super().configuration() | {"proxy": {"remoteurl": self.remote}}


@pytest.mark.registry
def test_scenario_22_what_a_pull_through_registry_lets_expire(stage: Stage, here: str) -> None:
    """The expiry of a pull-through cache deleted blobs that others had in the same bucket; here its key may delete its
    links and no blob.
    """
    image = make_image(here)
    layer = parse_digest(image.layers[0].digest)
    cached = RepositoryName(f"cache/{here}")
    stage.push(stage.a, here, image)
    before = stage.store.list_versions(blob_key(layer))
    stage.store.put(layer_link_key(cached, layer), image.layers[0].digest.encode())
    # Its memory of a week ago, when it cached the layer.
    name, long_ago = f"{cached}@{image.layers[0].digest}", dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    entry = {"Key": name, "ExpiryData": long_ago.isoformat(), "EntryType": 0}
    stage.store.put("scheduler-state.json", json.dumps({name: entry}).encode())
    deletes: list[str] = []

    def listen(call: Call) -> None:
        deletes.extend(call.deletes)

    with S3Proxy(stage.objects.url) as storage:
        storage.answer = listen
        made = PullThrough(
            name=f"cache-{here}",
            directory=stage._directory / f"cache-{here}",
            port=stage._ports.take(f"cache-{here}"),
            storage=replace(stage._storage(), endpoint_url=storage.url),
            http_secret=HTTP_SECRET,
            remote=stage.a.registry.url,
        )
        running = stage._children.start(made.process())
        try:
            eventually(lambda: any(layer.hex() in key and "/blobs/" in key for key in deletes), why=lambda: deletes)
            eventually(lambda: stage.store.head(layer_link_key(cached, layer)) is None)
        finally:
            stage._children.kill(running)
            stage.store.delete("scheduler-state.json")
    assert stage.store.list_versions(blob_key(layer)) == before
    assert stage.a.client.pull_image(f"{stage.a.name}/{here}", "v1").digest == image.digest


def test_scenario_23_rows_before_their_bytes(garbage: Garbage) -> None:
    """Rows of blobs that were to be downloaded at the first pull were reaped before it; here a row says who needs a
    blob and not whether it has bytes: it stays, is reported as missing, and is live once its bytes are stored.
    """
    garbage.upload("m")
    garbage.report("m", "l")
    garbage.rows("UPDATE blobs SET first_seen = first_seen - interval '30 days' RETURNING id")
    for _ in range(2):
        garbage.collect()
    assert garbage.state("l") is BlobState.LIVE
    garbage.links_are("link")
    with (
        closing(Connections(garbage.url, name="scenarios", prepare=statements.prepare_connection)) as connections,
        closing(Presence(connections, garbage.store)) as presence,
    ):
        presence.resolve([garbage.digest("l")])
        assert garbage.state("l") is BlobState.MISSING
        garbage.collect()
        assert garbage.state("l") is BlobState.MISSING
        garbage.upload("l")
        presence.round()
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.changes("l")[-2:] == ["missing", "live"]
    garbage.collect()
    assert garbage.is_served("l")
