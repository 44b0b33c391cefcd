"""Deletes that are slow, whose answers are lost, or that did not happen; and what is uploaded meanwhile.

On the real registry where one is needed, else on every kind of store.
Not here: jobs that die at any other call (tests/gc).
"""

from collections.abc import Callable

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import parse_digest
from coordinator.errors import UnavailableError
from coordinator.registry.images import make_image
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.layout import blob_key
from tests.gc.harness import IN_FLIGHT, LANDED, Garbage
from tests.registries.s3_proxy import Answer, Call, S3Proxy
from tests.scenarios.harness import CrashError, Once, Stage
from tests.services.databases import Databases
from tests.storage.conftest import VERSIONED, MakeS3
from tests.support.store import ANSWERED, SEND, FaultyStore
from tests.support.wait import eventually


@pytest.mark.registry
def test_scenario_04_pushed_anew_while_its_bytes_are_deleted(stage: Stage, here: str) -> None:
    """Collection found that nothing needs a blob, a push recreated it, and its bytes were deleted by name; here only
    the version that was hidden is deleted, and the push has made another.
    """
    layer, _, new = stage.abandoned_layer(stage.a, here, 20_000)
    stage.hide(layer.digest)
    stage.report()
    push = Once(SEND, layer.digest, lambda: stage.push(stage.b, here, new))
    run = stage.collect_at(push)
    assert run.state == "done", run.error
    stage.await_live(layer.digest)
    assert stage.b.client.pull_image(f"{stage.b.name}/{here}", "v1").digest == new.digest
    versions = stage.store.list_versions(blob_key(parse_digest(layer.digest)))
    assert [each.size for each in versions if not each.is_marker] == [len(layer.content)]


@pytest.mark.parametrize("moment", ["delete_many", SEND, ANSWERED])
def test_scenario_04_on_every_store(garbage: Garbage, moment: str) -> None:
    """A blob that is pushed at any moment of its purge is served, in buckets with versions and without."""
    garbage.hidden("m", "l")

    def push() -> None:
        if not garbage.is_served("l"):
            garbage.upload("l")
            garbage.report("other", "l")

    store = FaultyStore(garbage.store)
    store.before(moment, push)
    garbage.try_collection(store)
    garbage.delete_bound = LANDED
    garbage.restore()
    garbage.collect()
    garbage.restore()
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.store.get(blob_key(garbage.digest("l"))) == garbage.body("l")


def test_scenario_11_a_delete_that_lands_after_a_push(garbage: Garbage) -> None:
    """A slow delete landed after the blob was pushed again, or left it between two states for ever; here a restore is
    repeated until no delete can land any more, and final then.
    """
    garbage.push_and_forget("m", "l", "unneeded")
    slow = FaultyStore(garbage.store)
    slow.lose()
    garbage.try_collection(slow)
    assert garbage.state("l") is BlobState.HIDING
    garbage.upload("l")
    garbage.report("other", "l")
    garbage.delete_bound = IN_FLIGHT
    assert garbage.restore() == 0
    assert slow.in_flight
    slow.land()
    assert not garbage.is_served("l")
    assert garbage.restore() == 0  # seen again, and looked after still
    assert garbage.is_served("l")
    garbage.delete_bound = LANDED
    assert garbage.restore() == 1
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.hide_of("l") is None
    # What nobody needs is not stuck either: the next collection undoes the hide, and hides it again.
    assert garbage.state("unneeded") is BlobState.HIDING
    garbage.collect()
    assert garbage.state("unneeded") is BlobState.HIDDEN
    assert not garbage.is_served("unneeded")
    garbage.collect()
    assert garbage.state("unneeded") is BlobState.PURGED
    assert garbage.is_served("l")
    assert garbage.store.get(blob_key(garbage.digest("l"))) == garbage.body("l")


@pytest.mark.registry
def test_scenario_11_under_a_registry(stage: Stage, here: str) -> None:
    """On a real registry clients see 404 for a moment after a late delete, and then the blob, for good."""
    layer, old, new = stage.abandoned_layer(stage.a, here)
    app = f"{stage.b.name}/{here}"
    stage.report()

    def lost() -> None:
        raise UnavailableError("The object store does not answer: try again.")

    stage.collect_at(Once(SEND, layer.digest, lost))
    assert stage.state(layer.digest) is BlobState.HIDING
    stage.push(stage.b, here, new)
    assert stage.state(layer.digest) is BlobState.HIDING
    stage.store.delete(blob_key(parse_digest(layer.digest)))  # lands
    eventually(lambda: stage.served(layer.digest))
    assert stage.b.client.pull_image(app, "v1").digest == new.digest
    stage.land()
    stage.await_live(layer.digest)
    stage.hide(old.digest)
    assert stage.b.client.pull_image(app, "v1").digest == new.digest


