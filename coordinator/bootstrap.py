"""Build the real adapters from settings. Nobody else does; the worker has its own (workers/build.py).

A setting that is missing is named, with what may stand in for it. Each adapter is imported where it is built: whoever
needs the database alone need not wait for the drivers of Kafka, S3 and the web.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from coordinator.db.engine import async_engine, sync_engine
from coordinator.db.queries.session import BlockingDatabase, Database, reading
from coordinator.errors import SettingsError, UnavailableError
from coordinator.settings import Settings

if TYPE_CHECKING:
    from coordinator.api.app import Application
    from coordinator.storage.s3 import S3ObjectStore

#: The API answers what waits on a broker that is away within the time that clients wait.
KAFKA_SECONDS = 2.5


def database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise SettingsError("BALEEN_DATABASE_URL is not set: name a PostgreSQL, or start one with `baleen up`.")
    return settings.database_url.reveal()


def engine(settings: Settings, *, pool_size: int = 8, name: str = "baleen-api") -> Database:
    return async_engine(database_url(settings), pool_size=pool_size, name=name)


def job_engine(settings: Settings) -> BlockingDatabase:
    """For a job that may take long."""
    return sync_engine(database_url(settings), timeout_ms=0)


def object_store(settings: Settings, **timeouts: Any) -> "S3ObjectStore":
    """The shared store; `timeouts` as S3ObjectStore takes them."""
    from coordinator.storage.s3 import S3ObjectStore  # noqa: PLC0415

    if settings.s3_bucket is None:
        raise SettingsError("BALEEN_S3_BUCKET is not set: name the bucket that the pods share, or use `baleen up`.")
    return S3ObjectStore(
        settings.s3_bucket,
        settings.s3_root,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=None if settings.s3_secret_key is None else settings.s3_secret_key.reveal(),
        **timeouts,
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
            ingest=Ingest(settings, directory, producer),
            checks={"database": answers, "migrations": migrated, "kafka": lag.check, "store": stored},
            url=settings.url,
            lifespan=lifespan,
        )
    )
