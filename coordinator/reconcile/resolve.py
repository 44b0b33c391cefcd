"""Resolve doubtful removals by looking up the pod's links in storage.

Route: workers/processor.py after a batch that left doubtful removals, and workers/app.py at intervals ->
`Settler.settle`; compare.py with links that a listing did not show -> `Settler.settle_unlisted`. Both make the same
look-up.

The facts are locked during the look-up (db/locks.py): it sees the link of a push that wrote it before; the event of a
push that writes its link later comes later, and finds the table as this left it. Without the lock a push could be
applied between look-up and removal: it would change nothing, because the holding is still there, and then lose it.
An absence counts only if a link of the pod is found in this bucket and root, just before the look-up and just after it
(evidence.py): the root may be wrong, the pod may keep its links in its own database, and everything below a root may be
gone for a while without any error (a filer that fails over).
This works only for pods whose links are in shared storage; doubtful removals of other pods stay.
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

#: Doubtful removals that one transaction resolves: all writers wait for it, so it must be short.
BATCH = 64
LOOKUPS_AT_ONCE = 16
LOOKUP_TIMEOUT_S = 5.0
NEW = timedelta(minutes=1)

#: Names: below one of them there is a link, if the pod keeps its links in this bucket and root.
Place = tuple[RepositoryName, ...]


class Settled(NamedTuple):
    """Counts of what was removed, and of doubtful removals that were resolved."""

    removed: int = 0
    doubts: int = 0


class NotHereError(BaleenError):
    """No link of the pod is found in this bucket and root, so an absence there proves nothing."""


class Settler:
    def __init__(self, connections: Connections, store: ObjectStore, lookups_at_once: int = LOOKUPS_AT_ONCE) -> None:
        self._connections = connections
        self._store = store
        self._lookups = ThreadPoolExecutor(lookups_at_once, thread_name_prefix="lookup")
        self._evidence = Evidence(store)

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def settle_new(self) -> Settled:
        """Resolve the doubtful removals of the last minute; old unresolvable ones must not delay each batch."""
        return self.settle(newer_than=NEW)

    def settle(
        self,
        newer_than: timedelta | None = None,
        *,
        pod_id: int | None = None,
        prefixes: Sequence[RepositoryName] = (),
        tell: Callable[[Sequence[Verdict]], None] | None = None,
    ) -> Settled:
        """Resolve all doubtful removals that can be resolved, or those of one pod; `tell` gets each committed batch.

        `prefixes`: all of that pod's. Without them, only links below the prefixes of a removal's repository show that
        the pod keeps its links here.
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
                log.info("doubtful removals resolved", doubts=len(verdicts), removed=removed)
                if tell is not None:
                    tell(verdicts)
            after = found[-1].key

    def settle_unlisted(
        self, keys: Sequence[doubts.Key], at: datetime.datetime, prefixes: Sequence[RepositoryName]
    ) -> list[Verdict]:
        """Question at most BATCH links that a listing begun at `at` did not show, and resolve them at once.

        `prefixes`: all of the pod's.

        Only the look-up under the lock decides, not the caller's listing. Raises NotHereError, with nothing doubted, if
        a link is absent and nothing shows that the pod keeps its links here.
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
                        f"Storage has no link of the pod, though the table has {format_digest(doubt.digest)} "
                        f"in {doubt.repository}. Check BALEEN_S3_BUCKET and BALEEN_S3_ROOT, and that the pod's "
                        "registry keeps its links there. A registry that keeps them in its own database is of linker "
                        "relay."
                    )
                verdicts.append(verdict)
            doubts.settle(connection, verdicts)
        return verdicts

    def _look_up(self, found: list[Doubt], prefixes: Sequence[RepositoryName]) -> list[Verdict | None]:
        """Return what storage has of each; None where a link is absent, and that proves nothing."""
        places = [tuple(prefixes or doubt.prefixes or (doubt.repository,)) for doubt in found]
        named = list(dict.fromkeys(doubt.repository for doubt in found))
        try:
            before = self._proved(places, named)
            verdicts = list(self._lookups.map(self._verdict, found, timeout=LOOKUP_TIMEOUT_S))
            absent = [_gone(verdict) for verdict in verdicts]
            asked = (place for place, gone in zip(places, absent, strict=True) if gone and place in before)
            after = self._proved(asked, named)
        except TimeoutError as error:
            raise UnavailableError("The object store answers too slowly to resolve removals: try again.") from error
        return [
            None if gone and place not in after else verdict
            for verdict, place, gone in zip(verdicts, places, absent, strict=True)
        ]

    def _verdict(self, doubt: Doubt) -> Verdict:
        revision = doubt.held and self._store.head(revision_link_key(doubt.repository, doubt.digest)) is not None
        asked = doubt.linked or (doubt.held and not revision)
        layer = asked and self._store.head(layer_link_key(doubt.repository, doubt.digest)) is not None
        # A registry serves a manifest by either link (layered.py).
        return Verdict(doubt, held=revision or (doubt.held and layer), linked=doubt.linked and layer)

    def _proved(self, places: Iterable[Place], named: Sequence[RepositoryName]) -> set[Place]:
        """Return the places where a link is found; `named` as in evidence.py."""
        asked = list(dict.fromkeys(places))
        found = self._lookups.map(lambda place: self._evidence.has_link(place, named), asked, timeout=LOOKUP_TIMEOUT_S)
        return {place for place, there in zip(asked, found, strict=True) if there}


def _gone(verdict: Verdict) -> bool:
    return verdict.held < verdict.doubt.held or verdict.linked < verdict.doubt.linked
