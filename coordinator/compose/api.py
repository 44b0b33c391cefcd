"""The API, from the settings. It waits for no service when it starts.

On the way in, errors for missing settings name the setting and its alternative.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from coordinator.api.app import Application, create_app
from coordinator.api.auth import TokenDirectory
from coordinator.api.deps import Deps
from coordinator.api.lag import LagReader
from coordinator.api.marking import MarkRecorder
from coordinator.api.mounts import Mounts
from coordinator.api.shared_calls import SharedCall
from coordinator.compose.database import make_connections, make_engine
from coordinator.compose.store import make_object_store
from coordinator.compose.values import make_facts_reader, parse_unsafe_findings, registry_credentials, safety_times
from coordinator.db.session import read_connection
from coordinator.db.threads import in_thread
from coordinator.dead_letters.resolve import FindStored
from coordinator.domain.access import Access
from coordinator.domain.mounts import NotMountedError, Reason
from coordinator.domain.names import RepositoryName
from coordinator.errors import SettingsError, UnavailableError
from coordinator.gc import mark
from coordinator.gc.view import FiguresReader
from coordinator.ingest.directory import CachedPodDirectory
from coordinator.ingest.normalise import Outcome
from coordinator.ingest.service import Ingest
from coordinator.kafka.log import LogInspector
from coordinator.kafka.producer import EventProducer
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.kinds.kind import MountParts
from coordinator.kinds.kinds import Kinds
from coordinator.lookup.blobs import BlobQueries
from coordinator.lookup.progress_view import describe_schema_problem
from coordinator.lookup.sizes import PRODUCTION, Sizes
from coordinator.mounts import table
from coordinator.mounts.directory import MountPod, MountPods
from coordinator.mounts.forward import Forwarder
from coordinator.mounts.mounter import Mounter, ReadRights
from coordinator.mounts.relay import Relay
from coordinator.mounts.sources import NarrowToken, Sources, bearer_token_of
from coordinator.pods import refusals
from coordinator.pods import table as pods
from coordinator.pods.of_kind import PodOfKind
from coordinator.pods.prober import probe_image_digests
from coordinator.pods.probes import read_pods_of
from coordinator.reconcile.stored_content import is_stored
from coordinator.settings import Settings
from coordinator.tokens import table as tokens
from coordinator.tokens.issuers import Issuers
from coordinator.tokens.keys import KeyFile, parse_trusted_keys
from coordinator.tokens.narrow import narrow_to_pull
from coordinator.tokens.service import ReadPods, TokenService
from coordinator.tokens.sign import Signer, SigningKeys, parse_signing_keys
from coordinator.tokens.verify import TokenRefusedError, TokenVerifier

#: Timeout for a broker that does not answer: less than clients of the API wait.
KAFKA_SECONDS = 2.5


def make_mark_recorder(settings: Settings) -> MarkRecorder:
    """Writes the API's changes to the mark in the bucket."""
    connected = make_connections(settings, name="baleen-api-mark")
    store = make_object_store(settings, connect_timeout=1, read_timeout=3, attempts=1)
    return MarkRecorder(lambda: mark.record_epoch(connected, store), connected.close)


def make_stored_lister(settings: Settings) -> FindStored:
    """Says which repositories have anything in storage; waits for storage a few seconds."""

    def list_stored(repositories: Sequence[RepositoryName]) -> list[RepositoryName]:
        store = make_object_store(settings, connect_timeout=2, read_timeout=5, attempts=2)
        return [each for each in repositories if is_stored(store, each)]

    return list_stored


def make_mounts(settings: Settings, verifier: TokenVerifier | None, signing: KeyFile[SigningKeys] | None) -> Mounts:
    """Serves mounts to clients whose tokens the verifier accepts."""
    connected = make_connections(settings, name="baleen-mounts", prepare=table.prepare_connection)
    store = make_object_store(settings, connect_timeout=2, read_timeout=5, attempts=2)
    kinds = Kinds(settings, store)
    sources = Sources(store, ca_file=settings.registry_ca_file, narrow=make_token_narrower(settings, verifier, signing))
    relay = Relay(
        connected,
        sources.read,
        credentials=registry_credentials(settings),
        ca_file=settings.registry_ca_file,
        patience=settings.mount_timeout,
    )

    def read_mount_pods() -> Sequence[MountPod]:
        with connected.use() as connection:
            return table.read_pods(connection)

    mounter = Mounter(
        connected,
        MountPods(read_mount_pods),
        sources,
        kinds.make_linkers(MountParts(store, relay, settings.mount_relay_limit)),
        make_rights_reader(settings, verifier),
        margin=timedelta(seconds=settings.safety_clock_skew),
        relay_limit=settings.mount_relay_limit,
    )
    forwarder = Forwarder(ca_file=settings.registry_ca_file)
    return Mounts(mounter, forwarder, patience=settings.mount_timeout, close_linkers=kinds.close)


def make_rights_reader(settings: Settings, verifier: TokenVerifier | None) -> ReadRights:
    """The function that returns what a client's token permits."""

    def permit_everything(_: str | None) -> None:
        return None

    def verify_rights(authorization: str | None) -> Access:
        if verifier is None:
            raise NotMountedError(Reason.NO_RIGHT, "no keys verify tokens: set BALEEN_JWT_KEYS")
        token = bearer_token_of(authorization)
        if token is None:
            raise NotMountedError(Reason.NO_RIGHT, "there is no bearer token")
        try:
            return verifier.verify(token).access
        except TokenRefusedError as error:
            raise NotMountedError(Reason.NO_RIGHT, str(error)) from error

    return permit_everything if settings.mounts == "open" else verify_rights


