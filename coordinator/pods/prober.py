"""Probe every registry process: push a known manifest with a nonce, which its event returns.

Route: workers/scheduler.py, every settings.probe_every -> `round` -> each registry's host is looked up -> for each of
its addresses: a row of `probes` -> PUT of the known manifest at that address, the nonce in the User-Agent -> the
endpoint answers, or not. The echo arrives by the registry's webhook (domain/watermarks.py).

The known manifest is that of a tiny image in `<first prefix>/baleen-probe`; its blobs are pushed if they are missing.
It is put by its digest: a registry then writes one link, of 71 bytes, and nothing else. With a tag it would write three
objects. On a bucket with versions each probe leaves an older version of that link: leftovers/probes.py deletes it.
If Baleen may not push to a pod's registry, the probe is a pull, a HEAD of the same manifest: then the registry must
send an event for each pull, and many pulls delay its pushes (docs/adr/0022-probes-by-push.md).

Each probe has its own connection. Behind a load balancer, a kept connection would always lead to the same process, and
the others would stay silent. A probe by a pull costs CNCF distribution about 4 ms of processor time, with its
notification; a tenth of it is for the connection (TLS adds a handshake): one every ten seconds takes 0.04 % of a core.

Invariants: the row of a probe is committed before the probe is sent, and an answer before the next probe is sent; a
registry that hangs delays no other, and has one probe under way at each address; while names cannot be looked up, the
known addresses are still probed, and W stands still at the last look-up.
Not here: what an answer, a refusal or an echo means for the watermark (domain/watermarks.py, table/processes.py).
"""

import threading
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.hosts import is_address
from coordinator.domain.names import Digest, parse_digest
from coordinator.domain.own import PROBE_REPOSITORY, PROBE_TAG
from coordinator.domain.pods import ProbeMethod, parse_registry
from coordinator.errors import BaleenError, UnavailableError
from coordinator.pods.addresses import Resolve, resolve
from coordinator.pods.metrics import PROBES, SECONDS
from coordinator.pods.targets import Target, read_targets
from coordinator.registry.auth import Credentials
from coordinator.registry.client import RegistryClient, RegistryError, RegistryGoneError
from coordinator.registry.images import Image, make_image
from coordinator.table import processes

log = structlog.get_logger()

#: Under `<first prefix>/`, in every pod.
REPOSITORY: Final = PROBE_REPOSITORY
TAG: Final = PROBE_TAG
#: Before the nonce, in the User-Agent.
AGENT: Final = "baleen-probe/"
#: For each step of a probe. A registry that needs longer is reported as failing; its echo counts all the same.
TIMEOUT_S = 5.0
#: Registries that are probed, and names that are looked up, in parallel. One that hangs occupies a thread.
PROBES_AT_ONCE, LOOK_UPS_AT_ONCE = 64, 32
#: The pause before the image is pushed again to a registry that did not store it, doubled each time: each attempt may
#: leave an unfinished upload for ever.
PUSH_PAUSE_S, LONGEST_PUSH_PAUSE_S = 60.0, 3600.0
#: Probes of a round to an address that several processes share, for each process and at most.
PROBES_PER_PROCESS, SHARED_PROBES = 2, 20
ERROR_LENGTH = 500

#: Answers to a manifest whose blobs the registry does not have: 400 is distribution's. GitLab's registry answers 500 in
#: a repository that it does not have yet, and names this error among others.
BLOB_UNKNOWN: Final = frozenset({400, 404})
BLOB_UNKNOWN_CODE: Final = "MANIFEST_BLOB_UNKNOWN"
#: Answers to a client that is unknown (401) or may not push (403), and of a registry in read-only maintenance (405).
REFUSED_PUSHES: Final = frozenset({401, 403, 405})

T = TypeVar("T")


def make_probe_image() -> Image:
    """Return the image that every pod holds: the same bytes everywhere."""
    return make_image(REPOSITORY, sizes=(64,))


def probe_image_digests() -> frozenset[Digest]:
    """Return the digests of the probe image: its manifest, and what that lists."""
    image = make_probe_image()
    return frozenset(parse_digest(each) for each in (image.digest, *(blob.digest for blob in image.blobs)))


class _Place(NamedTuple):
    """One address of a registry. `key` identifies probes of the same address."""

    target: Target
    url: str
    address: str

    @property
    def key(self) -> tuple[int, str, str]:
        return self.target.pod_id, self.url, self.address

    @property
    def repository(self) -> str:
        return f"{self.target.prefix}/{REPOSITORY}"


class _EndpointState:
    """What this process remembers about one address. One probe at a time uses it."""

    def __init__(self, client: RegistryClient) -> None:
        self.client = client
        self.refuses = False
        self.failing = False
        self.push_pause = PUSH_PAUSE_S
        self.push_after = float("-inf")


