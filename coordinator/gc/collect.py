"""A garbage collection run: a job that resolves unfinished hides, purges due hides, and hides unreferenced blobs.

Route: the scheduler, or a client of the API -> jobs.run -> `Collector.__call__` -> one page after another, several at
once.

There is one run at a time: the job is the lease, and every transaction that leads to a delete checks the number with
which the job was taken (jobs/table.py). A run that was suspended and wakes up finds another number, or none that runs,
and does nothing more; the next run undoes or finishes what it had begun (gc/table.py, `unfinished`).
First the plan counts what the run would hide and purge; if that exceeds the limits the whole run is refused. After
that, facts older than `Sizes.facts_s` are read again before any page, so that a new hold blocks the run at once. The
bucket is checked with them: that it keeps versions, does not delete by itself, is still this database's, and has no
repository that no pod owns. So every page of purges relies on a listing that began at most that and the time of a
listing before it, and after t_h + R of everything that the page purges (domain/gc.py).
Leftovers beside blobs are looked for at the end, and only now and then, since that takes a listing.
Not here: hiding, purging, restoring and leftovers themselves.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.gc import (
    Amount,
    Facts,
    Limits,
    Why,
    block_reasons,
    describe_excess,
    finish_policy,
    hide_policy,
    purge_policy,
)
from coordinator.errors import BaleenError, UnavailableError
from coordinator.gc import mark, plan
from coordinator.gc import table as gc
from coordinator.gc.claims import Claims
from coordinator.gc.conditions import FactsReader
from coordinator.gc.hide import Hider
from coordinator.gc.leftovers import Leftovers, Tally
from coordinator.gc.purge import Purger
from coordinator.gc.restore import Restorer
from coordinator.gc.sizes import PRODUCTION, Sizes
from coordinator.gc.table import Candidate, Hide
from coordinator.jobs.work import Ending, Work
from coordinator.perimeter import root_listing
from coordinator.storage.port import ObjectStore

log = structlog.get_logger()

T = TypeVar("T")

JOB_KIND = "gc"
#: Pods that each entry of the ledger names.
PODS_SHOWN = 5
#: Earlier runs with which the limits compare.
HISTORY_RUNS = 10


class TooMuchError(BaleenError):
    """The run would take more than its limits permit."""


class Options(NamedTuple):
    """The options of a run."""

    #: Only make the plan.
    dry: bool = False
    #: Why the limits do not count this time.
    beyond_limits: str | None = None
    #: Look for leftovers also if a recent run has done so.
    leftovers: bool = False

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> "Options":
        return cls(bool(options.get("dry")), options.get("beyond_limits"), bool(options.get("leftovers")))


class RunCounts:
    """The progress of a run, as operators see it. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self.step = "begins"
        self.blocked_by: Sequence[str] = ()
        #: Sentences that say which limits it exceeds.
        self.beyond_limits: Sequence[str] = ()
        self.planned: plan.Totals | None = None
        self.leftovers = Tally()

    def add(self, **numbers: int) -> None:
        with self._lock:
            self._numbers.update(numbers)

    def add_kept(self, why: str, number: int = 1) -> None:
        with self._lock:
            self._kept[why] += number

    def progress(self) -> dict[str, Any]:
        with self._lock:
            numbers = dict(self._numbers)
            planned = self.planned

            def amount(name: str) -> dict[str, int]:
                return {"blobs": numbers.get(name, 0), "bytes": numbers.get(f"{name}_bytes", 0)}

            return {
                "step": self.step,
                "blocked_by": list(self.blocked_by),
                "beyond_limits": list(self.beyond_limits),
                "planned": None
                if planned is None
                else {
                    "hide": {"blobs": planned.hide.blobs, "bytes": planned.hide.size},
                    "purge": {"blobs": planned.purge.blobs, "bytes": planned.purge.size},
                },
                "hidden": amount("hidden"),
                "purged": amount("purged"),
                "restored": numbers.get("restored", 0),
                "shown_by_others": numbers.get("shown_by_others", 0),
                "waiting": numbers.get("waiting", 0),
                "left": numbers.get("left", 0),
                "kept": dict(self._kept),
                "leftovers": self.leftovers.progress(),
            }


