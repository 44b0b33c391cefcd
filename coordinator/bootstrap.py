"""Build the real adapters from settings. Nobody else does; the worker has its own (workers/build.py).

A setting that is missing is named, with what may stand in for it. Each adapter is imported where it is built: whoever
needs the database alone need not wait for the drivers of Kafka, S3 and the web.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from coordinator.db.connection import Connections
from coordinator.db.engine import async_engine, sync_engine
from coordinator.db.leases import Leases
from coordinator.db.queries.session import BlockingDatabase, Database, reading
from coordinator.errors import SettingsError, UnavailableError, UnconfiguredError
from coordinator.settings import Secret, Settings

if TYPE_CHECKING:
    from coordinator.api.app import Application
    from coordinator.domain.names import PodName, RepositoryName
    from coordinator.domain.pods import PodMode
    from coordinator.ingest.lifecycle import LifecycleProducer
    from coordinator.jobs import Runner
    from coordinator.pods.doctor.visit import Instruments
    from coordinator.pods.registry_auth import Credentials
    from coordinator.reconcile.presence import Presence
    from coordinator.storage.locations import Location
    from coordinator.storage.port import ObjectReader, ObjectStore
    from coordinator.storage.s3 import S3ObjectStore
    from coordinator.storage.trial import TrialStore

#: The API answers what waits on a broker that is away within the time that clients wait.
KAFKA_SECONDS = 2.5
#: Where this is set, boto3 is asked for a region first: it is what nobody has set otherwise.
DEFAULT_REGION = Settings().s3_region


def database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise UnconfiguredError(
            "No database is known: start `baleen up` in this directory, or set BALEEN_DATABASE_URL."
        )
    return settings.database_url.reveal()


def engine(settings: Settings, *, pool_size: int = 8, name: str = "baleen-api") -> Database:
    return async_engine(database_url(settings), pool_size=pool_size, name=name)


def job_engine(settings: Settings) -> BlockingDatabase:
    """For a job that may take long."""
    return sync_engine(database_url(settings), timeout_ms=0)


def connections(settings: Settings, *, name: str) -> Connections:
    """For threads that each keep a connection."""
    return Connections(database_url(settings), name=name)


def leases(settings: Settings) -> Leases:
    return Leases(database_url(settings))


@contextmanager
def job_runners(settings: Settings) -> "Iterator[Mapping[str, Runner]]":
    """Who does each kind of job; for coordinator/jobs.py. To add a kind, add it here."""
    from coordinator.db import rows  # noqa: PLC0415
    from coordinator.reconcile import reconcile  # noqa: PLC0415
    from coordinator.reconcile.settle import Settler  # noqa: PLC0415

    store = object_store(settings)
    connected = Connections(database_url(settings), name="baleen-reconcile", prepare=rows.prepare)
    settler = Settler(connected, store)
    reconciler = reconcile.Reconcile(
        connected,
        store,
        settler,
        margin=timedelta(seconds=settings.safety_clock_skew),
        link_grace=timedelta(seconds=settings.safety_link_grace),
        request_bound=timedelta(seconds=settings.safety_request_bound),
    )
    try:
        yield {reconcile.KIND: reconciler}
    finally:
        reconciler.close()
        settler.close()
        connected.close()


class AuditParts(NamedTuple):
    """What an audit works with."""

    connections: Connections
    store: "ObjectStore"
    presence: "Presence"


@contextmanager
def audit(settings: Settings, *, name: str = "baleen-audit") -> "Iterator[AuditParts]":
    """What looks whether blobs have bytes; for one thread."""
    from coordinator.reconcile.presence import Presence  # noqa: PLC0415

    store, connected = object_store(settings), connections(settings, name=name)
    presence = Presence(connected, store)
    try:
        yield AuditParts(connected, store, presence)
    finally:
        presence.close()
        connected.close()


def lifecycle_producer(settings: Settings) -> "LifecycleProducer":
    from coordinator.ingest.lifecycle import LifecycleProducer  # noqa: PLC0415

    return LifecycleProducer(settings)


def _bucket(settings: Settings) -> str:
    if settings.s3_bucket is None:
        raise UnconfiguredError("No bucket is known: start `baleen up` in this directory, or set BALEEN_S3_BUCKET.")
    return settings.s3_bucket


@contextmanager
def doctor(settings: Settings, pod: "PodName", *, patience: float | None = None) -> "Iterator[Instruments]":
    """What a doctor works with, on one visit."""
    from coordinator.db import rows  # noqa: PLC0415
    from coordinator.ingest.log import LogInspector  # noqa: PLC0415
    from coordinator.ingest.tail import EventTail  # noqa: PLC0415
    from coordinator.pods.doctor.visit import PATIENCE_S, Instruments  # noqa: PLC0415

    secret = settings.pod_secret_key
    if (settings.pod_access_key is None) != (secret is None):
        raise SettingsError("BALEEN_POD_ACCESS_KEY and BALEEN_POD_SECRET_KEY belong together: set both, or neither.")
    connected = Connections(database_url(settings), name="baleen-doctor", prepare=rows.prepare)
    try:
        with LogInspector(settings) as inspector, EventTail(settings, inspector, pod) as tail:
            yield Instruments(
                settings,
                connected,
                trial_store(settings),
                None if secret is None else trial_store(settings, settings.pod_access_key, secret),
                registry_credentials(settings),
                inspector,
                tail,
                PATIENCE_S if patience is None else patience,
            )
    finally:
        connected.close()


def trial_store(settings: Settings, access_key: str | None = None, secret_key: Secret | None = None) -> "TrialStore":
    """The shared store as a doctor tries it: with Baleen's own key, or another."""
    from coordinator.storage.trial import TrialStore  # noqa: PLC0415

    if access_key is None:
        access_key, secret_key = settings.s3_access_key, settings.s3_secret_key
    return TrialStore(
        _bucket(settings),
        settings.s3_root,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key=access_key,
        secret_key=None if secret_key is None else secret_key.reveal(),
    )


