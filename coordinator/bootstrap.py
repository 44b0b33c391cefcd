"""Build the real adapters from the settings. Only here; workers have workers/build.py.

An error for a missing setting names it and its alternative. Each adapter is imported where it is built, so that a
process that needs only the database does not load the drivers of Kafka, S3 and HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from coordinator.db import engine as database_engine
from coordinator.db.arrays import register
from coordinator.db.connection import Connections
from coordinator.db.session import Database, reading
from coordinator.db.threads import in_thread
from coordinator.domain.findings import implied
from coordinator.errors import SettingsError, UnavailableError, UnconfiguredError, UsageError
from coordinator.jobs.leases import Leases
from coordinator.settings import HTTP_URL, Secret, Settings

if TYPE_CHECKING:
    from coordinator.api.app import Application
    from coordinator.api.marking import MarkRecorder
    from coordinator.api.mounts import Mounts
    from coordinator.dead_letters.resolve import Stored
    from coordinator.doctor.visit import Instruments
    from coordinator.domain.access import Access
    from coordinator.domain.gc import Facts, Limits, Times
    from coordinator.domain.names import PodName, RepositoryName
    from coordinator.domain.pods import PodMode
    from coordinator.gc.conditions import FactsReader
    from coordinator.gc.restore import Restorer
    from coordinator.ingest.normalise import Outcome
    from coordinator.jobs.work import Runner
    from coordinator.kafka.lifecycle import LifecycleProducer
    from coordinator.leftovers.sweep import Ages
    from coordinator.mounts.directory import MountPod
    from coordinator.mounts.mounter import Rights
    from coordinator.mounts.sources import Shown
    from coordinator.reconcile.presence import Presence
    from coordinator.registry.auth import Credentials
    from coordinator.storage.locations import Location
    from coordinator.storage.port import ObjectReader, ObjectStore
    from coordinator.storage.s3 import S3ObjectStore
    from coordinator.storage.trial import TrialStore
    from coordinator.table.batch import LetterLimits
    from coordinator.tokens.keys import KeyFile
    from coordinator.tokens.service import ReadPods, TokenService
    from coordinator.tokens.sign import SigningKeys
    from coordinator.tokens.verify import TokenVerifier

#: Timeout for a broker that does not answer: less than clients of the API wait.
KAFKA_SECONDS = 2.5
#: With this setting, boto3 is asked for a region first, because the region is what is usually not set elsewhere.
DEFAULT_REGION = Settings().s3_region
#: Blobs and bytes that a collection may always hide: below this a percentage means nothing.
SMALL_RUN = (1000, 10 << 30)


def database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise UnconfiguredError(
            "No database is configured: start `baleen up` in this directory, or set BALEEN_DATABASE_URL."
        )
    return settings.database_url.reveal()


def engine(settings: Settings, *, name: str, **limits: int) -> Database:
    """A pool of connections; `limits` are arguments of db.engine.engine."""
    return database_engine.engine(database_url(settings), name=name, **limits)


@contextmanager
def database(settings: Settings, *, name: str, **limits: int) -> "Iterator[Database]":
    """As `engine`, for one piece of work in one thread: its connection is closed at the end."""
    made = engine(settings, name=name, pool_size=1, **limits)
    try:
        yield made
    finally:
        made.dispose()


def connections(settings: Settings, *, name: str) -> Connections:
    """Connections for threads that each keep one; they can send arrays of digests."""
    return Connections(database_url(settings), name=name, prepare=register)


def leases(settings: Settings) -> Leases:
    return Leases(database_url(settings))


@contextmanager
def job_runners(settings: Settings) -> "Iterator[Mapping[str, Runner]]":
    """The runner of each kind of job, for coordinator/jobs/work.py. To add a kind, add it here."""
    from coordinator.domain.names import parse_digest  # noqa: PLC0415
    from coordinator.gc import collect  # noqa: PLC0415
    from coordinator.leftovers.run import DeleteLeftovers  # noqa: PLC0415
    from coordinator.pods.prober import known_image  # noqa: PLC0415
    from coordinator.reconcile import reconcile  # noqa: PLC0415
    from coordinator.reconcile.resolve import Settler  # noqa: PLC0415
    from coordinator.table import statements  # noqa: PLC0415

    store = object_store(settings)
    connected = Connections(database_url(settings), name="baleen-reconcile", prepare=statements.prepare)
    settler = Settler(connected, store)
    reconciler = reconcile.Reconcile(
        connected,
        store,
        settler,
        margin=timedelta(seconds=settings.safety_clock_skew),
        link_grace=timedelta(seconds=settings.safety_link_grace),
        request_bound=timedelta(seconds=settings.safety_request_bound),
        limits=letter_limits(settings),
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
        settler.close()
        connected.close()


def leftover_ages(settings: Settings) -> "Ages":
    from coordinator.leftovers.sweep import Ages  # noqa: PLC0415

    return Ages(
        uploads=timedelta(seconds=settings.leftovers_uploads),
        parts=timedelta(seconds=settings.leftovers_parts),
        versions=timedelta(seconds=settings.leftovers_versions),
        links=timedelta(seconds=settings.leftovers_links),
        delete_bound=timedelta(seconds=settings.safety_delete_bound),
    )


def safety_times(settings: Settings) -> "Times":
    from coordinator.domain.gc import Times  # noqa: PLC0415

    return Times(
        grace=timedelta(seconds=settings.safety_grace),
        quarantine=timedelta(seconds=settings.safety_quarantine),
        request_bound=timedelta(seconds=settings.safety_request_bound),
    )


def collection_limits(settings: Settings) -> "Limits":
    from coordinator.domain.gc import Amount, Limits  # noqa: PLC0415

    return Limits(settings.gc_limit_percent, settings.gc_limit_history, Amount(*SMALL_RUN))


def collection_facts(settings: Settings) -> "FactsReader":
    """The reader of all facts that a collection needs besides single blobs, each time on a new connection."""
    from coordinator.gc.conditions import known  # noqa: PLC0415

    times, silence = safety_times(settings), timedelta(seconds=settings.probe_silence)
    in_spite_of = unsafe_findings(settings)

    def read() -> "Facts":
        with database(settings, name="baleen-gc") as pool, reading(pool) as connection:
            return known(connection, times, silence, in_spite_of).facts

    return read


def unsafe_findings(settings: Settings) -> frozenset[str]:
    """Checks of the doctor whose findings do not block GC."""
    return implied(frozenset(settings.unsafe_findings.split(",")) - {""})


@contextmanager
def restorer(settings: Settings, *, name: str) -> "Iterator[Restorer]":
    """Restores hidden blobs; for one thread."""
    from coordinator.gc.restore import Restorer  # noqa: PLC0415
    from coordinator.leftovers.links import give_back  # noqa: PLC0415

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
    store: "ObjectStore"
    presence: "Presence"


@contextmanager
def audit(settings: Settings, *, name: str = "baleen-audit") -> "Iterator[AuditParts]":
    """Checks whether blobs have bytes; for one thread."""
    from coordinator.reconcile.presence import Presence  # noqa: PLC0415

    store, connected = object_store(settings), connections(settings, name=name)
    presence = Presence(connected, store)
    try:
        yield AuditParts(connected, store, presence)
    finally:
        presence.close()
        connected.close()


def mark_recorder(settings: Settings) -> "MarkRecorder":
    """Writes the API's changes to the mark in the bucket."""
    from coordinator.api.marking import MarkRecorder  # noqa: PLC0415
    from coordinator.gc import mark  # noqa: PLC0415

    connected = connections(settings, name="baleen-api-mark")
    store = object_store(settings, connect_timeout=1, read_timeout=3, attempts=1)
    return MarkRecorder(lambda: mark.record(connected, store), connected.close)


