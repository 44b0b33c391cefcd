"""Queries about leftovers (leftovers/run.py), the permit before each delete of them, and records of what was deleted.

    links    found -- record_unlinks --> permit_unlink (delete) -- read_open_unlinks: until no client relies on them
    copies   ended: no row of `hides`, and the ledger says how the hide ended
    markers  purged: the ledger's purges since the last run that went through all of them

A hide without a row is not enough: after a database was restored from a backup there are copies of hides that it does
not know, and they may be the only bytes. So a copy is deleted only if the ledger has the end of its hide.
Every permit checks what gc/table.py `permit_leftovers` checks, in the same transaction as its own condition.
Not here: what is found in storage, and how old it must be (leftovers/run.py).
"""

import datetime
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.types.json import Jsonb

from coordinator.db.arrays import digest_array, integer_array
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName
from coordinator.gc import table as gc
from coordinator.gc.table import DisturbedError
from coordinator.jobs.table import Job
from coordinator.table.ledger import Decision

#: Decisions that end a hide.
_ENDING_DECISIONS = ", ".join(f"'{end}'" for end in (Decision.PURGED, Decision.RESTORED, Decision.UNDONE))
#: Purged, unreferenced since, not pinned, and without an open hide.
_IS_GONE = f"""
b.state = {BlobState.PURGED:d} AND b.unreferenced_since IS NOT NULL
AND NOT EXISTS (SELECT FROM pins p WHERE p.digest = b.digest)
AND NOT EXISTS (SELECT FROM hides h WHERE h.blob_id = b.id)
"""


class Unlink(NamedTuple):
    """A link that was, or may be, deleted, and that a push may have relied on."""

    id: int
    run_id: int
    taken: int
    repository: RepositoryName
    digest: Digest
    permitted_at: datetime.datetime | None
    #: By the table: the blob is no longer purged, or is referenced.
    needed: bool
    #: When the row was read.
    now: datetime.datetime


class EndedCopy(NamedTuple):
    """A copy whose hide has ended."""

    digest: Digest
    hide: int
    ended_at: datetime.datetime
    #: The blob is purged, and unreferenced since.
    gone: bool


class LedgerPurge(NamedTuple):
    """A purge in the ledger."""

    #: Id of the ledger's entry.
    id: int
    digest: Digest


# Records of runs


def read_swept_kinds(connection: Connection[Any], every: timedelta) -> set[str]:
    """Return the kinds that a run has finished within this time."""
    found = connection.execute("SELECT DISTINCT kind FROM gc_leftovers WHERE ended_at > now() - %s", (every,))
    return {row[0] for row in found}


def read_swept_entry(connection: Connection[Any], kind: str) -> int:
    """Return the last entry of the ledger that runs have processed for this kind."""
    row = connection.execute(
        "SELECT max((evidence ->> 'through')::bigint) FROM gc_leftovers WHERE kind = %s AND ended_at IS NOT NULL",
        (kind,),
    ).fetchone()
    return 0 if row is None or row[0] is None else int(row[0])


def record_begin(connection: Connection[Any], job: Job, kinds: Collection[str], evidence: dict[str, Any]) -> None:
    """Write that the run looks for these kinds; a resumed run has already written it."""
    connection.execute(
        """
        INSERT INTO gc_leftovers (run_id, kind, evidence) SELECT %s, unnest(%s::text[]), %s ON CONFLICT DO NOTHING
        """,
        (job.id, sorted(kinds), Jsonb(evidence)),
    )


def record_deleted(
    connection: Connection[Any], job: Job, kind: str, count: int, size: int, failed: int, first: str
) -> None:
    """Write what the store has deleted, also if another scheduler has taken over the job: it is deleted."""
    connection.execute(
        """
        UPDATE gc_leftovers SET count = count + %s, bytes = bytes + %s, failed = failed + %s,
               evidence = jsonb_build_object('first', %s::text) || evidence
        WHERE run_id = %s AND kind = %s
        """,
        (count, size, failed, first, job.id, kind),
    )