def registry_credentials(settings: Settings) -> "Credentials | None":
    """Who asks at registries; None where nothing is set."""
    from coordinator.pods.registry_auth import Credentials  # noqa: PLC0415

    if settings.registry_username is None and settings.registry_password is None:
        return None
    if settings.registry_username is None or settings.registry_password is None:
        raise SettingsError(
            "BALEEN_REGISTRY_USERNAME and BALEEN_REGISTRY_PASSWORD belong together: set both, or neither."
        )
    return Credentials(settings.registry_username, settings.registry_password)


def object_store(settings: Settings, **timeouts: Any) -> "S3ObjectStore":
    """The shared store; `timeouts` as S3ObjectStore takes them."""
    from coordinator.storage.s3 import S3ObjectStore  # noqa: PLC0415

    return S3ObjectStore(
        _bucket(settings),
        settings.s3_root,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=None if settings.s3_secret_key is None else settings.s3_secret_key.reveal(),
        **timeouts,
    )


def open_location(location: "Location", settings: Settings, *, endpoint_url: str | None = None) -> "ObjectReader":
    """A store that an operator names, to read from: a directory, or a bucket at `endpoint_url`, at the one of the
    settings, or where boto3 finds it. The settings' keys are for the settings' endpoint: another is asked with those
    that boto3 finds.
    """
    from coordinator.storage.files import FileObjectStore  # noqa: PLC0415
    from coordinator.storage.locations import FileLocation  # noqa: PLC0415
    from coordinator.storage.s3 import S3ObjectStore  # noqa: PLC0415

    if isinstance(location, FileLocation):
        return FileObjectStore(location.directory)
    ours = endpoint_url is None or settings.s3_endpoint_url in {None, endpoint_url}
    secret = settings.s3_secret_key if ours else None
    return S3ObjectStore(
        location.bucket,
        location.root,
        endpoint_url=endpoint_url or settings.s3_endpoint_url,
        region=settings.s3_region if settings.s3_region != DEFAULT_REGION else None,
        access_key=settings.s3_access_key if ours else None,
        secret_key=None if secret is None else secret.reveal(),
    )


def same_place(one: "ObjectReader", other: "ObjectReader") -> bool:
    """Whether both are the same root of the same bucket, as far as their addresses say."""
    from coordinator.storage.s3 import S3ObjectStore  # noqa: PLC0415

    return (
        isinstance(one, S3ObjectStore)
        and isinstance(other, S3ObjectStore)
        and (one.endpoint, one.bucket, one.root) == (other.endpoint, other.bucket, other.root)
    )


def api(settings: Settings) -> "Application":
    """The whole API. Raises SettingsError; does not wait for any service."""
    from coordinator.api.app import create_app  # noqa: PLC0415
    from coordinator.api.auth import TokenDirectory  # noqa: PLC0415
    from coordinator.api.deps import Deps  # noqa: PLC0415
    from coordinator.api.lag import LagReader  # noqa: PLC0415
    from coordinator.db import pods, tokens  # noqa: PLC0415
    from coordinator.db.queries.blobs import BlobQueries  # noqa: PLC0415
    from coordinator.db.queries.status import schema_problem  # noqa: PLC0415
    from coordinator.ingest.directory import CachedPodDirectory  # noqa: PLC0415
    from coordinator.ingest.log import LogInspector  # noqa: PLC0415
    from coordinator.ingest.producer import EventProducer  # noqa: PLC0415
    from coordinator.ingest.service import Ingest  # noqa: PLC0415
    from coordinator.ingest.topics import DEAD_LETTERS, EVENTS  # noqa: PLC0415
    from coordinator.reconcile.remains import holds_anything  # noqa: PLC0415

    database = engine(settings)
    # Asked only whether it answers: a store that hangs must not fill the threads with those who ask.
    store = object_store(settings, connect_timeout=1, read_timeout=2, attempts=1)
    producer = EventProducer(settings)
    inspector = LogInspector(settings, timeout=KAFKA_SECONDS)
    lag = LagReader(inspector, (EVENTS, DEAD_LETTERS))
    directory = CachedPodDirectory(lambda: pods.known_pods(database))

    async def answers() -> None:
        async with reading(database) as connection:
            await connection.exec_driver_sql("SELECT 1")

    async def migrated() -> None:
        async with reading(database) as connection:
            if (problem := await schema_problem(connection)) is not None:
                raise UnavailableError(problem)

    async def stored() -> None:
        await asyncio.to_thread(store.check)

    async def still_holds(prefixes: "Sequence[RepositoryName]", mode: "PodMode") -> bool:
        # Asked seldom, and with more patience than `store` has.
        return await asyncio.to_thread(lambda: holds_anything(object_store(settings), prefixes, mode))

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await producer.start()
        try:
            yield
        finally:
            await producer.stop()
            await asyncio.to_thread(inspector.close)
            await database.dispose()

    return create_app(
        Deps(
            engine=database,
            tokens=TokenDirectory(lambda: tokens.known(database)),
            blobs=BlobQueries(database),
            lag=lag,
            publish=producer.publish,
            still_holds=still_holds,
            ingest=Ingest(settings, directory, producer),
            checks={"database": answers, "migrations": migrated, "kafka": lag.check, "store": stored},
            silence=timedelta(seconds=settings.probe_silence),
            url=settings.url,
            lifespan=lifespan,
        )
    )
