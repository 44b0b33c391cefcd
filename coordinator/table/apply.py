"""Apply a batch of facts in one transaction, together with the offsets of their partitions.

Route: workers/processor.py -> `BatchApplier.apply(slices)` -> each run of facts (digest_facts.py; repository_facts.py
for facts about a whole repository) -> dead letters and progress -> commit.

Why it is exactly once: each partition's progress row is locked first and must be at the first offset of its slice. A
worker that lost its partition, woke up late or repeats a batch finds another offset and changes nothing
(OutOfStepError).

Why workers do not deadlock (scenario 26): all take their locks in one order. Progress rows by partition; new
repositories by name; new blobs by digest; new manifests by id; new holdings and links by id; and last, held only until
the commit that follows, the counts of blobs by id, and after them the rows of registry processes: new processes by pod
and name, endpoints by key, processes by id (processes.py). PostgreSQL detects the remaining deadlocks (a worker and a
reconcile that change the same known rows of one repository), and one of the two begins again.

Invariants: counts are sizes of sets, changed only by rows that this transaction added or removed; a reference is added
before the offset visibly moves on; a watermark moves with the records before it, or after them; if another writer
changed rows in between, the batch is repeated.
Not here: Kafka, JSON, storage. A manifest's content is found before the transaction begins (workers/contents.py).
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any

from psycopg import Connection
from psycopg.errors import DeadlockDetected

from coordinator.db import locks
from coordinator.domain.facts import BlobLinked, RepositoryRemoved, RepositoryRenamed
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName
from coordinator.table import dead_letters, echoes, renames, repository_facts, statements
from coordinator.table import processes as registry_processes
from coordinator.table.batch import (
    ApplyResult,
    DeadLetterLimits,
    Item,
    NotServedError,
    OutOfStepError,
    ProcessKey,
    Reports,
    Slice,
    StateChangedError,
    add_results,
)
from coordinator.table.digest_facts import AloneNeededError, FactRun

#: Another writer (a mount, another worker's new blob) can force a few repetitions. After SHARED_ATTEMPTS the batch
#: excludes other writers, and only a writer without the lock (a sweep) can disturb it.
SHARED_ATTEMPTS = 3
ATTEMPTS = 8

#: Facts about a whole repository. They see everything before them, and exclude all other writers.
_WHOLE_REPOSITORY_FACTS = (RepositoryRemoved, RepositoryRenamed)


class BatchApplier:
    """Apply batches on one connection, set up by `rows.prepare`. Not safe for use by several threads."""

    def __init__(
        self,
        connection: Connection[Any],
        margin: timedelta,
        processes: echoes.KnownProcesses | None = None,
        request_bound: timedelta = registry_processes.REQUEST_BOUND,
        limits: DeadLetterLimits | None = None,
    ) -> None:
        """`processes` outlives this object, so that the same processes are not looked up for each batch.
        `request_bound` is needed for batches with echoes.
        """
        self._connection = connection
        self._margin = margin
        self._request_bound = request_bound
        self._limits = limits or DeadLetterLimits()
        self._processes = echoes.KnownProcesses() if processes is None else processes

    def apply(self, slices: Sequence[Slice]) -> ApplyResult:
        """Apply slices of different partitions in one transaction; raises OutOfStepError with nothing changed."""
        ordered = sorted(slices, key=lambda piece: (piece.topic, piece.partition))
        alone = any(isinstance(item.fact, _WHOLE_REPOSITORY_FACTS) for piece in ordered for item in piece.items)
        new = self._processes.find_unknown(ordered)
        try:
            applied = self._run_transaction(lambda alone: self._apply_slices(ordered, new, alone=alone), alone=alone)
        except BaseException:
            self._processes.forget()
            raise
        self._processes.add(new)
        return applied

    def apply_stored(self, items: list[Item], reports: Reports | None = None) -> ApplyResult:
        """Apply facts about single digests that were found in storage and so have no offset.

        They are ordinary additions: a known one changes nothing, one that an event contradicts is doubtful.
        `reports`: what pods reported about manifests that were read.
        """
        return self._run_transaction(lambda alone: self._apply_run(items, alone=alone, reports=reports), alone=False)

    def apply_kept_links(self, repository: RepositoryName, items: list[Item]) -> ApplyResult:
        """Apply links of one repository as `apply_stored` does, and keep them (see RepositoryBlob.kept)."""
        linked = {item.fact.digest for item in items if isinstance(item.fact, BlobLinked)}

        def work(alone: bool) -> ApplyResult:
            applied = self._apply_run(items, alone=alone)
            statements.keep_links(self._connection, repository, sorted(linked))
            return applied

        return self._run_transaction(work, alone=False)

    def apply_if_served(self, item: Item, digest: Digest, then: Callable[[], None]) -> ApplyResult:
        """Apply a reference to a served blob as `apply_stored` does, and call `then` in the same transaction.

        The blob's row is locked until the commit: a later hide finds the blob needed, and an earlier one is found here.
        Raises NotServedError, with nothing changed, if the blob is not served.
        """

        def work(alone: bool) -> ApplyResult:
            applied = self._apply_run([item], alone=alone)
            state = statements.lock_blob_state(self._connection, digest)
            if state is not BlobState.LIVE:
                raise NotServedError(state)
            then()
            return applied

        return self._run_transaction(work, alone=False)

    def _run_transaction(self, work: Callable[[bool], ApplyResult], *, alone: bool) -> ApplyResult:
        """Do the work in a transaction; repeat it if another writer interfered, and finally exclude all others."""
        for attempt in range(ATTEMPTS):
            try:
                with self._connection.transaction():
                    locks.lock_facts(self._connection, alone=alone)
                    return work(alone)
            except AloneNeededError:
                alone = True
            except (StateChangedError, DeadlockDetected):
                if attempt == ATTEMPTS - 1:
                    raise
                alone = alone or attempt + 1 >= SHARED_ATTEMPTS
        raise StateChangedError(f"Other writers changed the batch's rows in each of {ATTEMPTS} attempts.")

    def _apply_slices(self, slices: Sequence[Slice], new: Collection[ProcessKey], *, alone: bool) -> ApplyResult:
        self._lock_progress(slices)
        items = [item for piece in slices for item in piece.items]
        applied = ApplyResult(records=sum(piece.next_offset - piece.first_offset for piece in slices))
        for run in _split_runs(items):
            applied = add_results(applied, self._apply_run(run, alone=alone))
        dead = [(piece, item) for piece in slices for item in piece.items if item.dead_letter is not None]
        not_kept = dead_letters.store_dead_letters(self._connection, dead, self._limits)
        statements.advance_progress(self._connection, slices)
        echoes.insert_processes(self._connection, new)
        echoes_applied = echoes.apply_echoes(self._connection, slices, self._request_bound)
        return applied._replace(
            dead_letters=len(dead),
            dead_letters_not_kept=not_kept,
            echoes=echoes_applied.known,
            echoes_unknown=echoes_applied.unknown,
        )

    def _lock_progress(self, slices: Sequence[Slice]) -> None:
        stands = statements.lock_progress(self._connection, [(piece.topic, piece.partition) for piece in slices])
        for piece in slices:
            expected = stands.get((piece.topic, piece.partition))
            if expected != piece.first_offset:
                raise OutOfStepError(piece, expected)

    def _apply_run(self, run: list[Item], *, alone: bool, reports: Reports | None = None) -> ApplyResult:
        first = run[0].fact
        if isinstance(first, RepositoryRemoved):
            return repository_facts.remove_repository(self._connection, first, run[0].pod_id, self._margin)
        if isinstance(first, RepositoryRenamed):
            repository_facts.rename_repositories(self._connection, first, run[0].pod_id, self._margin)
            return ApplyResult()
        renames.record_late_facts(self._connection, run, self._margin)
        return FactRun(self._connection, run, self._margin, alone=alone, reports=reports).apply()


def _split_runs(items: Iterable[Item]) -> Iterable[list[Item]]:
    """Split items at facts about a whole repository, which must see everything before them."""
    run: list[Item] = []
    for item in items:
        if item.fact is None:
            continue
        if isinstance(item.fact, _WHOLE_REPOSITORY_FACTS):
            if run:
                yield run
            yield [item]
            run = []
        else:
            run.append(item)
    if run:
        yield run
