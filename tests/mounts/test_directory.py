"""Which pods there are, while the database does not answer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.mounts.directory import STALE_S, MountPod, MountPods

POD = MountPod(1, PodName("pod-a"), PodKind.LINK, (), ("team",))
NAME = RepositoryName("team/app")


@contextmanager
def frozen(stale_s: float) -> Iterator[MountPods]:
    """Pods that were read once, while one thread waits for a database that does not answer."""
    is_frozen, reached, thawed = threading.Event(), threading.Event(), threading.Event()

    def load() -> list[MountPod]:
        if is_frozen.is_set():
            reached.set()
            thawed.wait(60)
        return [POD]

    pods = MountPods(load, refresh_s=0.0, wait_s=0.01, stale_s=stale_s)
    assert pods.find_owner(NAME) == POD
    is_frozen.set()
    waiting = threading.Thread(target=pods.find_owner, args=(NAME,))
    waiting.start()
    try:
        assert reached.wait(30)
        yield pods
    finally:
        thawed.set()
        waiting.join(10)


def test_a_database_that_is_frozen() -> None:
    """One thread waits for a frozen database, and the others use what is known."""
    with frozen(STALE_S) as pods:
        asking = threading.Thread(target=pods.find_owner, args=(NAME,), daemon=True)
        asking.start()
        asking.join(10)
        assert not asking.is_alive()
        assert pods.find_owner(NAME) == POD


def test_a_database_that_is_frozen_for_long() -> None:
    """Known pods are used for a limited time only."""
    with frozen(0.0) as pods, pytest.raises(UnavailableError):
        pods.find_owner(NAME)
