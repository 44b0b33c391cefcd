"""Random histories of a registry that crashes, of events that are lost, late and repeated, and of reconciles.

The bucket is the truth. A reconcile is interrupted between one answer of the store and the next: there, too, clients
push and delete, and events arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.domain.facts import BlobLinked, ManifestPushed, Removed
from coordinator.domain.names import Digest
from coordinator.jobs.work import Pulse
from coordinator.reconcile.sizes import Sizes
from coordinator.storage.layout import blob_key
from tests.reconcile.harness import MARGIN, Pairs, World

Fact = ManifestPushed | BlobLinked | Removed

REPOSITORIES = ("a", "a/b", "c")
NAMES = ("x", "y", "z")


class Op(NamedTuple):
    """Something that happens, so many seconds after the last thing that did."""

    what: str
    repository: str
    name: str
    pause: float


def ops(*kinds: str) -> st.SearchStrategy[Op]:
    return st.builds(
        Op,
        st.sampled_from(kinds),
        st.sampled_from(REPOSITORIES),
        st.sampled_from(NAMES),
        st.sampled_from([0.5, 4, 11, 60]),
    )


CLIENTS = ("push", "push", "delete", "send", "crash")
EVENTS = ("arrive", "arrive", "repeat", "resolve")
#: Between which answers of the store what happens: while it lists, while links are looked up.
INTERRUPTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("walk"), st.integers(0, 5), ops(*CLIENTS, "arrive")),
        st.tuples(st.just("head"), st.integers(0, 5), ops(*CLIENTS)),
        # Between the look without the lock and the one that decides.
        st.tuples(st.just("check"), st.integers(1, 3), ops(*CLIENTS, "arrive")),
    ),
    max_size=4,
)
STEPS = st.lists(st.one_of(ops(*CLIENTS), ops(*EVENTS), INTERRUPTIONS), min_size=4, max_size=25)


class History:
    """What happens to one pod; `seconds` is real time, by which the store's clock goes, and the registry's is off."""

    def __init__(self, world: World, skew: float, *, links: bool) -> None:
        self._world = world
        self._skew = timedelta(seconds=skew)
        self._links = links
        self._seconds = 0.0
        #: Events that the process has in its memory; on their way in Kafka; and all that ever were.
        self._queue: deque[Fact] = deque()
        self._log: deque[Fact] = deque()
        self._sent: list[Fact] = []
        #: What a reconcile has seen, and what storage has linked ever since: it must be held.
        self.sure: Pairs = set()
        self._linked_throughout: Pairs | None = None

    def happen(self, op: Op) -> None:
        self._seconds += op.pause
        world = self._world
        if op.what == "push":
            self._report(world.pushed(op.repository, world.image(op.name), self._seconds))
            if self._links:
                self._report(world.uploaded(op.repository, op.name, self._seconds))
        elif op.what == "delete":
            self._delete(op)
        elif op.what == "send" and self._queue:
            self._log.append(self._queue[0])
            self._sent.append(self._queue.popleft())
        elif op.what == "crash":
            self._queue.clear()
        elif op.what == "arrive" and self._log:
            world.arrive(self._log.popleft())
        elif op.what == "repeat" and self._sent:
            self._log.append(self._sent[int(op.pause) % len(self._sent)])
        elif op.what == "resolve":
            world.resolve_all()

    def _delete(self, op: Op) -> None:
        world = self._world
        image = world.image(op.name)
        if (world.name(op.repository), image.digest) in self.stored():
            self._forget(op.repository, image.digest)
            self._report(world.deleted(op.repository, image.digest, self._seconds))
        if self._links and (world.name(op.repository), world.digest(op.name)) in self.stored():
            self._forget(op.repository, world.digest(op.name))
            self._report(world.unlinked(op.repository, op.name, self._seconds))

    def reconcile(self, interruptions: list[tuple[str, int, Op]]) -> None:
        self._linked_throughout = self.stored()
        with self._interrupted(interruptions):
            self._world.reconcile()
        self.sure, self._linked_throughout = self._linked_throughout, None

    def end(self) -> None:
        """All that is on its way arrives, and then a reconcile runs undisturbed."""
        while self._queue:
            self.happen(Op("send", "", "", 0))
        while self._log:
            self.happen(Op("arrive", "", "", 0))
            self.check()
        self.reconcile([])

    def stored(self) -> Pairs:
        return self._world.stored() | (self._world.stored_layers() if self._links else set())

    def known(self) -> Pairs:
        return self._world.holdings_of_pod() | (self._world.table_links() if self._links else set())

    def check(self) -> None:
        assert self.sure <= self.known()

    def _report(self, fact: Fact) -> None:
        self._queue.append(fact._replace(at=fact.at + self._skew))

    def _forget(self, repository: str, digest: Digest) -> None:
        pair = (self._world.name(repository), digest)
        self.sure.discard(pair)
        if self._linked_throughout is not None:
            self._linked_throughout.discard(pair)

    @contextmanager
    def _interrupted(self, interruptions: list[tuple[str, int, Op]]) -> Iterator[None]:
        seen = {"walk": 0, "head": 0, "check": 0}
        waiting: dict[tuple[str, int], list[Op]] = {}
        for call, number, op in interruptions:
            waiting.setdefault((call, number), []).append(op)

        def interrupt(call: str, _: str) -> None:
            if call in seen:
                for op in waiting.pop((call, seen[call]), []):
                    self.happen(op)
                seen[call] += 1

        self._world.bucket.interrupt = interrupt
        try:
            yield
        finally:
            self._world.bucket.interrupt = lambda call, key: None


#: Small batches, and one thing at a time, so that a history is the same each time.
ONE_AT_A_TIME = Sizes(compared=3, added=2, looked_up=2, fetched=2, parts=3, parts_at_once=1, lookups_at_once=1)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    steps=STEPS,
    skew=st.sampled_from([0.0, -MARGIN.total_seconds(), MARGIN.total_seconds()]),
    links=st.booleans(),
    by_parts=st.booleans(),
)
def test_any_history(
    database: str, steps: list[Op | list[tuple[str, int, Op]]], skew: float, *, links: bool, by_parts: bool
) -> None:
    """A reconcile makes the table agree with the bucket. What was linked throughout it is held as long as it is linked,
    whatever older events still arrive (scenarios 2, 16, 19, 25).
    """
    with World(database, mode="link" if links else "manifest", sizes=ONE_AT_A_TIME) as world:
        world.pulse = Pulse(progress_every_s=60.0)
        world.bucket.__init__(by_parts=by_parts)  # type: ignore[misc]
        # Without anything of a registry the root may be the wrong one.
        world.bucket.put(blob_key(Digest(bytes(32))), b"another pod's")
        history = History(world, skew, links=links)
        for step in steps:
            if isinstance(step, Op):
                history.happen(step)
            else:
                history.reconcile(step)
            history.check()
        history.end()
        history.check()
        assert history.known() == history.stored()
        assert world.doubtful_removals() == 0
        world.assert_sound()
