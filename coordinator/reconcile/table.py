"""A reconcile's queries of the table, and what it writes at its end.

Rows of repositories come in the order of a listing, by (repository, digest), through a cursor WITH HOLD: some thousand
rows are fetched at a time, and no transaction stays open while a store is listed.
Not here: adding (table/apply.py), doubting and removing (table/doubtful_removals.py), the queue (jobs/work.py), the
comparison (domain/merge.py).
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db import locks
from coordinator.db.arrays import digest_array, integer_array
from coordinator.db.locks import END_LOCK, PODS_LOCK
from coordinator.domain.merge import LinkKind, TableLink
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind, PodMode
from coordinator.domain.references import ManifestKind
from coordinator.jobs.table import Job
from coordinator.pods import clock
from coordinator.table import dead_letters, processes
from coordinator.table.batch import DeadLetterLimits
from coordinator.table.doubtful_removals import LinkedPod

#: Sorting millions of a repository's holdings takes longer than other statements may.
SORT_TIMEOUT = "15min"

_cursor_numbers = itertools.count(1)


class ReconciledPod(NamedTuple):
    id: int
    name: PodName
    mode: PodMode
    kind: PodKind
    prefixes: list[RepositoryName]
    #: Its registry sends events. If not, only listings show its links, and links vanish without an event.
    managed: bool = True

    @property
    def linked(self) -> LinkedPod:
        return LinkedPod(self.id, self.name, self.kind)


class UnlistedLink(NamedTuple):
    """A holding or link in the table that was not listed."""

    repository_id: int
    repository: RepositoryName
    digest: Digest


def read_pod(connection: Connection[Any], pod_id: int) -> ReconciledPod | None:
    with connection.transaction():
        # Wait for a prefix that is being added. Else its gap is written after this, and a reconcile without the prefix
        # does not resolve it.
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PODS_LOCK,))
        row = connection.execute(
            """
            SELECT id, name, mode, kind, ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY prefix),
                   managed
            FROM pods p WHERE id = %s
            """,
            (pod_id,),
        ).fetchone()
    if row is None:
        return None
    return ReconciledPod(row[0], PodName(row[1]), PodMode(row[2]), PodKind(row[3]), row[4], row[5])


def ensure_repositories(
    connection: Connection[Any], pod_id: int, names: Sequence[RepositoryName]
) -> dict[RepositoryName, int]:
    """Return the ids of the pod's repositories; adds rows for new ones."""
    with connection.transaction():
        locks.lock_facts(connection)
        connection.execute(
            """
            INSERT INTO repositories (name, pod_id)
            SELECT d.name, %s FROM unnest(%s::text[]) d (name)
            WHERE NOT EXISTS (SELECT FROM repositories r WHERE r.name = d.name) ORDER BY d.name
            ON CONFLICT (name) DO NOTHING
            """,
            (pod_id, list(names)),
        )
        found = connection.execute(
            "SELECT r.name, r.id FROM unnest(%s::text[]) d (name) JOIN repositories r ON r.name = d.name",
            (list(names),),
        )
        return {RepositoryName(row[0]): row[1] for row in found}


def mark_listed(connection: Connection[Any], job: Job, kind: LinkKind, repositories: Sequence[int]) -> None:
    """Note that links of this kind of these repositories were listed."""
    connection.execute(
        """
        INSERT INTO job_repositories (job_id, kind, repository_id) SELECT %s, %s, unnest(%s::int[])
        ON CONFLICT DO NOTHING
        """,
        (job.id, int(kind), integer_array(repositories)),
    )


def forget_listed(
    connection: Connection[Any],
    job: Job,
    kinds: Sequence[LinkKind],
    *,
    repository: RepositoryName | None = None,
    beginning: str | None = None,
) -> None:
    """Forget what was listed of a repository, or of all whose names, with a slash after them, begin so."""
    connection.execute(
        """
        DELETE FROM job_repositories j USING repositories r
        WHERE j.job_id = %s AND j.kind = ANY(%s::int[]) AND r.id = j.repository_id
          AND (r.name = %s OR starts_with(r.name || '/', %s))
        """,
        (job.id, [int(kind) for kind in kinds], repository, beginning),
    )


#: The table of each kind of link, and its column with the blob.
_TABLES = {LinkKind.REVISION: ("repository_manifests", "manifest_id"), LinkKind.LAYER: ("repository_blobs", "blob_id")}
_SELECT_KNOWN = {
    LinkKind.REVISION: """
        SELECT h.repository_id, b.digest, h.pushed_at < %(began)s OR h.pushed_at > now() + %(margin)s
        FROM unnest(%(repositories)s::int[]) d (id)
        JOIN repository_manifests h ON h.repository_id = d.id AND NOT h.implied JOIN blobs b ON b.id = h.manifest_id
        ORDER BY 1, 2
    """,
    LinkKind.LAYER: """
        SELECT l.repository_id, b.digest, l.linked_at < %(began)s
        FROM unnest(%(repositories)s::int[]) d (id)
        JOIN repository_blobs l ON l.repository_id = d.id JOIN blobs b ON b.id = l.blob_id
        ORDER BY 1, 2
    """,
}


