"""Events that are lost, late, repeated or out of order, and workers that apply them all at once.

Not here: events alone (tests/registries, tests/table), watermarks alone (tests/workers).
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.registry.images import Image, Layer, make_image
from coordinator.storage.layout import blob_key
from coordinator.table import expiry
from coordinator.table.apply import BatchApplier
from tests.gc.harness import LANDED, NO_TIMES, Garbage
from tests.registries.harness import Registry
from tests.scenarios.harness import HOUR, Once, Stage
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore
from tests.support.store import ANSWERED
from tests.support.wait import eventually
from tests.table.harness import BLOBS, MANIFESTS, NO_MARGIN, begin, deadlocks
from tests.table.shared_digests import Shared, slices

ENDS: dict[str, Callable[[Registry], None]] = {"SIGKILL": Registry.kill, "SIGTERM": Registry.terminate}


def push_unreported(stage: Stage, repository: str, image: Image) -> None:
    """Push an image whose events are not delivered."""
    stage.a.webhook.away = True
    stage.a.client.push_image(repository, image, "v1")


def abandoned_layer(stage: Stage, here: str) -> tuple[Layer, Image, str]:
    """A layer that nothing needs any more in the second pod, an image that has it, and a repository of the first."""
    layer, _, new = stage.abandoned_layer(stage.b, here, 20_000)
    stage.report()
    return layer, new, f"{stage.a.name}/{here}"


@pytest.mark.registry
@pytest.mark.parametrize("end", ENDS)
def test_scenario_25_events_that_end_with_their_process(stage: Stage, here: str, end: str) -> None:
    """A registry ended with its queue full, killed or asked to, and what it had accepted was collected; here its end
    stops collection until its links were compared, which bring back what was hidden meanwhile.
    """
    layer, new, app = abandoned_layer(stage, here)
    push = Once("delete_many", layer.digest, lambda: push_unreported(stage, app, new))
    stage.collect_at(push)
    ENDS[end](stage.a.registry)
    stage.a.webhook.away = False
    stage.start(stage.a)
    stage.await_death(stage.a)
    assert push.done
    assert stage.state(layer.digest) is BlobState.HIDDEN
    run = stage.collect()
    assert any(f"pod {stage.a.name}: watermark: " in why for why in run.progress["blocked_by"]), run.progress
    assert stage.state(layer.digest) is BlobState.HIDDEN
    stage.report()
    stage.await_live(layer.digest)
    stage.collect()
    assert stage.a.client.pull_image(app, "v1").digest == new.digest


@pytest.mark.registry
def test_scenario_25_events_that_wait(stage: Stage, here: str) -> None:
    """Where the process lives and its events wait, nothing is purged until they are applied, whatever other pods report
    and however often links were compared before.
    """
    layer, new, app = abandoned_layer(stage, here)
    push = Once("delete_many", layer.digest, lambda: push_unreported(stage, app, new))
    try:
        stage.collect_at(push)
        assert stage.state(layer.digest) is BlobState.HIDDEN
        for _ in range(3):
            run = stage.collect()
            assert run.purged == 0
            assert stage.state(layer.digest) is BlobState.HIDDEN
    finally:
        stage.a.webhook.away = False
    stage.await_live(layer.digest)
    stage.report()
    stage.collect()
    assert stage.a.client.pull_image(app, "v1").digest == new.digest


@pytest.mark.registry
@pytest.mark.parametrize("moment", ["delete_many", ANSWERED])
def test_scenario_25_a_worker_ends_in_mid_collection(stage: Stage, here: str, moment: str) -> None:
    """Partitions moved during a collection, and blobs of events that were not applied yet counted as unreferenced; here
    nothing is purged before the next owner has applied them, and what was hidden meanwhile is restored.
    """
    layer, new, app = abandoned_layer(stage, here)

    def push_and_kill() -> None:
        stage.kill("worker")
        stage.a.client.push_image(app, new, "v1")

    push = Once(moment, layer.digest, push_and_kill)
    stage.collect_at(push)

    def applied() -> bool:
        run = stage.collect()
        assert run.state == "done", run.error
        assert run.purged == 0
        return stage.holds(app, new.digest)

    eventually(applied)
    stage.report()
    stage.land()
    stage.collect()
    stage.await_live(layer.digest)
    assert stage.a.client.pull_image(app, "v1").digest == new.digest


def test_scenario_25_events_out_of_order(garbage: Garbage) -> None:
    """A delete that came before its push, or twice, removed what had been pushed again; here the later time counts,
    however often and in whatever order both come.
    """
    first, gone, again = (
        garbage.push("r", "m", ["l"], 1),
        garbage.removed("r", "m", 2),
        garbage.push("r", "m", ["l"], 3),
    )
    garbage.upload("m", "l")
    for order in ([first, gone, again], [gone, first, again], [again, gone, first], [again, first, gone, gone]):
        for fact in order:
            garbage.apply(fact)
        garbage.collect()
        assert garbage.ledger("l") == []
        assert garbage.is_served("l")
        assert garbage.state("m") is BlobState.LIVE
    # And the removal, when it is the last.
    garbage.apply(garbage.removed("r", "m", 4), gone)
    garbage.collect()
    assert garbage.state("l") is BlobState.HIDDEN


@pytest.mark.registry
def test_scenario_25_clocks_that_differ(stage: Stage, here: str) -> None:
    """The delete of a registry whose clock is ahead removed a later push; here links decide, and not the clocks of
    registries.
    """
    image = make_image(here)
    app = f"{stage.a.name}/{here}"
    stage.push(stage.a, here, image)
    stage.a.webhook.ahead = HOUR
    try:
        stage.a.client.delete_manifest(app, image.digest)
        eventually(lambda: not stage.holds(app, image.digest))
    finally:
        stage.a.webhook.ahead = timedelta()
    stage.push(stage.a, here, image)
    stage.expire_links()
    stage.report()
    stage.collect()
    assert stage.states(image) == {BlobState.LIVE}
    assert stage.a.client.pull_image(app, "v1").digest == image.digest


@pytest.fixture
def shared(databases: Databases) -> Iterator[Garbage]:
    with Garbage(databases.migrated(), MemoryObjectStore()) as garbage:
        yield garbage


def test_scenario_26_all_at_once_on_the_same_digests(shared: Garbage) -> None:
    """Two workers wrote the same digests in different orders and had a deadlock; here they, the collection and the
    restorer take their locks in one order, and what is needed is served at the end.
    """
    workers, batches = 2, 25
    # Nothing has to be reported here, so nothing may be purged: uploads below are ahead of their events.
    shared.times = NO_TIMES._replace(quarantine=HOUR)
    shared.delete_bound = LANDED
    histories = [[Shared(shared.space, n).batch(number) for number in range(batches)] for n in range(workers)]
    for generation in ("", *(f".{number}" for number in range(batches // 3 + 1))):
        shared.upload(*(name + generation for name in (*BLOBS, *MANIFESTS)))
    for partition in range(workers):
        begin(shared.connection, shared.space, partition)
    before = deadlocks(shared)
    working = threading.Event()

    def work(partition: int) -> None:
        with shared.connect() as connection:
            for piece in slices(shared, partition, histories[partition]):
                BatchApplier(connection, NO_MARGIN).apply([piece])

    def restore() -> None:
        with shared.parts() as (_, __, restorer):
            while not working.is_set():
                restorer.round()

    with ThreadPoolExecutor(workers + 1) as pool:
        restoring = pool.submit(restore)
        applying = [pool.submit(work, partition) for partition in range(workers)]
        hidden = 0
        for number in itertools.count():
            own = f"own{number}"
            shared.upload(own)
            shared.apply(shared.push("own", own, BLOBS, 2 * number), partition=workers)
            shared.apply(shared.removed("own", own, 2 * number + 1), partition=workers)
            expiry.delete_expired_links(shared.connection, timedelta())
            hidden += shared.collect().hidden
            if all(each.done() for each in applying):
                break
        working.set()
        for each in (*applying, restoring):
            each.result(60)
    assert hidden > 0
    assert deadlocks(shared) == before
    shared.restore()
    assert shared.check().is_healthy
    needed = shared.rows("SELECT digest FROM blobs WHERE reference_count > 0 OR link_count > 0")
    assert needed
    assert all(shared.store.head(blob_key(row[0])) is not None for row in needed)