def record_end(connection: Connection[Any], job: Job, kinds: Collection[str], evidence: dict[str, Any]) -> None:
    """Write that the run has finished these kinds. Raises TakenOverError or StoppedCollectingError.

    A scheduler that lost the job must not write it: it has perhaps not seen everything.
    """
    with connection.transaction():
        gc.permit_leftovers(connection, job)
        connection.execute(
            """
            UPDATE gc_leftovers SET ended_at = clock_timestamp(), evidence = evidence || %s
            WHERE run_id = %s AND kind = ANY(%s)
            """,
            (Jsonb(evidence), job.id, sorted(kinds)),
        )


# Links


def read_prefixes(connection: Connection[Any]) -> list[str]:
    """Return the prefixes of all pods."""
    return [row[0] for row in connection.execute("SELECT prefix FROM pod_prefixes ORDER BY prefix")]


def read_manifest_prefixes(connection: Connection[Any]) -> list[str]:
    """Return whose layer links mean nothing by themselves: prefixes of pods where manifests keep blobs alive.

    Only of pods whose links are in shared storage, and whose registries send events.
    """
    found = connection.execute(
        """
        SELECT f.prefix FROM pod_prefixes f JOIN pods p ON p.id = f.pod_id
        WHERE p.mode = 'manifest' AND p.links_in_store AND p.managed ORDER BY f.prefix
        """
    )
    return [row[0] for row in found]


def read_purge_times(connection: Connection[Any], wanted: Collection[Digest]) -> dict[Digest, datetime.datetime]:
    """Return the time of the last purge of those of these blobs that are purged and unreferenced since."""
    found = connection.execute(
        f"""
        SELECT b.digest, (SELECT max(l.at) FROM gc_ledger l WHERE l.digest = b.digest AND l.decision = 'purged') AS at
        FROM blobs b WHERE b.digest = ANY(%b::bytea[]) AND {_IS_GONE}
        """,
        (digest_array(wanted),),
    )
    return {Digest(row[0]): row[1] for row in found if row[1] is not None}


def record_unlinks(connection: Connection[Any], job: Job, wanted: Sequence[tuple[RepositoryName, Digest]]) -> list[int]:
    """Write that these links are about to be deleted; return ids. Raises as `permit_leftovers`."""
    with connection.transaction():
        gc.permit_leftovers(connection, job)
        found = connection.execute(
            """
            INSERT INTO gc_unlinks (run_id, taken, repository, digest)
            SELECT %s, %s, d.repository, d.digest FROM unnest(%b::text[], %b::bytea[]) d (repository, digest)
            RETURNING id
            """,
            (job.id, job.taken, [each[0] for each in wanted], digest_array(each[1] for each in wanted)),
        )
        return [row[0] for row in found]


def permit_unlink(
    connection: Connection[Any], job: Job, unlinks: Sequence[int], purged_before: datetime.datetime
) -> None:
    """Permit the deletes of these links, and write when.

    Raises DisturbedError if any of their blobs is no longer purged, or was purged later; and as `permit_leftovers`.
    """
    with connection.transaction():
        gc.permit_leftovers(connection, job)
        allowed = connection.execute(
            f"""
            UPDATE gc_unlinks u SET permitted_at = clock_timestamp() FROM blobs b
            WHERE u.id = ANY(%s::bigint[]) AND b.digest = u.digest AND {_IS_GONE}
              AND (SELECT max(l.at) FROM gc_ledger l WHERE l.digest = b.digest AND l.decision = 'purged') <= %s
            """,
            (integer_array(unlinks), purged_before),
        ).rowcount
        if allowed != len(unlinks):
            raise DisturbedError(f"{len(unlinks) - allowed} blobs of {len(unlinks)} links are no longer purged.")