def _describe_refused_push(place: _Place, error: RegistryError) -> str | None:
    """Return what to do if the registry refuses pushes from Baleen, or all pushes; else None."""
    if place.target.probe is not ProbeMethod.PUSH or error.registry_status not in REFUSED_PUSHES:
        return None
    return (
        f"{error} Baleen probes the registry by pushes to {place.repository}: permit it to push there, or, if the "
        "registry is read-only, configure it to send pull events and run "
        f"`baleen pods set-probe {place.target.pod} pull`."
    )


class Prober:
    """Send probes, each in a thread of a pool. Only one thread calls `round`."""

    def __init__(
        self,
        connections: Connections,
        *,
        credentials: Credentials | None = None,
        ca_file: str | None = None,
        timeout: float = TIMEOUT_S,
        resolve: Resolve = resolve,
    ) -> None:
        self._connections = connections
        self._credentials = credentials
        self._ca_file = ca_file
        self._timeout = timeout
        self._resolve = resolve
        self._image = make_probe_image()
        # One thread with one connection reads and writes all rows.
        self._desk = ThreadPoolExecutor(1, "probe-rows")
        self._look_ups = ThreadPoolExecutor(LOOK_UPS_AT_ONCE, "probe-names")
        self._probes = ThreadPoolExecutor(PROBES_AT_ONCE, "probe")
        self._lock = threading.Lock()
        self._closed = False
        self._busy: set[tuple[int, str, str]] = set()
        self._endpoints: dict[tuple[int, str, str], _EndpointState] = {}
        #: The result of the last successful look-up of each name.
        self._addresses: dict[tuple[int, str], Sequence[str]] = {}

    def round(self) -> None:
        """Begin a probe of every address that has none under way. Does not wait for the registries' answers."""
        wanted = self._in_transaction(read_targets)
        for target in wanted:
            for url in target.urls:
                self._submit(self._look_ups, self._look_up, _Place(target, url, ""))
        self._forget({(target.pod_id, url) for target in wanted for url in target.urls})

    def close(self) -> None:
        """Begin no more probes. Those under way end within their timeouts."""
        with self._lock:
            self._closed = True
        for pool in (self._look_ups, self._probes, self._desk):
            pool.shutdown(wait=False, cancel_futures=True)

    # A registry's addresses

    def _look_up(self, place: _Place) -> None:
        target, url, _ = place
        registry = parse_registry(url)
        try:
            addresses = [registry.host] if is_address(registry.host) else self._resolve(registry.host, registry.port)
        except UnavailableError as error:
            log.warning("a registry's name is not known now", pod=target.pod, url=url, reason=str(error))
            addresses = self._addresses.get((target.pod_id, url), ())
        else:
            self._addresses[target.pod_id, url] = addresses
            listed = [address for address in addresses if not self._is_vacant(_Place(target, url, address))]
            # With a time from before the look-up: it may take long, and its thread may be paused before this write.
            self._in_transaction(
                lambda connection: processes.record_endpoints(connection, target.pod_id, {url: listed}, target.read_at)
            )
        for address in addresses:
            self._submit(self._probes, self._probe, _Place(target, url, address))

    def _is_vacant(self, place: _Place) -> bool:
        """Whether no process listens there or ever did, while the registry answers at another address.

        A name often has an IPv6 address at which nothing listens. It is still probed, and counts as soon as a process
        answers there.
        """
        endpoint = self._endpoints.get(place.key)
        answering = {
            address for (url, address), known in place.target.known.items() if url == place.url and known.answered
        }
        return endpoint is not None and endpoint.refuses and bool(answering) and place.address not in answering

    # One address

    def _probe(self, place: _Place) -> None:
        endpoint = self._state_of(place)
        known = place.target.known.get((place.url, place.address))
        count = 1
        if known is not None and known.shared:
            count = min(SHARED_PROBES, max(1, PROBES_PER_PROCESS * place.target.processes))
        for _ in range(count):
            if not self._probe_once(place, endpoint):
                break

    def _probe_once(self, place: _Place, endpoint: _EndpointState) -> bool:
        nonce = self._insert_probe(place)
        try:
            if not self._send_probe(place, endpoint, nonce):
                self._push_image(place, endpoint)
                nonce = self._insert_probe(place)
                self._send_required_probe(place, endpoint, nonce)
        except RegistryError as error:
            self._record_failure(place, endpoint, nonce, error)
            return False
        self._record_answer(place, endpoint, nonce)
        return True

    def _insert_probe(self, place: _Place) -> str:
        target, url, address = place
        return self._in_transaction(lambda connection: processes.insert_probe(connection, target.pod_id, url, address))

    def _send_probe(self, place: _Place, endpoint: _EndpointState, nonce: str) -> bool:
        """Send one probe; return whether the registry has the image. If not, it sends no event."""
        image, agent = self._image, f"{AGENT}{nonce}"
        with SECONDS.time():
            if place.target.probe is ProbeMethod.PULL:
                return endpoint.client.has_manifest(place.repository, image.digest, user_agent=agent, follow=False)
            try:
                endpoint.client.put_manifest(
                    place.repository, image.digest, image.media_type, image.content, user_agent=agent
                )
            except RegistryError as error:
                if error.registry_status in BLOB_UNKNOWN or BLOB_UNKNOWN_CODE in error.codes:
                    return False
                raise
        return True

    def _send_required_probe(self, place: _Place, endpoint: _EndpointState, nonce: str) -> None:
        if not self._send_probe(place, endpoint, nonce):
            raise RegistryError(
                f"The registry accepted {place.repository} and does not have it: see its log.", registry_status=404
            )

    def _push_image(self, place: _Place, endpoint: _EndpointState) -> None:
        now = time.monotonic()
        if now < endpoint.push_after:
            raise RegistryError(
                f"The registry does not have {place.repository}, though it was pushed a while ago: see its log.",
                registry_status=404,
            )
        endpoint.push_after = now + endpoint.push_pause
        endpoint.push_pause = min(2 * endpoint.push_pause, LONGEST_PUSH_PAUSE_S)
        log.info("pushing the probe image", pod=place.target.pod, repository=place.repository)
        endpoint.client.push_image(place.repository, self._image, TAG)

    def _record_answer(self, place: _Place, endpoint: _EndpointState, nonce: str) -> None:
        endpoint.refuses = False
        endpoint.push_pause, endpoint.push_after = PUSH_PAUSE_S, float("-inf")
        self._in_transaction(lambda connection: processes.record_probe_answer(connection, nonce))
        PROBES.labels(place.target.pod, "answered").inc()
        if endpoint.failing:
            endpoint.failing = False
            log.info("registry answers again", pod=place.target.pod, url=place.url, address=place.address)

    def _record_failure(self, place: _Place, endpoint: _EndpointState, nonce: str, error: RegistryError) -> None:
        refused = endpoint.refuses = isinstance(error, RegistryGoneError)
        message = (_describe_refused_push(place, error) or str(error))[:ERROR_LENGTH]
        answered = error.registry_status is not None
        dead = self._in_transaction(
            lambda connection: processes.record_probe_failure(
                connection, nonce, message, refused=refused, answered=answered
            )
        )
        PROBES.labels(place.target.pod, "refused" if refused else "failed").inc()
        where = {"pod": place.target.pod, "url": place.url, "address": place.address}
        if not endpoint.failing:
            endpoint.failing = True
            log.warning("registry does not answer a probe", reason=message, **where)
        if dead is not None:
            log.warning("registry process is dead", instance=dead, **where)

    def _state_of(self, place: _Place) -> _EndpointState:
        with self._lock:
            if (endpoint := self._endpoints.get(place.key)) is None:
                client = RegistryClient(
                    place.url,
                    address=place.address,
                    credentials=self._credentials,
                    ca_file=self._ca_file,
                    keep_alive=False,
                    timeout=self._timeout,
                )
                endpoint = self._endpoints[place.key] = _EndpointState(client)
        return endpoint

    # Around it

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[[_Place], None], place: _Place) -> None:
        """Do the work in the pool, unless the same is under way; an error in it affects nothing else."""
        with self._lock:
            if place.key in self._busy or self._closed:
                return
            self._busy.add(place.key)
            pool.submit(self._run_logged, work, place)

    def _run_logged(self, work: Callable[[_Place], None], place: _Place) -> None:
        try:
            work(place)
        except BaleenError as error:
            log.warning("probe postponed", pod=place.target.pod, url=place.url, reason=str(error))
        except Exception:
            if not self._closed:
                log.exception("probe failed", pod=place.target.pod, url=place.url, address=place.address)
        finally:
            with self._lock:
                self._busy.discard(place.key)

    def _in_transaction(self, write: Callable[[Any], T]) -> T:
        """Read or write rows, each call in a transaction."""

        def run() -> T:
            with self._connections.use() as connection, connection.transaction():
                return write(connection)

        return self._desk.submit(run).result()

    def _forget(self, wanted: AbstractSet[tuple[int, str]]) -> None:
        """Forget registries and addresses that are no longer listed, and close their clients."""
        with self._lock:
            for key in [key for key in self._addresses if key not in wanted]:
                del self._addresses[key]
            gone = [
                key
                for key in self._endpoints
                if key not in self._busy and key[2] not in self._addresses.get(key[:2], ())
            ]
            clients = [self._endpoints.pop(key).client for key in gone]
        for client in clients:
            client.close()
