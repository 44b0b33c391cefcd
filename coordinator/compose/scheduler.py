"""The parts of a scheduler: its jobs, and what they work with. Workers and commands use some of them, too."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from coordinator.compose.database import database_url, make_connections, make_engine
from coordinator.compose.kinds import make_claims
from coordinator.compose.store import make_object_store
from coordinator.compose.values import collection_limits, dead_letter_limits, leftover_ages, make_facts_reader
from coordinator.db.connection import Connections
from coordinator.db.session import read_connection
from coordinator.domain.gc import Facts
from coordinator.domain.names import parse_digest
from coordinator.gc import collect, mark
from coordinator.gc.conditions import FactsReader
from coordinator.gc.restore import Restorer
from coordinator.jobs.leases import Leases
from coordinator.jobs.work import Runner
from coordinator.kafka.lifecycle import TIMEOUT_S, LifecycleProducer
from coordinator.kafka.log import LogInspector
from coordinator.kinds.kinds import Kinds
from coordinator.leftovers.links import write_needed_links_back
from coordinator.leftovers.run import LeftoversDeleter
from coordinator.pods.prober import make_probe_image
from coordinator.reconcile import reconcile
from coordinator.reconcile.presence import Presence
from coordinator.settings import Settings
from coordinator.storage.port import ObjectStore
from coordinator.table import statements


def make_leases(settings: Settings) -> Leases:
    return Leases(database_url(settings))


@contextmanager
def open_job_runners(settings: Settings) -> Iterator[Mapping[str, Runner]]:
    """The runner of each kind of job, for coordinator/jobs/work.py. To add a kind, add it here."""
    store = make_object_store(settings)
    connected = make_connections(settings, name="baleen-reconcile", prepare=statements.prepare_connection)
    kinds = Kinds(settings, store)
    reconciler = reconcile.Reconciler(
        connected,
        store,
        kinds.links,
        margin=timedelta(seconds=settings.safety_clock_skew),
        link_grace=timedelta(seconds=settings.safety_link_grace),
        request_bound=timedelta(seconds=settings.safety_request_bound),
        limits=dead_letter_limits(settings),
    )
    leftovers = LeftoversDeleter(
        connected,
        store,
        leftover_ages(settings),
        every=timedelta(seconds=settings.leftovers_every),
        probed=parse_digest(make_probe_image().digest),
        rate=settings.gc_rate,
    )
    try:
        with open_restorer(settings, name="baleen-gc") as restoring:
            collector = collect.Collector(
                connected,
                store,
                make_collection_facts_reader(settings),
                restoring,
                claims=make_claims(connected, kinds),
                limits=collection_limits(settings),
                rate=settings.gc_rate,
                leftovers=leftovers,
            )
            try:
                yield {
                    reconcile.JOB_KIND: mark.with_mark_moved(reconciler, connected, store),
                    collect.JOB_KIND: collector,
                }
            finally:
                collector.close()
    finally:
        leftovers.close()
        reconciler.close()
        kinds.close()
        connected.close()


def make_collection_facts_reader(settings: Settings) -> FactsReader:
    """The reader of all facts that a collection needs besides single blobs, each time on a new connection."""
    pool, read_known = make_engine(settings, name="baleen-gc", pool_size=1), make_facts_reader(settings)

    def read_collection_facts() -> Facts:
        try:
            with read_connection(pool) as connection:
                return read_known(connection).facts
        finally:
            pool.dispose()

    return read_collection_facts


@contextmanager
def open_restorer(settings: Settings, *, name: str) -> Iterator[Restorer]:
    """Restores hidden blobs; for one thread."""
    with open_audit(settings, name=name) as parts:
        restoring = Restorer(
            parts.connections,
            parts.store,
            parts.presence,
            delete_bound=timedelta(seconds=settings.safety_delete_bound),
            give_links_back=write_needed_links_back,
        )
        try:
            yield restoring
        finally:
            restoring.close()


class AuditParts(NamedTuple):
    """The adapters that an audit uses."""

    connections: Connections
    store: ObjectStore
    presence: Presence


@contextmanager
def open_audit(settings: Settings, *, name: str = "baleen-audit") -> Iterator[AuditParts]:
    """Checks whether blobs have bytes; for one thread."""
    store, connected = make_object_store(settings), make_connections(settings, name=name)
    presence = Presence(connected, store)
    try:
        yield AuditParts(connected, store, presence)
    finally:
        presence.close()
        connected.close()


def make_lifecycle_producer(settings: Settings) -> LifecycleProducer:
    return LifecycleProducer(settings, LogInspector(settings, TIMEOUT_S))
