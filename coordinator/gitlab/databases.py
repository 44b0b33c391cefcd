"""The databases of all pods of kind `gitlab`.

The URL of each is in a file of its own, so that it comes from where secrets are kept and shows in no setting.
"""

import threading
from pathlib import Path

from coordinator.domain.names import PodName
from coordinator.errors import UnconfiguredError
from coordinator.gitlab.database import GitlabDatabase
from coordinator.settings import Secret


class GitlabDatabases:
    """Opens the database of a pod when it is first asked for; for several threads."""

    def __init__(self, directory: Path | None) -> None:
        """`directory` has a file for each pod, named like it, with a URL as libpq reads it."""
        self._directory = directory
        self._lock = threading.Lock()
        self._open: dict[PodName, GitlabDatabase] = {}

    def of(self, pod: PodName) -> GitlabDatabase:
        with self._lock:
            if pod not in self._open:
                self._open[pod] = GitlabDatabase(pod, lambda: self._read_url(pod))
            return self._open[pod]

    def close(self) -> None:
        with self._lock:
            for each in self._open.values():
                each.close()
            self._open.clear()

    def _read_url(self, pod: PodName) -> Secret:
        if self._directory is None:
            raise UnconfiguredError(
                f"Pod {pod} is of kind gitlab, and its registry's database is not known: set "
                "BALEEN_GITLAB_DATABASES to a directory that has a file for each such pod."
            )
        file = self._directory / pod
        try:
            return Secret(file.read_text().strip())
        except OSError as error:
            raise UnconfiguredError(
                f"The file {file} cannot be read ({error.strerror}): write the URL of the registry database of pod "
                f"{pod} to it."
            ) from error
