"""Workers and schedulers compose restorers and collections as these tests do: in compose/."""

import threading
from contextlib import closing

import pytest

from coordinator.compose import database as compose_database
from coordinator.compose import scheduler as compose_scheduler
from coordinator.domain.lifecycle import BlobState
from coordinator.gc.collect import JOB_KIND
from coordinator.jobs.work import run_waiting_jobs
from coordinator.reconcile import reconcile
from coordinator.settings import make_settings
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.layout import MARK, MARK_COPY, revision_link_key
from tests.gc.harness import POD, Garbage
from tests.services.databases import Databases
from tests.storage.conftest import VERSIONED, MakeS3, settings_of


@pytest.mark.parametrize("bucket", [None, VERSIONED], ids=["s3", "s3-versioned"])
@pytest.mark.usefixtures("buckets")
def test_a_workers_restorer(
    connect_s3: MakeS3, databases: Databases, embedded_stack: StackEndpoints, bucket: str | None
) -> None:
    """The restorer of a worker restores what is needed again, and ends its hide."""
    store = connect_s3(bucket=bucket or embedded_stack.s3_bucket)
    with Garbage(databases.migrated(), store) as garbage:
        garbage.hidden("m", "l")
        garbage.report("other", "l")
        settings = make_settings({"database_url": garbage.url, **settings_of(store, embedded_stack)})
        with compose_scheduler.open_restorer(settings, name="test-restorer") as restorer:
            assert restorer.round() == 1
        assert garbage.state("l") is BlobState.LIVE
        assert garbage.hide_of("l") is None
        assert garbage.is_served("l")


def test_a_schedulers_collection(connect_s3: MakeS3, databases: Databases, embedded_stack: StackEndpoints) -> None:
    """The collection of a scheduler undoes what a job left, and is blocked by pods that have not reported."""
    store = connect_s3()
    with Garbage(databases.migrated(), store) as garbage:
        garbage.hidden("m", "l")
        garbage.connection.execute("UPDATE hides SET hidden_at = NULL")
        garbage.connection.execute("UPDATE blobs SET state = %s WHERE state = %s", (BlobState.HIDING, BlobState.HIDDEN))
        garbage.connection.execute("UPDATE hides SET permitted_at = permitted_at - interval '1 day'")
        settings = make_settings({"database_url": garbage.url, **settings_of(store, embedded_stack)})
        number = garbage.ask()
        with (
            closing(compose_database.make_connections(settings, name="test-scheduler")) as connections,
            compose_scheduler.open_job_runners(settings) as runners,
        ):
            run_waiting_jobs(connections, {JOB_KIND: runners[JOB_KIND]}, threading.Event())
        ((state, error, progress),) = garbage.rows("SELECT state, error, progress FROM jobs WHERE id = %s", (number,))
        assert (state, error) == ("done", None)
        assert progress["restored"] == 2
        assert progress["blocked_by"]
        assert garbage.state("l") is BlobState.UNREFERENCED
        assert garbage.is_served("l")


def test_a_schedulers_reconcile(connect_s3: MakeS3, databases: Databases, embedded_stack: StackEndpoints) -> None:
    """After a reconcile that found no link to a hidden blob, a bucket that has the link again is refused."""
    store = connect_s3()
    with Garbage(databases.migrated(), store) as garbage:
        garbage.connection.execute("UPDATE pods SET kind = 'link'")
        garbage.pushed("kept")
        store.put(revision_link_key(garbage.repository("r"), garbage.digest("kept")), b"x")
        garbage.hidden("m", "l")
        link = revision_link_key(garbage.repository("r"), garbage.digest("m"))
        # A push that stored its link, and was neither answered nor reported; then its client deletes the manifest.
        store.put(link, b"x")
        replica = {key: store.get(key) for key in (MARK, MARK_COPY, link)}
        store.delete(link)
        settings = make_settings({"database_url": garbage.url, **settings_of(store, embedded_stack)})
        with (
            closing(compose_database.make_connections(settings, name="test-scheduler")) as connections,
            compose_scheduler.open_job_runners(settings) as runners,
        ):
            job = (reconcile.JOB_KIND, garbage.pods[POD])
            garbage.connection.execute("INSERT INTO jobs (kind, pod_id, why) VALUES (%s, %s, 'a test')", job)
            run_waiting_jobs(connections, {reconcile.JOB_KIND: runners[reconcile.JOB_KIND]}, threading.Event())
        assert garbage.rows("SELECT state, error FROM jobs ORDER BY id DESC LIMIT 1") == [("done", None)]
        for key, body in replica.items():
            store.put(key, body)
        run = garbage.try_collection()
        assert run.state == "failed"
        assert "The bucket is older" in str(run.error)
