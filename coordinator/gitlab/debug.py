"""The debug addresses of the processes of pods of kind `gitlab`, from a file beside that with the database's URL.

Not here: what is read there (doctor/gitlab.py).
"""

from pathlib import Path
from typing import Final

from coordinator.domain.names import PodName
from coordinator.errors import UnconfiguredError

#: What follows the pod's name in the name of the file. No pod's name has a dot.
SUFFIX: Final = ".debug"


def read_debug_urls(directory: str | None, pod: PodName) -> list[str]:
    """Return the lines of the pod's file, without empty ones and comments; raises UnconfiguredError."""
    if directory is None:
        raise UnconfiguredError(
            f"The debug addresses of pod {pod} are not known: set BALEEN_GITLAB_DATABASES to a directory that has the "
            f"file {pod}{SUFFIX}."
        )
    file = Path(directory) / f"{pod}{SUFFIX}"
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UnconfiguredError(
            f"The file {file} cannot be read ({reason}): write the debug address of each registry process to it, "
            "one a line."
        ) from error
    return [line for line in lines if line and not line.startswith("#")]
