"""The transactions of garbage collection: each moves blobs, their hides and the ledger together, or nothing.

    candidates -- intend --> (delete) -- record --> due -- begin_purge --> (delete) -- purged
                     |                     |                    |
                     +-------- shown: served again <------------+

Every transaction that leads to a delete checks again what the plan checked: the job is still ours, nothing stops
collection, the blob is in the right state, and it is *undisturbed*: unreferenced since the same time as when the hide
was decided, so nothing needed it in between, not even for a moment.
`permit_deletes` is called after a delete was signed and before it is sent, and writes the time: a delete that the store
has not carried out a *delete bound* later, it will refuse.
Rows are locked blob first, in the order of ids, as in all of Baleen.
Not here: when (domain/gc.py), the work in storage (hide.py, purge.py, restore.py), showing it (gc/view.py).
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db.arrays import integer_array, time_array
from coordinator.domain.gc import Amount, Kept
from coordinator.domain.lifecycle import CONCEALED, BlobEvent, BlobState
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.errors import BaleenError
from coordinator.gc import mark_table as mark
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job
from coordinator.table import ledger, lifecycle
from coordinator.table.ledger import Decision, Entry

#: Former referrers of one blob whose links are looked up, the last first.
REFERRERS_LIMIT = 100
#: Versions of one hide that the ledger names; `hides` has all of them until the hide ends.
VERSIONS_RECORDED = 100
#: Rows of the table that are counted to estimate how much is stored.
SAMPLE_ROWS = 1_000_000

#: Conditions of plans on a blob `b` and its hide `h`, shared by the plan of the API (gc/view.py) and by runs.
IS_CANDIDATE = f"b.state = {BlobState.UNREFERENCED:d}"
IS_DUE = "h.hidden_at IS NOT NULL AND h.purging_at IS NULL"
#: Nothing needed the blob since the hide was decided (rule 11).
UNDISTURBED = "b.unreferenced_since = h.unreferenced_since"
#: Nothing needed the blob since a candidate `d` was read (rule 13).
UNTOUCHED = "b.unreferenced_since = d.since"
#: t_h: read in the transaction after the store's answer (rule 1).
T_H = "clock_timestamp()"
IS_NOT_PINNED = "NOT EXISTS (SELECT FROM pins p WHERE p.digest = b.digest)"
#: Its bytes are not served.
IS_CONCEALED = f"b.state IN ({', '.join(f'{state:d}' for state in sorted(CONCEALED))})"
#: It is also needed: registries wait for it.
IS_WANTED = f"b.unreferenced_since IS NULL AND {IS_CONCEALED}"


class StoppedCollectingError(BaleenError):
    """A GC control stops collection: nothing more is deleted."""


class DisturbedError(BaleenError):
    """Some of the blobs have changed since the decision: decide again."""


class Position(NamedTuple):
    """A place in an order by time and id."""

    at: datetime.datetime
    id: int


BEGINNING = Position(datetime.datetime(1, 1, 2, tzinfo=datetime.UTC), 0)


class Candidate(NamedTuple):
    """An unreferenced blob."""

    blob: int
    digest: Digest
    #: Bytes; -1 while it is not known.
    size: int
    unreferenced_since: datetime.datetime
    pinned: bool
    #: The pod whose registry confirmed it without asking the object store, when a run last asked.
    claimed_by: PodName | None = None

    @property
    def position(self) -> Position:
        return Position(self.unreferenced_since, self.blob)


class Version(NamedTuple):
    version: str
    #: Bytes.
    size: int


class Hide(NamedTuple):
    """A hide that has not ended."""

    id: int
    blob: int
    digest: Digest
    state: BlobState
    #: The table references the blob now.
    needed: bool
    #: The blob was needed, or asked back, since the hide was decided.
    disturbed: bool
    pinned: bool
    intended_at: datetime.datetime
    permitted_at: datetime.datetime | None
    hidden_at: datetime.datetime | None
    purging_at: datetime.datetime | None
    #: Bytes that it conceals; None while it is not known.
    size: int | None
    marker: str | None
    versions: Sequence[Version]
    #: When the row was read.
    now: datetime.datetime
    #: Why an operator asked for it back; None if no operator did.
    asked: str | None = None

    @property
    def position(self) -> Position:
        assert self.hidden_at is not None
        return Position(self.hidden_at, self.id)

    def is_harmless(self, delete_bound: timedelta) -> bool:
        """Whether no delete that was permitted for it can land any more (rule 8)."""
        if self.purging_at is None and self.hidden_at is not None:
            return True  # the store has answered its delete
        return self.permitted_at is None or self.permitted_at + delete_bound < self.now


class Intent(NamedTuple):
    """A hide in the table of which nothing was sent to the store yet."""

    id: int
    blob: int
    digest: Digest


class HiddenBlob(NamedTuple):
    """A hide that took effect, with what the store showed afterwards."""

    id: int
    blob: int
    digest: Digest
    #: Bytes that it conceals.
    size: int
    marker: str | None = None
    versions: Sequence[Version] = ()


class PurgedHide(NamedTuple):
    hide: Hide
    #: Bytes that were freed in the store.
    freed: int
    deletes: int
    #: The marker is to be deleted, too.
    marker: bool = False


class Referrer(NamedTuple):
    """A removed holding or direct link that needed a blob."""

    blob: int
    repository: RepositoryName
    digest: Digest
    #: Look up the blob's own link, not a manifest's.
    direct: bool


def read_candidates(
    connection: Connection[Any], after: Position, until: datetime.datetime | None, limit: int
) -> list[Candidate]:
    """Return unreferenced blobs, the longest unreferenced first; with `until` only those up to that time."""
    found = connection.execute(
        f"""
        SELECT b.id, b.digest, b.size, b.unreferenced_since, p.digest IS NOT NULL, c.pod
        FROM blobs b LEFT JOIN pins p ON p.digest = b.digest LEFT JOIN claims c ON c.blob_id = b.id
        WHERE {IS_CANDIDATE} AND (b.unreferenced_since, b.id) > (%s, %s)
          AND (%s::timestamptz IS NULL OR b.unreferenced_since <= %s::timestamptz)
        ORDER BY b.unreferenced_since, b.id LIMIT %s
        """,
        (*after, until, until, limit),
    )
    return [Candidate(row[0], Digest(row[1]), *row[2:]) for row in found]


def count_to_hide(connection: Connection[Any], until: datetime.datetime) -> Amount:
    """Count the blobs that a plan with this bound would hide."""
    return _read_amount(
        connection,
        f"""
        SELECT count(*), coalesce(sum(b.size) FILTER (WHERE b.size > 0), 0) FROM blobs b
        WHERE {IS_CANDIDATE} AND b.unreferenced_since <= %s AND {IS_NOT_PINNED}
          AND NOT EXISTS (SELECT FROM claims c WHERE c.blob_id = b.id)
        """,
        (until,),
    )


def count_to_purge(connection: Connection[Any], until: datetime.datetime) -> Amount:
    return _read_amount(
        connection,
        f"""
        SELECT count(*), coalesce(sum(h.size), 0) FROM hides h JOIN blobs b ON b.id = h.blob_id
        WHERE {IS_DUE} AND h.hidden_at <= %s AND {UNDISTURBED} AND {IS_NOT_PINNED}
        """,
        (until,),
    )


def count_served(connection: Connection[Any]) -> Amount:
    """Count the blobs that registries are served, by the table; a large table is estimated from a sample."""
    row = connection.execute("SELECT reltuples FROM pg_class WHERE oid = 'blobs'::regclass").fetchone()
    share = 1.0 if row is None or row[0] <= SAMPLE_ROWS else SAMPLE_ROWS / row[0]
    sample = "" if share == 1.0 else f"TABLESAMPLE SYSTEM ({100 * share})"
    found = _read_amount(
        connection,
        f"""
        SELECT count(*), coalesce(sum(size) FILTER (WHERE size > 0), 0) FROM blobs {sample}
        WHERE state IN ({BlobState.LIVE:d}, {BlobState.UNREFERENCED:d})
        """,
        (),
    )
    return Amount(round(found.blobs / share), round(found.size / share))


def _read_amount(connection: Connection[Any], statement: str, values: Sequence[Any]) -> Amount:
    row = connection.execute(statement, values).fetchone()
    assert row is not None
    return Amount(row[0], int(row[1]))


def read_former_referrers(connection: Connection[Any], blobs: Sequence[int]) -> list[Referrer]:
    """Return removed referrers of these blobs, for rule 5, which verifies that their links are gone.

    Only those with links in shared storage; the last REFERRERS_LIMIT of each blob.
    """
    found = connection.execute(
        """
        SELECT b.id, r.name, x.digest, x.direct
        FROM unnest(%s::bigint[]) d (id) JOIN blobs b ON b.id = d.id
        CROSS JOIN LATERAL (
            SELECT r.repository_id, r.digest, false AS direct, r.seen_at
            FROM (SELECT b.digest UNION ALL
                  SELECT mb.digest FROM manifests m JOIN blobs mb ON mb.id = m.id WHERE m.refs @> ARRAY[b.id]) q
            JOIN removals r ON r.digest = q.digest
            JOIN repositories l ON l.id = r.repository_id JOIN pods p ON p.id = l.pod_id
            WHERE p.links_in_store
            UNION ALL
            SELECT r.repository_id, r.digest, true, r.seen_at FROM removals r
            JOIN repositories l ON l.id = r.repository_id JOIN pods p ON p.id = l.pod_id
            WHERE r.digest = b.digest AND p.mode = 'link' AND p.links_in_store
            ORDER BY seen_at DESC LIMIT %s
        ) x
        JOIN repositories r ON r.id = x.repository_id
        """,
        (integer_array(blobs), REFERRERS_LIMIT),
    )
    return [Referrer(row[0], RepositoryName(row[1]), Digest(row[2]), row[3]) for row in found]


def write_intents(
    connection: Connection[Any], job: Job, wanted: Sequence[Candidate], evidence: dict[str, Any]
) -> list[Intent]:
    """Write that these blobs are about to be hidden; return those that have not changed (rule 13).

    Raises TakenOverError, and StoppedCollectingError.
    """
    with connection.transaction():
        _check_ours(connection, job)
        found = connection.execute(
            f"""
            SELECT b.id FROM unnest(%s::bigint[], %s::timestamptz[]) d (id, since) JOIN blobs b ON b.id = d.id
            WHERE b.state = {BlobState.UNREFERENCED:d} AND {UNTOUCHED}
              AND {IS_NOT_PINNED}
            ORDER BY b.id FOR NO KEY UPDATE OF b
            """,
            (integer_array(each.blob for each in wanted), time_array(each.unreferenced_since for each in wanted)),
        )
        blobs = [row[0] for row in found]
        lifecycle.apply_event(connection, blobs, BlobEvent.HIDE)
        rows = connection.execute(
            """
            INSERT INTO hides (blob_id, run_id, taken, unreferenced_since)
            SELECT b.id, %s, %s, b.unreferenced_since FROM unnest(%s::bigint[]) d (id) JOIN blobs b ON b.id = d.id
            RETURNING id, blob_id
            """,
            (job.id, job.taken, integer_array(blobs)),
        ).fetchall()
        known = {each.blob: each for each in wanted}
        intents = [Intent(row[0], row[1], known[row[1]].digest) for row in rows]
        ledger.write_entries(
            connection,
            [
                Entry(
                    each.digest,
                    Decision.HIDE,
                    "nothing has referenced it for long enough, and every pod has reported",
                    evidence | {"unreferenced_since": known[each.blob].unreferenced_since.isoformat()},
                    job.id,
                    each.id,
                )
                for each in intents
            ],
        )
    return intents


def permit_deletes(connection: Connection[Any], job: Job, hides: Sequence[int], state: BlobState) -> None:
    """Permit the deletes of these hides, and write when; the last check before they are sent.

    Raises TakenOverError, StoppedCollectingError or DisturbedError, and then none may be sent.
    """
    with connection.transaction():
        _check_ours(connection, job)
        # The locks last until the commit: a reference that comes meanwhile waits, and the restore for it sees that the
        # delete was permitted. Without them, a restore could be final before a delete that it did not know.
        allowed = _lock_undisturbed(connection, hides, state) - _read_pinned(connection, hides)
        if len(allowed) != len(hides):
            raise DisturbedError(f"{len(hides) - len(allowed)} of {len(hides)} blobs are needed again, or pinned.")
        connection.execute(
            "UPDATE hides SET permitted_at = clock_timestamp() WHERE id = ANY(%s::bigint[])", (integer_array(hides),)
        )


def permit_leftovers(connection: Connection[Any], job: Job) -> None:
    """Permit deletes of leftovers, which have no hide (leftovers/table.py), until the transaction ends.

    Raises TakenOverError or StoppedCollectingError, and then none may be sent.
    """
    with connection.transaction():
        _check_ours(connection, job)


def read_undisturbed(connection: Connection[Any], hides: Sequence[int], state: BlobState) -> set[int]:
    """Return those hides whose blobs `permit_deletes` would accept."""
    found = connection.execute(
        f"""
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id
        WHERE h.id = ANY(%s::bigint[]) AND b.state = %s AND {UNDISTURBED} AND {IS_NOT_PINNED}
        """,
        (integer_array(hides), state),
    )
    return {row[0] for row in found}


def record_hidden(connection: Connection[Any], job: Job, hidden: Sequence[HiddenBlob]) -> set[int]:
    """Write that these hides took effect; return their ids. t_h is read here, after the store's answer (rule 1).

    Hides that were disturbed meanwhile stay as they are, to be undone. Raises TakenOverError.
    """
    with connection.transaction():
        jobs.lock_job(connection, job)
        ours = _lock_undisturbed(connection, [each.id for each in hidden], BlobState.HIDING)
        taken = [each for each in hidden if each.id in ours]
        lifecycle.apply_event(connection, [each.blob for each in taken], BlobEvent.HIDDEN)
        connection.execute(
            f"""
            UPDATE hides h SET hidden_at = {T_H}, size = d.size, marker = d.marker,
                   versions = d.versions::jsonb
            FROM unnest(%s::bigint[], %s::bigint[], %b::text[], %b::text[]) d (id, size, marker, versions)
            WHERE h.id = d.id
            """,
            (
                integer_array(each.id for each in taken),
                integer_array(each.size for each in taken),
                [each.marker for each in taken],
                [json.dumps(each.versions) if each.marker is not None else None for each in taken],
            ),
        )
        ledger.write_entries(
            connection,
            [
                Entry(
                    each.digest,
                    Decision.HIDDEN,
                    "registries no longer see it",
                    {
                        "bytes": each.size,
                        "marker": each.marker,
                        "versions": [v.version for v in each.versions[:VERSIONS_RECORDED]],
                        "recorded": len(each.versions),
                    },
                    job.id,
                    each.id,
                )
                for each in taken
            ],
        )
    return {each.id for each in taken}


def read_due_hides(
    connection: Connection[Any], after: Position, until: datetime.datetime | None, limit: int
) -> list[Hide]:
    """Return hides that took effect, the oldest first; with `until` only those up to that time."""
    return _read_hides(
        connection,
        f"""
        {IS_DUE} AND (h.hidden_at, h.id) > (%s, %s)
        AND (%s::timestamptz IS NULL OR h.hidden_at <= %s::timestamptz) ORDER BY h.hidden_at, h.id LIMIT %s
        """,
        (*after, until, until, limit),
    )


def read_unfinished_hides(connection: Connection[Any], job: Job | None, after: int, limit: int) -> list[Hide]:
    """Return unfinished hides of other jobs than this one, by id."""
    return _read_hides(
        connection,
        """
        (h.hidden_at IS NULL OR h.purging_at IS NOT NULL) AND h.id > %s
        AND (h.run_id, h.taken) IS DISTINCT FROM (%s::bigint, %s::int) ORDER BY h.id LIMIT %s
        """,
        (after, None if job is None else job.id, None if job is None else job.taken, limit),
    )


def read_concealed(connection: Connection[Any], limit: int, after: int = 0) -> tuple[list[Hide], list[Digest]]:
    """Return what is needed and not served: hides to undo, and purged blobs that were pushed again.

    At most `limit` of each, of blobs whose ids are greater than `after`.
    """
    hides = _read_hides(connection, f"{IS_WANTED} AND b.id > %s ORDER BY b.id LIMIT %s", (after, limit))
    purged = connection.execute(
        f"""
        SELECT b.digest FROM blobs b WHERE {IS_WANTED} AND b.state = {BlobState.PURGED:d} AND b.id > %s
        ORDER BY b.id LIMIT %s
        """,
        (after, limit),
    )
    return hides, [Digest(row[0]) for row in purged]


def read_asked_back(connection: Connection[Any], limit: int, after: int = 0) -> list[Hide]:
    """Return hides that an operator asked to undo (gc/controls.py), though nothing needs the blob, by id."""
    condition = "h.asked_at IS NOT NULL AND b.unreferenced_since IS NOT NULL AND h.id > %s ORDER BY h.id LIMIT %s"
    return _read_hides(connection, condition, (after, limit))


def read_hide(connection: Connection[Any], number: int) -> Hide | None:
    """Return a hide as it is now; None if it has ended."""
    found = _read_hides(connection, "h.id = %s", (number,))
    return found[0] if found else None


def read_hide_of_blob(connection: Connection[Any], digest: Digest) -> Hide | None:
    """Return the hide of a blob; None if there is none."""
    found = _read_hides(connection, "b.digest = %s", (digest,))
    return found[0] if found else None


_SELECT_HIDES = """
SELECT h.id, h.blob_id, b.digest, b.state, b.unreferenced_since IS NULL,
       b.unreferenced_since IS DISTINCT FROM h.unreferenced_since, p.digest IS NOT NULL,
       h.intended_at, h.permitted_at, h.hidden_at, h.purging_at, h.size, h.marker, h.versions, clock_timestamp(),
       h.asked_why