@contextmanager
def read_known_links(
    connection: Connection[Any],
    kind: LinkKind,
    repositories: Sequence[int],
    began_at: datetime,
    margin: timedelta,
    fetched: int,
) -> Iterator[Iterator[TableLink]]:
    """Give the table's links of these repositories, by repository and digest.

    `old` of a holding is by the registry's clock; a time in the future proves nothing, and counts as old.
    """
    values = {"repositories": integer_array(repositories), "began": began_at, "margin": margin}
    with _query(connection, _SELECT_KNOWN[kind], values, fetched, large=len(repositories) == 1) as rows:
        yield (TableLink(row[0], Digest(row[1]), row[2]) for row in rows)


@contextmanager
def read_unlisted_links(
    connection: Connection[Any], job: Job, kind: LinkKind, margin: timedelta, fetched: int
) -> Iterator[Iterator[UnlistedLink]]:
    """Give links older than the job, in repositories of which no link of the kind was listed."""
    table, column = _TABLES[kind]
    old = {
        LinkKind.REVISION: "NOT t.implied AND (t.pushed_at < %(began)s OR t.pushed_at > now() + %(margin)s)",
        LinkKind.LAYER: "t.linked_at < %(began)s",
    }[kind]
    statement = f"""
        SELECT t.repository_id, r.name, b.digest
        FROM repositories r JOIN {table} t ON t.repository_id = r.id JOIN blobs b ON b.id = t.{column}
        WHERE r.pod_id = %(pod)s AND {old} AND NOT EXISTS (
            SELECT FROM job_repositories s WHERE s.job_id = %(job)s AND s.kind = %(kind)s AND s.repository_id = r.id)
    """
    values = {"pod": job.pod_id, "job": job.id, "kind": int(kind), "began": job.began_at, "margin": margin}
    with _query(connection, statement, values, fetched, large=True) as rows:
        yield (UnlistedLink(row[0], RepositoryName(row[1]), Digest(row[2])) for row in rows)


@contextmanager
def read_reported_manifests(
    connection: Connection[Any], pod_id: int, fetched: int
) -> Iterator[Iterator[tuple[RepositoryName, Digest]]]:
    """Give each of the pod's manifests whose bytes were not read, or do not say everything, with a repository."""
    statement = """
        SELECT DISTINCT ON (m.id) r.name, b.digest
        FROM repositories r JOIN repository_manifests h ON h.repository_id = r.id
        JOIN manifests m ON m.id = h.manifest_id JOIN blobs b ON b.id = m.id
        WHERE r.pod_id = %(pod)s AND (NOT m.verified OR m.by_links) ORDER BY m.id
    """
    with _query(connection, statement, {"pod": pod_id}, fetched, large=True) as rows:
        yield ((RepositoryName(row[0]), Digest(row[1])) for row in rows)


#: Children of a repository's indexes without a known link in the repository; and whether the index keeps them anyway.
_SELECT_UNHELD_CHILDREN = f"""
    SELECT r.pod_id, r.name, c.digest, EXISTS (
        SELECT FROM repository_manifests x WHERE x.manifest_id = u.id AND x.repository_id = r.id) AS implied
    FROM {{indexes}} JOIN repository_manifests h ON h.repository_id = r.id
    JOIN manifests m ON m.id = h.manifest_id AND m.kind IN ({ManifestKind.INDEX:d}, {ManifestKind.NAMED:d})
    CROSS JOIN LATERAL unnest(m.refs) u (id) JOIN blobs c ON c.id = u.id
    WHERE {{which}} AND NOT EXISTS (
        SELECT FROM repository_manifests x WHERE x.manifest_id = u.id AND x.repository_id = r.id AND NOT x.implied)
"""


class Child(NamedTuple):
    """A child of an index of the repository."""

    pod_id: int
    repository: RepositoryName
    digest: Digest
    #: It is known as a manifest, and the index keeps it.
    implied: bool


@contextmanager
def read_children(connection: Connection[Any], pod_id: int, fetched: int) -> Iterator[Iterator[Child]]:
    """Give the children, without a known link, of all indexes of the pod; some more than once."""
    statement = _SELECT_UNHELD_CHILDREN.format(indexes="repositories r", which="r.pod_id = %(pod)s")
    with _query(connection, statement, {"pod": pod_id}, fetched, large=True) as rows:
        yield (_make_child(row) for row in rows)