def lifecycle_producer(settings: Settings) -> "LifecycleProducer":
    from coordinator.kafka.lifecycle import TIMEOUT_S, LifecycleProducer  # noqa: PLC0415
    from coordinator.kafka.log import LogInspector  # noqa: PLC0415

    return LifecycleProducer(settings, LogInspector(settings, TIMEOUT_S))


def _bucket(settings: Settings) -> str:
    if settings.s3_bucket is None:
        raise UnconfiguredError(
            "No bucket is configured: start `baleen up` in this directory, or set BALEEN_S3_BUCKET."
        )
    return settings.s3_bucket


@contextmanager
def doctor(settings: Settings, pod: "PodName", *, patience: float | None = None) -> "Iterator[Instruments]":
    """The instruments of a doctor for one visit."""
    from coordinator.doctor.visit import PATIENCE_S, Instruments  # noqa: PLC0415
    from coordinator.kafka.log import LogInspector  # noqa: PLC0415
    from coordinator.kafka.tail import EventTail  # noqa: PLC0415
    from coordinator.table import statements  # noqa: PLC0415

    secret = settings.pod_secret_key
    if (settings.pod_access_key is None) != (secret is None):
        raise SettingsError("BALEEN_POD_ACCESS_KEY and BALEEN_POD_SECRET_KEY belong together: set both or neither.")
    connected = Connections(database_url(settings), name="baleen-doctor", prepare=statements.prepare)
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
    """The shared store for a doctor's trials, with Baleen's own key or another."""
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


