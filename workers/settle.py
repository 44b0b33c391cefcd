"""Settle doubtful removals by looking at the pod's own links in storage.

Route: processor.py after a batch that left doubts, and app.py at intervals -> `Settler.settle`.

Why the facts are locked while storage is asked (coordinator/db/locks.py): a push that wrote its link before the
look-up is seen by it; one that writes it later announces itself later, and finds the table as the settlement left it.
Without the lock a push could be applied between the two, change nothing because the holding is still there, and
then lose it.
Only pods whose links are in shared storage can be settled so; the doubts of others stay until a reconcile.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import NamedTuple

import structlog

from coordinator.db import doubts, locks
from coordinator.db.connection import Connections
from coordinator.db.doubts import Doubt
from coordinator.errors import UnavailableError
from coordinator.storage.layout import blob_key, layer_link_key, repository_prefix, revision_link_key
from coordinator.storage.port import ObjectStore

log = structlog.get_logger()

#: Doubts that one transaction settles: all writers wait for it, so it must be short.
BATCH = 64
LOOKUPS_AT_ONCE = 16
LOOKUP_TIMEOUT_S = 5.0
NEW = timedelta(minutes=1)


class Settled(NamedTuple):
    removed: int = 0
    kept: int = 0


class Settler:
    def __init__(self, connections: Connections, store: ObjectStore) -> None:
        self._connections = connections
        self._store = store
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="lookup")

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def settle_new(self) -> Settled:
        """Settle the doubts of the last minute: old ones that nothing can settle must not hold up every batch."""
        return self.settle(newer_than=NEW)

    def settle(self, newer_than: timedelta | None = None) -> Settled:
        """Settle all doubts that can be settled; returns how many things were removed and how many kept."""
        settled = Settled()
        after = doubts.BEGINNING
        while True:
            # Outside the lock: a store that is away must not stop the writers.
            self._store.check()
            with self._connections.use() as connection, connection.transaction():
                locks.enter(connection, alone=True)
                found = doubts.load(connection, after, BATCH, newer_than)
                if not found:
                    return settled
                verdicts = [verdict for verdict in self._look_up(found) if verdict is not None]
                removed = doubts.settle(connection, verdicts)
            settled = Settled(settled.removed + removed, settled.kept + len(found) - removed)
            if verdicts:
                log.info("doubts settled", doubts=len(verdicts), removed=removed)
            after = found[-1].key

    def _look_up(self, found: list[Doubt]) -> list[doubts.Verdict | None]:
        try:
            return list(self._lookups.map(self._verdict, found, timeout=LOOKUP_TIMEOUT_S))
        except TimeoutError as error:
            raise UnavailableError("The object store answers too slowly to settle removals: try again.") from error

    def _verdict(self, doubt: Doubt) -> doubts.Verdict | None:
        held = doubt.held and self._store.head(revision_link_key(doubt.repository, doubt.digest)) is not None
        linked = doubt.linked and self._store.head(layer_link_key(doubt.repository, doubt.digest)) is not None
        gone = held < doubt.held or linked < doubt.linked
        if gone and not self._is_stored_here(doubt):
            return None
        return doubts.Verdict(doubt, held=held, linked=linked)

    def _is_stored_here(self, doubt: Doubt) -> bool:
        """Whether the pod keeps its things in this bucket and root: if not, the absence of a link proves nothing.

        What was pushed leaves its bytes behind, also when its link was the repository's only one.
        """
        bytes_are_here = self._store.head(blob_key(doubt.digest)) is not None
        return bytes_are_here or bool(self._store.list(repository_prefix(doubt.repository), limit=1))
