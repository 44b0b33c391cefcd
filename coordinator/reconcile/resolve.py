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
This works only for pods whose links something shows: the bucket, or a database. Doubtful removals of others stay.
"""

import datetime
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import structlog

from coordinator.db import locks
from coordinator.db.connection import Connections
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.errors import BaleenError
from coordinator.reconcile.links import Links, PodLinks
from coordinator.storage.layout import layer_link_key, revision_link_key
from coordinator.table import doubtful_removals
from coordinator.table.doubtful_removals import Confirmation, DoubtfulRemoval, LinkedPod

log = structlog.get_logger()

#: Doubtful removals that one transaction resolves: all writers wait for it, so it must be short.
BATCH_SIZE = 64
LOOKUP_TIMEOUT_S = 5.0
NEW_WITHIN = timedelta(minutes=1)


class ResolveResult(NamedTuple):
    """Counts of what was removed, and of doubtful removals that were resolved."""

    removed: int = 0
    removals: int = 0


class NotHereError(BaleenError):
    """No link of the pod is found in this bucket and root, so an absence there proves nothing."""


class Resolver:
    """Resolves doubtful removals, pod by pod; for several threads."""

    def __init__(self, connections: Connections, links: Links) -> None:
        self._connections = connections
        self._links = links

    def resolve_new(self) -> ResolveResult:
        """Resolve the doubtful removals of the last minute; old unresolvable ones must not delay each batch."""
        return self.resolve_all(newer_than=NEW_WITHIN)

    def resolve_all(self, newer_than: timedelta | None = None) -> ResolveResult:
        """Resolve all doubtful removals that can be resolved.

        A pod whose links cannot be read delays no other: its error is raised at the end.
        """
        with self._connections.use() as connection:
            pods = doubtful_removals.read_doubtful_pods(connection, newer_than)
        resolved, failed = ResolveResult(), None
        for pod in pods:
            try:
                found = self.resolve_pod(pod, newer_than)
            except BaleenError as error:
                log.warning("doubtful removals of a pod wait", pod=pod.name, reason=str(error))
                failed = error
            else:
                resolved = ResolveResult(resolved.removed + found.removed, resolved.removals + found.removals)
        if failed is not None:
            raise failed
        return resolved

    def resolve_pod(
        self,
        pod: LinkedPod,
        newer_than: timedelta | None = None,
        *,
        prefixes: Sequence[RepositoryName] = (),
        on_resolved: Callable[[Sequence[Confirmation]], None] | None = None,
    ) -> ResolveResult:
        """Resolve the doubtful removals of one pod that can be resolved; `on_resolved` gets each committed batch.

        `prefixes`: all of the pod's. Without them, only links below the prefixes of a removal's repository show that
        the pod keeps its links there.
        """
        links = self._links.of(pod.kind, pod.name)
        resolved = ResolveResult()
        after = doubtful_removals.FIRST_KEY
        while True:
            # Outside the lock: a store that is away must not stop the writers.
            links.check()
            with self._connections.use() as connection, connection.transaction():
                locks.lock_facts(connection, alone=True)
                found = doubtful_removals.read_doubtful_removals(connection, pod.id, after, BATCH_SIZE, newer_than)
                if not found:
                    return resolved
                checked = self._look_up(links, found, prefixes)
                results = [result for result in checked if result is not None]
                removed = doubtful_removals.apply_confirmations(connection, results)
            resolved = ResolveResult(resolved.removed + removed, resolved.removals + len(results))
            if results:
                log.info("doubtful removals resolved", pod=pod.name, removals=len(results), removed=removed)
                if on_resolved is not None:
                    on_resolved(results)
            after = found[-1].key

    def resolve_unlisted(
        self,
        pod: LinkedPod,
        keys: Sequence[doubtful_removals.RemovalKey],
        at: datetime.datetime,
        prefixes: Sequence[RepositoryName],
    ) -> list[Confirmation]:
        """Question at most BATCH links of a pod that a listing begun at `at` did not show, and resolve them at once.

        `prefixes`: all of the pod's.

        Only the look-up under the lock decides, not the caller's listing. Raises NotHereError, with nothing doubted, if
        a link is absent and nothing shows that the pod keeps its links here.
        """
        assert len(keys) <= BATCH_SIZE
        links = self._links.of(pod.kind, pod.name)
        links.check()
        with self._connections.use() as connection, connection.transaction():
            locks.lock_facts(connection, alone=True)
            results: list[Confirmation] = []
            raised = doubtful_removals.record_unlisted(connection, keys, at)
            for doubtful, result in zip(raised, self._look_up(links, raised, prefixes), strict=True):
                if result is None:
                    raise NotHereError(
                        f"Storage has no link of the pod, though the table has {format_digest(doubtful.digest)} "
                        f"in {doubtful.repository}. Check BALEEN_S3_BUCKET and BALEEN_S3_ROOT, and that the pod's "
                        "registry keeps its links there. One that keeps them elsewhere is of kind gitlab (in the "
                        "database of GitLab's registry) or of kind relay."
                    )
                results.append(result)
            doubtful_removals.apply_confirmations(connection, results)
        return results

    def _look_up(
        self, links: PodLinks, found: list[DoubtfulRemoval], prefixes: Sequence[RepositoryName]
    ) -> list[Confirmation | None]:
        """Return what the pod has of each; None where a link is absent, and that proves nothing."""
        places = [tuple(prefixes or doubtful.prefixes or (doubtful.repository,)) for doubtful in found]
        named = list(dict.fromkeys(doubtful.repository for doubtful in found))
        before = links.find_proved(places, named, LOOKUP_TIMEOUT_S)
        results = _confirm(links, found)
        absent = [_is_gone(result) for result in results]
        asked = (place for place, gone in zip(places, absent, strict=True) if gone and place in before)
        after = links.find_proved(asked, named, LOOKUP_TIMEOUT_S)
        return [
            None if gone and place not in after else result
            for result, place, gone in zip(results, places, absent, strict=True)
        ]


def _confirm(links: PodLinks, found: Sequence[DoubtfulRemoval]) -> list[Confirmation]:
    revisions = _find(links, revision_link_key, [each for each in found if each.held])
    # A registry serves a manifest by either link (linked_manifests.py).
    asked = [each for each in found if each.linked or (each.held and each.key not in revisions)]
    layers = _find(links, layer_link_key, asked)
    return [
        Confirmation(
            each,
            held=each.held and (each.key in revisions or each.key in layers),
            linked=each.linked and each.key in layers,
        )
        for each in found
    ]


def _find(
    links: PodLinks, link_key: Callable[[RepositoryName, Digest], str], wanted: Sequence[DoubtfulRemoval]
) -> set[doubtful_removals.RemovalKey]:
    """Return the keys of those that have such a link."""
    found = links.find([link_key(each.repository, each.digest) for each in wanted], LOOKUP_TIMEOUT_S)
    return {each.key for each, link in zip(wanted, found, strict=True) if link is not None}


def _is_gone(result: Confirmation) -> bool:
    return result.held < result.doubtful.held or result.linked < result.doubtful.linked