def stored_in(settings: Settings) -> "Stored":
    """Says which repositories have anything in storage; waits for storage a few seconds."""
    from coordinator.reconcile.remains import is_stored  # noqa: PLC0415

    def stored(repositories: "Sequence[RepositoryName]") -> list["RepositoryName"]:
        store = object_store(settings, connect_timeout=2, read_timeout=5, attempts=2)
        return [each for each in repositories if is_stored(store, each)]

    return stored


def letter_limits(settings: Settings) -> "LetterLimits":
    """How many dead letters of a pod are kept."""
    from coordinator.table.batch import LetterLimits  # noqa: PLC0415

    return LetterLimits(settings.dead_letters_limit, settings.dead_letters_bytes)


def registry_credentials(settings: Settings) -> "Credentials | None":
    """The credentials for registries; None if none are set."""
    from coordinator.registry.auth import Credentials  # noqa: PLC0415

    if settings.registry_username is None and settings.registry_password is None:
        return None
    if settings.registry_username is None or settings.registry_password is None:
        raise SettingsError(
            "BALEEN_REGISTRY_USERNAME and BALEEN_REGISTRY_PASSWORD belong together: set both or neither."
        )
    return Credentials(settings.registry_username, settings.registry_password)


def object_store(settings: Settings, **timeouts: Any) -> "S3ObjectStore":
    """The shared store; `timeouts` are arguments of S3ObjectStore."""
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
    """Open a store that the operator named, for reading: a directory, or a bucket.

    The bucket is at `endpoint_url` (`--endpoint-url`), else at the settings' endpoint, else where boto3 finds it.
    The settings' keys are used only at the settings' endpoint; elsewhere boto3 finds keys. Raises UsageError if
    `endpoint_url` is malformed.
    """
    from coordinator.storage.files import FileObjectStore  # noqa: PLC0415
    from coordinator.storage.locations import FileLocation  # noqa: PLC0415
    from coordinator.storage.s3 import S3ObjectStore  # noqa: PLC0415

    if isinstance(location, FileLocation):
        return FileObjectStore(location.directory)
    if endpoint_url is not None:
        try:
            HTTP_URL.taken(endpoint_url)
        except ValueError as error:
            raise UsageError(f"--endpoint-url is malformed: it must be {HTTP_URL}.") from error
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
    """Whether both are the same root of the same bucket, judged by their addresses."""
    from coordinator.storage.s3 import S3ObjectStore  # noqa: PLC0415

    return (
        isinstance(one, S3ObjectStore)
        and isinstance(other, S3ObjectStore)
        and (one.endpoint, one.bucket, one.root) == (other.endpoint, other.bucket, other.root)
    )


def mounts(settings: Settings, verifier: "TokenVerifier | None", signing: "KeyFile[SigningKeys] | None") -> "Mounts":
    """Serves mounts to clients whose tokens the verifier accepts."""
    from coordinator.api.mounts import Mounts  # noqa: PLC0415
    from coordinator.domain.pods import Linker  # noqa: PLC0415
    from coordinator.mounts import table  # noqa: PLC0415
    from coordinator.mounts.directory import MountPods  # noqa: PLC0415
    from coordinator.mounts.forward import HandOn  # noqa: PLC0415
    from coordinator.mounts.linker import LinkObjects  # noqa: PLC0415
    from coordinator.mounts.mounter import Mounter  # noqa: PLC0415
    from coordinator.mounts.relay import Relay  # noqa: PLC0415
    from coordinator.mounts.sources import Sources  # noqa: PLC0415

    connected = Connections(database_url(settings), name="baleen-mounts", prepare=table.prepare)
    store = object_store(settings, connect_timeout=2, read_timeout=5, attempts=2)
    sources = Sources(store, ca_file=settings.registry_ca_file, shown=shown_to_sources(settings, verifier, signing))
    relay = Relay(
        connected,
        sources.read,
        credentials=registry_credentials(settings),
        ca_file=settings.registry_ca_file,
        patience=settings.mount_timeout,
    )

    def known() -> "Sequence[MountPod]":
        with connected.use() as connection:
            return table.pods(connection)

    mounter = Mounter(
        connected,
        MountPods(known),
        sources,
        {Linker.LINK: LinkObjects(store), Linker.RELAY: relay},
        rights(settings, verifier),
        margin=timedelta(seconds=settings.safety_clock_skew),
        relay_limit=settings.mount_relay_limit,
    )
    return Mounts(mounter, HandOn(ca_file=settings.registry_ca_file), patience=settings.mount_timeout)


