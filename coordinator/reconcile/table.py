"""What a reconcile asks of the table, and what it writes at its end.

What is known of repositories comes sorted as a listing is, by (repository, digest), through a cursor that holds what it
found: rows are fetched some thousand at a time, and no transaction stays open while a store is listed.
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
from coordinator.db.arrays import digests, integers
from coordinator.db.locks import END_LOCK, PODS_LOCK
from coordinator.domain.merge import Known, LinkKind
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.pods import Linker, PodMode
from coordinator.domain.references import ManifestKind
from coordinator.jobs.table import Job
from coordinator.pods import clock
from coordinator.table import dead_letters as letters
from coordinator.table import processes as sources
from coordinator.table.batch import LetterLimits

#: Rows of a cursor that are in memory at once.
FETCH = 2000
#: Sorting what a repository of millions of manifests holds takes longer than other statements may.
SORT_TIMEOUT = "15min"

_names = itertools.count(1)


class ReconciledPod(NamedTuple):
    id: int
    mode: PodMode
    linker: Linker
    prefixes: list[RepositoryName]
    #: Its registry sends events. If it does not, what is listed is all that is known, and links vanish unannounced.
    managed: bool = True


class Unlisted(NamedTuple):
    """A thing of a repository of which nothing was listed."""

    repository_id: int
    repository: RepositoryName
    digest: Digest


def pod(connection: Connection[Any], pod_id: int) -> ReconciledPod | None:
    with connection.transaction():
        # A prefix that is being added is waited for, or its gap is noticed after this, and not settled by what is
        # compared without it.
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PODS_LOCK,))
        row = connection.execute(
            """
            SELECT id, mode, linker, ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY prefix),
                   managed
            FROM pods p WHERE id = %s
            """,
            (pod_id,),
        ).fetchone()
    return None if row is None else ReconciledPod(row[0], PodMode(row[1]), Linker(row[2]), row[3], row[4])


def repository_ids(
    connection: Connection[Any], pod_id: int, names: Sequence[RepositoryName]
) -> dict[RepositoryName, int]:
    """Return the ids of repositories of the pod, which are made known if they were not."""
    with connection.transaction():
        locks.enter(connection)
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
        (job.id, int(kind), integers(repositories)),
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


#: Where the table has links of each kind, and the column that names the blob.
_TABLES = {LinkKind.REVISION: ("repository_manifests", "manifest_id"), LinkKind.LAYER: ("repository_blobs", "blob_id")}
_KNOWN = {
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
def known(
    connection: Connection[Any],
    kind: LinkKind,
    repositories: Sequence[int],
    began_at: datetime,
    margin: timedelta,
) -> Iterator[Iterator[Known]]:
    """Give what the table has of these repositories, by repository and digest.

    `old` of a holding goes by the registry's clock; one from the future says nothing, and is looked at too.
    """
    values = {"repositories": integers(repositories), "began": began_at, "margin": margin}
    with _cursor(connection, _KNOWN[kind], values, large=len(repositories) == 1) as rows:
        yield (Known(row[0], Digest(row[1]), row[2]) for row in rows)


@contextmanager
def unlisted(connection: Connection[Any], job: Job, kind: LinkKind, margin: timedelta) -> Iterator[Iterator[Unlisted]]:
    """Give what the table has, from before the job began, in repositories of which no link of the kind was listed."""
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
    with _cursor(connection, statement, values, large=True) as rows:
        yield (Unlisted(row[0], RepositoryName(row[1]), Digest(row[2])) for row in rows)


@contextmanager
def reported(connection: Connection[Any], pod_id: int) -> Iterator[Iterator[tuple[RepositoryName, Digest]]]:
    """Give each manifest that the pod holds and whose bytes were not read, or do not say all, with a repository."""
    statement = """
        SELECT DISTINCT ON (m.id) r.name, b.digest
        FROM repositories r JOIN repository_manifests h ON h.repository_id = r.id
        JOIN manifests m ON m.id = h.manifest_id JOIN blobs b ON b.id = m.id
        WHERE r.pod_id = %(pod)s AND (NOT m.verified OR m.by_links) ORDER BY m.id
    """
    with _cursor(connection, statement, {"pod": pod_id}, large=True) as rows:
        yield ((RepositoryName(row[0]), Digest(row[1])) for row in rows)


#: Children that an index of a repository lists, and of which the repository has no link that is known; and whether the
#: index keeps them all the same.
_UNHELD_CHILDREN = f"""
    SELECT r.pod_id, r.name, c.digest, EXISTS (
        SELECT FROM repository_manifests x WHERE x.manifest_id = u.id AND x.repository_id = r.id) AS implied
    FROM {{indexes}} JOIN repository_manifests h ON h.repository_id = r.id
    JOIN manifests m ON m.id = h.manifest_id AND m.kind IN ({ManifestKind.INDEX:d}, {ManifestKind.NAMED:d})
    CROSS JOIN LATERAL unnest(m.refs) u (id) JOIN blobs c ON c.id = u.id
    WHERE {{which}} AND NOT EXISTS (
        SELECT FROM repository_manifests x WHERE x.manifest_id = u.id AND x.repository_id = r.id AND NOT x.implied)
