"""The doctor with pods of a GitLab registry's model: what is right is proved, what is wrong or unknown is not."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from coordinator.compose import command as compose_command
from coordinator.compose import database as compose_database
from coordinator.compose import kinds as compose_kinds
from coordinator.compose import store as compose_store
from coordinator.doctor import gitlab
from coordinator.doctor import table as findings
from coordinator.doctor.examine import REMOVING
from coordinator.doctor.visit import Visit
from coordinator.domain.findings import Finding, Result, checks_of_pod
from coordinator.domain.names import Digest, parse_pod
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.gitlab.database import TABLES
from coordinator.pods.of_kind import read_pods_of_kinds
from coordinator.stack.model_notifications import Webhook
from coordinator.stack.model_server import ModelServer
from coordinator.storage.layout import DATABASE_LOCK, FILESYSTEM_LOCK
from tests.doctor.harness import IMPATIENCE_S, Clinic, StoreOfPod, not_proved, of
from tests.registries.harness import Pod
from tests.services.http import Handler, HTTPServer
from tests.support.gitlab_registry import GitlabServer, RowStorage, prepare_database

PROVED, REFUTED, UNPROVED = Result.PROVED, Result.REFUTED, Result.UNPROVED
pytestmark = pytest.mark.lengthy
EMBEDDED = {"kafka-durable": REFUTED}


def make_database(clinic: Clinic, name: str) -> str:
    """Make an empty registry database on the server of Baleen's; return the URL of one who may only read it."""
    server = make_url(compose_database.database_url(clinic.baleen.settings))
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    url = server.set(database=name).render_as_string(hide_password=False)
    prepare_database(url)
    return url


def reader_of(url: str, tables: tuple[str, ...] = TABLES) -> str:
    """Return the URL of a new user who may read these tables of a database, and do nothing else."""
    known = make_url(url)
    name = f"reader_of_{known.database}_{len(tables)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'reader'")  # type: ignore[call-overload]
        connection.execute(f'GRANT SELECT ON {", ".join(tables)} TO "{name}"')  # type: ignore[call-overload]
    return known.set(username=name, password="reader").render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def database(clinic: Clinic) -> str:
    return make_database(clinic, "registry")


@pytest.fixture(scope="module")
def reader(database: str) -> str:
    return reader_of(database)


@contextmanager
def locked(clinic: Clinic, *locks: str) -> Iterator[None]:
    """Put these lock files into the root until the block ends."""
    store = compose_store.make_trial_store(clinic.settings())
    for lock in locks:
        store.put(lock, b"")
    try:
        yield
    finally:
        store.erase(locks)


@contextmanager
def registry(clinic: Clinic, pod: Pod, url: str, *processes: dict[str, Any]) -> Iterator[list[GitlabServer]]:
    """Run a process of the pod's registry for each of these options."""
    made: list[GitlabServer] = []

    def process(clinic: Clinic, pod: Pod, options: dict[str, Any]) -> ModelServer:
        store, notifications = StoreOfPod(**asdict(clinic.storage())), clinic.notifications(pod)
        webhook = Webhook(notifications.url, notifications.token, timeout_seconds=5, backoff_seconds=0.05, pulls=True)
        made.append(GitlabServer(store, url, webhook, **options))
        return made[-1]

    with clinic.models(pod, *(lambda clinic, pod, each=each: process(clinic, pod, each) for each in processes)):
        yield made


def scratch_rows(url: str) -> list[tuple[Any, ...]]:
    """Return the manifests and links of doctors' repositories in a registry's database."""
    held = "FROM {} x JOIN repositories r ON r.id = x.repository_id WHERE r.path LIKE '%/baleen-doctor-%'"
    manifests, links = (f"SELECT r.path, x.id {held.format(table)}" for table in ("manifests", "repository_blobs"))
    with psycopg.connect(url) as connection:
        return connection.execute(f"{manifests} UNION ALL {links}").fetchall()  # type: ignore[call-overload, no-any-return]


class _KilledError(Exception):
    """The process is killed: nothing is removed any more."""


def test_a_visit_that_was_killed(clinic: Clinic, database: str, reader: str) -> None:
    """What a killed visit left in the registry's database, indexes among it, the next one removes."""
    pod = clinic.admit("g-killed", kind="gitlab")

    def on_step(what: str) -> None:
        if what == REMOVING:
            raise _KilledError

    with registry(clinic, pod, database, {}) as (process,):
        clinic.write_gitlab(pod, reader, process.debug_url)
        with pytest.raises(_KilledError):
            clinic.examine(pod, on_step=on_step)
        assert scratch_rows(database) != []
        assert clinic.examine(pod).problems == []
    assert scratch_rows(database) == []


