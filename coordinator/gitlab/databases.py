"""The databases of all pods of kind `gitlab`.

The URL of each is in a file of its own, so that it comes from where secrets are kept and shows in no setting.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from coordinator.domain.names import PodName
from coordinator.gitlab.connection import ReadUrl
from coordinator.gitlab.database import GitlabDatabase
from coordinator.gitlab.files import read_pod_file
from coordinator.gitlab.writer import GitlabWriter
from coordinator.settings import Secret


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class PodFiles(Generic[T]):
    """Opens what is made of the file of a pod, when it is first asked for; for several threads."""

    def __init__(self, setting: str, directory: str | None, make: Callable[[PodName, ReadUrl], T]) -> None:
        """`directory` has a file for each pod, named like it, with a URL as libpq reads it; `setting` names it."""
        self._setting = setting
        self._directory = directory
        self._make = make
        self._lock = threading.Lock()
        self._open: dict[PodName, T] = {}

    def has(self, pod: PodName) -> bool:
        """Whether the pod has a file now."""
        with suppress(OSError):
            return self._directory is not None and (Path(self._directory) / pod).is_file()
        return False

    def of(self, pod: PodName) -> T:
        with self._lock:
            if pod not in self._open:
                self._open[pod] = self._make(pod, lambda: self._read_url(pod))
            return self._open[pod]

    def close(self) -> None:
        with self._lock:
            for each in self._open.values():
                each.close()
            self._open.clear()

    def _read_url(self, pod: PodName) -> Secret:
        what = f"the URL of the registry database of pod {pod}"
        return Secret(read_pod_file(self._setting, self._directory, pod, what).strip())


class GitlabDatabases(PodFiles[GitlabDatabase]):
    """For reading."""

    def __init__(self, directory: str | None) -> None:
        super().__init__("BALEEN_GITLAB_DATABASES", directory, GitlabDatabase)


class GitlabWriters(PodFiles[GitlabWriter]):
    """For writing, where an operator has given the right to it."""

    def __init__(self, directory: str | None) -> None:
        super().__init__("BALEEN_GITLAB_WRITERS", directory, GitlabWriter)
