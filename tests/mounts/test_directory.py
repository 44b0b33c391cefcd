"""Which pods there are, while the database says nothing."""

import threading

import pytest

from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import Linker
from coordinator.errors import UnavailableError
from coordinator.mounts import directory
from coordinator.mounts.directory import MountPod, MountPods

POD = MountPod(1, PodName("pod-a"), Linker.LINK, (), ("team",))


def test_a_database_that_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread waits for it, and the others go on with what is known, for a while: nobody waits for ever."""
    for name, seconds in (("REFRESH_S", 0.0), ("WAIT_S", 0.01)):
        monkeypatch.setattr(directory, name, seconds, raising=False)
    frozen, reached, thawed = threading.Event(), threading.Event(), threading.Event()

    def load() -> list[MountPod]:
        if frozen.is_set():
            reached.set()
            thawed.wait(60)
        return [POD]

    pods = MountPods(load)
    name = RepositoryName("team/app")
    assert pods.owner(name) == POD
    frozen.set()
    waiting = threading.Thread(target=pods.owner, args=(name,))
    waiting.start()
    try:
        assert reached.wait(30)
        asking = threading.Thread(target=pods.owner, args=(name,), daemon=True)
        asking.start()
        asking.join(10)
        assert not asking.is_alive()
        assert pods.owner(name) == POD
        monkeypatch.setattr(directory, "STALE_S", 0.0)
        with pytest.raises(UnavailableError):
            pods.owner(name)
    finally:
        thawed.set()
        waiting.join(10)
