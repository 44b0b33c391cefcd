"""Resolve doubtful removals by looking up the pod's links in storage.

Route: workers/processor.py after a batch that left doubtful removals, and workers/app.py at intervals ->
`Resolver.resolve_all`; compare.py with links that a listing did not show -> `Resolver.resolve_unlisted`. Both make the
same look-up.

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
from coordinator.table import doubtful_removals
from coordinator.table.doubtful_removals import Confirmation, DoubtfulRemoval

log = structlog.get_logger()

#: Doubtful removals that one transaction resolves: all writers wait for it, so it must be short.
BATCH_SIZE = 64
LOOKUPS_AT_ONCE = 16
LOOKUP_TIMEOUT_S = 5.0
NEW_WITHIN = timedelta(minutes=1)

#: Names: below one of them there is a link, if the pod keeps its links in this bucket and root.
Prefixes = tuple[RepositoryName, ...]


class ResolveResult(NamedTuple):
    """Counts of what was removed, and of doubtful removals that were resolved."""

    removed: int = 0
    removals: int = 0


class NotHereError(BaleenError):
    """No link of the pod is found in this bucket and root, so an absence there proves nothing."""


class Resolver:
    def __init__(self, connections: Connections, store: ObjectStore, lookups_at_once: int = LOOKUPS_AT_ONCE) -> None:
        self._connections = connections
        self._store = store
        self._lookups = ThreadPoolExecutor(lookups_at_once, thread_name_prefix="lookup")
        self._evidence = Evidence(store)

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def resolve_new(self) -> ResolveResult:
        """Resolve the doubtful removals of the last minute; old unresolvable ones must not delay each batch."""
        return self.resolve_all(newer_than=NEW_WITHIN)

    def resolve_all(
        self,
        newer_than: timedelta | None = None,
        *,
        pod_id: int | None = None,
        prefixes: Sequence[RepositoryName] = (),
        on_resolved: Callable[[Sequence[Confirmation]], None] | None = None,
    ) -> ResolveResult:
        """Resolve all doubtful removals that can be resolved, or those of one pod; `on_resolved` gets each committed
        batch.

        `prefixes`: all of that pod's. Without them, only links below the prefixes of a removal's repository show that
        the pod keeps its links here.
        """
        resolved = ResolveResult()
        after = doubtful_removals.FIRST_KEY
        while True:
            # Outside the lock: a store that is away must not stop the writers.
            self._store.check()
            with self._connections.use() as connection, connection.transaction():
                locks.lock_facts(connection, alone=True)
                found = doubtful_removals.read_doubtful_removals(connection, after, BATCH_SIZE, newer_than, pod_id)
                if not found:
                    return resolved
                checked = self._look_up(found, prefixes)
                results = [result for result in checked if result is not None]
                removed = doubtful_removals.apply_confirmations(connection, results)
            resolved = ResolveResult(resolved.removed + removed, resolved.removals + len(results))
            if results:
                log.info("doubtful removals resolved", removals=len(results), removed=removed)
                if on_resolved is not None:
                    on_resolved(results)
            after = found[-1].key

    def resolve_unlisted(
        self, keys: Sequence[doubtful_removals.RemovalKey], at: datetime.datetime, prefixes: Sequence[RepositoryName]
    ) -> list[Confirmation]:
        """Question at most BATCH links that a listing begun at `at` did not show, and resolve them at once.

        `prefixes`: all of the pod's.

        Only the look-up under the lock decides, not the caller's listing. Raises NotHereError, with nothing doubted, if
        a link is absent and nothing shows that the pod keeps its links here.
        """
        assert len(keys) <= BATCH_SIZE
        self._store.check()
        with self._connections.use() as connection, connection.transaction():
            locks.lock_facts(connection, alone=True)
            results: list[Confirmation] = []
            raised = doubtful_removals.record_unlisted(connection, keys, at)
            for doubtful, result in zip(raised, self._look_up(raised, prefixes), strict=True):
                if result is None:
                    raise NotHereError(
                        f"Storage has no link of the pod, though the table has {format_digest(doubtful.digest)} "
                        f"in {doubtful.repository}. Check BALEEN_S3_BUCKET and BALEEN_S3_ROOT, and that the pod's "
                        "registry keeps its links there. A registry that keeps them in its own database is of kind "
                        "relay."
                    )
                results.append(result)
            doubtful_removals.apply_confirmations(connection, results)
        return results

    def _look_up(self, found: list[DoubtfulRemoval], prefixes: Sequence[RepositoryName]) -> list[Confirmation | None]:
        """Return what storage has of each; None where a link is absent, and that proves nothing."""
        places = [tuple(prefixes or doubtful.prefixes or (doubtful.repository,)) for doubtful in found]
        named = list(dict.fromkeys(doubtful.repository for doubtful in found))
        try:
            before = self._find_proved(places, named)
            results = list(self._lookups.map(self._confirm, found, timeout=LOOKUP_TIMEOUT_S))
            absent = [_is_gone(result) for result in results]
            asked = (place for place, gone in zip(places, absent, strict=True) if gone and place in before)
            after = self._find_proved(asked, named)
        except TimeoutError as error:
            raise UnavailableError("The object store answers too slowly to resolve removals: try again.") from error
        return [
            None if gone and place not in after else result
            for result, place, gone in zip(results, places, absent, strict=True)
        ]

    def _confirm(self, doubtful: DoubtfulRemoval) -> Confirmation:
        revision = (
            doubtful.held and self._store.head(revision_link_key(doubtful.repository, doubtful.digest)) is not None
        )
        asked = doubtful.linked or (doubtful.held and not revision)
        layer = asked and self._store.head(layer_link_key(doubtful.repository, doubtful.digest)) is not None
        # A registry serves a manifest by either link (linked_manifests.py).
        return Confirmation(doubtful, held=revision or (doubtful.held and layer), linked=doubtful.linked and layer)

    def _find_proved(self, places: Iterable[Prefixes], named: Sequence[RepositoryName]) -> set[Prefixes]:
        """Return the places where a link is found; `named` as in evidence.py."""
        asked = list(dict.fromkeys(places))
        found = self._lookups.map(lambda place: self._evidence.has_link(place, named), asked, timeout=LOOKUP_TIMEOUT_S)
        return {place for place, there in zip(asked, found, strict=True) if there}


def _is_gone(result: Confirmation) -> bool:
    return result.held < result.doubtful.held or result.linked < result.doubtful.linked
