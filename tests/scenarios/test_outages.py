"""Services that are away, answer wrongly, or have lost data: what is not known never counts as gone.

Not here: deletes whose answers are lost (test_deletes_that_land_late.py), the controls (tests/gc).
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import parse_digest
from coordinator.errors import BaleenError, UnavailableError
from coordinator.gc import collect
from coordinator.jobs.work import run_waiting_jobs
from coordinator.registry.images import make_image
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.layout import blob_key
from tests.gc.harness import IN_FLIGHT, LANDED, Garbage
from tests.registries.s3_proxy import BROKEN, DENIED, Answer, Call, S3Proxy
from tests.registries.watermarks import now
from tests.scenarios.harness import Stage
from tests.support.store import ANSWERED, SEND, FaultyStore

NO_BUCKET = Answer(404, b"<Error><Code>NoSuchBucket</Code><Message>a test</Message></Error>")
NO_KEY = Answer(404, b"<Error><Code>NoSuchKey</Code><Message>a test</Message></Error>")
NONE_LISTED = Answer(
    200, b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"
)


@pytest.mark.registry
def test_scenario_14_the_table_has_forgotten_a_repository(stage: Stage, here: str) -> None:
    """The table was lost or restored, and the only copies were collected; here nothing is purged before the links were
    compared after its hide, and that reconcile restores everything.
    """
    image = make_image(here)
    app = f"{stage.a.name}/{here}"
    whole = [image.digest, *(blob.digest for blob in image.blobs)]
    stage.push(stage.a, here, image)
    stage.expire_links()
    stage.rows(
        "DELETE FROM repository_manifests h USING repositories r WHERE r.id = h.repository_id AND r.name = %s"
        " RETURNING h.manifest_id",
        app,
    )
    stage.rows(
        "UPDATE blobs SET reference_count = 0, state = %s, unreferenced_since = now() - interval '30 days'"
        " WHERE digest = ANY(%s) RETURNING id",
        int(BlobState.UNREFERENCED),
        [parse_digest(digest) for digest in whole],
    )
    stage.collect()
    assert stage.states(image) == {BlobState.HIDDEN}
    stage.return_probe(now(stage))
    assert stage.collect(dry=True).kept["not-reconciled"] >= len(whole)
    stage.collect()
    assert stage.states(image) == {BlobState.HIDDEN}
    stage.report()
    stage.await_live(*whole)
    stage.collect()
    assert stage.a.client.pull_image(app, "v1").digest == image.digest


def test_scenario_14_an_empty_table(garbage: Garbage) -> None:
    """While the table has no pod nothing is hidden, known or not."""
    garbage.push_and_forget("m", "l")
    garbage.upload("never reported")
    garbage.known = lambda facts: facts._replace(pods=[])
    run = garbage.collect()
    assert run.hidden == 0
    assert any("no pod is registered" in why for why in run.progress["blocked_by"])
    assert garbage.is_served("l")
    garbage.known = lambda facts: facts
    garbage.collect()
    garbage.collect()
    assert garbage.state("l") is BlobState.PURGED
    assert garbage.is_served("never reported")


@pytest.mark.lengthy
@pytest.mark.parametrize("store", ["memory", "memory-versioned"], indirect=True)
@pytest.mark.parametrize("done", [False, True])
def test_scenario_15_an_error_at_any_call(garbage: Garbage, done: bool) -> None:
    """An error was taken for "there is none yet", and a copy put over what was there; here an error ends the step, at
    whichever call it comes, and what is needed is served whole in the end.
    """
    for number in itertools.count(1):
        store = FaultyStore(garbage.store)
        store.fail(nth=number, done=done)
        layer, other = f"l{number}", f"other{number}"
        garbage.push_and_forget(f"m{number}", layer)
        garbage.upload(other)
        garbage.delete_bound = IN_FLIGHT
        garbage.try_collection(store)
        garbage.report(other, layer)
        with suppress(UnavailableError):
            garbage.restore(store)
        garbage.delete_bound = LANDED
        garbage.restore()
        assert garbage.state(layer) is BlobState.LIVE, number
        assert garbage.store.get(blob_key(garbage.digest(layer))) == garbage.body(layer), number
        garbage.collect()
        assert garbage.is_served(layer), number
        if sum(moment not in {SEND, ANSWERED} for moment, _ in store.calls) < number:
            break
    assert number > 5


def answered(answer: Answer) -> Callable[[Call], Answer]:
    return lambda _: answer


def nothing_is_there(call: Call) -> Answer | None:
    """Answer as an empty bucket does."""
    path, _, query = call.target.partition("?")
    if "list-type=2" in query:
        return NONE_LISTED
    if call.method in {"GET", "HEAD"} and "/docker/registry/" in path:
        return NO_KEY
    return None


@pytest.mark.registry
@pytest.mark.parametrize(
    "answer",
    [answered(DENIED), answered(BROKEN), answered(NO_BUCKET), nothing_is_there],
    ids=["refuses", "fails", "no-bucket", "empty"],
)
def test_scenario_16_an_outage_is_not_a_loss(stage: Stage, here: str, answer: Callable[[Call], Answer | None]) -> None:
    """A storage outage was read as "missing", and what was there was deleted or forgotten; here no job that meets one
    takes anything away, and afterwards all goes on.
    """
    kept, gone = (make_image(f"{here}/{name}") for name in ("kept", "gone"))
    stage.push(stage.a, f"{here}/kept", kept)
    stage.push(stage.a, f"{here}/gone", gone)
    stage.abandon(stage.a, f"{here}/gone", gone)
    stage.report()
    before = stage.rows(
        "SELECT digest, state, reference_count FROM blobs WHERE state <> ALL (%s) ORDER BY 1", COLLECTED
    )
    holdings = stage.holdings()
    with S3Proxy(stage.objects.url) as outage:
        outage.answer = answer
        stage.compare(stage.a, s3_url=outage.url)
        with pytest.raises(BaleenError):
            stage.audit(s3_url=outage.url)
        # Nothing but deleted marks comes of a collection then, and what had none is as it was.
        stage.collect(s3_url=outage.url)
        assert outage.answered
    assert stage.holdings() == holdings
    after = stage.rows("SELECT digest, state, reference_count FROM blobs WHERE state <> ALL (%s) ORDER BY 1", COLLECTED)
    assert [row for row in before if row[2]] == [row for row in after if row[2]]
    assert stage.states(kept) == {BlobState.LIVE}
    assert stage.a.client.pull_image(f"{stage.a.name}/{here}/kept", "v1").digest == kept.digest
    stage.land()
    stage.hide(gone.digest)
    stage.purge(gone.digest)


COLLECTED = [int(state) for state in (BlobState.HIDING, BlobState.HIDDEN, BlobState.PURGING, BlobState.PURGED)]


def listing_keys(call: Call) -> bool:
    """Is this a listing of all keys below a prefix, and not of folders?"""
    return listing_any(call) and "delimiter" not in call.target


def listing_any(call: Call) -> bool:
    return call.method == "GET" and "list-type=2" in call.target


@pytest.mark.registry
@pytest.mark.parametrize("cut", [listing_keys, listing_any])
def test_scenario_19_a_listing_that_is_not_whole(stage: Stage, here: str, cut: Callable[[Call], bool]) -> None:
    """A listing that broke off made an active project look empty, and it was collected; here a listing only says where
    to look, and each link is looked up before it counts as gone.
    """
    image = make_image(here)
    app = f"{stage.a.name}/{here}"
    stage.push(stage.a, here, image)
    stage.expire_links()
    stage.report()
    holdings = stage.holdings()
    with S3Proxy(stage.objects.url) as storage:
        storage.answer = lambda call: NONE_LISTED if cut(call) else None
        done = stage.compare(stage.a, s3_url=storage.url)
        assert storage.answered
    assert stage.holdings() == holdings
    assert (done.state, "root" in (done.error or "") or "listing" in (done.error or "")) == ("failed", True), done
    stage.collect()
    assert stage.states(image) == {BlobState.LIVE}
    assert stage.a.client.pull_image(app, "v1").digest == image.digest


@pytest.fixture
def lock_service(embedded_stack: StackEndpoints) -> Iterator[Callable[[str, bool], None]]:
    """Make a database unavailable, and available again."""
    url = embedded_stack.database_url
    assert url is not None
    away: set[str] = set()
    with psycopg.connect(url, autocommit=True) as server:

        def turn(database: str, on: bool) -> None:
            name = sql.Identifier(make_url(database).database or "")
            server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(name, sql.Literal(on)))
            (away.discard if on else away.add)(database)
            if not on:
                server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = %s AND application_name LIKE 'test-gc%%'",
                    (make_url(database).database,),
                )

        yield turn
        for database in list(away):
            turn(database, True)


@pytest.mark.parametrize("moment", ["delete_many", ANSWERED])
def test_scenario_27_the_locks_are_away(
    garbage: Garbage, lock_service: Callable[[str, bool], None], moment: str
) -> None:
    """The lock service was away and the code went on without it; here every delete asks the database for its permit,
    which fails closed, and the next run ends what this one had begun.
    """
    garbage.push_and_forget("m", "l", "k")
    store = FaultyStore(garbage.store)
    sent: list[int] = []

    def leave() -> None:
        sent.append(store.count(SEND))
        lock_service(garbage.url, False)

    store.before(moment, leave, nth=1)
    with pytest.raises(UnavailableError):
        garbage.try_collection(store)
    # Nothing is permitted from then on.
    assert sent == [store.count(SEND)]
    assert garbage.state("l") is garbage.state("k") is BlobState.HIDING
    assert garbage.is_served("l") is (moment == "delete_many")
    lock_service(garbage.url, True)
    garbage.delete_bound = LANDED
    garbage.report("other", "l")
    # The scheduler that lost it is silent for long.
    garbage.rows("UPDATE jobs SET alive_at = NULL WHERE state = 'running' RETURNING id")
    with garbage.parts() as (connections, collector, _):
        run_waiting_jobs(connections, {collect.JOB_KIND: collector}, threading.Event())
    garbage.restore()
    garbage.collect()
    garbage.collect()
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.is_served("l")
    assert garbage.state("k") is BlobState.PURGED