def rights(settings: Settings, verifier: "TokenVerifier | None") -> "Rights":
    """The function that returns what a client's token permits."""
    from coordinator.domain.mounts import NotMountedError, Reason  # noqa: PLC0415
    from coordinator.mounts.sources import token_of  # noqa: PLC0415
    from coordinator.tokens.verify import TokenRefusedError  # noqa: PLC0415

    def everything(_: str | None) -> None:
        return None

    def proved(authorization: str | None) -> "Access":
        if verifier is None:
            raise NotMountedError(Reason.NO_RIGHT, "no keys verify tokens: set BALEEN_JWT_KEYS")
        token = token_of(authorization)
        if token is None:
            raise NotMountedError(Reason.NO_RIGHT, "there is no bearer token")
        try:
            return verifier.verify(token).access
        except TokenRefusedError as error:
            raise NotMountedError(Reason.NO_RIGHT, str(error)) from error

    return everything if settings.mounts == "open" else proved


def shown_to_sources(
    settings: Settings, verifier: "TokenVerifier | None", signing: "KeyFile[SigningKeys] | None"
) -> "Shown | None":
    """The function that narrows a client's token for the registry of a mount's source; None to show it unchanged."""
    from coordinator.domain.mounts import NotMountedError, Reason  # noqa: PLC0415
    from coordinator.mounts.sources import token_of  # noqa: PLC0415
    from coordinator.tokens.narrow import pull_only  # noqa: PLC0415
    from coordinator.tokens.sign import Signer  # noqa: PLC0415
    from coordinator.tokens.verify import TokenRefusedError  # noqa: PLC0415

    if settings.mounts == "open" or verifier is None or signing is None:
        return None
    issuer, audience = _names(settings)
    signer = Signer(signing.current, issuer=issuer, audience=audience, lifetime=settings.jwt_lifetime)

    def shown(authorization: str | None, repository: "RepositoryName") -> str | None:
        token = token_of(authorization)
        try:
            return None if token is None else pull_only(token, repository, verifier, signer)
        except TokenRefusedError as error:
            raise NotMountedError(Reason.NO_RIGHT, str(error)) from error

    return shown


def signing_keys(settings: Settings) -> "KeyFile[SigningKeys] | None":
    """The keys that Baleen signs tokens with; None if none are set."""
    from coordinator.tokens.keys import KeyFile  # noqa: PLC0415
    from coordinator.tokens.sign import parse_signing  # noqa: PLC0415

    if settings.jwt_signing_keys is None:
        return None
    return KeyFile("BALEEN_JWT_SIGNING_KEYS", settings.jwt_signing_keys, parse_signing, private=True)


def token_verifier(settings: Settings, signing: "KeyFile[SigningKeys] | None") -> "TokenVerifier | None":
    """The verifier of clients' tokens, with the keys of BALEEN_JWT_KEYS, else Baleen's own; None without either."""
    from coordinator.tokens.keys import KeyFile, parse_trusted  # noqa: PLC0415
    from coordinator.tokens.verify import TokenVerifier  # noqa: PLC0415

    if settings.jwt_keys is not None:
        keys = KeyFile("BALEEN_JWT_KEYS", settings.jwt_keys, parse_trusted).current
    elif signing is not None:
        keys = lambda: signing.current().public  # noqa: E731 - one of two
    else:
        return None
    issuer, audience = _names(settings)
    return TokenVerifier(keys, issuer=issuer, audience=audience)


def token_service(
    settings: Settings, signing: "KeyFile[SigningKeys] | None", pods: "ReadPods"
) -> "TokenService | None":
    """The service that issues tokens for several pods; None without a key to sign with."""
    from coordinator.tokens.issuers import Issuers  # noqa: PLC0415
    from coordinator.tokens.service import TokenService  # noqa: PLC0415
    from coordinator.tokens.sign import Signer  # noqa: PLC0415

    if signing is None:
        return None
    issuer, audience = _names(settings)
    signer = Signer(signing.current, issuer=issuer, audience=audience, lifetime=settings.jwt_lifetime)
    return TokenService(pods, Issuers(ca_file=settings.registry_ca_file), signer)


def _names(settings: Settings) -> tuple[str, str]:
    if settings.jwt_issuer is None or settings.jwt_audience is None:
        raise SettingsError(
            "Keys for tokens also need BALEEN_JWT_ISSUER and BALEEN_JWT_AUDIENCE: set them to `auth.token.issuer` and "
            "`auth.token.service` of the registries."
        )
    return settings.jwt_issuer, settings.jwt_audience