def test_a_registry_that_is_well(clinic: Clinic, database: str, reader: str) -> None:
    """Everything is proved of two processes on one database; no manifest and no link is left, and nothing in Baleen."""
    pod = clinic.admit("g-well", kind="gitlab")
    with locked(clinic, DATABASE_LOCK):
        before = clinic.everything()
        with registry(clinic, pod, database, {}, {"up_s": 7200}) as processes:
            clinic.write_gitlab(pod, reader, *(each.debug_url for each in processes))
            report = clinic.examine(pod)
        assert not_proved(report) == EMBEDDED, report.findings
        assert report.problems == []
        assert clinic.everything() == before
    assert [found.check for found in report.findings] == checks_of_pod(PodKind.GITLAB, managed=True)
    assert "all 8 rows of a pushed image" in of(report, "registry-database").proof
    assert "the registry's database: its clock is" in of(report, "clocks").proof
    cache = of(report, "no-descriptor-cache")
    assert "HEAD answers 404, and a mount answers 201, a manifest that lists it answers 201; its row" in cache.proof
    assert "GC keeps each blob that has one" in cache.meaning
    assert "the table removed the manifest" in of(report, "deletes-arrive").proof
    assert scratch_rows(database) == []


def test_claims_after_a_visit(clinic: Clinic, database: str, reader: str) -> None:
    """The database that a visit has proved is asked for claims; another one is refused until the registry uses it, and
    a visit has proved that.
    """
    pod = clinic.admit("g-moved", kind="gitlab")
    settings = clinic.settings()
    unknown = [Digest(bytes(32))]
    with (
        closing(compose_database.make_connections(settings, name="tests")) as connections,
        compose_kinds.open_claims(settings, connections, compose_store.make_object_store(settings)) as claims,
    ):

        def find_claims() -> object:
            """Ask for the claims of this pod alone."""
            with connections.use() as connection:
                others = [each.name for each in read_pods_of_kinds(connection) if each.name != pod.name]
                connection.execute("UPDATE pods SET kind = 'relay' WHERE name = ANY(%s) AND kind = 'gitlab'", (others,))
            return claims.find_claims(unknown)

        with registry(clinic, pod, database, {}) as (process,):
            clinic.write_gitlab(pod, reader, process.debug_url)
            with pytest.raises(UnavailableError, match="The doctor has not proved"):
                find_claims()
            assert of(clinic.examine(pod), "registry-database").result is PROVED
            assert find_claims() == {}

            moved = make_database(clinic, "moved")
            clinic.write_gitlab(pod, reader_of(moved), process.debug_url)
            with pytest.raises(UnavailableError, match=f"run `baleen pods doctor {pod.name}`"):
                find_claims()
            process.storage = RowStorage(StoreOfPod(**asdict(clinic.storage())), moved)
            assert of(clinic.examine(pod), "registry-database").result is PROVED
            assert find_claims() == {}
            clinic.write_gitlab(pod, reader, process.debug_url)
            with pytest.raises(UnavailableError, match="is not the one"):
                find_claims()


def test_faults(clinic: Clinic, database: str) -> None:
    """A process that collects garbage, another database and a missing lock file are refuted, each with a fix."""
    pod = clinic.admit("g-faults", kind="gitlab")
    other = make_database(clinic, "another")
    with registry(clinic, pod, database, {"collects": True}) as (process,):
        clinic.write_gitlab(pod, other, process.debug_url)
        report = clinic.examine(pod, patience=IMPATIENCE_S)
    wrong = ("registry-database", "registry-gc-off", "lock-file", "no-descriptor-cache")
    # Whether a delete was right is looked up in the database, and this one shows nothing of the pod.
    assert not_proved(report) == EMBEDDED | dict.fromkeys(wrong, REFUTED) | {"deletes-arrive": UNPROVED}
    assert "of 8 rows of a pushed image, 8 are missing" in of(report, "registry-database").proof
    assert "its metrics have registry_gc_runs_total" in of(report, "registry-gc-off").proof
    assert "gc: {disabled: true}" in of(report, "registry-gc-off").fix
    assert f"{DATABASE_LOCK} is not in bucket" in of(report, "lock-file").proof
    assert "REGISTRY_FF_ENFORCE_LOCKFILES=true" in of(report, "lock-file").fix
    assert "the database that Baleen reads has no row of it" in of(report, "no-descriptor-cache").proof
    assert report.problems == []