@pytest.mark.registry
def test_scenario_13_a_crash_after_the_delete(stage: Stage, here: str) -> None:
    """Bytes were deleted, the process died, and the database still listed them; here a blob counts as absent from
    before its delete on: a client that pushes uploads it, and the next collection ends what is left.
    """
    image = make_image(here)
    app = f"{stage.a.name}/{here}"
    layer, other = (blob.digest for blob in image.layers)
    stage.push(stage.a, here, image)
    stage.abandon(stage.a, here, image)
    stage.hide(layer, other)
    stage.report()

    def crash() -> None:
        raise CrashError("The process is gone.")

    assert stage.collect_at(Once(ANSWERED, layer, crash)).state == "failed"
    assert {stage.state(layer), stage.state(other)} == {BlobState.PURGING}
    assert not stage.a.client.has_blob(app, layer)
    stage.a.client.push_blob(app, image.layers[0].content)
    stage.await_live(layer)
    assert stage.a.client.get_blob(app, layer) == image.layers[0].content
    stage.purge(other)
    assert stage.ledger(other)[-1] == "purged"
    stage.push(stage.a, here, image)
    assert stage.a.client.pull_image(app, "v1").digest == image.digest


def test_scenario_13_on_every_store(garbage: Garbage) -> None:
    """A crash after the delete loses nothing in buckets with versions and without, also if no client pushes."""
    garbage.hidden("m", "l", "k")

    store = FaultyStore(garbage.store)
    store.fail("delete_many", done=True, error=CrashError("The process is gone."))
    assert garbage.try_collection(store).state == "failed"
    assert garbage.state("l") is garbage.state("k") is BlobState.PURGING
    garbage.upload("l")
    garbage.report("other", "l")
    garbage.delete_bound = LANDED
    garbage.restore()
    garbage.collect()
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.is_served("l")
    assert garbage.state("k") is BlobState.PURGED


#: Answers that say that a key is deleted which is not.
LIES: dict[str, Callable[[Call], str]] = {
    "not-found": lambda call: "".join(f"<Error><Key>{key}</Key><Code>NoSuchKey</Code></Error>" for key in call.deletes),
    "deleted": lambda call: "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in call.deletes),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("bucket", ["s3", "s3-versioned"])
@pytest.mark.usefixtures("buckets")
def test_scenario_20_a_delete_that_was_none(
    connect_s3: MakeS3, databases: Databases, embedded_stack: StackEndpoints, bucket: str, lie: str
) -> None:
    """A delete was answered as done while the bytes stayed, and was counted as freed; here storage is checked, nothing
    is counted until the bytes are gone, and the delete is tried again.
    """
    assert embedded_stack.s3_endpoint_url is not None
    more = {"bucket": VERSIONED} if bucket == "s3-versioned" else {}

    def lying(call: Call) -> Answer | None:
        return Answer(200, f"<DeleteResult>{LIES[lie](call)}</DeleteResult>".encode()) if call.deletes else None

    with S3Proxy(embedded_stack.s3_endpoint_url) as proxy:
        store = connect_s3(endpoint_url=proxy.url, **more)
        with Garbage(databases.migrated(), store) as garbage:
            garbage.delete_bound = LANDED
            garbage.push_and_forget("m", "l")
            proxy.answer = lying
            run = garbage.collect()
            assert run.hidden == 0, run.progress
            assert garbage.is_served("l")
            assert garbage.state("l") is BlobState.HIDING
            proxy.answer = None
            assert garbage.collect().hidden == 2
            proxy.answer = lying
            run = garbage.collect()
            assert (run.purged, run.freed) == (0, 0), run.progress
            assert garbage.state("l") is BlobState.PURGING
            proxy.answer = None
            run = garbage.collect()
            assert run.purged == 2
            assert run.freed == len(garbage.body("m")) + len(garbage.body("l"))
            assert store.list_versions(blob_key(garbage.digest("l"))) == []


@pytest.mark.parametrize("uploads", [1, 3])
def test_scenario_29_copies_that_uploads_leave(garbage: Garbage, uploads: int) -> None:
    """In a bucket with versions every upload of the same bytes left a copy that was never freed; here a hide records
    all versions, its purge deletes all of them, and reports how much that was.
    """
    for _ in range(uploads):
        garbage.pushed("m", "l")
    garbage.forget("m")
    garbage.collect()
    run = garbage.collect()
    assert run.purged == 2
    copies = uploads if garbage.store.keeps_versions() else 1
    assert run.freed == copies * (len(garbage.body("m")) + len(garbage.body("l")))
    assert garbage.store.list_versions(blob_key(garbage.digest("l"))) == []
