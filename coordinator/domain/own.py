"""What Baleen itself makes in pods, and by which names it is known: names for nothing else.

Under each pod's first prefix there are the image that probes ask for (pods/prober.py), and what doctors try
(doctor/scratch.py), which they take away again unless they are killed. Nobody misses either when the pod goes.
"""

import re
from collections.abc import Container
from typing import Final

from coordinator.domain.names import RepositoryName

#: Holds one image, the same bytes in every pod, and under one tag.
PROBE_REPOSITORY: Final = "baleen-probe"
PROBE_TAG: Final = "known"
_SCRATCH = re.compile(r"baleen-doctor-[0-9a-f]{16}(?:-other)?", re.ASCII)


def is_scratch(name: str) -> bool:
    """Whether a repository of this name, directly below a pod's prefix, is a doctor's."""
    return _SCRATCH.fullmatch(name) is not None


def is_own(repository: RepositoryName, prefixes: Container[str]) -> bool:
    """Whether Baleen has made the repository. Of that of probes its image alone is Baleen's."""
    prefix, _, name = repository.rpartition("/")
    return prefix in prefixes and (name == PROBE_REPOSITORY or is_scratch(name))
