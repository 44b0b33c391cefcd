"""Apply a batch of facts in one transaction, together with the offsets of the partitions that they came from.

Route: workers/processor.py -> `BatchApply.apply(slices)` -> each run of facts (run.py; barriers.py for facts about a
whole repository) -> dead letters and progress -> commit.

Why it is exactly once: each partition's progress row is locked first and must stand where its slice begins. A worker
that lost its partition, woke up late or repeats a batch finds it elsewhere and changes nothing (OutOfStepError).

Why workers do not deadlock (scenario 26): all take their locks in one order. Progress rows by partition; new
repositories by name; new blobs by digest; new manifests by id; and last, held only until the commit that follows, the
counts of blobs by id.

Invariants: counts are sizes of sets, changed only by rows that this transaction added or removed; a reference is
added before anything can see the offset move on; what another writer changed under us repeats the batch.
Not here: Kafka, JSON, storage. A manifest's content is found before the transaction begins (contents.py).
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from psycopg import Connection

from coordinator.db import barriers, locks, rows
from coordinator.db.batch import Applied, Item, OutOfStepError, Slice, StateChangedError
from coordinator.db.run import AloneNeededError, Run
from coordinator.domain.facts import RepositoryRemoved, RepositoryRenamed

#: Another writer (a mount, another worker's new blob) can force a repetition now and then, not for ever: after
#: SHARED_ATTEMPTS the batch keeps the other writers out, and only what takes no lock (a sweep) can disturb it.
SHARED_ATTEMPTS = 3
ATTEMPTS = 8

#: Facts about a whole repository. They see all that came before them, and nobody else writes meanwhile.
_BARRIERS = (RepositoryRemoved, RepositoryRenamed)


class BatchApply:
    """Applies batches on one connection, set up by `rows.prepare`. Not safe for use by several threads."""

    def __init__(self, connection: Connection[Any], margin: timedelta) -> None:
        self._connection = connection
        self._margin = margin

    def apply(self, slices: Sequence[Slice]) -> Applied:
        """Apply slices of different partitions in one transaction; raises OutOfStepError with nothing changed."""
        ordered = sorted(slices, key=lambda piece: (piece.topic, piece.partition))
        alone = any(isinstance(item.fact, _BARRIERS) for piece in ordered for item in piece.items)
        for attempt in range(ATTEMPTS):
            try:
                with self._connection.transaction():
                    locks.enter(self._connection, alone=alone)
                    return self._apply(ordered, alone=alone)
            except AloneNeededError:
                alone = True
            except StateChangedError:
                if attempt == ATTEMPTS - 1:
                    raise
                alone = alone or attempt + 1 >= SHARED_ATTEMPTS
        raise StateChangedError("The batch never found the table at rest: is another writer in a loop?")

    def _apply(self, slices: Sequence[Slice], *, alone: bool) -> Applied:
        self._lock_progress(slices)
        items = [item for piece in slices for item in piece.items]
        applied = Applied(records=sum(piece.next_offset - piece.first_offset for piece in slices))
        for run in _runs(items):
            applied = _sum(applied, self._apply_run(run, alone=alone))
        dead = [(piece, item) for piece in slices for item in piece.items if item.dead_letter is not None]
        rows.insert_dead_letters(self._connection, dead)
        rows.advance_progress(self._connection, slices)
        return applied._replace(dead_letters=len(dead))

    def _lock_progress(self, slices: Sequence[Slice]) -> None:
        stands = rows.lock_progress(self._connection, [(piece.topic, piece.partition) for piece in slices])
        for piece in slices:
            expected = stands.get((piece.topic, piece.partition))
            if expected != piece.first_offset:
                raise OutOfStepError(piece, expected)

    def _apply_run(self, run: list[Item], *, alone: bool) -> Applied:
        first = run[0].fact
        if isinstance(first, RepositoryRemoved):
            return barriers.remove_repository(self._connection, first, run[0].pod_id, self._margin)
        if isinstance(first, RepositoryRenamed):
            barriers.rename_repositories(self._connection, first, self._margin)
            return Applied()
        return Run(self._connection, run, self._margin, alone=alone).apply()


def _runs(items: Iterable[Item]) -> Iterable[list[Item]]:
    """Split where a fact concerns a whole repository: it must see all that came before it."""
    run: list[Item] = []
    for item in items:
        if item.fact is None:
            continue
        if isinstance(item.fact, _BARRIERS):
            if run:
                yield run
            yield [item]
            run = []
        else:
            run.append(item)
    if run:
        yield run


def _sum(left: Applied, right: Applied) -> Applied:
    return Applied(*(a + b for a, b in zip(left, right, strict=True)))