def read_open_unlinks(connection: Connection[Any], after: int, limit: int, *, needed: bool = False) -> list[Unlink]:
    """Return links that a push may have relied on, by id; with `needed` only those whose blob the table needs."""
    found = connection.execute(
        f"""
        SELECT u.id, u.run_id, u.taken, u.repository, u.digest, u.permitted_at, x.needed, clock_timestamp()
        FROM gc_unlinks u CROSS JOIN LATERAL (SELECT NOT EXISTS (
            SELECT FROM blobs b
            WHERE b.digest = u.digest AND b.state = {BlobState.PURGED:d} AND b.unreferenced_since IS NOT NULL
        ) AS needed) x
        WHERE u.id > %s AND (x.needed OR NOT %s) ORDER BY u.id LIMIT %s
        """,
        (after, needed, limit),
    )
    return [Unlink(row[0], row[1], row[2], RepositoryName(row[3]), Digest(row[4]), *row[5:]) for row in found]


def count_unlinks(connection: Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM gc_unlinks").fetchone()
    assert row is not None
    return int(row[0])


def delete_unlinks(connection: Connection[Any], unlinks: Sequence[int]) -> None:
    """Delete the rows of links whose delete can no longer harm anything."""
    connection.execute("DELETE FROM gc_unlinks WHERE id = ANY(%s::bigint[])", (integer_array(unlinks),))


# Copies


def read_ended_copies(connection: Connection[Any], copies: Sequence[tuple[Digest, int]]) -> list[EndedCopy]:
    """Return those of these copies, by digest and hide, whose hide has certainly ended."""
    found = connection.execute(
        f"""
        SELECT d.digest, d.hide, max(l.at), bool_or(b.id IS NOT NULL AND {_IS_GONE})
        FROM unnest(%b::bytea[], %b::bigint[]) d (digest, hide)
        JOIN gc_ledger l ON l.digest = d.digest AND l.hide_id = d.hide AND l.decision IN ({_ENDING_DECISIONS})
        LEFT JOIN blobs b ON b.digest = d.digest
        WHERE NOT EXISTS (SELECT FROM hides o WHERE o.id = d.hide)
        GROUP BY d.digest, d.hide
        """,
        (digest_array(each[0] for each in copies), [each[1] for each in copies]),
    )
    return [EndedCopy(Digest(row[0]), *row[1:]) for row in found]


def permit_copies(connection: Connection[Any], job: Job, copies: Sequence[tuple[Digest, int]]) -> None:
    """Permit the deletes of these copies; raises DisturbedError if it is not certain that every hide has ended."""
    with connection.transaction():
        gc.permit_leftovers(connection, job)
        if len(read_ended_copies(connection, copies)) != len(copies):
            raise DisturbedError("A hide has not ended, so its copy is not deleted.")


# Markers


def read_purges(connection: Connection[Any], after: int, until: datetime.datetime, limit: int) -> list[LedgerPurge]:
    """Return purges of the ledger in order, up to a time."""
    found = connection.execute(
        "SELECT id, digest FROM gc_ledger WHERE id > %s AND decision = 'purged' AND at <= %s ORDER BY id LIMIT %s",
        (after, until, limit),
    )
    return [LedgerPurge(row[0], Digest(row[1])) for row in found]


def read_not_hidden(connection: Connection[Any], wanted: Collection[Digest]) -> set[Digest]:
    """Return those of these blobs that have no open hide."""
    return set(wanted) - {digest for digest, _ in gc.read_open_hides(connection, list(wanted))}


def permit_markers(connection: Connection[Any], job: Job, wanted: Collection[Digest]) -> None:
    """Permit the deletes of markers of these blobs; raises DisturbedError if one of them is being hidden."""
    with connection.transaction():
        gc.permit_leftovers(connection, job)
        if len(read_not_hidden(connection, wanted)) != len(wanted):
            raise DisturbedError("A blob is being hidden, so its marker is not deleted.")