class Collector:
    """The runner of jobs of kind `gc` (coordinator/jobs/work.py)."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        facts: FactsReader,
        restorer: Restorer,
        *,
        claims: Claims,
        limits: Limits,
        rate: int = 0,
        leftovers: Leftovers | None = None,
        sizes: Sizes = PRODUCTION,
    ) -> None:
        self._parts = _Services(
            connections,
            store,
            facts,
            restorer,
            limits,
            rate,
            Hider(connections, store, claims, sizes),
            Purger(connections, store, claims, sizes),
            ThreadPoolExecutor(sizes.pages_at_once, thread_name_prefix="collect"),
            leftovers,
            sizes,
        )

    def close(self) -> None:
        self._parts.pool.shutdown(wait=False, cancel_futures=True)
        self._parts.hider.close()
        self._parts.purger.close()

    def __call__(self, work: Work) -> Ending:
        count = RunCounts()
        work.follow_progress(count.progress)
        _Run(self._parts, work, count).run()
        return lambda _: count.progress()


class _Services(NamedTuple):
    """The services that every run uses."""

    connections: Connections
    store: ObjectStore
    read_facts: FactsReader
    restorer: Restorer
    limits: Limits
    rate: int
    hider: Hider
    purger: Purger
    #: Its threads keep their connections from run to run.
    pool: ThreadPoolExecutor
    #: None: leftovers are not deleted.
    leftovers: Leftovers | None
    sizes: Sizes


class _RecentFacts(NamedTuple):
    #: By the monotonic clock, before the first query.
    began: float
    facts: Facts
    #: The bucket keeps versions.
    versioned: bool


class _Run:
    def __init__(self, parts: _Services, work: Work, count: RunCounts) -> None:
        (
            self._connections,
            self._store,
            self._read_facts,
            self._restorer,
            self._limits,
            self._rate,
            self._hider,
            self._purger,
            self._pool,
            self._leftovers,
            self._sizes,
        ) = parts
        self._work = work
        self._count = count
        self._options = Options.parse(work.job.options)
        self._lock = threading.Lock()
        self._known: _RecentFacts | None = None
        self._budget = Amount(0, 0)
        self._failed = 0

    def run(self) -> None:
        self._store.keeps_versions()
        self._store.check()
        if not self._options.dry:
            mark.begin_epoch(self._connections, self._store, self._sizes.mark_lock_s)
            self._count.step = "undo"
            self._resolve_unfinished()
        self._count.step = "plan"
        facts = self._read_recent_facts()
        self._count.blocked_by = block_reasons(facts)
        planned = plan.count_totals(self._connections, facts)
        reasons = self._describe_excess(planned)
        if reasons and not self._options.dry:
            # Perhaps most of it is claimed by registries that were not asked yet, and stays.
            self._update_claims(hide_policy(facts).until)
            planned = plan.count_totals(self._connections, facts)
            reasons = self._describe_excess(planned)
        self._count.planned, self._count.beyond_limits = planned, reasons
        if self._options.dry:
            self._count_plan(facts)
            self._delete_leftovers()
            self._count.step = "done"
            return
        if reasons and self._options.beyond_limits is None:
            raise TooMuchError(
                f"The run would take too much: {'; '.join(reasons)}. Check `baleen gc plan`; if it is right, run "
                "`baleen gc run --beyond-limits WHY`."
            )
        if not self._count.blocked_by:
            to_purge, to_hide = purge_policy(facts).until, hide_policy(facts).until
            self._count.step = "purge"
            if to_purge is not None:
                self._process_pages(
                    plan.read_due_pages(self._connections, to_purge, self._sizes.page), self._purge_page
                )
            self._count.step = "hide"
            if to_hide is not None:
                # A blob that the purge gave back is hidden again by a later run, whose plan and limits count it.
                self._budget = planned.hide
                self._process_pages(
                    plan.read_candidate_pages(self._connections, to_hide, self._sizes.page), self._hide_page
                )
        self._delete_leftovers()
        self._count.step = "done"

    def _update_claims(self, until: datetime | None) -> None:
        if until is not None:
            for page in plan.read_candidate_pages(self._connections, until, self._sizes.page):
                self._work.check()
                self._hider.update_claims(page)

    def _read_recent_facts(self) -> Facts:
        return self._recent_facts().facts

    def _recent_facts(self) -> "_RecentFacts":
        """Return facts of bucket and table, that are recent enough; raises UnsafeStoreError and ForeignBucketError."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known.began > self._sizes.facts_s:
                began = time.monotonic()
                versioned = self._store.keeps_versions()
                mark.check_mark(self._connections, self._store)
                root_listing.update_listing(self._connections, self._store)
                self._known = _RecentFacts(began, self._read_facts(), versioned)
            return self._known

    def _describe_excess(self, planned: plan.Totals) -> list[str]:
        with self._connections.use() as connection:
            stored, history = gc.count_served(connection), gc.read_recent_runs(connection, HISTORY_RUNS)
        both = Amount(planned.hide.blobs + planned.purge.blobs, planned.hide.size + planned.purge.size)
        before = Amount(stored.blobs + planned.purge.blobs, stored.size + planned.purge.size)
        return describe_excess(both, before, history, self._limits)

    def _count_plan(self, facts: Facts) -> None:
        for decided in plan.walk_plan(self._connections, facts):
            self._work.check()
            size = max(0, decided.size)
            if decided.step is plan.Step.HIDE:
                self._count.add(hidden=1, hidden_bytes=size)
            elif decided.step is plan.Step.PURGE:
                self._count.add(purged=1, purged_bytes=size)
            elif decided.kept is not None:
                self._count.add_kept(decided.kept.why)

    def _delete_leftovers(self) -> None:
        """Delete leftovers, or count them in a dry run."""
        if self._leftovers is None or self._count.blocked_by:
            return
        self._count.step = "leftovers"
        self._leftovers.run(
            self._work,
            self._read_recent_facts,
            self._count.leftovers,
            versioned=self._recent_facts().versioned,
            dry=self._options.dry,
            now=self._options.leftovers,
        )

    def _resolve_unfinished(self) -> None:
        """Resolve what earlier jobs left unfinished: undo hides, finish purges, write links back."""
        if self._leftovers is not None:
            with self._tolerate_failures():
                self._leftovers.resolve(self._work, self._read_recent_facts().times.request_bound)
        after = 0
        while True:
            with self._connections.use() as connection:
                found = gc.read_unfinished_hides(connection, self._work.job, after, self._sizes.page)
            if not found:
                return
            after = found[-1].id
            self._work.check()
            # A pinned blob would deny the whole batch its permit, in every run for as long as it is pinned.
            begun = [each for each in found if each.purging_at is not None and not each.disturbed and not each.pinned]
            if begun:
                with self._tolerate_failures():
                    self._finish_purges(begun)
            why = "the run that began to hide it did not finish"
            self._restore([(each, why) for each in found if each.purging_at is None or each.disturbed or each.pinned])

    def _finish_purges(self, begun: Sequence[Hide]) -> None:
        """Finish purges that an earlier job has begun, if nothing keeps the blobs now."""
        policy = finish_policy(self._read_recent_facts())
        wanted = []
        for each in begun:
            assert each.hidden_at is not None
            if (kept := policy.reason_to_keep(each.hidden_at)) is None:
                wanted.append(each)
            else:
                self._count.add_kept(kept.why)
        if wanted:
            self._purge_batch(wanted)

    def _restore(self, wanted: Sequence[tuple[Hide, str]]) -> None:
        with self._tolerate_failures():
            done = self._restorer.restore(wanted)
            self._count.add(restored=done.final, waiting=done.waiting)
            if (failed := done.unmarked or done.failed) is not None:
                raise failed

    def _purge_page(self, page: list[Hide]) -> None:
        policy = purge_policy(self._read_recent_facts())
        decided = [(each, plan.decide_purge(policy, each).kept) for each in page]
        for _, kept in decided:
            if kept is not None:
                self._count.add_kept(kept.why)
        self._restore([(each, kept.detail) for each, kept in decided if kept is not None and each.disturbed])
        wanted = [each for each, kept in decided if kept is None]
        if wanted:
            self._purge_batch(wanted)

    def _purge_batch(self, wanted: Sequence[Hide]) -> None:
        done = self._purger.purge(self._work.job, wanted, self._make_evidence())
        freed = sum(each.freed for each in done.purged) + done.freed
        self._count.add(purged=len(done.purged), purged_bytes=freed, left=done.left, shown_by_others=done.shown)
        if done.given_back:
            self._count.add_kept("given back", len(done.given_back))
        self._restore(done.given_back)

    def _hide_page(self, page: list[Candidate]) -> None:
        known = self._recent_facts()
        policy = hide_policy(known.facts)
        decided = [(each, plan.decide_hide(policy, each).kept) for each in page]
        # Whether a registry still claims a blob is known only when it is asked again.
        asked = [each for each, kept in decided if kept is None or kept.why is Why.CLAIMED]
        for _, kept in decided:
            if kept is not None and kept.why is not Why.CLAIMED:
                self._count.add_kept(kept.why)
        spared = self._hider.keep(self._work.job, asked)
        for what, found in ((Why.LINKED, spared.linked), (Why.CLAIMED, spared.claimed)):
            if found:
                self._count.add_kept(what, len(found))
        # After that, so that blobs which stay take nothing of the amount from those that may go.
        wanted = self._take_from_budget([each for each in asked if each.digest not in spared.digests])
        if wanted:
            done = self._hider.hide(self._work.job, wanted, self._make_evidence(), versioned=known.versioned)
            self._count.add(
                hidden=len(done.hidden), hidden_bytes=sum(each.size for each in done.hidden), left=done.left
            )

    def _take_from_budget(self, wanted: Sequence[Candidate]) -> list[Candidate]:
        """Return as many of these as the plan's amount still permits to hide."""
        taken = []
        with self._lock:
            blobs, size = self._budget
            for each in wanted:
                blobs, size = blobs - 1, size - max(0, each.size)
                if min(blobs, size) < 0:
                    break
                self._budget = Amount(blobs, size)
                taken.append(each)
        if left := len(wanted) - len(taken):
            self._count.add(left=left)
        return taken

    def _make_evidence(self) -> dict[str, Any]:
        """Return what the decision relies on, for the ledger; of pods, those with the earliest watermarks."""
        facts = self._read_recent_facts()
        least = sorted(
            facts.pods, key=lambda pod: float("-inf") if pod.watermark is None else pod.watermark.timestamp()
        )
        return {
            **({"in_spite_of": list(facts.unsafe_findings)} if facts.unsafe_findings else {}),
            "decided_at": facts.now.isoformat(),
            "root_listed_at": None if facts.listing is None else facts.listing.began_at.isoformat(),
            "pods": {
                pod.name: {
                    "watermark": None if pod.watermark is None else pod.watermark.isoformat(),
                    "reconciled_at": None if pod.reconciled_at is None else pod.reconciled_at.isoformat(),
                }
                for pod in least[:PODS_SHOWN]
            },
        }

    def _process_pages(self, pages: Iterable[list[T]], deal: Callable[[list[T]], None]) -> None:
        """Process pages, several at once, and no faster than the rate; raises the error of a page."""
        running: set[Future[None]] = set()
        try:
            for page in pages:
                self._work.check()
                running.add(self._pool.submit(self._process_page, page, deal))
                if self._rate:
                    self._work.pause(len(page) / self._rate)
                while len(running) >= self._sizes.pages_at_once:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for each in done:
                        each.result()
            for each in running:
                each.result()
        except BaseException:
            for each in running:
                each.cancel()
            raise
        finally:
            # No thread works on a page after the run has ended.
            wait(running)

    def _process_page(self, page: list[T], deal: Callable[[list[T]], None]) -> None:
        with self._tolerate_failures():
            deal(page)

    @contextmanager
    def _tolerate_failures(self) -> Iterator[None]:
        """Continue after a service was away for a while; the next run processes what was left."""
        try:
            yield
        except UnavailableError as error:
            with self._lock:
                self._failed += 1
                failed = self._failed
            log.warning("left for the next run", reason=str(error), failures=failed)
            if failed >= self._sizes.failures_limit:
                raise
            self._work.pause(self._sizes.pause_s * 2 ** (failed - 1))
        else:
            with self._lock:
                self._failed = 0
