"""What a router runs as: the same tests hold for both.

Not here: how they are started (coordinator/stack), what they are told (coordinator/pods).
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator.router import envoy as router_envoy
from coordinator.router import nginx as router
from coordinator.stack.nginx import make_nginx
from coordinator.stack.process import ManagedProcess
from tests.services.envoy import make_envoy

#: Its state, its file, and where it listens.
Start = Callable[[Path, Path, str], ManagedProcess]


class Proxy(NamedTuple):
    name: str
    configuration: Callable[[Iterable[router.RoutedPod], router.Options], str]
    process: Start
    #: Of one that is to be reloaded: the process, and what takes over; None where a signal tells it to read its file.
    epochs: tuple[Start, Start] | None
    #: What a process that does the work may take for a few requests, whatever they carry.
    memory_mib: int


NGINX = Proxy("nginx", router.make_configuration, make_nginx, None, 40)
ENVOY = Proxy(
    "envoy",
    router_envoy.make_configuration,
    make_envoy,
    (partial(make_envoy, epoch=0), partial(make_envoy, epoch=1)),
    100,
)

#: Each test on both.
BOTH = [pytest.param(proxy, id=proxy.name) for proxy in (NGINX, ENVOY)]
#: The same, where it takes a whole Baleen, and the rules themselves are tried on both without (test_fallbacks.py):
#: Envoy in a stage of its own.
BOTH_AT_LENGTH = [pytest.param(NGINX, id="nginx"), pytest.param(ENVOY, id="envoy", marks=pytest.mark.lengthy)]
