"""Settle doubtful removals by looking at the pod's own links in storage.

Route: workers/processor.py after a batch that left doubts, and workers/app.py at intervals -> `Settler.settle`;
compare.py with what a listing did not show -> `Settler.settle_unlisted`. Both end in the same look and verdict.

Why the facts are locked while storage is asked (db/locks.py): a push that wrote its link before the look-up is
seen by it; one that writes it later announces itself later, and finds the table as the settlement left it.
Without the lock a push could be applied between the two, change nothing because the holding is still there, and
then lose it.
An absence counts only where a link of the pod is found in this bucket and root, just before the look and just after it
(evidence.py): a root may be wrong, the pod may keep its links in its own database, and what is below a root may be gone
for a while without any error (a filer that fails over).
Only pods whose links are in shared storage can be settled so; the doubts of others stay.
"""

import datetime
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import NamedTuple

import structlog

from coordinator.db import locks
from coordinator.db.connection import Connections
from coordinator.domain.names import RepositoryName, format_digest
from coordinator.errors import BaleenError, UnavailableError
from coordinator.reconcile.evidence import Evidence
from coordinator.storage.layout import layer_link_key, revision_link_key
from coordinator.storage.port import ObjectStore
from coordinator.table import doubtful_removals as doubts
from coordinator.table.doubtful_removals import Doubt, Verdict

log = structlog.get_logger()

#: Doubts that one transaction settles: all writers wait for it, so it must be short.
BATCH = 64
LOOKUPS_AT_ONCE = 16
LOOKUP_TIMEOUT_S = 5.0
NEW = timedelta(minutes=1)

#: Names below any of which a link is stored, if a pod keeps its links in this bucket and root.
Place = tuple[RepositoryName, ...]


class Settled(NamedTuple):
    """What came of doubts: things that were removed, doubts that a look could settle."""

    removed: int = 0
    doubts: int = 0


class NotHereError(BaleenError):
    """No link of the pod is found in this bucket and root, so that what is absent there proves nothing."""


class Settler:
    def __init__(self, connections: Connections, store: ObjectStore) -> None:
        self._connections = connections
        self._store = store
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="lookup")
        self._evidence = Evidence(store)

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def settle_new(self) -> Settled:
        """Settle the doubts of the last minute: old ones that nothing can settle must not hold up every batch."""
        return self.settle(newer_than=NEW)

    def settle(
        self,
        newer_than: timedelta | None = None,
        *,
        pod_id: int | None = None,
        prefixes: Sequence[RepositoryName] = (),
        tell: Callable[[Sequence[Verdict]], None] | None = None,
    ) -> Settled:
        """Settle all doubts that can be settled, of one pod if so asked; `tell` hears of each batch after its commit.

        `prefixes`: all of that pod's. Without them only those above a doubt's repository show that this is the place.
        """
        settled = Settled()
        after = doubts.BEGINNING
        while True:
            # Outside the lock: a store that is away must not stop the writers.
            self._store.check()
            with self._connections.use() as connection, connection.transaction():
                locks.enter(connection, alone=True)
                found = doubts.load(connection, after, BATCH, newer_than, pod_id)
                if not found:
                    return settled
                looked = self._look_up(found, prefixes)
                verdicts = [verdict for verdict in looked if verdict is not None]
                removed = doubts.settle(connection, verdicts)
            settled = Settled(settled.removed + removed, settled.doubts + len(verdicts))
            if verdicts:
                log.info("doubts settled", doubts=len(verdicts), removed=removed)
                if tell is not None:
                    tell(verdicts)
            after = found[-1].key

    def settle_unlisted(
        self, keys: Sequence[doubts.Key], at: datetime.datetime, prefixes: Sequence[RepositoryName]
    ) -> list[Verdict]:
        """Doubt what a listing that began at `at` did not show, at most BATCH things, and settle it at once.

        `prefixes`: all of the pod's.

        What the caller saw says only where to look: the verdict is that of the look under the lock. Raises
        NotHereError, with nothing doubted, if something is absent and nothing shows that the pod keeps its links here.
        """
        assert len(keys) <= BATCH
        self._store.check()
        with self._connections.use() as connection, connection.transaction():
            locks.enter(connection, alone=True)
            verdicts: list[Verdict] = []
            raised = doubts.raise_doubts(connection, keys, at)
            for doubt, verdict in zip(raised, self._look_up(raised, prefixes), strict=True):
                if verdict is None:
                    raise NotHereError(
                        f"No link of the pod is found in storage, though the table has {format_digest(doubt.digest)} "
                        f"in {doubt.repository}: check BALEEN_S3_BUCKET and BALEEN_S3_ROOT, and that its registry "
                        "keeps its links there. One that keeps them in its own database is of linker relay."
                    )
                verdicts.append(verdict)
            doubts.settle(connection, verdicts)
        return verdicts

    def _look_up(self, found: list[Doubt], prefixes: Sequence[RepositoryName]) -> list[Verdict | None]:
        """Say what storage has of each; None where something is absent, and that proves nothing."""
        places = [tuple(prefixes or doubt.prefixes or (doubt.repository,)) for doubt in found]
        named = list(dict.fromkeys(doubt.repository for doubt in found))
        try:
            before = self._proved(places, named)
            verdicts = list(self._lookups.map(self._verdict, found, timeout=LOOKUP_TIMEOUT_S))
            absent = [_gone(verdict) for verdict in verdicts]
            asked = (place for place, gone in zip(places, absent, strict=True) if gone and place in before)
            after = self._proved(asked, named)
        except TimeoutError as error:
            raise UnavailableError("The object store answers too slowly to settle removals: try again.") from error
        return [
            None if gone and place not in after else verdict
            for verdict, place, gone in zip(verdicts, places, absent, strict=True)
        ]

    def _verdict(self, doubt: Doubt) -> Verdict:
        revision = doubt.held and self._store.head(revision_link_key(doubt.repository, doubt.digest)) is not None
        asked = doubt.linked or (doubt.held and not revision)
        layer = asked and self._store.head(layer_link_key(doubt.repository, doubt.digest)) is not None
        # A manifest is served by either (layered.py).
        return Verdict(doubt, held=revision or (doubt.held and layer), linked=doubt.linked and layer)

    def _proved(self, places: Iterable[Place], named: Sequence[RepositoryName]) -> set[Place]:
        """Return those places where a link is found; `named` as in evidence.py."""
        asked = list(dict.fromkeys(places))
        found = self._lookups.map(lambda place: self._evidence.has_link(place, named), asked, timeout=LOOKUP_TIMEOUT_S)
        return {place for place, there in zip(asked, found, strict=True) if there}


def _gone(verdict: Verdict) -> bool:
    return verdict.held < verdict.doubt.held or verdict.linked < verdict.doubt.linked