def api(settings: Settings) -> "Application":  # noqa: PLR0915 - the imports count
    """The whole API. Raises SettingsError; does not wait for any service."""
    from coordinator.api.app import create_app  # noqa: PLC0415
    from coordinator.api.auth import TokenDirectory  # noqa: PLC0415
    from coordinator.api.deps import Deps  # noqa: PLC0415
    from coordinator.api.lag import LagReader  # noqa: PLC0415
    from coordinator.api.shared import Shared  # noqa: PLC0415
    from coordinator.gc.conditions import known  # noqa: PLC0415
    from coordinator.gc.view import FiguresReader  # noqa: PLC0415
    from coordinator.ingest.directory import CachedPodDirectory  # noqa: PLC0415
    from coordinator.ingest.service import Ingest  # noqa: PLC0415
    from coordinator.kafka.log import LogInspector  # noqa: PLC0415
    from coordinator.kafka.producer import EventProducer  # noqa: PLC0415
    from coordinator.kafka.topics import DEAD_LETTERS, EVENTS  # noqa: PLC0415
    from coordinator.lookup.blobs import BlobQueries  # noqa: PLC0415
    from coordinator.pods import refusals  # noqa: PLC0415
    from coordinator.pods import table as pods  # noqa: PLC0415
    from coordinator.pods.prober import known_digests  # noqa: PLC0415
    from coordinator.pods.probes import pods_of  # noqa: PLC0415
    from coordinator.reconcile.remains import holds_anything  # noqa: PLC0415
    from coordinator.table.progress_view import schema_problem  # noqa: PLC0415
    from coordinator.tokens import table as tokens  # noqa: PLC0415

    pool = engine(settings, name="baleen-api", pool_size=8)
    # For health checks only. Short timeouts, so that a store that hangs does not occupy all threads.
    store, recorder = object_store(settings, connect_timeout=1, read_timeout=2, attempts=1), mark_recorder(settings)
    producer, inspector = EventProducer(settings), LogInspector(settings, timeout=KAFKA_SECONDS)
    lag = LagReader(inspector, (EVENTS, DEAD_LETTERS))
    directory = CachedPodDirectory(lambda: in_thread(pods.known_pods, pool))
    signing = signing_keys(settings)
    service = token_service(settings, signing, directory.all)
    times, silence = safety_times(settings), timedelta(seconds=settings.probe_silence)

    loops: list[asyncio.AbstractEventLoop] = []

    mounting = None if settings.mounts == "off" else mounts(settings, token_verifier(settings, signing), signing)

    def answers() -> None:
        with reading(pool) as connection:
            connection.exec_driver_sql("SELECT 1")

    def migrated() -> None:
        with reading(pool) as connection:
            if (problem := schema_problem(connection)) is not None:
                raise UnavailableError(problem)

    def still_holds(prefixes: "Sequence[RepositoryName]", mode: "PodMode") -> bool:
        # A rare call, with longer timeouts than `store`.
        return holds_anything(object_store(settings), prefixes, mode, image=known_digests())

    def publish(outcomes: "Sequence[Outcome]") -> "Sequence[Outcome]":
        return asyncio.run_coroutine_threadsafe(producer.publish(outcomes), loops[0]).result()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        await producer.start()
        try:
            yield
        finally:
            await producer.stop()
            recorder.close()
            if mounting is not None:
                await mounting.close()
            if service is not None:
                await service.close()
            await asyncio.to_thread(inspector.close)
            pool.dispose()

    return create_app(
        Deps(
            engine=pool,
            tokens=TokenDirectory(lambda: in_thread(tokens.known, pool)),
            blobs=BlobQueries(pool),
            lag=lag,
            publish=publish,
            still_holds=still_holds,
            stored=stored_in(settings),
            probe_image=known_digests(),
            ingest=Ingest(
                settings,
                directory,
                producer,
                lambda pods: in_thread(refusals.note, pool, pods),
                find_probes=lambda nonces: in_thread(pods_of, pool, nonces),
            ),
            token_service=service,
            known=lambda connection: known(connection, times, silence, unsafe_findings(settings)),
            figures=FiguresReader(pool),
            checks={
                "database": Shared(answers),
                "migrations": Shared(migrated),
                "kafka": lag.check,
                "store": Shared(store.check),
            },
            silence=silence,
            request_bound=times.request_bound,
            link_grace=timedelta(seconds=settings.safety_link_grace),
            gc_every=timedelta(seconds=settings.gc_every),
            in_spite_of=unsafe_findings(settings),
            url=settings.url,
            mounts=mounting,
            record_mark=recorder,
            lifespan=lifespan,
        )
    )
