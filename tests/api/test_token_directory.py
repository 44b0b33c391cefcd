"""Which API tokens are valid while the database does not answer."""

import asyncio

import pytest

from coordinator.api.auth import MISS_SECONDS, REFRESH_SECONDS, STALE_SECONDS, TokenDirectory
from coordinator.errors import UnavailableError
from coordinator.tokens.table import KnownToken, hash_token

TOKEN = "a-token"


class World:
    """A database that can go away, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.is_away = False
        self.known = {hash_token(TOKEN): KnownToken("ci", "operate", hash_token(TOKEN))}
        self.directory = TokenDirectory(self.load, clock=lambda: self.now)

    async def load(self) -> dict[bytes, KnownToken]:
        if self.is_away:
            raise UnavailableError("The database does not answer.")
        return dict(self.known)

    def is_good(self, token: str = TOKEN) -> bool | None:
        """None: it cannot be said."""
        try:
            return asyncio.run(self.directory.get(token)) is not None
        except UnavailableError:
            return None


@pytest.fixture
def world() -> World:
    return World()


def test_a_known_token_goes_on_for_a_while(world: World) -> None:
    """While the database is away a known token is valid for STALE_SECONDS, and no longer."""
    assert world.is_good()
    world.is_away = True
    world.now += STALE_SECONDS
    assert world.is_good()
    world.now += MISS_SECONDS + 1
    assert [world.is_good() for _ in range(3)] == [None, None, None]
    world.is_away = False
    world.now += MISS_SECONDS + 1
    assert world.is_good()


def test_nothing_is_answered_before_the_database_has(world: World) -> None:
    """A process that begins while the database is away calls no token unknown."""
    world.is_away = True
    assert [world.is_good() for _ in range(3)] == [None, None, None]


def test_a_revoked_token(world: World) -> None:
    """A revoked token is refused once REFRESH_SECONDS have passed."""
    assert world.is_good()
    world.known.clear()
    world.now += REFRESH_SECONDS + 1
    assert world.is_good() is False
