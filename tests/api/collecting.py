"""An API and a collector on one database.

Times have no length, and one pod is known, which has reported and needs no reconcile, unless a test changes that
(`World.known`). Not here: what must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Connection

from coordinator.api.deps import Deps, record_no_mark
from coordinator.compose import database as compose_database
from coordinator.domain.gc import Facts, PodFacts
from coordinator.domain.names import format_digest
from coordinator.domain.perimeter import Listing
from coordinator.gc import conditions
from coordinator.gc.conditions import ReadFactsWithRows
from coordinator.lookup.sizes import Sizes
from coordinator.settings import Settings
from coordinator.stack.supervisor import StackEndpoints
from tests.api.harness import FRESH, Json, Served, served, settings_for
from tests.gc.harness import NO_TIMES, POD, Garbage
from tests.storage.memory import MemoryObjectStore

TABLES = (
    "hides, pins, holds, gc_switch, gc_ledger, jobs, repository_manifests, repository_blobs, removals, manifests, "
    "blobs, lifecycle_outbox"
)


class World:
    """What the API and the collector know, by names of blobs as tests/gc/harness.py has them."""

    def __init__(self, api: Served, known: Known) -> None:
        self.api = api
        self.garbage = Garbage(compose_database.database_url(api.settings), MemoryObjectStore(versioned=True))
        self._known = known
        self.known(lambda facts: facts)

    def known(self, change: Callable[[Facts], Facts]) -> None:
        """Change what is known, for the API and for runs."""
        self._known.change = change
        self.garbage.known = change

    @contextmanager
    def sizes(self, **sizes: Any) -> Iterator[None]:
        """Ask another API on the same database, with these sizes, until the end of the block."""
        usual = self.api
        with serving(usual.settings, self._known, replace(FRESH, **sizes)) as self.api:
            yield
        self.api = usual

    def text(self, name: str) -> str:
        return format_digest(self.garbage.digest(name))

    def unreferenced(self, *names: str) -> None:
        """A manifest with these layers was pushed and deleted; it has the first layer's name with an m before it."""
        self.garbage.pushed(f"m-{names[0]}", *names)
        self.garbage.forget(f"m-{names[0]}")

    def hidden(self, *names: str) -> None:
        """The same, and a run has hidden all of them."""
        self.unreferenced(*names)
        self.garbage.collect()

    def explained(self, name: str) -> Json:
        answer = self.api.get(f"/v1/blobs/{self.text(name)}/explain")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def plan(self, **parameters: Any) -> Json:
        answer = self.api.get("/v1/gc/plan", **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def steps(self, **parameters: Any) -> dict[str, str]:
        """Every blob of the plan with its step, or with why it is kept."""
        items = self.api.pages("/v1/gc/plan", **parameters)
        assert len(items) == len({item["digest"] for item in items})
        return {item["digest"]: item["why"] or item["step"] for item in items}


class Known:
    """What a test says is known, between the database and the API."""

    def __init__(self) -> None:
        self.change: Callable[[Facts], Facts] = lambda facts: facts

    def read(self, really: ReadFactsWithRows, connection: Connection) -> conditions.FactsWithRows:
        known = really(connection)
        pods = [PodFacts(POD, known.facts.now, known.facts.now, is_reconcilable=False)]
        listing = Listing(known.facts.now)
        facts = known.facts._replace(times=NO_TIMES, pods=pods, listing=listing)
        return known._replace(facts=self.change(facts))


def serving(settings: Settings, known: Known, sizes: Sizes = FRESH) -> AbstractContextManager[Served]:
    """An API that knows this. It writes no mark: the collector has a bucket of its own."""

    def change(deps: Deps) -> Deps:
        return replace(deps, read_known=partial(known.read, deps.read_known), record_mark=record_no_mark)

    return served(settings, sizes, change)


@contextmanager
def known_api(embedded_stack: StackEndpoints) -> Iterator[tuple[Served, Known]]:
    known = Known()
    with serving(settings_for(embedded_stack), known) as api:
        yield api, known


@contextmanager
def collecting(api: Served, known: Known) -> Iterator[World]:
    """An empty table, and the kill switch on."""
    api.db.execute(f"TRUNCATE {TABLES} CASCADE")
    world = World(api, known)
    with world.garbage:
        yield world


def asked_back(world: World, name: str, why: str = "a test", *, pin: bool = True) -> None:
    answer = world.api.ask("POST", f"/v1/blobs/{world.text(name)}/undelete", json={"why": why, "pin": pin})
    assert answer.status_code == 202, answer.text
