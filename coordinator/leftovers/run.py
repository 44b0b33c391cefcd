"""Delete leftovers of registries and of ended hides in storage: everything that is no blob.

| kind       | what                                                 | deleted once                      | bucket    |
|------------|------------------------------------------------------|-----------------------------------|-----------|
| `uploads`  | unfinished sessions `_uploads/<uuid>/`               | nothing of it was modified for    | any       |
|            |                                                      | the grace                         |           |
| `parts`    | unfinished multipart uploads                         | begun that long ago, and their    | any       |
|            |                                                      | session, if any, is as quiet      |           |
| `versions` | below `_uploads/`: old versions of ended sessions,   | nothing was done to its key for   | versioned |
|            | each a copy of a layer; markers with nothing below   | the grace                         |           |
| `links`    | `_layers/…/link` of purged blobs                     | purged that long ago              | versioned |
| `copies`   | `quarantine/` of ended hides                         | a delete's bound has passed       | any       |
| `markers`  | delete markers on purged `blobs/`, nothing below     | a delete's bound has passed       | versioned |
| `probes`   | older versions of the link that probes write         | written before the age of         | versioned |
|            |                                                      | versions                          |           |

Route: gc/collect.py, when the last run is long enough ago -> `LeftoversDeleter.run`: list storage, name old states of
objects, and delete them by `delete_many` or `abort` with a permit (sweep.py).

Why nothing is lost by it:
- *uploads, parts, versions*: no manifest needs them. A client that continues a session after the grace gets the answer
  that there is none, and starts again: a registry moves an upload to `blobs/` whole or not at all. On a bucket with
  versions everything is named by its version, so objects that come meanwhile stay.
- *links*: only by exact version, and all versions of the link must be older than the purge. **Not on a bucket without
  versions:** there a delete names a key, and between the check and the delete a client can write the link again, by an
  accepted upload; the delete would remove that one. A link that a push relied on meanwhile is written back (links.py).
  Only in pods where manifests keep blobs alive: elsewhere a link keeps its blob, and a reconcile removes it.
- *copies*: only of hides whose end is in the ledger, and only while the blob's bytes are served, or it is purged.
  A copy that the table does not know stays, and is counted as `unknown`.
- *probes*: all versions of that link have the same content, the newest stays, and each is named by its version.
- *markers*: only of keys where nothing but markers is left. Without such a marker a registry sees what it saw before:
  nothing. A marker with bytes below it always stays: they would be served again.
Not here: the floors of the ages (settings.py), each kind (uploads.py, hides.py, probes.py, links.py), their common
machinery (sweep.py), the permits before a delete (leftovers/table.py).
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import groupby
from typing import Any

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.names import Digest, RepositoryName
from coordinator.errors import UnavailableError
from coordinator.gc.conditions import FactsReader
from coordinator.gc.leftovers import VERSIONED_KINDS, LeftoverKind, LeftoverState, Tally
from coordinator.jobs.work import Work
from coordinator.leftovers import hides, links, probes, table
from coordinator.leftovers import unfinished_uploads as uploads
from coordinator.leftovers import uploads as sweep_uploads
from coordinator.leftovers.sweep import PAGE_SIZE, PRODUCTION, Ages, BlockedError, Entry, Sizes, Sweep, split_pages
from coordinator.storage.layout import LAYERS, UPLOADS, parse_layer_link, parse_upload_session
from coordinator.storage.port import ObjectStore

log = structlog.get_logger()


CALLS_AT_ONCE = 16
#: Kinds that one listing finds together.
PASSES = (
    frozenset({LeftoverKind.UPLOADS, LeftoverKind.VERSIONS, LeftoverKind.LINKS}),
    frozenset({LeftoverKind.PARTS}),
    frozenset({LeftoverKind.COPIES}),
    frozenset({LeftoverKind.MARKERS}),
    frozenset({LeftoverKind.PROBES}),
)


class LeftoversDeleter:
    """Deletes leftovers, in one run after another."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        ages: Ages,
        *,
        every: timedelta,
        probed: Digest,
        rate: int = 0,
        sizes: Sizes = PRODUCTION,
    ) -> None:
        """`probed` is the manifest that probes put."""
        self._connections = connections
        self._store = store
        self._ages = ages
        self._every = every
        self._probed = probed
        self._rate = rate
        self._sizes = sizes
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="leftovers")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def resolve(self, work: Work, request_bound: timedelta) -> None:
        """Check the links that earlier runs deleted (links.py), also while GC is blocked. Raises UnavailableError."""
        links.resolve_links(self._connections, self._store, work.job, self._ages.delete_bound + request_bound)

    def run(
        self, work: Work, read_facts: FactsReader, tally: Tally, *, versioned: bool, dry: bool, now: bool = False
    ) -> None:
        """Delete leftovers of the kinds that are due, or only count them; with `now` of all kinds.

        Raises TakenOverError, StoppedCollectingError, StoppedError. If the store does not answer, the kind is left to
        the next run.
        """
        with self._connections.use() as connection:
            recent = set() if now else table.read_swept_kinds(connection, self._every)
        due = frozenset(
            kind for kind in LeftoverKind if kind not in recent and (versioned or kind not in VERSIONED_KINDS)
        )
        tally.set(LeftoverState.NOT_DUE, LeftoverKind)
        if not versioned:
            tally.set(LeftoverState.UNVERSIONED, VERSIONED_KINDS)
        tally.set(LeftoverState.WAITS, due)
        sweep = Sweep(
            self._connections,
            self._store,
            self._ages,
            self._rate,
            self._pool,
            work,
            read_facts,
            tally,
            versioned=versioned,
            dry=dry,
            sizes=self._sizes,
        )
        for kinds in PASSES:
            if wanted := kinds & due:
                self._run_pass(sweep, wanted)

    def _run_pass(self, sweep: Sweep, kinds: frozenset[LeftoverKind]) -> None:
        """Delete all leftovers of one listing. If something stops it, log that, and leave the rest to the next run."""
        sweep.tally.set(LeftoverState.WALKS, kinds)
        job = sweep.work.job
        try:
            if not sweep.dry:
                ages = {name: f"{age.total_seconds():g}s" for name, age in self._ages._asdict().items()}
                with self._connections.use() as connection:
                    table.record_begin(connection, job, kinds, {"ages": ages})
            ended, evidence = _sweep_kinds(sweep, kinds, self._probed)
            if not sweep.dry:
                with self._connections.use() as connection:
                    table.record_end(connection, job, ended, evidence)
        except BlockedError as error:
            sweep.tally.set(LeftoverState.HELD, kinds)
            log.info("leftovers remain for the next run", kinds=sorted(kinds), reason=str(error))
        except UnavailableError as error:
            sweep.tally.set(LeftoverState.FAILED, kinds)
            log.warning("leftovers remain for the next run", kinds=sorted(kinds), reason=str(error))
        else:
            sweep.tally.set(LeftoverState.DONE, ended)
            sweep.tally.set(LeftoverState.FULL, kinds - ended)


