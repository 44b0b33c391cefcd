"""Build a worker's parts from the settings: what compose/ is for other processes."""

from contextlib import ExitStack
from datetime import timedelta
from typing import Any, NamedTuple

import faust
from faust.auth import Credentials

from coordinator.compose import database as compose_database
from coordinator.compose import scheduler as compose_scheduler
from coordinator.compose import store as compose_store
from coordinator.compose import values as compose_values
from coordinator.db.connection import Connections
from coordinator.kafka.connection import bootstrap_servers, client_arguments
from coordinator.kafka.log import LogInspector
from coordinator.kinds.kinds import Kinds
from coordinator.reconcile.link_keeper import LinkKeeper
from coordinator.reconcile.linked_manifests import ChildAdder
from coordinator.reconcile.resolve import Resolver
from coordinator.settings import Settings
from coordinator.table import statements
from workers.app import SESSION_TIMEOUT_S, ReferenceApp
from workers.app import make_app as build_app
from workers.housekeeping import Housekeeping
from workers.position import Positions
from workers.processor import Processor


class Worker(NamedTuple):
    app: ReferenceApp
    processor: Processor
    kinds: Kinds
    resolver: Resolver
    link_keeper: LinkKeeper
    restoring: ExitStack
    connections: Connections
    inspector: LogInspector

    def close(self) -> None:
        self.processor.close()
        self.kinds.close()
        self.link_keeper.close()
        self.restoring.close()
        self.connections.close()
        self.inspector.close()


def make_worker(settings: Settings) -> Worker:
    """Build a worker without starting it; raises SettingsError that names what is missing."""
    connections = compose_database.make_connections(settings, name="baleen-worker", prepare=_prepare_connection)
    inspector = LogInspector(settings)
    store = compose_store.make_object_store(settings)
    positions = Positions(connections, inspector)
    kinds = Kinds(settings, store)
    links = kinds.links
    resolver = Resolver(connections, links)
    margin = timedelta(seconds=settings.safety_clock_skew)
    link_keeper = LinkKeeper(connections, links, margin)
    processor = Processor(
        connections,
        store,
        positions,
        resolver,
        link_keeper,
        ChildAdder(connections, links.bucket, margin),
        margin=margin,
        request_bound=timedelta(seconds=settings.safety_request_bound),
        batch_records=settings.worker_batch,
        limits=compose_values.dead_letter_limits(settings),
    )
    restoring = ExitStack()
    restorer = restoring.enter_context(compose_scheduler.open_restorer(settings, name="baleen-restorer"))
    housekeeping = Housekeeping(
        connections,
        resolver,
        link_keeper,
        restorer,
        link_grace=timedelta(seconds=settings.safety_link_grace),
        retention=timedelta(seconds=settings.kafka_retention),
    )
    app = build_app(
        bootstrap_servers(settings),
        processor,
        positions,
        housekeeping,
        credentials=_make_credentials(settings),
        group=settings.worker_group,
        fetch_records=settings.worker_batch,
    )
    return Worker(app, processor, kinds, resolver, link_keeper, restoring, connections, inspector)


def _prepare_connection(connection: Any) -> None:
    """Set up a connection for batches: its locks end when a worker that hangs loses its group membership.

    The worker that takes over its partitions waits for those locks.
    """
    statements.prepare_connection(connection)
    connection.execute(f"SET idle_in_transaction_session_timeout = '{SESSION_TIMEOUT_S:.0f}s'")


def _make_credentials(settings: Settings) -> Credentials | None:
    """The security settings of the other Kafka clients, as Faust takes them."""
    arguments = client_arguments(settings)
    tls = arguments.get("ssl_context")
    if "sasl_mechanism" in arguments:
        return faust.SASLCredentials(
            username=arguments["sasl_plain_username"],
            password=arguments["sasl_plain_password"],
            mechanism=arguments["sasl_mechanism"],
            ssl_context=tls,
        )
    return faust.SSLCredentials(context=tls) if tls is not None else None
