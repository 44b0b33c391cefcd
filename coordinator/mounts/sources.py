"""Whether a repository has a blob, and its bytes: as its pod's registry would answer whoever may pull there.

    linker of the source's pod    it has the blob if                          bytes
    link                          its link object is in shared storage        `blobs/…/data`
    relay                         its registry says so to the client's token  its registry

So the answer takes as long whether or not the blob is anywhere else: the table, which knows, is asked only after the
source has said yes, as are its bytes, and nothing else is waited for before.

A registry is shown a token that lets pull from this one repository, where Baleen can make one: the client's lets push
to the target, which may be another pod's, and whoever runs the source could use it.

A registry's yes is a word about its own pod. Where it would give a blob that others hold, its bytes have to show that
it has it (`prove`): else whoever runs one registry could have every blob whose digest they know.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from coordinator.domain.mounts import NotMountedError, Reason
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.domain.pods import Linker
from coordinator.errors import UnavailableError
from coordinator.mounts.directory import MountPod
from coordinator.mounts.linker import Job
from coordinator.mounts.replicas import any_of
from coordinator.registry.client import RegistryClient
from coordinator.registry.errors import RegistryError, RegistryNotFoundError, RegistryUnreachableError
from coordinator.storage.layout import blob_key, layer_link_key
from coordinator.storage.port import ObjectNotFoundError, ObjectReader

TIMEOUT_S: Final = 5.0
#: While bytes are read.
READ_TIMEOUT_S: Final = 60.0
LOOKS_AT_ONCE: Final = 16
#: Bytes are read as a proof for so long, by so many at once.
PROOF_S: Final = 30.0
PROOFS: Final = 4

#: Waits for how many bytes the blob has; raises NotMountedError or UnavailableError.
Size = Callable[[], int]
#: What of a client's `Authorization` the registry of a source is shown, to pull from the repository; None for nothing.
Shown = Callable[[str | None, RepositoryName], str | None]


class Sources:
    """For several threads."""

    def __init__(self, store: ObjectReader, *, ca_file: str | None = None, shown: Shown | None = None) -> None:
        """`shown` makes of a client's token what registries are shown, which else is the same."""
        self._store = store
        self._shown = shown or (lambda authorization, _: token_of(authorization))
        self._ca_file = ca_file
        self._looks = ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="mount-looks")
        self._proving = threading.BoundedSemaphore(PROOFS)

    def close(self) -> None:
        self._looks.shutdown(wait=False, cancel_futures=True)

    def find(self, pod: MountPod, repository: RepositoryName, digest: Digest, authorization: str | None) -> Size:
        """Ask whether the repository has the blob; raises NotMountedError or UnavailableError.

        The bytes are looked at meanwhile: what is given waits for that.
        """
        if pod.linker is Linker.LINK:
            # Not beside this: a look at the bytes shows in the time of a refusal, and whether there are any depends on
            # other repositories (measured: bench/mounts.py).
            if self._store.head(layer_link_key(repository, digest)) is None:
                raise NotMountedError(Reason.NOT_THERE)
            look = self._looks.submit(self.stored, digest)

            def seen() -> int:
                size = look.result()
                if size is None:
                    raise NotMountedError(Reason.NOT_SERVED)
                return size

            return seen
        try:
            with self._asked(pod, repository, digest, authorization, TIMEOUT_S) as (_, size):
                pass
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            # It does not let the client in, or does not say: that is no yes.
            raise NotMountedError(Reason.NOT_THERE, str(error)) from error
        if size is None:
            raise NotMountedError(Reason.NOT_THERE)
        said = size
        return lambda: said

    def stored(self, digest: Digest) -> int | None:
        """Return the bytes that the shared store serves of the blob; None if it serves none."""
        found = self._store.head(blob_key(digest))
        return None if found is None else found.size

    def prove(self, job: Job) -> None:
        """Read the blob from its source's own registry; raises NotMountedError or UnavailableError unless it has it."""
        if not self._proving.acquire(blocking=False):
            raise NotMountedError(Reason.BUSY, "as many blobs are read as may be")
        deadline, left = time.monotonic() + PROOF_S, job.size
        try:
            with self.read(job) as pieces:
                for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        raise NotMountedError(Reason.NOT_THERE, f"Pod {job.source.name} gives more than it has said.")
                    if time.monotonic() > deadline:
                        raise UnavailableError(f"Pod {job.source.name} took too long to show that it has the blob.")
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            raise NotMountedError(Reason.NOT_THERE, str(error)) from error
        finally:
            self._proving.release()

    @contextmanager
    def read(self, job: Job) -> Iterator[Iterator[bytes]]:
        """Give the blob's bytes in pieces; raises UnavailableError."""
        if job.source.linker is Linker.LINK:
            try:
                with self._store.open(blob_key(job.digest)) as opened:
                    yield opened.chunks
            except ObjectNotFoundError as error:
                raise UnavailableError(f"{format_digest(job.digest)} is not served any more.") from error
            return
        asked = self._asked(job.source, job.source_repository, job.digest, job.authorization, READ_TIMEOUT_S)
        with asked as (client, size):
            try:
                if size is not None:
                    yield client.read_blob(job.source_repository, format_digest(job.digest))
                    return
            except RegistryNotFoundError as error:
                raise UnavailableError(f"{format_digest(job.digest)} is not served any more.") from error
        raise UnavailableError(f"{format_digest(job.digest)} is not served any more.")

    @contextmanager
    def _asked(
        self, pod: MountPod, repository: RepositoryName, digest: Digest, authorization: str | None, timeout: float
    ) -> Iterator[tuple[RegistryClient, int | None]]:
        """Give who answers for the pod, and how many bytes the blob has by its answer; None if it has none."""
        shown = self._shown(authorization, repository)
        client, size = any_of(
            pod,
            lambda url: RegistryClient(url, token=shown, ca_file=self._ca_file, timeout=timeout, user_agent="baleen"),
            lambda client: client.blob_size(repository, format_digest(digest)),
        )
        with client:
            yield client, size


def token_of(authorization: str | None) -> str | None:
    """Return the bearer token of an `Authorization` header; None if there is none, or what no client could send on."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" and token.isascii() else None
