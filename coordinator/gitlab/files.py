"""Read the file of a pod in a directory that a setting names: a URL, or addresses.

Not here: what is done with them (databases.py, doctor/gitlab.py).
"""

from pathlib import Path

from coordinator.domain.names import PodName
from coordinator.errors import UnconfiguredError

#: What follows the pod's name in the name of the file with debug addresses. No pod's name has a dot.
DEBUG_SUFFIX = ".debug"


def read_pod_file(setting: str, directory: str | None, name: str, what: str) -> str:
    """Return the text of a file; `what` says in an error what to write to it. Raises UnconfiguredError."""
    if directory is None:
        raise UnconfiguredError(f"{setting} is not set: set it to a directory that has the file {name} with {what}.")
    file = Path(directory) / name
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        # Without the cause: its text may have a part of a URL.
        raise UnconfiguredError(f"The file {file} cannot be read ({reason}): write {what} to it.") from None


def read_debug_urls(directory: str | None, pod: PodName) -> list[str]:
    """Return the debug addresses of a pod's processes, without empty lines and comments; raises UnconfiguredError."""
    what = f"the debug address of each registry process of pod {pod}, one a line"
    text = read_pod_file("BALEEN_GITLAB_DATABASES", directory, f"{pod}{DEBUG_SUFFIX}", what)
    return [line for each in text.splitlines() if (line := each.strip()) and not line.startswith("#")]
