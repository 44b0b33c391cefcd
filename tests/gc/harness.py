"""A table, a bucket and a collector, with times of no length and with nothing that blocks it.

Route: `Garbage.pushed`, `forget`, … apply events -> `collect`, as a scheduler does -> `seen`, `state`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from coordinator.audit.audit import Ages, Audit, Report
from coordinator.db.connection import Connections
from coordinator.db.engine import temporary_engine
from coordinator.db.session import read_connection
from coordinator.domain.gc import Amount, Facts, Limits, PodFacts, Times
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName
from coordinator.gc import controls, mark
from coordinator.gc import mark_view as queries
from coordinator.gc import table as gc
from coordinator.gc.claims import Claims
from coordinator.gc.collect import JOB_KIND, Collector
from coordinator.gc.mark_table import ClaimResult
from coordinator.gc.restore import Restorer
from coordinator.gc.sizes import Sizes
from coordinator.gc.table import Hide
from coordinator.jobs.work import run_waiting_jobs
from coordinator.kafka.topics import EVENTS
from coordinator.leftovers.links import write_needed_links_back
from coordinator.perimeter import root_listing_table
from coordinator.reconcile.presence import Presence
from coordinator.storage.layout import MARK, MARK_COPY, blob_key
from coordinator.storage.port import ObjectStore
from coordinator.table import statements
from coordinator.table.epochs import advancing
from tests.support.claims import NO_CLAIMS
from tests.support.wait import eventually
from tests.table.harness import Table

NO_TIMES = Times(timedelta(0), timedelta(0), timedelta(0))
NO_LIMITS = Limits(100, 1_000_000, Amount(10**9, 10**15))
#: Long after any delete of a test has landed, and long before.
LANDED, IN_FLIGHT = timedelta(0), timedelta(hours=1)
POD = "pod-a"
#: A run does not pause after a failure.
SIZES = Sizes(pause_s=0.0)


class Run(NamedTuple):
    """A collection that has ended, or was left."""

    id: int
    state: str
    progress: Mapping[str, Any]
    error: str | None

    @property
    def hidden(self) -> int:
        return int(self.progress["hidden"]["blobs"])

    @property
    def purged(self) -> int:
        return int(self.progress["purged"]["blobs"])

    @property
    def freed(self) -> int:
        return int(self.progress["purged"]["bytes"])

    @property
    def kept(self) -> Mapping[str, int]:
        return dict(self.progress["kept"])


class Garbage(Table):
    """Blobs are named; the bytes of one are its name. One pod is known, whose links need no check."""

    def __init__(self, url: str, store: ObjectStore, *, fresh: bool = True) -> None:
        """With `fresh` the bucket has no mark, and GC is on; else all stays as it is."""
        super().__init__(url)
        self.store = store
        self.times = NO_TIMES
        self.limits = NO_LIMITS
        self.sizes = SIZES
        #: What a restorer takes beside this.
        self.restores: dict[str, Any] = {}
        self.delete_bound = IN_FLIGHT
        self.claims: Claims = NO_CLAIMS
        #: Called with what is known before it is used.
        self.known: Callable[[Facts], Facts] = lambda facts: facts
        self._second = 0
        if fresh:
            controls.set_switch(self.connection, "a test", on=True)
            # Tests with a database each share a bucket, and others a database.
            store.delete(MARK)
            store.delete(MARK_COPY)
            self.connection.execute("DELETE FROM gc_mark")

    def digest(self, name: str) -> Digest:
        return Digest(hashlib.sha256(self.body(name)).digest())

    def body(self, name: str) -> bytes:
        return f"{self.space}:{name}".encode()

    # What registries do

    def upload(self, *names: str) -> None:
        """Store bytes without an event."""
        for name in names:
            self.store.put(blob_key(self.digest(name)), self.body(name))

    def report(self, manifest: str, *layers: str) -> None:
        """Apply the event of a push."""
        self.report_all((manifest, *layers))

    def report_all(self, *images: Sequence[str]) -> None:
        """Apply the events of pushes, together; of each image the manifest comes first."""
        self.apply(*(self.push("r", manifest, layers, self._next()) for manifest, *layers in images))

    def pushed(self, manifest: str, *layers: str) -> None:
        self.upload(manifest, *layers)
        self.report(manifest, *layers)

    def push_and_forget(self, manifest: str, *layers: str) -> None:
        """Push an image and delete its manifest."""
        self.pushed(manifest, *layers)
        self.forget(manifest)

    def hidden(self, manifest: str, *layers: str) -> None:
        """Push an image, delete its manifest, and hide it by a collection."""
        self.push_and_forget(manifest, *layers)
        self.collect()

    def forget(self, *manifests: str) -> None:
        """Apply the events of deletes, together."""
        self.apply(*(self.removed("r", manifest, self._next()) for manifest in manifests))

    def _next(self) -> int:
        self._second += 1
        return self._second

    # What operators do

    def hold(self, scope: str, why: str = "a test") -> None:
        with advancing(self.connection):
            controls.put_hold(self.connection, RepositoryName(scope), why)

    def release(self, scope: str) -> None:
        with advancing(self.connection):
            controls.remove_hold(self.connection, RepositoryName(scope))

    def pin(self, name: str, why: str = "a test") -> None:
        with advancing(self.connection):
            controls.put_pin(self.connection, self.digest(name), why)

    def unpin(self, name: str) -> None:
        with advancing(self.connection):
            controls.remove_pin(self.connection, self.digest(name))

    # What is seen

    def is_served(self, name: str) -> bool:
        """Whether registries are served the bytes."""
        return self.store.head(blob_key(self.digest(name))) is not None

    def state(self, name: str) -> BlobState:
        (row,) = self.rows("SELECT state FROM blobs WHERE digest = %s", (self.digest(name),))
        return BlobState(row[0])

    def hide_of(self, name: str) -> Hide | None:
        return gc.read_hide_of_blob(self.connection, self.digest(name))

    def ledger(self, name: str) -> list[str]:
        found = self.rows("SELECT decision FROM gc_ledger WHERE digest = %s ORDER BY id", (self.digest(name),))
        return [row[0] for row in found]

    def changes(self, name: str) -> list[str]:
        found = self.rows("SELECT change FROM lifecycle_outbox WHERE digest = %s ORDER BY id", (self.digest(name),))
        return [row[0] for row in found]

    # The job

    def facts(self) -> Facts:
        ((now,),) = self.rows("SELECT clock_timestamp()")
        switch = controls.read_switch(self.connection)
        held = [f"{scope} is held: {why}" for scope, why in self.rows("SELECT scope, why FROM holds ORDER BY scope")]
        pods = [PodFacts(POD, now, now, is_reconcilable=False)]
        why = None if switch.enabled else switch.why
        return self.known(
            Facts(now, self.times, pods, why, held, listing=root_listing_table.read_listing(self.connection))
        )

    @contextmanager
    def parts(self, store: ObjectStore | None = None) -> Iterator[tuple[Connections, Collector, Restorer]]:
        with (
            closing(Connections(self.url, name="test-gc", prepare=statements.prepare_connection)) as connections,
            closing(Connections(self.url, name="test-restore")) as own,
            self.make_parts(connections, own, self.store if store is None else store) as (collect, restorer),
        ):
            yield connections, collect, restorer

    @contextmanager
    def make_parts(
        self, connections: Connections, own: Connections, store: ObjectStore
    ) -> Iterator[tuple[Collector, Restorer]]:
        """What collects and what restores in a process with these connections."""
        times = {"delete_bound": self.delete_bound, **self.restores}
        with (
            closing(Presence(own, store)) as presence,
            closing(Restorer(own, store, presence, give_links_back=write_needed_links_back, **times)) as restorer,
            closing(
                Collector(
                    connections, store, self.facts, restorer, claims=self.claims, limits=self.limits, sizes=self.sizes
                )
            ) as collect,
        ):
            yield collect, restorer

    def ask(self, **options: Any) -> int:
        (row,) = self.rows(
            "INSERT INTO jobs (kind, why, options) VALUES ('gc', 'a test', %s) RETURNING id", (json.dumps(options),)
        )
        return int(row[0])

    def run_waiting(self, store: ObjectStore | None = None, stop: threading.Event | None = None) -> None:
        """Do the runs that wait."""
        with self.parts(store) as (connections, collect, _):
            run_waiting_jobs(connections, {JOB_KIND: collect}, stop or threading.Event())

    def try_collection(self, store: ObjectStore | None = None, **options: Any) -> Run:
        number = self.ask(**options)
        self.run_waiting(store)
        (row,) = self.rows("SELECT id, state, progress, error FROM jobs WHERE id = %s", (number,))
        return Run(*row)

    def collect(self, store: ObjectStore | None = None, **options: Any) -> Run:
        run = self.try_collection(store, **options)
        assert run.state == "done", run.error
        return run

    def claim(self) -> ClaimResult:
        """Claim the bucket for this database; every delete of the lost history has landed."""
        # A closed connection is listed until its server process has ended.
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'baleen-api'"
        eventually(lambda: not self.rows(others), "no API is connected")
        with self.parts() as (connections, _, __):
            return mark.claim_bucket(connections, self.store, "a test", EVENTS, timedelta())

    def record(self) -> None:
        """Write the mark, as the API does before it answers to a change."""
        with self.parts() as (connections, _, __):
            mark.record_epoch(connections, self.store)

    def audit(self) -> Report:
        """An audit that repairs, once every pod is reconciled."""
        self.connection.execute("UPDATE gaps SET resolved_at = clock_timestamp() WHERE resolved_at IS NULL")
        with (
            closing(Connections(self.url, name="test-audit", prepare=statements.prepare_connection)) as connections,
            closing(Presence(connections, self.store)) as presence,
        ):
            return Audit(connections, self.store, presence, Ages(timedelta(), timedelta()), repair=True).run()

    def restore(self, store: ObjectStore | None = None) -> int:
        """One round of a worker."""
        with self.parts(store) as (_, __, restorer):
            return restorer.round()


def blocked_by(garbage: Garbage) -> list[str]:
    """What status shows of the database and the bucket, without the switch and pods."""
    with temporary_engine(garbage.url, name="test") as engine, read_connection(engine) as connection:
        return queries.mark_reasons(connection)
