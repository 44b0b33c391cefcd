"""The job that makes the table agree with a pod's links in storage: after events were lost, and once for every pod.

Route: coordinator/jobs/work.py -> `Reconciler` -> plan.py -> parts, several at once (compare.py) -> repositories that
were not listed at all -> earlier doubtful removals -> `Ending`: one transaction resolves gaps, retires dead processes
and ends the job.

Why it is right while pushes go on: every link that was written before `began_at` is in the listing, or was gone again.
The event of a later one comes from a living process, or from one whose death is noticed after `began_at`: that starts
another reconcile. A link that the listing did not show is removed only by the look-up under the lock (resolve.py).

An empty listing proves nothing where no registry stores: the job fails unless the root has objects of a registry at its
begin and at its end, and at its end as much of the pod as at its begin: links, or any objects. So a pod whose registry
has stored nothing yet, in a root without other pods, is reconciled once it has; the prober's image is enough.

The bytes of manifests say what they list (link_keeper.py): those whose references are known only from reports are read,
so that no false report outlives a reconcile of a pod that holds the manifest. Each manifest is read once and marked, so
a resumed reconcile, and the next one, continue with the others.

A part that fails because a service is away is tried again; if it keeps failing the job fails, and nothing is resolved.
The parts that a killed scheduler has done stay done: the next one does the others, and `began_at` stays.
The transaction that resolves gaps asks the database whether all parts are done: a database that was failed over may
have lost what a part has written, and then it has also lost that the part is done.
Not here: what a part does, SQL, the queue.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from enum import IntEnum
from queue import Empty, SimpleQueue
from typing import Any

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.merge import LinkKind
from coordinator.domain.names import RepositoryName
from coordinator.domain.pods import PodMode, check_reconcilable
from coordinator.errors import BaleenError, NotFoundError, UnavailableError
from coordinator.jobs import table as jobs
from coordinator.jobs.work import Ending, StoppedError, Work
from coordinator.reconcile import table
from coordinator.reconcile.compare import Comparison, Scope
from coordinator.reconcile.link_keeper import LinkKeeper
from coordinator.reconcile.links import Links, PodLinks
from coordinator.reconcile.resolve import NotHereError, Resolver
from coordinator.reconcile.sizes import PRODUCTION, Sizes
from coordinator.reconcile.stored_content import is_stored
from coordinator.reconcile.table import ReconciledPod
from coordinator.reconcile.tally import Change, Tally
from coordinator.storage.layout import BASE
from coordinator.storage.port import ObjectStore
from coordinator.table import dead_letters
from coordinator.table.batch import DeadLetterLimits
from coordinator.table.doubtful_removals import Confirmation

log = structlog.get_logger()

JOB_KIND = "reconcile"

_CHECK_ROOT = "Check BALEEN_S3_BUCKET and BALEEN_S3_ROOT."


class StoredContent(IntEnum):
    """What the bucket has of a pod. Only links prove that the pod keeps its links there (evidence.py)."""

    NOTHING = 0
    OBJECTS = 1
    LINKS = 2


class LostPartsError(BaleenError):
    """The database has lost what the job wrote."""


class Reconciler:
    """The runner of reconcile jobs; serves several threads. Its connections are set up by `rows.prepare`."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        links: Links,
        *,
        margin: timedelta,
        link_grace: timedelta,
        request_bound: timedelta,
        limits: DeadLetterLimits | None = None,
        sizes: Sizes = PRODUCTION,
    ) -> None:
        self._connections = connections
        self._store = store
        self._links = links
        self._resolver = Resolver(connections, links)
        self._margin = margin
        self._link_grace = link_grace
        self._request_bound = request_bound
        self._limits = limits or DeadLetterLimits()
        self._sizes = sizes
        self._link_keeper = LinkKeeper(connections, links, margin)
        self._lookups = ThreadPoolExecutor(sizes.lookups_at_once, thread_name_prefix="reconcile-lookup")

    def close(self) -> None:
        self._link_keeper.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def __call__(self, work: Work) -> Ending:
        tally = Tally(work.job.progress)
        work.follow_progress(tally.progress)
        pod = self._read_pod(work)
        self._store.check()
        presence = self._check_content(pod)
        parts = self._plan_parts(work, pod)
        scope = Scope(work.job, pod, tuple(parts), self._margin, self._link_grace, self._sizes)
        tally.set_parts(parts)
        self._compare_parts(work, scope, tally)
        with self._connections.use() as connection:
            comparison = self._make_comparison(scope, connection, tally, work.check)
            for kind in LinkKind if pod.mode is PodMode.LINK else (LinkKind.REVISION,):
                comparison.verify_unlisted(kind)
            comparison.add_children()
            if comparison.read_reported():
                # Some of them may be indexes.
                comparison.add_children()
            jobs.record_rest_done(connection, work.job)
        self._link_keeper.refresh_links(pod.id)
        self._resolve_doubtful_removals(work, scope, tally)
        if self._check_content(pod) < presence:
            what = "Links" if presence is StoredContent.LINKS else "Objects"
            raise NotHereError(
                f"Storage had {what.lower()} of pod {work.job.pod} when the reconcile began, and has none now. Find "
                f"out what removed them. {_CHECK_ROOT}"
            )

        absent = self._find_absent(work)

        def end(connection: Any) -> Mapping[str, Any]:
            # Ask the database, not memory: another one may have taken its place meanwhile.
            if unfinished := jobs.read_unfinished_parts(connection, work.job, scope.parts):
                raise LostPartsError(
                    f"The database has lost that {len(unfinished)} of {len(scope.parts)} parts are done: it was failed "
                    "over, or restored. No gap is resolved; the reconcile is tried again."
                )
            return tally.progress() | table.write_result(
                connection, work.job, self._request_bound, absent, self._limits
            )

        return end

    def _resolve_doubtful_removals(self, work: Work, scope: Scope, tally: Tally) -> None:
        """Resolve doubtful removals that events left, also in repositories of which storage has nothing."""

        def count(results: Sequence[Confirmation]) -> None:
            tally.count_change(Change.DOUBTFUL_REMOVAL_RESOLVED, len(results))
            tally.count_removed(results)
            work.check()

        self._resolver.resolve_pod(scope.pod.linked, prefixes=scope.pod.prefixes, on_resolved=count)

    def _find_absent(self, work: Work) -> list[RepositoryName]:
        """Return the repositories of open dead letters that no reconcile lists and of which storage has nothing."""
        with self._connections.use() as connection:
            wanted = dead_letters.read_unlisted_repositories(connection, work.job)
        return [name for name in wanted if not is_stored(self._store, name)]

    def _check_content(self, pod: ReconciledPod) -> StoredContent:
        """Return what this bucket and root have of the pod; raises NotHereError if they have no registry's objects."""
        links = self._links_of(pod)
        if links.find_proved([tuple(pod.prefixes)]):
            return StoredContent.LINKS
        if links.has_objects(pod.prefixes):
            return StoredContent.OBJECTS
        if self._store.list(f"{BASE}/", limit=1):
            return StoredContent.NOTHING
        raise NotHereError(
            f"The object store has nothing below {BASE}/: no registry has stored anything in this bucket and root. "
            f"{_CHECK_ROOT} A new pod is reconciled once its registry has stored something."
        )

    def _read_pod(self, work: Work) -> ReconciledPod:
        with self._connections.use() as connection:
            pod = table.read_pod(connection, work.job.required_pod_id)
        if pod is None:
            raise NotFoundError(f"Pod {work.job.pod} is no longer registered.")
        check_reconcilable(pod.name, pod.kind)
        return pod

    def _plan_parts(self, work: Work, pod: ReconciledPod) -> Mapping[str, Mapping[str, Any] | None]:
        with self._connections.use() as connection:
            parts = jobs.read_parts(connection, work.job)
            if not parts:
                jobs.write_parts(connection, work.job, self._links_of(pod).plan(pod.prefixes, self._sizes.parts))
                parts = jobs.read_parts(connection, work.job)
        return parts

    def _compare_parts(self, work: Work, scope: Scope, tally: Tally) -> None:
        with self._connections.use() as connection:
            waiting = [name for name, counts in jobs.read_parts(connection, work.job).items() if counts is None]
        parts: SimpleQueue[str] = SimpleQueue()
        for name in waiting:
            parts.put(name)
        failed = threading.Event()

        def check() -> None:
            work.check()
            if failed.is_set():
                raise StoppedError("Another part has failed.")

        def compare_some() -> None:
            try:
                while True:
                    check()
                    self._compare_part(work, scope, tally, parts.get_nowait(), check)
            except Empty:
                return
            except BaseException:
                failed.set()
                raise
            finally:
                self._connections.release()

        threads = min(self._sizes.parts_at_once, len(waiting))
        with ThreadPoolExecutor(threads or 1, thread_name_prefix="reconcile") as pool:
            futures = [pool.submit(compare_some) for _ in range(threads)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            # Raise the cause: the other parts stopped because of it.
            raise next((error for error in errors if not isinstance(error, StoppedError)), errors[0])

    def _compare_part(self, work: Work, scope: Scope, tally: Tally, name: str, check: Callable[[], None]) -> None:
        for attempt in range(self._sizes.attempts):
            try:
                with self._connections.use() as connection:
                    self._make_comparison(scope, connection, tally, check).compare_part(name)
                    jobs.record_part_done(connection, work.job, name, tally.part_counts(name))
                break
            except UnavailableError as error:
                if attempt == self._sizes.attempts - 1:
                    raise
                log.warning("part will be tried again", job=work.job.id, part=name, reason=str(error))
            work.pause(self._sizes.first_pause_s * 2**attempt)
            check()
        tally.end_parts()

    def _make_comparison(self, scope: Scope, connection: Any, tally: Tally, check: Callable[[], None]) -> Comparison:
        links = self._links_of(scope.pod)
        return Comparison(scope, connection, self._store, links, self._resolver, self._lookups, tally, check)

    def _links_of(self, pod: ReconciledPod) -> PodLinks:
        return self._links.of(pod.kind, pod.name)