def read_unheld_children(connection: Connection[Any], indexes: Sequence[tuple[RepositoryName, Digest]]) -> list[Child]:
    """Return the children, without a known link, of these indexes. Only of pods whose links are in shared storage."""
    found = connection.execute(
        _SELECT_UNHELD_CHILDREN.format(
            indexes="""unnest(%s::text[], %s::bytea[]) d (name, digest) JOIN repositories r ON r.name = d.name
                JOIN pods p ON p.id = r.pod_id JOIN blobs i ON i.digest = d.digest""",
            which="h.manifest_id = i.id AND p.links_in_store",
        ),
        ([name for name, _ in indexes], digest_array(digest for _, digest in indexes)),
    )
    return [_make_child(row) for row in found]


def _make_child(row: tuple[Any, ...]) -> Child:
    return Child(row[0], RepositoryName(row[1]), Digest(row[2]), row[3])


def read_lacking(
    connection: Connection[Any], kind: LinkKind, named: Sequence[tuple[RepositoryName, Digest]]
) -> set[tuple[RepositoryName, Digest]]:
    """Return those of these holdings, or links, that the table does not have. An implied holding has no link."""
    table, column = _TABLES[kind]
    own = "AND NOT t.implied" if kind is LinkKind.REVISION else ""
    found = connection.execute(
        f"""
        SELECT d.name, d.digest
        FROM unnest(%s::text[], %s::bytea[]) d (name, digest)
        JOIN repositories r ON r.name = d.name JOIN blobs b ON b.digest = d.digest
        JOIN {table} t ON t.{column} = b.id AND t.repository_id = r.id {own}
        """,
        ([name for name, _ in named], digest_array(digest for _, digest in named)),
    )
    return set(named) - {(RepositoryName(row[0]), Digest(row[1])) for row in found}


def read_unsized(connection: Connection[Any], wanted: Sequence[Digest]) -> list[Digest]:
    """Return those of these blobs whose size is not known."""
    found = connection.execute(
        """
        SELECT d.digest FROM unnest(%s::bytea[]) d (digest) LEFT JOIN blobs b ON b.digest = d.digest
        WHERE coalesce(b.size, -1) < 0
        """,
        (digest_array(wanted),),
    )
    return [Digest(row[0]) for row in found]


def write_result(
    connection: Connection[Any],
    job: Job,
    request_bound: timedelta,
    absent: Collection[RepositoryName] = (),
    limits: DeadLetterLimits | None = None,
) -> dict[str, Any]:
    """Write what the whole comparison proves, in the transaction that ends the job.

    Every event that was lost before the job began was of a link that it compared. Requests of a process that was dead
    for the bound landed before it, whether the process ever sent an event or only answered probes. `absent`:
    repositories that no reconcile lists, and of which storage had nothing after the job began.
    Raises ClockSetBackError: by a clock that was set back, it is not known what was before the job and what came since.
    """
    row = connection.execute("SELECT %s > clock_timestamp()", (job.began_at,)).fetchone()
    if row is None or row[0] or clock.is_ahead(connection):
        raise clock.ClockSetBackError(
            "The database's clock was set back, so this reconcile resolves nothing. The scheduler starts another."
        )
    # Without the lock, two jobs that end at once would not see each other: a letter about both pods would stay open.
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (END_LOCK,))
    why = f"reconcile {job.id}"
    gaps = connection.execute(
        f"""
        UPDATE gaps g SET resolved_at = clock_timestamp(), resolved_why = %s
        WHERE g.pod_id = %s AND g.resolved_at IS NULL AND g.resolves_from <= %s AND {dead_letters.GAP_FITS_POD}
        """,
        (why, job.pod_id, job.began_at),
    ).rowcount
    resolved = dead_letters.resolve_covered(connection, job, absent, why)
    dead_letters.delete_resolved(connection, limits or DeadLetterLimits())
    processes.delete_unechoed_probes(connection, job.required_pod_id, job.began_at, request_bound)
    retired = processes.retire_dead_processes(connection, job.required_pod_id, job.began_at, request_bound, why)
    return {"gaps_resolved": gaps, "processes_retired": retired, "dead_letters_resolved": resolved}


@contextmanager
def _query(
    connection: Connection[Any], statement: str, values: Mapping[str, Any], fetched: int, *, large: bool
) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Run a query whose rows the server keeps, and give them; `fetched` of them are in memory at once."""
    cursor = connection.cursor(f"reconcile_{next(_cursor_numbers)}", withhold=True)
    with cursor:
        with connection.transaction():
            if large:
                # Connections are set up for batches of index look-ups (rows.prepare).
                for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
                    connection.execute(f"SET LOCAL {setting} = on")
                connection.execute("SET LOCAL plan_cache_mode = auto")
                connection.execute(f"SET LOCAL statement_timeout = '{SORT_TIMEOUT}'")
            cursor.execute(statement, values, binary=True)
        yield _fetch_rows(cursor, fetched)


def _fetch_rows(cursor: Any, count: int) -> Iterator[tuple[Any, ...]]:
    while rows := cursor.fetchmany(count):
        yield from rows
