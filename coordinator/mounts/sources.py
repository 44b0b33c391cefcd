"""Check whether a source repository has a blob, and read its bytes, as its pod's registry would serve them.

    the source's links are    it has the blob if                          bytes
    in the shared bucket      its link object is there                    `blobs/…/data`
    elsewhere                 its registry says so to the client's token  its registry

The answer takes equally long whether or not the blob is anywhere else: the table and the stored bytes, which would
show that, are waited for only after the source has said yes.

A registry is shown a token that permits only pull from this one repository, if Baleen can sign one: the client's token
permits push to the target, which may be another pod's, and the operator of the source could use it.

A registry can only vouch for its own pod. Where its answer would give access to a blob that other pods hold, it has to
prove that it has the bytes (`verify_source`): else the operator of one registry could get every blob whose digest they
know.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from coordinator.domain.mounts import NotMountedError, Reason
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.errors import UnavailableError
from coordinator.mounts.directory import MountPod
from coordinator.mounts.linker import MountJob
from coordinator.mounts.replicas import ask_any_registry
from coordinator.registry.client import RegistryClient
from coordinator.registry.errors import RegistryError, RegistryNotFoundError, RegistryUnreachableError
from coordinator.storage.layout import blob_key, layer_link_key
from coordinator.storage.port import ObjectNotFoundError, ObjectReader

TIMEOUT_S: Final = 5.0
#: While bytes are read.
READ_TIMEOUT_S: Final = 60.0
CHECKS_AT_ONCE: Final = 16
#: Time limit of a proof, and proofs at once.
PROOF_S: Final = 30.0
PROOFS: Final = 4

#: Waits for the blob's size in bytes; raises NotMountedError or UnavailableError.
Size = Callable[[], int]
#: Narrows a client's `Authorization` to what a source's registry is shown to pull from the repository; None: nothing.
NarrowToken = Callable[[str | None, RepositoryName], str | None]


class Sources:
    """Looks blobs up in source repositories; for several threads."""

    def __init__(
        self,
        store: ObjectReader,
        *,
        ca_file: str | None = None,
        narrow: NarrowToken | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        proof_s: float = PROOF_S,
    ) -> None:
        """`narrow` narrows a client's token for registries; without it they are shown the token itself."""
        self._store = store
        self._narrow = narrow or (lambda authorization, _: bearer_token_of(authorization))
        self._ca_file = ca_file
        self._read_timeout_s, self._proof_s = read_timeout_s, proof_s
        self._checks = ThreadPoolExecutor(CHECKS_AT_ONCE, thread_name_prefix="mount-looks")
        self._proving = threading.BoundedSemaphore(PROOFS)

    def close(self) -> None:
        self._checks.shutdown(wait=False, cancel_futures=True)

    def find(self, pod: MountPod, repository: RepositoryName, digest: Digest, authorization: str | None) -> Size:
        """Ask whether the repository has the blob; raises NotMountedError or UnavailableError.

        The stored bytes are looked up meanwhile; the returned function waits for that.
        """
        if pod.kind.links_in_store:
            # Not in parallel: looking up the bytes would show in the time of a refusal, and whether there are any
            # depends on other repositories (measured: bench/mounts.py).
            if self._store.head(layer_link_key(repository, digest)) is None:
                raise NotMountedError(Reason.NOT_THERE)
            check = self._checks.submit(self.stored_size, digest)

            def seen() -> int:
                size = check.result()
                if size is None:
                    raise NotMountedError(Reason.NOT_SERVED)
                return size

            return seen
        try:
            with self._find_registry(pod, repository, digest, authorization, TIMEOUT_S) as (_, size):
                pass
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            # It denies the client, or gives no answer: that is not a yes.
            raise NotMountedError(Reason.NOT_THERE, str(error)) from error
        if size is None:
            raise NotMountedError(Reason.NOT_THERE)
        reported = size
        return lambda: reported

    def stored_size(self, digest: Digest) -> int | None:
        """Return the blob's size in the shared store; None if it serves no such blob."""
        found = self._store.head(blob_key(digest))
        return None if found is None else found.size

    def verify_source(self, job: MountJob) -> None:
        """Read the blob from its source's own registry; raises NotMountedError or UnavailableError unless it has it."""
        if not self._proving.acquire(blocking=False):
            raise NotMountedError(Reason.BUSY, "the limit of proofs at once is reached")
        deadline, left = time.monotonic() + self._proof_s, job.size
        try:
            with self.read(job) as pieces:
                for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        raise NotMountedError(Reason.NOT_THERE, f"Pod {job.source.name} sends more than it reported.")
                    if time.monotonic() > deadline:
                        raise UnavailableError(f"Pod {job.source.name} took too long to show that it has the blob.")
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            raise NotMountedError(Reason.NOT_THERE, str(error)) from error
        finally:
            self._proving.release()

    @contextmanager
    def read(self, job: MountJob) -> Iterator[Iterator[bytes]]:
        """Yield the blob's bytes in pieces; raises UnavailableError."""
        if job.source.kind.links_in_store:
            try:
                with self._store.open(blob_key(job.digest)) as opened:
                    yield opened.chunks
            except ObjectNotFoundError as error:
                raise UnavailableError(f"{format_digest(job.digest)} is not served any more.") from error
            return
        asked = self._find_registry(
            job.source, job.source_repository, job.digest, job.authorization, self._read_timeout_s
        )
        with asked as (client, size):
            try:
                if size is not None:
                    yield client.read_blob(job.source_repository, format_digest(job.digest))
                    return
            except RegistryNotFoundError as error:
                raise UnavailableError(f"{format_digest(job.digest)} is not served any more.") from error
        raise UnavailableError(f"{format_digest(job.digest)} is not served any more.")

    @contextmanager
    def _find_registry(
        self, pod: MountPod, repository: RepositoryName, digest: Digest, authorization: str | None, timeout: float
    ) -> Iterator[tuple[RegistryClient, int | None]]:
        """Return the client of a registry of the pod, and the blob's size there; None if it has no such blob."""
        shown = self._narrow(authorization, repository)
        client, size = ask_any_registry(
            pod,
            lambda url: RegistryClient(url, token=shown, ca_file=self._ca_file, timeout=timeout, user_agent="baleen"),
            lambda client: client.blob_size(repository, format_digest(digest)),
        )
        with client:
            yield client, size


def bearer_token_of(authorization: str | None) -> str | None:
    """Return the bearer token of an `Authorization` header; None if there is none, or it could not be forwarded."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" and token.isascii() else None
