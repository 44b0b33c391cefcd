"""Find which pod owns a repository, and its registries: all pods, held in memory and read again every few seconds.

While the database is away the known pods are used, for up to STALE_S. For several threads.
Not here: the rule (domain/pods.py), the rows (pods/table.py).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind, prefixes_of
from coordinator.errors import UnavailableError

REFRESH_S: Final = 2.0
#: For a repository of no known pod the pods are read again at most this often: the pod may be new.
MISS_S: Final = 0.1
STALE_S: Final = 60.0
#: The longest wait for another thread that reads the pods: a database that hangs never answers.
WAIT_S: Final = 1.0


class MountPod(NamedTuple):
    """What mounts need to know of a pod."""

    id: int
    name: PodName
    kind: PodKind
    registries: tuple[str, ...]
    prefixes: tuple[str, ...]
    #: Its registry sends events. Nothing is mounted into a pod whose registry does not.
    managed: bool = True


class MountPods:
    """All pods by prefix, as last returned by `load`."""

    def __init__(
        self,
        load: Callable[[], Sequence[MountPod]],
        *,
        refresh_s: float = REFRESH_S,
        stale_s: float = STALE_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self._load = load
        self._refresh_s, self._stale_s, self._wait_s = refresh_s, stale_s, wait_s
        self._lock = threading.Lock()
        #: By prefix.
        self._pods: Mapping[str, MountPod] = {}
        self._loaded_at = float("-inf")

    def find_owner(self, repository: RepositoryName) -> MountPod | None:
        """Return the pod that owns the repository; raises UnavailableError if the pods are not known."""
        self._refresh(self._refresh_s)
        found = self._find(repository)
        if found is None:
            self._refresh(MISS_S)
            found = self._find(repository)
        return found

    def _find(self, repository: RepositoryName) -> MountPod | None:
        pods = self._pods
        return next((pods[prefix] for prefix in prefixes_of(repository) if prefix in pods), None)

    def _refresh(self, interval: float) -> None:
        if time.monotonic() - self._loaded_at <= interval:
            return
        if not self._lock.acquire(timeout=self._wait_s):
            if time.monotonic() - self._loaded_at > self._stale_s:
                raise UnavailableError("The pods cannot be read from the database: try again.")
            return
        try:
            if time.monotonic() - self._loaded_at <= interval:
                return
            try:
                pods = self._load()
            except UnavailableError:
                if time.monotonic() - self._loaded_at > self._stale_s:
                    raise
                return
            self._pods = {prefix: pod for pod in pods for prefix in pod.prefixes}
            self._loaded_at = time.monotonic()
        finally:
            self._lock.release()
