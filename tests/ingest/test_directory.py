"""Pods as ingest knows them, whether or not the database answers."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from coordinator.domain.names import PodName
from coordinator.errors import UnavailableError
from coordinator.ingest.directory import CachedPodDirectory, KnownPod

A, B = PodName("a"), PodName("b")


def known(name: PodName, token: bytes = b"1") -> KnownPod:
    return KnownPod(name, (name,), token)


class Database:
    """What `load` gives; it can be away, or never answer."""

    def __init__(self, *pods: KnownPod) -> None:
        self.pods = list(pods)
        self.loads = 0
        self.away = False
        self.hangs = False

    async def load(self) -> list[KnownPod]:
        self.loads += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise UnavailableError("away")
        return list(self.pods)


def scenario(run: Callable[[Database], Awaitable[None]]) -> None:
    async def main() -> None:
        await run(Database(known(A)))

    asyncio.run(main())


def test_one_load_serves_many() -> None:
    """Many look-ups within the time to live cost one load, also when all come at once."""

    async def run(database: Database) -> None:
        directory = CachedPodDirectory(database.load, ttl=60)
        found = await asyncio.gather(*(directory.get(A) for _ in range(100)))
        assert found == [known(A)] * 100
        assert database.loads == 1

    scenario(run)


def test_miss_and_wrong_token_check_again() -> None:
    """A new pod and a new token are found at their first request, without waiting for the time to live."""

    async def run(database: Database) -> None:
        directory = CachedPodDirectory(database.load, ttl=60, miss_interval=0)
        await directory.get(A)
        database.pods = [known(A, b"2"), known(B)]
        assert await directory.get(B) == known(B)
        database.pods = [known(A, b"3")]
        assert await directory.get(A) == known(A, b"2")
        assert await directory.get(A, fresh=True) == known(A, b"3")
        assert await directory.get(B) is None

    scenario(run)


def test_misses_are_bounded() -> None:
    """However many unknown names and wrong tokens come, they cost one load in each interval."""

    async def run(database: Database) -> None:
        directory = CachedPodDirectory(database.load, ttl=60, miss_interval=60)
        await directory.get(A)
        for n in range(100):
            assert await directory.get(PodName(f"x{n}"), fresh=True) is None
        assert database.loads == 1

    scenario(run)


def test_removed_pod_is_forgotten() -> None:
    """After the time to live a pod that was removed is no longer known."""

    async def run(database: Database) -> None:
        directory = CachedPodDirectory(database.load, ttl=0, miss_interval=60)
        assert await directory.get(A) == known(A)
        database.pods = []
        assert await directory.get(A) is None

    scenario(run)


@pytest.mark.parametrize("fault", ["away", "hangs"])
def test_database_away(fault: str) -> None:
    """While the database is away, or never answers, what is known is served, and unknown stays unknown."""

    async def run(database: Database) -> None:
        directory = CachedPodDirectory(database.load, ttl=0, load_timeout=0.05, miss_interval=0.01)
        await directory.get(A)
        setattr(database, fault, True)
        for _ in range(5):
            assert await directory.get(A) == known(A)
            assert await directory.get(A, fresh=True) == known(A)
            assert await directory.get(B) is None
        setattr(database, fault, False)
        database.pods = [known(B)]
        async with asyncio.timeout(10):
            while await directory.get(B) is None:  # noqa: ASYNC110 - polled as requests would
                await asyncio.sleep(0.005)

    scenario(run)


def test_never_loaded() -> None:
    """Before the pods were ever read nobody can be told apart: the answer is that ingest is unavailable."""

    async def run(database: Database) -> None:
        database.away = True
        directory = CachedPodDirectory(database.load, ttl=60, miss_interval=0)
        with pytest.raises(UnavailableError):
            await directory.get(A)
        database.away = False
        assert await directory.get(A) == known(A)

    scenario(run)


def test_hash_is_not_shown() -> None:
    """The hash of a token is in no repr, and so in no log line."""
    assert "secret" not in repr(known(A, b"secret"))
