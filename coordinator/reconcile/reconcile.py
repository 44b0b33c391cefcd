"""The job that makes the table agree with a pod's links in storage: after events were lost, and once for every pod.

Route: coordinator/jobs/work.py -> `Reconcile` -> plan.py -> parts, several at once (compare.py) -> what was not listed
at all -> doubts that were there before -> `Ending`: gaps and dead sources are settled with the word that the job is
done.

Why it is right while pushes go on: every link that was written before `began_at` is in the listing, or was gone again.
The event of a later one comes from a process that lives, or whose death is noticed after `began_at`: that asks for
another reconcile. What the listing did not show is removed only by the look under the lock (settle.py).

An empty listing proves nothing where no registry is: the job fails unless the root has one at its begin and at its
end, and as much of the pod as it saw at its begin: links, or anything at all. A pod whose registry has stored nothing
yet, in a root where no other pod has, is so reconciled only once it has; the prober's image is enough.

What manifests list is what their bytes say (kept.py): those of which only reports say it are read, so that no false
report outlives a reconcile of a pod that holds the manifest. Each manifest is read once and marked, so that a reconcile
that is resumed, and the next one, go on with the others.

A part that fails for want of a service is tried again; if it goes on failing the job fails, and nothing is settled. A
scheduler that is killed leaves the parts that it has done: the next one does the others, and `began_at` stays.
That all parts are done is asked of the database, in the transaction that settles gaps: one that was failed over may
have lost what a part has written, and then it has lost that the part is done.
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
from coordinator.domain.pods import Linker, PodMode
from coordinator.errors import BaleenError, ConflictError, NotFoundError, UnavailableError
from coordinator.jobs import table as jobs
from coordinator.jobs.work import Ending, StoppedError, Work
from coordinator.reconcile import plan, table
from coordinator.reconcile.compare import Comparison, Scope
from coordinator.reconcile.evidence import Evidence
from coordinator.reconcile.kept import Keeper
from coordinator.reconcile.remains import is_stored
from coordinator.reconcile.settle import NotHereError, Settler
from coordinator.reconcile.table import ReconciledPod
from coordinator.reconcile.tally import Change, Tally
from coordinator.storage.layout import BASE, repository_prefix
from coordinator.storage.port import ObjectStore
from coordinator.table import dead_letters as letters
from coordinator.table.batch import LetterLimits
from coordinator.table.doubtful_removals import Verdict

log = structlog.get_logger()

#: Parts that are listed at once. A store answers a page in some ten milliseconds, which is what reading it takes.
PARTS_AT_ONCE = 4
#: Links and manifests that are looked up at once, by all parts.
LOOKUPS_AT_ONCE = 12
#: A part is tried so often, with pauses that double from the first: half a minute in all.
ATTEMPTS, FIRST_PAUSE_S = 6, 1.0

KIND = "reconcile"

_CHECK_ROOT = "Check BALEEN_S3_BUCKET and BALEEN_S3_ROOT."


class Presence(IntEnum):
    """What of a pod is found in the bucket. Only links prove that it keeps its links there (evidence.py)."""

    NOTHING = 0
    OBJECTS = 1
    LINKS = 2


class LostPartsError(BaleenError):
    """The database has lost what a job had written."""


class Reconcile:
    """The runner of these jobs; serves several threads. Its connections are set up by `rows.prepare`."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        settler: Settler,
        *,
        margin: timedelta,
        link_grace: timedelta,
        request_bound: timedelta,
        limits: LetterLimits | None = None,
    ) -> None:
        self._connections = connections
        self._store = store
        self._settler = settler
        self._margin = margin
        self._link_grace = link_grace
        self._request_bound = request_bound
        self._limits = limits or LetterLimits()
        self._keeper = Keeper(connections, store, margin)
        self._evidence = Evidence(store)
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="reconcile-lookup")

    def close(self) -> None:
        self._keeper.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def __call__(self, work: Work) -> Ending:
        tally = Tally(work.job.progress)
        work.follow(tally.progress)
        pod = self._pod(work)
        self._store.check()
        presence = self._presence(pod)
        parts = self._parts(work, pod)
        scope = Scope(work.job, pod, tuple(parts), self._margin, self._link_grace)
        tally.plan(parts)
        self._compare_parts(work, scope, tally)
        with self._connections.use() as connection:
            comparison = self._comparison(scope, connection, tally, work.check)
            for kind in LinkKind if pod.mode is PodMode.LINK else (LinkKind.REVISION,):
                comparison.unlisted(kind)
            comparison.children()
            if comparison.read_reported():
                # Indexes may be among them.
                comparison.children()
            jobs.rest_done(connection, work.job)
        self._keeper.refresh(pod.id)
        self._settle_doubts(work, scope, tally)
        if self._presence(pod) < presence:
            what = "Links" if presence is Presence.LINKS else "Objects"
            raise NotHereError(
                f"{what} of pod {work.job.pod} were stored when the reconcile began, and none is found now: look what "
                f"became of them. {_CHECK_ROOT}"
            )

        absent = self._absent(work)

        def end(connection: Any) -> Mapping[str, Any]:
            # What is kept in memory here does not say what a database has that took this one's place meanwhile.
            if unfinished := jobs.unfinished(connection, work.job, scope.parts):
                raise LostPartsError(
                    f"The database has lost that {len(unfinished)} of {len(scope.parts)} parts are done: it was failed "
                    "over, or restored. Nothing is settled; the reconcile is tried again."
                )
            return tally.progress() | table.end(connection, work.job, self._request_bound, absent, self._limits)

        return end

    def _settle_doubts(self, work: Work, scope: Scope, tally: Tally) -> None:
        """Settle the doubts that events left, also about repositories of which nothing is there any more."""

        def tell(verdicts: Sequence[Verdict]) -> None:
            tally.change(Change.DOUBT_SETTLED, len(verdicts))
            tally.removed(verdicts)
            work.check()

        self._settler.settle(pod_id=scope.pod.id, prefixes=scope.pod.prefixes, tell=tell)

    def _absent(self, work: Work) -> list[RepositoryName]:
        """Return repositories that open dead letters are about, no reconcile lists, and storage has nothing of."""
        with self._connections.use() as connection:
            wanted = letters.unlisted(connection, work.job)
        return [name for name in wanted if not is_stored(self._store, name)]

    def _presence(self, pod: ReconciledPod) -> Presence:
        """Return what of the pod is in this bucket and root; raises NotHereError if nothing of any registry is."""
        if self._evidence.has_link(tuple(pod.prefixes)):
            return Presence.LINKS
        if any(self._store.list(repository_prefix(prefix), limit=1) for prefix in pod.prefixes):
            return Presence.OBJECTS
        if self._store.list(f"{BASE}/", limit=1):
            return Presence.NOTHING
        raise NotHereError(
            f"The object store has nothing below {BASE}/: no registry has stored anything in this bucket and root. "
            f"{_CHECK_ROOT} A new pod is reconciled once its registry has stored something."
        )

    def _pod(self, work: Work) -> ReconciledPod:
        with self._connections.use() as connection:
            pod = table.pod(connection, work.job.its_pod)
        if pod is None:
            raise NotFoundError(f"Pod {work.job.pod} is no longer registered.")
        if pod.linker is not Linker.LINK:
            raise ConflictError(
                f"Pod {work.job.pod} keeps its links in its own database (linker relay): storage cannot tell what it "
                "holds, only its events do."
            )
        return pod

    def _parts(self, work: Work, pod: ReconciledPod) -> Mapping[str, Mapping[str, Any] | None]:
        with self._connections.use() as connection:
            parts = jobs.parts(connection, work.job)
            if not parts:
                jobs.plan(connection, work.job, plan.parts(self._store, pod.prefixes))
                parts = jobs.parts(connection, work.job)
        return parts

    def _compare_parts(self, work: Work, scope: Scope, tally: Tally) -> None:
        with self._connections.use() as connection:
            waiting = [name for name, counts in jobs.parts(connection, work.job).items() if counts is None]
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

        with ThreadPoolExecutor(min(PARTS_AT_ONCE, len(waiting)) or 1, thread_name_prefix="reconcile") as pool:
            futures = [pool.submit(compare_some) for _ in range(min(PARTS_AT_ONCE, len(waiting)))]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            # The first cause: the others stopped because of it.
            raise next((error for error in errors if not isinstance(error, StoppedError)), errors[0])

    def _compare_part(self, work: Work, scope: Scope, tally: Tally, name: str, check: Callable[[], None]) -> None:
        for attempt in range(ATTEMPTS):
            try:
                with self._connections.use() as connection:
                    self._comparison(scope, connection, tally, check).part(name)
                    jobs.part_done(connection, work.job, name, tally.listed_in(name))
                break
            except UnavailableError as error:
                if attempt == ATTEMPTS - 1:
                    raise
                log.warning("part put off", job=work.job.id, part=name, reason=str(error))
            work.pause(FIRST_PAUSE_S * 2**attempt)
            check()
        tally.done()

    def _comparison(self, scope: Scope, connection: Any, tally: Tally, check: Callable[[], None]) -> Comparison:
        return Comparison(scope, connection, self._store, self._settler, self._lookups, tally, check)