FROM hides h JOIN blobs b ON b.id = h.blob_id LEFT JOIN pins p ON p.digest = b.digest
WHERE
"""


def _read_hides(connection: Connection[Any], condition: str, values: Sequence[Any]) -> list[Hide]:
    return [
        Hide(
            row[0],
            row[1],
            Digest(row[2]),
            BlobState(row[3]),
            row[4],
            row[5],
            row[6],
            row[7],
            row[8],
            row[9],
            row[10],
            row[11],
            row[12],
            tuple(Version(*each) for each in row[13] or ()),
            row[14],
            row[15],
        )
        for row in connection.execute(_SELECT_HIDES + condition, values)
    ]


def begin_purge(connection: Connection[Any], job: Job, hides: Sequence[Hide], evidence: dict[str, Any]) -> set[int]:
    """Write that these hides are about to be purged; return those that still may be.

    Takes over purges that another job began. Raises TakenOverError, and StoppedCollectingError.
    """
    with connection.transaction():
        _check_ours(connection, job)
        # A blob that was pinned since the plan stays hidden.
        wanted = [each.id for each in hides]
        ours = _lock_undisturbed(connection, wanted, BlobState.HIDDEN, BlobState.PURGING) - _read_pinned(
            connection, wanted
        )
        taken = [each for each in hides if each.id in ours]
        lifecycle.apply_event(connection, [each.blob for each in taken], BlobEvent.PURGE)
        connection.execute(
            """
            UPDATE hides SET purging_at = coalesce(purging_at, clock_timestamp()), run_id = %s, taken = %s
            WHERE id = ANY(%s::bigint[])
            """,
            (job.id, job.taken, integer_array(sorted(ours))),
        )
        ledger.write_entries(
            connection,
            [
                Entry(
                    each.digest,
                    Decision.PURGE,
                    "hidden for long enough, every pod has reported since, and nothing needed it",
                    evidence | {"hidden_at": None if each.hidden_at is None else each.hidden_at.isoformat()},
                    job.id,
                    each.id,
                )
                for each in taken
            ],
        )
    return ours


def record_purged(connection: Connection[Any], job: Job, done: Sequence[PurgedHide]) -> None:
    """Write that these hides have ended, and what was freed. Raises TakenOverError."""
    with connection.transaction():
        jobs.lock_job(connection, job)
        numbers = _lock_blobs(connection, [each.hide.id for each in done])
        over = [each for each in done if each.hide.id in numbers]
        lifecycle.apply_event(connection, [each.hide.blob for each in over], BlobEvent.PURGED)
        connection.execute(
            "DELETE FROM hides WHERE id = ANY(%s::bigint[])", (integer_array(each.hide.id for each in over),)
        )
        ledger.write_entries(
            connection,
            [
                Entry(
                    each.hide.digest,
                    Decision.PURGED,
                    "everything that its hide had recorded is deleted",
                    {"freed_bytes": each.freed, "deleted": each.deletes},
                    job.id,
                    each.hide.id,
                )
                for each in over
            ],
        )


def end_hide(connection: Connection[Any], found: Hide, why: str) -> bool:
    """End a hide whose blob is served again; return False if it had ended before.

    Only call this when no delete of the hide can land any more, and the bytes were read after that (rules 8 and 14).
    """
    with connection.transaction():
        if not _lock_blobs(connection, [found.id]):
            return False
        now = read_hide(connection, found.id)
        if now is None or (now.permitted_at, now.purging_at) != (found.permitted_at, found.purging_at):
            # A delete was permitted since, so what the caller read no longer counts.
            return False
        lifecycle.apply_event(connection, [found.blob], BlobEvent.SHOWN)
        connection.execute("DELETE FROM hides WHERE id = %s", (found.id,))
        # An older state of the table would purge a blob that is served again.
        mark.advance_epoch(connection)
        decision = Decision.RESTORED if found.disturbed else Decision.UNDONE
        evidence = {
            name: None if at is None else at.isoformat()
            for name, at in (
                ("intended_at", found.intended_at),
                ("permitted_at", found.permitted_at),
                ("hidden_at", found.hidden_at),
                ("purging_at", found.purging_at),
            )
        }
        ledger.write_entries(connection, [Entry(found.digest, decision, why, evidence, None, found.id)])
    return True


def void_hides(
    connection: Connection[Any], job: Job, found: Sequence[tuple[Hide, Decision, str, dict[str, Any]]]
) -> None:
    """Void hides because of what storage shows: nothing more is deleted for them, and they are restored.

    Their blobs' time without references starts again, so that the hides are *disturbed*. Raises TakenOverError.
    """
    with connection.transaction():
        jobs.lock_job(connection, job)
        numbers = _lock_blobs(connection, [hide.id for hide, _, _, _ in found])
        void = [each for each in found if each[0].id in numbers]
        connection.execute(
            """
            UPDATE blobs SET unreferenced_since = clock_timestamp()
            WHERE id = ANY(%s::bigint[]) AND unreferenced_since IS NOT NULL
            """,
            (integer_array(hide.blob for hide, _, _, _ in void),),
        )
        ledger.write_entries(
            connection,
            [Entry(hide.digest, decision, why, evidence, job.id, hide.id) for hide, decision, why, evidence in void],
        )


def record_kept(connection: Connection[Any], job: Job, kept: Mapping[Digest, Kept]) -> None:
    """Write that blobs are kept, contrary to the plan, and why."""
    ledger.write_entries(
        connection, [Entry(digest, Decision.KEPT, why.detail, {}, job.id) for digest, why in kept.items()]
    )


def update_claims(
    connection: Connection[Any], asked: Sequence[Candidate], claimed: Mapping[Digest, PodName]
) -> set[Digest]:
    """Write which of these blobs are claimed, and by which pod; return those that were not before.

    A plan counts claimed blobs as kept: else they would take from what one run may hide.
    """
    blobs = integer_array(each.blob for each in asked if each.digest in claimed)
    pods = [claimed[each.digest] for each in asked if each.digest in claimed]
    with connection.transaction():
        connection.execute(
            "DELETE FROM claims WHERE blob_id = ANY(%s::bigint[]) AND blob_id <> ALL (%s::bigint[])",
            (integer_array(each.blob for each in asked), blobs),
        )
        found = connection.execute(
            """
            INSERT INTO claims (blob_id, pod) SELECT * FROM unnest(%s::bigint[], %s::text[])
            ON CONFLICT (blob_id) DO UPDATE SET pod = excluded.pod WHERE claims.pod <> excluded.pod RETURNING blob_id
            """,
            (blobs, pods),
        ).fetchall()
    new = {row[0] for row in found}
    return {each.digest for each in asked if each.blob in new}


def read_recent_runs(connection: Connection[Any], limit: int) -> list[Amount]:
    """Return the amounts of the last finished runs, the newest first."""
    found = connection.execute(
        """
        SELECT coalesce((progress #>> '{hidden,blobs}')::bigint, 0)
                   + coalesce((progress #>> '{purged,blobs}')::bigint, 0),
               coalesce((progress #>> '{hidden,bytes}')::bigint, 0)
                   + coalesce((progress #>> '{purged,bytes}')::bigint, 0)
        FROM jobs WHERE kind = 'gc' AND state = 'done' AND NOT coalesce((options ->> 'dry')::bool, false)
        ORDER BY id DESC LIMIT %s
        """,
        (limit,),
    )
    return [Amount(*row) for row in found]


def read_open_hides(connection: Connection[Any], wanted: Sequence[Digest]) -> set[tuple[Digest, int]]:
    """Return (digest, hide) of the open hides of these blobs."""
    found = connection.execute(
        "SELECT b.digest, h.id FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE b.digest = ANY(%b::bytea[])",
        ([bytes(each) for each in wanted],),
    )
    return {(Digest(row[0]), row[1]) for row in found}


def _check_ours(connection: Connection[Any], job: Job) -> None:
    """Check that the job is ours until the transaction ends, and that no control stops it now."""
    jobs.lock_job(connection, job)
    # Read without a lock: a job that hangs here must not keep an operator from switching GC off.
    on = connection.execute("SELECT enabled, why FROM gc_switch").fetchone()
    if on is None or not on[0]:
        why = "it was never switched on" if on is None else on[1]
        raise StoppedCollectingError(
            f"Garbage collection is switched off ({why}). Switch it on with `baleen gc on --why …`."
        )
    held = connection.execute("SELECT scope, why FROM holds ORDER BY scope LIMIT 1").fetchone()
    if held is not None:
        raise StoppedCollectingError(f"{held[0]} is held ({held[1]}). Release it with `baleen release {held[0]}`.")
    claimed = connection.execute("SELECT FROM gc_mark WHERE claimed_at IS NOT NULL").fetchone()
    if claimed is not None:
        raise StoppedCollectingError(
            "The last claim is not verified. Run `baleen audit --repair`; see `baleen gc status`."
        )


def _lock_undisturbed(connection: Connection[Any], hides: Sequence[int], *states: BlobState) -> set[int]:
    """Lock the blobs of hides; return the hides that are open, undisturbed, and in one of the states."""
    found = connection.execute(
        f"""
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id
        WHERE h.id = ANY(%s::bigint[]) AND b.state = ANY(%s::smallint[])
          AND {UNDISTURBED}
        ORDER BY b.id FOR NO KEY UPDATE OF b
        """,
        (integer_array(hides), integer_array(states)),
    )
    locked = [row[0] for row in found]
    return (locked and _read_still_open(connection, locked)) or set()


def _read_pinned(connection: Connection[Any], hides: Sequence[int]) -> set[int]:
    """Return those hides whose blobs are pinned."""
    found = connection.execute(
        """
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id JOIN pins p ON p.digest = b.digest
        WHERE h.id = ANY(%s::bigint[])
        """,
        (integer_array(hides),),
    )
    return {row[0] for row in found}


def _lock_blobs(connection: Connection[Any], hides: Sequence[int]) -> set[int]:
    """Lock the blobs of hides; return the hides that are open."""
    found = connection.execute(
        """
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE h.id = ANY(%s::bigint[])
        ORDER BY b.id FOR NO KEY UPDATE OF b
        """,
        (integer_array(hides),),
    )
    return _read_still_open(connection, [row[0] for row in found])


def _read_still_open(connection: Connection[Any], hides: Sequence[int]) -> set[int]:
    """Return those of these hides, whose blobs are locked, that are open: one may have ended while a lock waited."""
    found = connection.execute("SELECT id FROM hides WHERE id = ANY(%s::bigint[])", (integer_array(hides),))
    return {row[0] for row in found}
