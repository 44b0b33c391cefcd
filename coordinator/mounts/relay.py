"""Send a blob to a pod that keeps its links, or all of its bytes, in its own storage (kind `relay`).

Route: `Relay.link` -> one at a time for a blob and a pod -> mounted within the pod, if another of its repositories has
it -> else uploaded, chunk by chunk, as any client would (OCI distribution-spec, "Pushing blobs in chunks").
A chunk without an answer is resumed at the registry's upload offset. A process sends a limited number at once, each
with one chunk in memory; a few more wait for relays of the same blob, and beyond that clients upload. A relay slower
than a minimum rate, because of its source or its target, is aborted.
The upload uses the client's own token, which permits the push there, and no other.
Not here: where the bytes come from (sources.py), the reference (mounts/table.py).
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.mounts import NotMountedError, Reason
from coordinator.domain.names import format_digest
from coordinator.errors import UnavailableError
from coordinator.mounts import table
from coordinator.mounts.directory import MountPod
from coordinator.mounts.linker import MountJob
from coordinator.mounts.replicas import ask_any_registry
from coordinator.mounts.sources import bearer_token_of
from coordinator.registry.auth import Credentials
from coordinator.registry.client import RegistryClient
from coordinator.registry.errors import RegistryError, RegistryUnreachableError

log = structlog.get_logger()

CHUNK_BYTES: Final = 16 * 1024 * 1024
#: Attempts to send a chunk before the relay is aborted.
ATTEMPTS: Final = 3
#: How often a mount that waits for a relay of the same blob to the same pod checks whether it is there.
POLL_S: Final = 0.1
#: The longest silence of a registry.
TIMEOUT_S: Final = 60.0
#: The time limit of a relay: this many seconds, plus the time for its bytes at this rate (bytes per second).
HEAD_START_S: Final = 60.0
LEAST_RATE: Final = 1024 * 1024.0
#: Bytes sent to a registry between two checks of the time.
PIECE_BYTES: Final = 256 * 1024

#: Yields the blob's bytes from the beginning, in pieces.
ReadSource = Callable[[MountJob], AbstractContextManager[Iterator[bytes]]]


class Relay:
    """Relays blobs; for several threads."""

    def __init__(
        self,
        connections: Connections,
        read: ReadSource,
        *,
        credentials: Credentials | None,
        ca_file: str | None = None,
        at_once: int = 4,
        waiting: int = 8,
        patience: float = 60.0,
        chunk_bytes: int = CHUNK_BYTES,
        head_start: float = HEAD_START_S,
        least_rate: float = LEAST_RATE,
    ) -> None:
        """`at_once`: relays that send; `waiting`: these and those that wait, up to `patience` seconds.

        One that sends has `head_start` seconds, and one more for each `least_rate` bytes that its source gave.
        """
        self._connections = connections
        self._read = read
        self._credentials = credentials
        self._ca_file = ca_file
        self._sending = threading.BoundedSemaphore(at_once)
        self._most = waiting
        self._waiting = threading.BoundedSemaphore(waiting)
        self._patience = patience
        self._chunk_bytes = chunk_bytes
        self._head_start = head_start
        self._least_rate = least_rate

    def is_relayed(self, pod: MountPod) -> bool:  # noqa: ARG002 - all are
        return True

    def link(self, job: MountJob) -> None:
        if not self._waiting.acquire(blocking=False):
            raise NotMountedError(Reason.BUSY, "as many relays are under way as may be")
        try:
            with _translate_errors(), self._lock_relay(job):
                self._link(job)
        finally:
            self._waiting.release()

    def has_blob(self, job: MountJob) -> bool:
        """Return whether the pod serves the blob in the repository to the client; raises UnavailableError."""
        with _translate_errors():
            client, is_there = self._ask_registry(job)
            client.close()
            return is_there

    def _ask_registry(self, job: MountJob) -> tuple[RegistryClient, bool]:
        """Return the client of a registry of the pod, and whether it has the blob."""
        token = bearer_token_of(job.authorization)
        return ask_any_registry(
            job.pod,
            # Without a token anonymously: Baleen's own credentials permit more than the client's.
            lambda url: self._client(url, token=token),
            lambda client: client.has_blob(job.repository, format_digest(job.digest)),
        )

    def _link(self, job: MountJob) -> None:
        client, is_there = self._ask_registry(job)
        with client:
            if is_there or self._mount_within_pod(job):
                return
            if not self._sending.acquire(timeout=self._patience):
                raise NotMountedError(Reason.BUSY, "as many relays are under way as may be")
            try:
                self._upload(client, job)
            finally:
                self._sending.release()

    def _mount_within_pod(self, job: MountJob) -> bool:
        """Mount from another repository of the pod, with Baleen's credentials: the client may lack rights to it."""
        # A claim of only the source's registry may be false, about a blob of others in this pod: it has to be sent.
        if not job.is_known:
            return False
        with self._connections.use() as connection:
            # More than mounts can be pending here: among these one has the blob, if any has.
            others = table.find_other_repositories(connection, job.pod.id, job.digest, job.repository, self._most)
        if not others:
            return False
        try:
            ours, is_mounted = ask_any_registry(
                job.pod,
                lambda url: self._client(url, credentials=self._credentials),
                lambda client: any(
                    client.mount_blob(job.repository, format_digest(job.digest), other) for other in others
                ),
            )
        except RegistryError as error:
            log.info("a blob is sent again", pod=job.pod.name, reason=str(error))
            return False
        ours.close()
        return is_mounted

    def _upload(self, client: RegistryClient, job: MountJob) -> None:
        session = client.begin_upload(job.repository)
        pace = _Pace(job, self._head_start, self._least_rate)
        try:
            offset = 0
            with self._read(job) as pieces:
                for chunk in _join_pieces(_check_digest(job, pace.pace_reading(pieces)), self._chunk_bytes):
                    session = self._send(client, session, chunk, offset, pace)
                    offset += len(chunk)
            client.finish_upload(session, format_digest(job.digest), iter(()), 0)
        except BaseException:
            _cancel_upload(client, session)
            raise

    def _send(self, client: RegistryClient, session: str, chunk: bytes, offset: int, pace: "_Pace") -> str:
        """Send a chunk that begins at `offset`, or the part that the registry lacks; return the session after it."""
        stands = offset
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    session, stands = client.upload_status(session)
                    if not offset <= stands <= offset + len(chunk):
                        raise UnavailableError(f"The registry is at byte {stands} of an upload, and not at {offset}.")
                if stands == offset + len(chunk):
                    return session
                rest = memoryview(chunk)[stands - offset :]
                return client.append_upload(session, pace.pace_sending(rest), len(rest), stands)
            except RegistryUnreachableError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _client(self, url: str, *, token: str | None = None, credentials: Credentials | None = None) -> RegistryClient:
        return RegistryClient(
            url,
            token=token,
            credentials=credentials,
            ca_file=self._ca_file,
            timeout=TIMEOUT_S,
            user_agent="baleen-relay",
        )

    @contextmanager
    def _lock_relay(self, job: MountJob) -> Iterator[None]:
        """Let only this thread, across all processes, send this blob to this pod; wait for another that does."""
        deadline = time.monotonic() + self._patience
        # The thread's one connection holds the lock all the time.
        with self._connections.use() as connection:
            while not table.lock_relay(connection, job.pod.id, job.digest):
                if time.monotonic() > deadline:
                    raise NotMountedError(Reason.BUSY, "another relay of the blob to the pod takes long")
                time.sleep(POLL_S)
            try:
                yield
            finally:
                table.unlock_relay(connection, job.pod.id, job.digest)


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except RegistryError as error:
        if isinstance(error, UnavailableError):
            raise
        raise UnavailableError(str(error)) from error


