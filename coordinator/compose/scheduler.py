"""The parts of a scheduler: its jobs, and what they work with. Workers and commands use some of them, too."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from coordinator.compose.database import connections, database_url, engine
from coordinator.compose.store import object_store
from coordinator.compose.values import collection_limits, dead_letter_limits, facts_reader, leftover_ages
from coordinator.db.connection import Connections
from coordinator.db.session import reading
from coordinator.domain.gc import Facts
from coordinator.domain.names import parse_digest
from coordinator.gc import collect
from coordinator.gc.conditions import FactsReader
from coordinator.gc.restore import Restorer
from coordinator.jobs.leases import Leases
from coordinator.jobs.work import Runner
from coordinator.kafka.lifecycle import TIMEOUT_S, LifecycleProducer
from coordinator.kafka.log import LogInspector
from coordinator.leftovers.links import give_back
from coordinator.leftovers.run import DeleteLeftovers
from coordinator.pods.prober import known_image
from coordinator.reconcile import reconcile
from coordinator.reconcile.presence import Presence
from coordinator.reconcile.resolve import Resolver
from coordinator.settings import Settings
from coordinator.storage.port import ObjectStore
from coordinator.table import statements


def leases(settings: Settings) -> Leases:
    return Leases(database_url(settings))


@contextmanager
def job_runners(settings: Settings) -> Iterator[Mapping[str, Runner]]:
    """The runner of each kind of job, for coordinator/jobs/work.py. To add a kind, add it here."""
    store = object_store(settings)
    connected = connections(settings, name="baleen-reconcile", prepare=statements.prepare)
    resolver = Resolver(connected, store)
    reconciler = reconcile.Reconcile(
        connected,
        store,
        resolver,
        margin=timedelta(seconds=settings.safety_clock_skew),
        link_grace=timedelta(seconds=settings.safety_link_grace),
        request_bound=timedelta(seconds=settings.safety_request_bound),
        limits=dead_letter_limits(settings),
    )
    leftovers = DeleteLeftovers(
        connected,
        store,
        leftover_ages(settings),
        every=timedelta(seconds=settings.leftovers_every),
        probed=parse_digest(known_image().digest),
        rate=settings.gc_rate,
    )
    try:
        with restorer(settings, name="baleen-gc") as restoring:
            collector = collect.Collect(
                connected,
                store,
                collection_facts(settings),
                restoring,
                limits=collection_limits(settings),
                rate=settings.gc_rate,
                leftovers=leftovers,
            )
            try:
                yield {reconcile.KIND: reconciler, collect.KIND: collector}
            finally:
                collector.close()
    finally:
        leftovers.close()
        reconciler.close()
        resolver.close()
        connected.close()


def collection_facts(settings: Settings) -> FactsReader:
    """The reader of all facts that a collection needs besides single blobs, each time on a new connection."""
    pool, read_known = engine(settings, name="baleen-gc", pool_size=1), facts_reader(settings)

    def read() -> Facts:
        try:
            with reading(pool) as connection:
                return read_known(connection).facts
        finally:
            pool.dispose()

    return read


@contextmanager
def restorer(settings: Settings, *, name: str) -> Iterator[Restorer]:
    """Restores hidden blobs; for one thread."""
    with audit(settings, name=name) as parts:
        restoring = Restorer(
            parts.connections,
            parts.store,
            parts.presence,
            delete_bound=timedelta(seconds=settings.safety_delete_bound),
            give_links_back=give_back,
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
def audit(settings: Settings, *, name: str = "baleen-audit") -> Iterator[AuditParts]:
    """Checks whether blobs have bytes; for one thread."""
    store, connected = object_store(settings), connections(settings, name=name)
    presence = Presence(connected, store)
    try:
        yield AuditParts(connected, store, presence)
    finally:
        presence.close()
        connected.close()


def lifecycle_producer(settings: Settings) -> LifecycleProducer:
    return LifecycleProducer(settings, LogInspector(settings, TIMEOUT_S))