"""


class Child(NamedTuple):
    """What an index of the repository lists."""

    pod_id: int
    repository: RepositoryName
    digest: Digest
    #: It is known as a manifest, and the index keeps it.
    implied: bool


@contextmanager
def children(connection: Connection[Any], pod_id: int) -> Iterator[Iterator[Child]]:
    """Give the children of all indexes of the pod of which no link is known; some more than once."""
    statement = _UNHELD_CHILDREN.format(indexes="repositories r", which="r.pod_id = %(pod)s")
    with _cursor(connection, statement, {"pod": pod_id}, large=True) as rows:
        yield (_child(row) for row in rows)


def unheld_children(connection: Connection[Any], indexes: Sequence[tuple[RepositoryName, Digest]]) -> list[Child]:
    """Return the children of these of which no link is known. Only of pods whose links are in shared storage."""
    found = connection.execute(
        _UNHELD_CHILDREN.format(
            indexes="""unnest(%s::text[], %s::bytea[]) d (name, digest) JOIN repositories r ON r.name = d.name
                JOIN pods p ON p.id = r.pod_id JOIN blobs i ON i.digest = d.digest""",
            which="h.manifest_id = i.id AND p.linker = 'link'",
        ),
        ([name for name, _ in indexes], digests(digest for _, digest in indexes)),
    )
    return [_child(row) for row in found]


def _child(row: tuple[Any, ...]) -> Child:
    return Child(row[0], RepositoryName(row[1]), Digest(row[2]), row[3])


def lacking(
    connection: Connection[Any], kind: LinkKind, named: Sequence[tuple[RepositoryName, Digest]]
) -> set[tuple[RepositoryName, Digest]]:
    """Return those of these holdings, or links, that the table does not have. An implied holding is of no link."""
    table, column = _TABLES[kind]
    own = "AND NOT t.implied" if kind is LinkKind.REVISION else ""
    found = connection.execute(
        f"""
        SELECT d.name, d.digest
        FROM unnest(%s::text[], %s::bytea[]) d (name, digest)
        JOIN repositories r ON r.name = d.name JOIN blobs b ON b.digest = d.digest
        JOIN {table} t ON t.{column} = b.id AND t.repository_id = r.id {own}
        """,
        ([name for name, _ in named], digests(digest for _, digest in named)),
    )
    return set(named) - {(RepositoryName(row[0]), Digest(row[1])) for row in found}


def unsized(connection: Connection[Any], wanted: Sequence[Digest]) -> list[Digest]:
    """Return those of these blobs of which nobody has said how large they are."""
    found = connection.execute(
        """
        SELECT d.digest FROM unnest(%s::bytea[]) d (digest) LEFT JOIN blobs b ON b.digest = d.digest
        WHERE coalesce(b.size, -1) < 0
        """,
        (digests(wanted),),
    )
    return [Digest(row[0]) for row in found]


def end(
    connection: Connection[Any],
    job: Job,
    request_bound: timedelta,
    absent: Collection[RepositoryName] = (),
    limits: LetterLimits | None = None,
) -> dict[str, Any]:
    """Write what the whole comparison proves, in the transaction that says that it is done.

    Every event that was lost before it began was of a link that it has compared; and what a process that was dead for
    the bound had begun has landed before it, whether it was ever heard or has only answered probes. `absent`:
    repositories that no reconcile lists, and of which storage had nothing after it began.
    By a clock that was set back it cannot be told what was before it, and what came since: raises ClockSetBackError.
    """
    row = connection.execute("SELECT %s > clock_timestamp()", (job.began_at,)).fetchone()
    if row is None or row[0] or clock.is_ahead(connection):
        raise clock.ClockSetBackError(
            "The database's clock was set back: what this reconcile settles is not known. The scheduler starts another."
        )
    # Of two that end at once neither would see that the other is done, and a letter about both pods would stay open.
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (END_LOCK,))
    why = f"reconcile {job.id}"
    gaps = connection.execute(
        f"""
        UPDATE gaps g SET settled_at = clock_timestamp(), settled_why = %s
        WHERE g.pod_id = %s AND g.settled_at IS NULL AND g.settles_from <= %s AND {letters.FITS}
        """,
        (why, job.pod_id, job.began_at),
    ).rowcount
    resolved = letters.resolve(connection, job, absent, why)
    letters.forget(connection, limits or LetterLimits())
    sources.settle_unheard(connection, job.its_pod, job.began_at, request_bound)
    retired = sources.retire_dead(connection, job.its_pod, job.began_at, request_bound, why)
    return {"gaps_settled": gaps, "sources_retired": retired, "dead_letters_resolved": resolved}


@contextmanager
def _cursor(
    connection: Connection[Any], statement: str, values: Mapping[str, Any], *, large: bool
) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Run a question whose answer is kept by the server, and read from it bit by bit."""
    cursor = connection.cursor(f"reconcile_{next(_names)}", withhold=True)
    with cursor:
        with connection.transaction():
            if large:
                # Connections are set up for batches of index look-ups (rows.prepare).
                for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
                    connection.execute(f"SET LOCAL {setting} = on")
                connection.execute("SET LOCAL plan_cache_mode = auto")
                connection.execute(f"SET LOCAL statement_timeout = '{SORT_TIMEOUT}'")
            cursor.execute(statement, values, binary=True)
        yield _fetch(cursor)


def _fetch(cursor: Any) -> Iterator[tuple[Any, ...]]:
    while rows := cursor.fetchmany(FETCH):
        yield from rows
