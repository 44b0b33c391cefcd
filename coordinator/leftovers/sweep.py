"""The common machinery of a run that deletes leftovers.

    a listing -> entries -> items -> `batch` -> as many as one request may hold -> a permit -> delete_many -> counted

Between two requests a run checks whether it is to stop and whether a hold blocks GC by now; the permit checks the rest
in the database: the switch, the holds, the lease. A dry run goes the same way, and ends before the permit.
Not here: how each kind is found (uploads.py, hides.py, links.py), which kinds are due (run.py).
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.gc import Facts, block_reasons
from coordinator.errors import BaleenError
from coordinator.gc import table as gc
from coordinator.gc.conditions import FactsReader
from coordinator.gc.leftovers import Amounts, LeftoverKind, Tally
from coordinator.gc.table import DisturbedError
from coordinator.jobs.work import Work
from coordinator.leftovers import table
from coordinator.storage.port import DELETE_LIMIT, ObjectStore, Permit, Target

log = structlog.get_logger()

T = TypeVar("T")

#: Links, copies, purges that one query is about.
PAGE_SIZE = 500
BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)


class Ages(NamedTuple):
    """Minimum ages of leftovers of each kind (settings.py has the reasons and floors)."""

    uploads: timedelta
    parts: timedelta
    versions: timedelta
    links: timedelta
    #: Of copies and markers. A delete that the store has not carried out this long after its permit, it never will.
    delete_bound: timedelta


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a run does at once; the defaults are those of production."""

    #: Targets of one request that deletes.
    deletes: int = DELETE_LIMIT
    #: Objects of one session that are kept in memory; a session with more is listed again when it is decided.
    buffered: int = 1000
    #: Deleted links that are watched at once: workers check all of them again and again.
    watched_links: int = 50_000


PRODUCTION = Sizes()


class BlockedError(BaleenError):
    """A hold blocks GC since the run began."""


class Entry(NamedTuple):
    """One object, or one version of one."""

    key: str
    #: None if the bucket keeps no versions.
    version: str | None
    #: Bytes; None of a marker.
    size: int | None
    modified_at: datetime.datetime
    latest: bool

    @property
    def target(self) -> Target:
        return Target(self.key, self.version)

    @property
    def served(self) -> bool:
        return self.latest and self.size is not None


class Item(NamedTuple):
    """Objects or versions that are deleted together, or not at all."""

    name: str
    targets: Sequence[Target]
    #: As how many things it counts.
    things: int
    #: Bytes.
    size: int
    #: The subject of its permit.
    about: Any = None


#: Gives the permit to delete items, after their subjects are written to the table.
Allow = Callable[[Sequence[Item]], AbstractContextManager[Permit]]


class Sweep:
    """One run, and the services that it uses."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        ages: Ages,
        rate: int,
        pool: Executor,
        work: Work,
        read_facts: FactsReader,
        tally: Tally,
        *,
        versioned: bool,
        dry: bool,
        sizes: Sizes = PRODUCTION,
    ) -> None:
        self.connections = connections
        self.store = store
        self.ages = ages
        self.pool = pool
        self.work = work
        self.tally = tally
        self.versioned = versioned
        self.dry = dry
        self.sizes = sizes
        self._rate = rate
        self._read_facts = read_facts
        self.facts: Facts = read_facts()

    def cut_off(self, age: timedelta) -> datetime.datetime:
        """Return the time `age` before the run's begin: everything newer is too young."""
        return self.facts.now - age

    def list_entries(self, prefix: str) -> Iterator[Entry]:
        if not self.versioned:
            for found in self.store.walk(prefix):
                self.work.check()
                yield Entry(found.key, None, found.size, found.modified_at, latest=True)
            return
        for key, state in self.store.walk_versions(prefix):
            self.work.check()
            yield Entry(key, state.version, state.size, state.modified_at, state.latest)

    def check_ours(self, connection: Any) -> None:
        gc.permit_leftovers(connection, self.work.job)

    def make_permit(self, ask: Callable[[Any], None]) -> Permit:
        def permit() -> None:
            with self.connections.use() as connection:
                ask(connection)

        return permit

    @contextmanager
    def allow(self, _: Sequence[Item]) -> Iterator[Permit]:
        yield self.make_permit(self.check_ours)

    @contextmanager
    def batch(
        self,
        kind: LeftoverKind,
        allow: Allow,
        afterwards: Callable[[Sequence[Item]], None] = lambda items: None,
    ) -> Iterator["Batch"]:
        """Give a batch that deletes its items, as many as one request may hold; the last ones at the block's end."""
        batch = Batch(lambda items: self._delete_items(kind, items, allow, afterwards), self.sizes.deletes)
        yield batch
        batch.flush()

    def _delete_items(
        self, kind: LeftoverKind, items: Sequence[Item], allow: Allow, afterwards: Callable[[Sequence[Item]], None]
    ) -> None:
        if self.dry:
            for item in items:
                self.tally.add(kind, Amounts(item.things, item.size))
            return
        self.check_holds()
        targets = list(dict.fromkeys(target for item in items for target in item.targets))
        wrong: Mapping[Target, str] = {}
        try:
            with allow(items) as permit:
                answers = self.store.delete_many(targets, permit)
            wrong = {each.target: each.error for each in answers if each.error is not None}
        except DisturbedError as error:
            log.info("leftovers remain for the next run", kind=kind, reason=str(error))
            self.tally.add(kind, Amounts(left=len(items)))
            return
        if wrong:
            reason = next(iter(wrong.values()))
            log.warning("the object store did not delete", kind=kind, objects=len(wrong), of=len(targets), error=reason)
        done = [item for item in items if wrong.keys().isdisjoint(item.targets)]
        amounts = Amounts(sum(item.things for item in done), sum(item.size for item in done), len(items) - len(done))
        self.tally.add(kind, amounts)
        self.record_deleted(kind, amounts, items[0].name)
        afterwards(items)
        self.pause(len(targets))

    def record_deleted(self, kind: LeftoverKind, amounts: Amounts, first: str) -> None:
        with self.connections.use() as connection:
            table.record_deleted(connection, self.work.job, kind, amounts.things, amounts.size, amounts.left, first)

    def check_holds(self) -> None:
        self.work.check()
        held = block_reasons(self._read_facts())
        if held:
            raise BlockedError(held[0])

    def pause(self, requests: int) -> None:
        if self._rate:
            self.work.pause(requests / self._rate)

    def list_bare_markers(self, key: str) -> Sequence[Entry]:
        """Return all states of an object if all are markers; else none.

        If there are more than one request may delete, return the oldest: the newest, which hides what may be below it,
        is left to a later run.
        """
        states = self.store.list_versions(key)
        if not all(each.is_marker for each in states):
            return []
        states = states[-self.sizes.deletes :]
        return [Entry(key, each.version, None, each.modified_at, each.latest) for each in states]


class Batch:
    """Collects items until they are as many targets as one request may hold."""

    def __init__(self, deal: Callable[[Sequence[Item]], None], limit: int) -> None:
        self._deal = deal
        self._limit = limit
        self._items: list[Item] = []
        self._targets = 0

    def add(self, item: Item) -> None:
        if self._items and (self._targets + len(item.targets) > self._limit or len(self._items) >= self._limit):
            self.flush()
        self._items.append(item)
        self._targets += len(item.targets)

    def flush(self) -> None:
        items, self._items, self._targets = self._items, [], 0
        if items:
            self._deal(items)


def split_pages(things: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(things)
    while page := list(islice(remaining, size)):
        yield page
