"""The databases of all pods of kind `gitlab`.

The URL of each is in a file of its own, so that it comes from where secrets are kept and shows in no setting. A second
file has the debug addresses of the registry's processes, for the doctor.
"""

import threading
from pathlib import Path
from typing import Final

from coordinator.domain.names import PodName
from coordinator.errors import UnconfiguredError
from coordinator.gitlab.database import GitlabDatabase
from coordinator.settings import Secret, Settings

#: What follows the pod's name in the name of the second file. No pod's name has a dot.
DEBUG: Final = ".debug"


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

    def read_debug_urls(self, pod: PodName) -> list[str]:
        """Return the lines of the pod's second file, without comments; raises UnconfiguredError."""
        lines = (line.strip() for line in self._read(pod, DEBUG, "the debug address of each of its processes"))
        return [line for line in lines if line and not line.startswith("#")]

    def close(self) -> None:
        with self._lock:
            for each in self._open.values():
                each.close()
            self._open.clear()

    def _read_url(self, pod: PodName) -> Secret:
        return Secret("\n".join(self._read(pod, "", "the URL of its registry's database")).strip())

    def _read(self, pod: PodName, suffix: str, what: str) -> list[str]:
        if self._directory is None:
            raise UnconfiguredError(
                f"Pod {pod} is of kind gitlab, and its registry's database is not known: set "
                "BALEEN_GITLAB_DATABASES to a directory that has a file for each such pod."
            )
        file = self._directory / f"{pod}{suffix}"
        try:
            return file.read_text().splitlines()
        except OSError as error:
            raise UnconfiguredError(
                f"The file {file} cannot be read ({error.strerror}): write {what} to it (pod {pod})."
            ) from error
        except UnicodeDecodeError as error:
            raise UnconfiguredError(f"The file {file} is not text: write {what} to it (pod {pod}).") from error


def make_databases(settings: Settings) -> GitlabDatabases:
    return GitlabDatabases(None if settings.gitlab_databases is None else Path(settings.gitlab_databases))