def test_a_database_that_is_not_known(clinic: Clinic, database: str) -> None:
    """Without the database's URL, what needs it is unproved and blocks GC; the fix names the file and the rights."""
    pod = clinic.admit("g-unknown", kind="gitlab")
    with locked(clinic, DATABASE_LOCK), registry(clinic, pod, database, {}) as (process,):
        clinic.write_gitlab(pod, None, process.debug_url)
        report = clinic.examine(pod, patience=IMPATIENCE_S)
    unknown = ("registry-database", "clocks", "no-descriptor-cache", "deletes-arrive")
    assert not_proved(report) == EMBEDDED | dict.fromkeys(unknown, UNPROVED)
    assert f"/gitlab/{pod.name} cannot be read (No such file" in of(report, "registry-database").proof
    assert f"GRANT SELECT ON {', '.join(TABLES)} TO" in of(report, "registry-database").fix
    assert "see `registry-database`" in of(report, "clocks").proof
    assert "registry-database is unproved" in " ".join(clinic.baleen.pod(pod)["blocked_by"])


@contextmanager
def visiting(clinic: Clinic, pod: Pod) -> Iterator[Visit]:
    """A visit that makes only the checks of the block."""
    name = parse_pod(pod.name)
    with compose_command.open_instruments(clinic.settings(), name) as instruments:
        with instruments.connections.use() as connection:
            examined = findings.read_pod(connection, name)
        visit = Visit(instruments, examined)
        try:
            yield visit
        finally:
            visit.clean()
            visit.close()


def test_what_metrics_prove(clinic: Clinic, database: str, reader: str) -> None:
    """GC is proved to be off only with the metrics of one settled process of such a registry for each address."""
    pod = clinic.admit("g-metrics", kind="gitlab")

    class Other(Handler):
        def do_GET(self) -> None:
            self.reply(200, b"go_goroutines 1\nprocess_start_time_seconds 1\n")

    with (
        HTTPServer(Other) as other,
        registry(clinic, pod, database, {}, {"up_s": 5000}, {"up_s": 30}) as (one, two, young),
        visiting(clinic, pod) as visit,
    ):

        def examine(*urls: str, processes: int = 2) -> Finding:
            visit.__dict__["ping_results"] = pings[:processes]
            visit.__dict__.pop("places", None)
            clinic.write_gitlab(pod, reader, *urls)
            return gitlab.check_registry_gc_off(visit)

        pings = visit.ping_results
        assert len(pings) == 3
        urls = one.debug_url, two.debug_url
        assert examine(*urls).result is PROVED
        assert examine(f"{one.debug_url}/metrics", two.debug_url).result is PROVED
        for given, why in {
            (): "0 of 2 processes were examined at their debug addresses",
            urls[:1]: "1 of 2 processes were examined",
            (urls[0], f"{urls[0]}/again/metrics"): "1 of 2 processes were examined",
            (*urls, other.address): "it has no series registry_database_",
            (*urls, "http://127.0.0.1:1"): "did not answer to GET /metrics (ECONNREFUSED)",
            (*urls, f"{urls[0]}/nothing"): "answered 404 to GET /nothing",
            (*urls, "postgresql://x"): "A debug address is http://",
            (*urls, young.debug_url): "s ago, and this shows 120 s after that",
        }.items():
            found = examine(*given)
            assert (found.result, why in found.proof) == (UNPROVED, True), (given, found)
            assert found.fix
        assert examine(*urls, processes=3).result is UNPROVED


def test_rights_that_are_missing(clinic: Clinic, database: str) -> None:
    """If the role may not read a table, the doctor names the table and prints the rights to grant; a lock file of a
    registry without a database is refuted.
    """
    pod = clinic.admit("g-rights", kind="gitlab")
    missing = tuple(table for table in TABLES if table != "blobs")
    with (
        locked(clinic, DATABASE_LOCK, FILESYSTEM_LOCK),
        registry(clinic, pod, database, {}) as (process,),
        visiting(clinic, pod) as visit,
    ):
        clinic.write_gitlab(pod, reader_of(database, missing), process.debug_url)
        found = gitlab.check_registry_database(visit)
        assert (found.result, "permission denied for table blobs" in found.proof) == (UNPROVED, True), found
        assert "GRANT SELECT ON" in found.fix
        found = gitlab.check_lock_file(visit)
        assert (found.result, FILESYSTEM_LOCK in found.proof) == (REFUTED, True), found