def make_token_narrower(
    settings: Settings, verifier: TokenVerifier | None, signing: KeyFile[SigningKeys] | None
) -> NarrowToken | None:
    """The function that narrows a client's token for the registry of a mount's source; None to show it unchanged."""
    if settings.mounts == "open" or verifier is None or signing is None:
        return None
    issuer, audience = _require_names(settings)
    signer = Signer(signing.current, issuer=issuer, audience=audience, lifetime=settings.jwt_lifetime)

    def narrow_token(authorization: str | None, repository: RepositoryName) -> str | None:
        token = bearer_token_of(authorization)
        try:
            return None if token is None else narrow_to_pull(token, repository, verifier, signer)
        except TokenRefusedError as error:
            raise NotMountedError(Reason.NO_RIGHT, str(error)) from error

    return narrow_token


def open_signing_keys(settings: Settings) -> KeyFile[SigningKeys] | None:
    """The keys that Baleen signs tokens with; None if none are set."""
    if settings.jwt_signing_keys is None:
        return None
    return KeyFile("BALEEN_JWT_SIGNING_KEYS", settings.jwt_signing_keys, parse_signing_keys, private=True)


def make_token_verifier(settings: Settings, signing: KeyFile[SigningKeys] | None) -> TokenVerifier | None:
    """The verifier of clients' tokens, with the keys of BALEEN_JWT_KEYS, else Baleen's own; None without either."""
    if settings.jwt_keys is not None:
        keys = KeyFile("BALEEN_JWT_KEYS", settings.jwt_keys, parse_trusted_keys).current
    elif signing is not None:
        keys = lambda: signing.current().public  # noqa: E731 - one of two
    else:
        return None
    issuer, audience = _require_names(settings)
    return TokenVerifier(keys, issuer=issuer, audience=audience)


def make_token_service(settings: Settings, signing: KeyFile[SigningKeys] | None, pods: ReadPods) -> TokenService | None:
    """The service that issues tokens for several pods; None without a key to sign with."""
    if signing is None:
        return None
    issuer, audience = _require_names(settings)
    signer = Signer(signing.current, issuer=issuer, audience=audience, lifetime=settings.jwt_lifetime)
    return TokenService(pods, Issuers(ca_file=settings.registry_ca_file), signer)


def _require_names(settings: Settings) -> tuple[str, str]:
    if settings.jwt_issuer is None or settings.jwt_audience is None:
        raise SettingsError(
            "Keys for tokens also need BALEEN_JWT_ISSUER and BALEEN_JWT_AUDIENCE: set them to `auth.token.issuer` and "
            "`auth.token.service` of the registries."
        )
    return settings.jwt_issuer, settings.jwt_audience


def make_api(settings: Settings) -> Application:
    """The whole API. Raises SettingsError; does not wait for any service."""
    return create_app(deps(settings))


def deps(settings: Settings, sizes: Sizes = PRODUCTION) -> Deps:
    """What the API is made of."""
    pool = make_engine(settings, name="baleen-api", pool_size=8)
    # For health checks only. Short timeouts, so that a store that hangs does not occupy all threads.
    store, recorder = (
        make_object_store(settings, connect_timeout=1, read_timeout=2, attempts=1),
        make_mark_recorder(settings),
    )
    producer, inspector = EventProducer(settings), LogInspector(settings, timeout=KAFKA_SECONDS)
    lag = LagReader(inspector, (EVENTS, DEAD_LETTERS))
    directory = CachedPodDirectory(lambda: in_thread(pods.read_known_pods, pool), sizes.pods_s)
    signing = open_signing_keys(settings)
    service = make_token_service(settings, signing, directory.all)
    times, silence = safety_times(settings), timedelta(seconds=settings.probe_silence)

    loops: list[asyncio.AbstractEventLoop] = []

    mounting = (
        None if settings.mounts == "off" else make_mounts(settings, make_token_verifier(settings, signing), signing)
    )

    def answers() -> None:
        with read_connection(pool) as connection:
            connection.exec_driver_sql("SELECT 1")

    def migrated() -> None:
        with read_connection(pool) as connection:
            if (problem := describe_schema_problem(connection)) is not None:
                raise UnavailableError(problem)

    def still_holds(pod: PodOfKind) -> bool:
        # A rare call, with longer timeouts than `store`.
        with Kinds(settings, make_object_store(settings)) as kinds:
            return kinds.still_holds(pod)

    def publish(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
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

    return Deps(
        engine=pool,
        sizes=sizes,
        tokens=TokenDirectory(lambda: in_thread(tokens.read_known_tokens, pool)),
        blobs=BlobQueries(pool, sizes),
        lag=lag,
        publish=publish,
        still_holds=still_holds,
        list_stored=make_stored_lister(settings),
        probe_image=probe_image_digests(),
        ingest=Ingest(
            settings,
            directory,
            producer,
            lambda pods: in_thread(refusals.record_refusals, pool, pods),
            find_probes=lambda nonces: in_thread(read_pods_of, pool, nonces),
        ),
        token_service=service,
        read_known=make_facts_reader(settings),
        figures=FiguresReader(pool, sizes.figures_s, sizes.cost_factor),
        checks={
            "database": SharedCall(answers),
            "migrations": SharedCall(migrated),
            "kafka": lag.check,
            "store": SharedCall(store.check),
        },
        silence=silence,
        request_bound=times.request_bound,
        link_grace=timedelta(seconds=settings.safety_link_grace),
        gc_every=timedelta(seconds=settings.gc_every),
        unsafe_findings=parse_unsafe_findings(settings),
        url=settings.url,
        mounts=mounting,
        record_mark=recorder,
        lifespan=lifespan,
    )