def _sweep_kinds(
    sweep: Sweep, kinds: frozenset[LeftoverKind], probed: Digest
) -> tuple[frozenset[LeftoverKind], dict[str, Any]]:
    """Delete leftovers of these kinds; return the kinds that were done to the end, and evidence for the next run."""
    if LeftoverKind.PARTS in kinds:
        sweep_uploads.abort_old_uploads(sweep)
    elif LeftoverKind.COPIES in kinds:
        hides.delete_copies(sweep)
    elif LeftoverKind.MARKERS in kinds:
        return kinds, {"through": hides.delete_markers(sweep)}
    elif LeftoverKind.PROBES in kinds:
        probes.delete_probe_versions(sweep, probed)
    elif not _sweep_repositories(sweep, kinds):
        return kinds - {LeftoverKind.LINKS}, {}
    return kinds, {}


def _sweep_repositories(sweep: Sweep, kinds: frozenset[LeftoverKind]) -> bool:
    """Delete leftovers of uploads and, with versions, links of layers; return False if more links are left."""
    linked = links.LinkDeleter(sweep)
    with (
        sweep.batch(LeftoverKind.UPLOADS, sweep.allow) as begun,
        sweep.batch(
            LeftoverKind.VERSIONS, sweep.allow, lambda items: sweep_uploads.delete_bare_markers(sweep, items)
        ) as ended,
        sweep.batch(LeftoverKind.LINKS, linked.allow, linked.check_again) as to_delete,
    ):
        sessions = sweep_uploads.SessionDeleter(sweep, kinds, begun, ended)
        if not sweep.versioned:
            before = sweep.cut_off(sweep.ages.uploads)
            for session in uploads.list_sessions(sweep.store, sweep.pool):
                # A session that began later is too young; a key without a slash is no session.
                if session.begun_at <= before and session.prefix.endswith("/"):
                    sessions.decide_session(session.prefix, sweep.list_entries(session.prefix))
            return True
        wanted = ({UPLOADS} if kinds - {LeftoverKind.LINKS} else set()) | (
            {LAYERS} if LeftoverKind.LINKS in kinds else set()
        )
        for folder in uploads.list_folders_named(wanted, sweep.store.list_version_folders, sweep.pool):
            if folder.endswith(UPLOADS):
                for prefix, entries in groupby(
                    sweep.list_entries(folder), key=lambda each: parse_upload_session(each.key)
                ):
                    if prefix is not None:
                        sessions.decide_session(prefix, entries)
            elif not linked.is_full:
                for page in split_pages(_links_in(sweep.list_entries(folder)), PAGE_SIZE):
                    linked.decide_page(page, to_delete)
    return not linked.is_full


def _links_in(entries: Iterable[Entry]) -> Iterator[tuple[RepositoryName, Digest]]:
    for each in entries:
        if each.served and (link := parse_layer_link(each.key)) is not None:
            yield link
