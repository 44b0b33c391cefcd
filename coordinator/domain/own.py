"""Recognise the repositories that Baleen itself makes in pods by their reserved names.

Under each pod's first prefix there are the image that probes use (pods/prober.py), and the scratch repositories of
doctors (doctor/scratch.py), which remove them unless they are killed. Both go with the pod when it is removed.
"""

import re
from collections.abc import Container
from typing import Final

from coordinator.domain.names import RepositoryName

#: Has one image under one tag, with the same bytes in every pod.
PROBE_REPOSITORY: Final = "baleen-probe"
PROBE_TAG: Final = "known"
#: Names of scratch repositories, as a whole; PostgreSQL reads it, too.
SCRATCH_NAME: Final = "baleen-doctor-[0-9a-f]{16}(?:-other)?"
_SCRATCH = re.compile(SCRATCH_NAME, re.ASCII)


def is_scratch(name: str) -> bool:
    """Whether a repository of this name, directly below a pod's prefix, is a doctor's."""
    return _SCRATCH.fullmatch(name) is not None


def is_own(repository: RepositoryName, prefixes: Container[str]) -> bool:
    """Whether Baleen has made the repository. In the one for probes, only the probe image is Baleen's."""
    prefix, _, name = repository.rpartition("/")
    return prefix in prefixes and (name == PROBE_REPOSITORY or is_scratch(name))