class _Pace:
    """Aborts slow relays: a slow registry would occupy one of the few places for as long as it likes."""

    def __init__(self, job: MountJob, head_start: float, least_rate: float) -> None:
        self._job = job
        self._until = time.monotonic() + head_start
        self._least_rate = least_rate

    def pace_reading(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._until += len(piece) / self._least_rate
            self._check_pace()
            yield piece

    def pace_sending(self, chunk: memoryview) -> Iterator[bytes]:
        for at in range(0, len(chunk), PIECE_BYTES):
            self._check_pace()
            yield bytes(chunk[at : at + PIECE_BYTES])

    def _check_pace(self) -> None:
        if time.monotonic() > self._until:
            raise UnavailableError(
                f"The relay of {format_digest(self._job.digest)} from pod {self._job.source.name} to pod "
                f"{self._job.pod.name} is aborted: it is slower than {self._least_rate / 1024:.0f} KiB/s."
            )


def _cancel_upload(client: RegistryClient, session: str) -> None:
    try:
        client.cancel_upload(session)
    except RegistryError as error:
        log.info("an upload is left to the registry", reason=str(error))


def _join_pieces(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Join pieces to chunks of this size; the last may be smaller, and none is empty."""
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        while len(chunk) >= size:
            yield bytes(chunk[:size])
            del chunk[:size]
    if chunk:
        yield bytes(chunk)


def _check_digest(job: MountJob, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces; raises before the last if the digest differs, and as soon as there are too many bytes."""
    seen, held, left = hashlib.sha256(), b"", job.size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise UnavailableError(
                f"{job.source_repository} sends more than the {job.size} bytes of {format_digest(job.digest)}."
            )
        seen.update(piece)
        if held:
            yield held
        held = piece
    if seen.digest() != job.digest:
        raise UnavailableError(f"{job.source_repository} sends other bytes than those of {format_digest(job.digest)}.")
    if held:
        yield held
