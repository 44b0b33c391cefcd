"""The transactions of garbage collection: each moves blobs, their hides and the ledger together, or nothing.

    candidates -- intend --> (delete) -- record --> due -- begin_purge --> (delete) -- purged
                     |                     |                    |
                     +-------- shown: served again <------------+

Every one that leads towards a delete asks again what the plan asked before: that the job is still ours, that nothing
stops collection, that the blob is in the state that it must be in, and that it was *undisturbed*: it is unreferenced
since the very time at which the hide was decided, so nothing needed it in between, not even for a moment.
`permit` is asked between the signature of a delete and its sending, and notes the time: what the store has not
done a *delete bound* later, it will refuse.
Rows are locked blob first, in the order of ids, as everybody does.
Not here: when (domain/gc.py), what is done in storage (coordinator/gc), what shows it (gc/view.py).
"""

import datetime
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db.arrays import integers, times
from coordinator.domain.gc import Amount
from coordinator.domain.lifecycle import CONCEALED, BlobEvent, BlobState
from coordinator.domain.names import Digest, RepositoryName
from coordinator.errors import BaleenError
from coordinator.gc import mark_table as mark
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job
from coordinator.table import ledger, lifecycle
from coordinator.table.ledger import Decision, Entry

#: Former referrers of one blob whose links are looked up, the last first.
REFERRERS_LIMIT = 100
#: Versions of one hide that the ledger names; `hides` has all of them until it is over.
VERSIONS_NOTED = 100
#: Rows of the table that are counted to know how much there is.
SAMPLED = 1_000_000

#: What plans ask of a blob `b` and its hide `h`: a plan that is shown (gc/view.py) and a run ask the same.
CANDIDATE = f"b.state = {BlobState.UNREFERENCED:d}"
DUE = "h.hidden_at IS NOT NULL AND h.purging_at IS NULL"
UNDISTURBED = "b.unreferenced_since = h.unreferenced_since"
FREE = "NOT EXISTS (SELECT FROM pins p WHERE p.digest = b.digest)"
#: Its bytes are not served.
IS_CONCEALED = f"b.state IN ({', '.join(f'{state:d}' for state in sorted(CONCEALED))})"
#: It is needed, too: registries wait for it.
IS_WANTED = f"b.unreferenced_since IS NULL AND {IS_CONCEALED}"


class StoppedCollectingError(BaleenError):
    """A control is on: nothing more is deleted."""


class DisturbedError(BaleenError):
    """Some of the blobs are not any more what they were when it was decided: decide anew."""


class Position(NamedTuple):
    """A place in an order by time and id."""

    at: datetime.datetime
    id: int


BEGINNING = Position(datetime.datetime(1, 1, 2, tzinfo=datetime.UTC), 0)


class Candidate(NamedTuple):
    """A blob that nothing references."""

    blob: int
    digest: Digest
    #: Bytes; -1 while nobody has said.
    size: int
    unreferenced_since: datetime.datetime
    pinned: bool

    @property
    def position(self) -> Position:
        return Position(self.unreferenced_since, self.blob)


class Version(NamedTuple):
    version: str
    #: Bytes.
    size: int


class Hide(NamedTuple):
    """A hide that is not over."""

    id: int
    blob: int
    digest: Digest
    state: BlobState
    #: By the table: the blob is needed now.
    needed: bool
    #: It was needed, or is, since the hide was decided.
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
    #: When it was read.
    now: datetime.datetime
    #: Why an operator asked for it back; None if nobody did.
    asked: str | None = None

    @property
    def position(self) -> Position:
        assert self.hidden_at is not None
        return Position(self.hidden_at, self.id)

    def harmless(self, delete_bound: timedelta) -> bool:
        """No delete that was let go for it can land any more (rule 8)."""
        if self.purging_at is None and self.hidden_at is not None:
            return True  # it was answered
        return self.permitted_at is None or self.permitted_at + delete_bound < self.now


class Intent(NamedTuple):
    """A hide that was written down and of which nothing was sent yet."""

    id: int
    blob: int
    digest: Digest


class Hidden(NamedTuple):
    """A hide that took effect, as the store showed it afterwards."""

    id: int
    blob: int
    digest: Digest
    #: Bytes that it conceals.
    size: int
    marker: str | None = None
    versions: Sequence[Version] = ()


class Purged(NamedTuple):
    hide: Hide
    #: Bytes that the store gave back.
    freed: int
    deletes: int
    #: The marker is to go, too.
    marker: bool = False


class Referrer(NamedTuple):
    """A holding or a direct link that was removed, of what needed a blob."""

    blob: int
    repository: RepositoryName
    digest: Digest
    #: It is the blob's own link that has to be looked for, not a manifest's.
    direct: bool


def candidates(
    connection: Connection[Any], after: Position, until: datetime.datetime | None, limit: int
) -> list[Candidate]:
    """Return blobs that nothing references, the longest first; with `until` only those up to that time."""
    found = connection.execute(
        f"""
        SELECT b.id, b.digest, b.size, b.unreferenced_since, p.digest IS NOT NULL
        FROM blobs b LEFT JOIN pins p ON p.digest = b.digest
        WHERE {CANDIDATE} AND (b.unreferenced_since, b.id) > (%s, %s)
          AND (%s::timestamptz IS NULL OR b.unreferenced_since <= %s::timestamptz)
        ORDER BY b.unreferenced_since, b.id LIMIT %s
        """,
        (*after, until, until, limit),
    )
    return [Candidate(row[0], Digest(row[1]), *row[2:]) for row in found]


def to_hide(connection: Connection[Any], until: datetime.datetime) -> Amount:
    """Count what a plan with this bound would hide."""
    return _amount(
        connection,
        f"""
        SELECT count(*), coalesce(sum(b.size) FILTER (WHERE b.size > 0), 0) FROM blobs b
        WHERE {CANDIDATE} AND b.unreferenced_since <= %s AND {FREE}
        """,
        (until,),
    )


def to_purge(connection: Connection[Any], until: datetime.datetime) -> Amount:
    return _amount(
        connection,
        f"""
        SELECT count(*), coalesce(sum(h.size), 0) FROM hides h JOIN blobs b ON b.id = h.blob_id
        WHERE {DUE} AND h.hidden_at <= %s AND {UNDISTURBED} AND {FREE}
        """,
        (until,),
    )


def stored(connection: Connection[Any]) -> Amount:
    """Count what registries are served, by the table; a large one by a sample of its pages."""
    row = connection.execute("SELECT reltuples FROM pg_class WHERE oid = 'blobs'::regclass").fetchone()
    share = 1.0 if row is None or row[0] <= SAMPLED else SAMPLED / row[0]
    sample = "" if share == 1.0 else f"TABLESAMPLE SYSTEM ({100 * share})"
    found = _amount(
        connection,
        f"""
        SELECT count(*), coalesce(sum(size) FILTER (WHERE size > 0), 0) FROM blobs {sample}
        WHERE state IN ({BlobState.LIVE:d}, {BlobState.UNREFERENCED:d})
        """,
        (),
    )
    return Amount(round(found.blobs / share), round(found.size / share))


def _amount(connection: Connection[Any], statement: str, values: Sequence[Any]) -> Amount:
    row = connection.execute(statement, values).fetchone()
    assert row is not None
    return Amount(row[0], int(row[1]))


def former_referrers(connection: Connection[Any], blobs: Sequence[int]) -> list[Referrer]:
    """Return what is known to have needed these blobs and was removed: rule 5 looks whether it is really gone.

    Only where links are in shared storage; of each blob the last REFERRERS_LIMIT of these.
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
            WHERE p.linker = 'link'
            UNION ALL
            SELECT r.repository_id, r.digest, true, r.seen_at FROM removals r
            JOIN repositories l ON l.id = r.repository_id JOIN pods p ON p.id = l.pod_id
            WHERE r.digest = b.digest AND p.mode = 'link' AND p.linker = 'link'
            ORDER BY seen_at DESC LIMIT %s
        ) x
        JOIN repositories r ON r.id = x.repository_id
        """,
        (integers(blobs), REFERRERS_LIMIT),
    )
    return [Referrer(row[0], RepositoryName(row[1]), Digest(row[2]), row[3]) for row in found]


def intend(
    connection: Connection[Any], job: Job, wanted: Sequence[Candidate], evidence: dict[str, Any]
) -> list[Intent]:
    """Write down that these are about to be hidden; return those that are still what they were (rule 13).

    Raises TakenOverError, and StoppedCollectingError.
    """
    with connection.transaction():
        _ours(connection, job)
        found = connection.execute(
            f"""
            SELECT b.id FROM unnest(%s::bigint[], %s::timestamptz[]) d (id, since) JOIN blobs b ON b.id = d.id
            WHERE b.state = {BlobState.UNREFERENCED:d} AND b.unreferenced_since = d.since
              AND {FREE}
            ORDER BY b.id FOR NO KEY UPDATE OF b
            """,
            (integers(each.blob for each in wanted), times(each.unreferenced_since for each in wanted)),
        )
        blobs = [row[0] for row in found]
        lifecycle.tell(connection, blobs, BlobEvent.HIDE)
        rows = connection.execute(
            """
            INSERT INTO hides (blob_id, run_id, taken, unreferenced_since)
            SELECT b.id, %s, %s, b.unreferenced_since FROM unnest(%s::bigint[]) d (id) JOIN blobs b ON b.id = d.id
            RETURNING id, blob_id
            """,
            (job.id, job.taken, integers(blobs)),
        ).fetchall()
        known = {each.blob: each for each in wanted}
        intents = [Intent(row[0], row[1], known[row[1]].digest) for row in rows]
        ledger.write(
            connection,
            [
                Entry(
                    each.digest,
                    Decision.HIDE,
                    "nothing has referenced it for long enough, and everybody has reported",
                    evidence | {"unreferenced_since": known[each.blob].unreferenced_since.isoformat()},
                    job.id,
                    each.id,
                )
                for each in intents
            ],
        )
    return intents


def permit(connection: Connection[Any], job: Job, hides: Sequence[int], state: BlobState) -> None:
    """Let deletes of these hides go to the store, now, and note it; the last word before they are sent.

    Raises TakenOverError, StoppedCollectingError or DisturbedError, and then none may be sent.
    """
    with connection.transaction():
        _ours(connection, job)
        # Locked until this is committed: a reference that comes meanwhile waits, and whoever restores for it sees that
        # the delete was let go. Without, a restore could be final before a delete of which it did not know.
        allowed = _locked(connection, hides, state) - _pinned(connection, hides)
        if len(allowed) != len(hides):
            raise DisturbedError(f"{len(hides) - len(allowed)} of {len(hides)} blobs are needed again, or pinned.")
        connection.execute(
            "UPDATE hides SET permitted_at = clock_timestamp() WHERE id = ANY(%s::bigint[])", (integers(hides),)
        )


def permit_others(connection: Connection[Any], job: Job) -> None:
    """Let deletes of what no hide is about (leftovers/table.py) go to the store; holds until the transaction ends.

    Raises TakenOverError or StoppedCollectingError, and then none may be sent.
    """
    with connection.transaction():
        _ours(connection, job)


def undisturbed(connection: Connection[Any], hides: Sequence[int], state: BlobState) -> set[int]:
    """Return those hides for which `permit` has nothing against the blob."""
    found = connection.execute(
        f"""
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id
        WHERE h.id = ANY(%s::bigint[]) AND b.state = %s AND {UNDISTURBED} AND {FREE}
        """,
        (integers(hides), state),
    )
    return {row[0] for row in found}


def record(connection: Connection[Any], job: Job, hidden: Sequence[Hidden]) -> set[int]:
    """Note that these hides took effect: t_h is read here, after the store's answer (rule 1). Return their ids.

    Those that were disturbed meanwhile are left as they are, to be undone. Raises TakenOverError.
    """
    with connection.transaction():
        jobs.hold(connection, job)
        ours = _locked(connection, [each.id for each in hidden], BlobState.HIDING)
        taken = [each for each in hidden if each.id in ours]
        lifecycle.tell(connection, [each.blob for each in taken], BlobEvent.HIDDEN)
        connection.execute(
            """
            UPDATE hides h SET hidden_at = clock_timestamp(), size = d.size, marker = d.marker,
                   versions = d.versions::jsonb
            FROM unnest(%s::bigint[], %s::bigint[], %b::text[], %b::text[]) d (id, size, marker, versions)
            WHERE h.id = d.id
            """,
            (
                integers(each.id for each in taken),
                integers(each.size for each in taken),
                [each.marker for each in taken],
                [json.dumps(each.versions) if each.marker is not None else None for each in taken],
            ),
        )
        ledger.write(
            connection,
            [
                Entry(
                    each.digest,
                    Decision.HIDDEN,
                    "registries see it no more",
                    {
                        "bytes": each.size,
                        "marker": each.marker,
                        "versions": [v.version for v in each.versions[:VERSIONS_NOTED]],
                        "recorded": len(each.versions),
                    },
                    job.id,
                    each.id,
                )
                for each in taken
            ],
        )
    return {each.id for each in taken}


def due(connection: Connection[Any], after: Position, until: datetime.datetime | None, limit: int) -> list[Hide]:
    """Return hides that took effect, the oldest first; with `until` only those up to that time."""
    return _hides(
        connection,
        f"""
        {DUE} AND (h.hidden_at, h.id) > (%s, %s)
        AND (%s::timestamptz IS NULL OR h.hidden_at <= %s::timestamptz) ORDER BY h.hidden_at, h.id LIMIT %s
        """,
        (*after, until, until, limit),
    )


def unfinished(connection: Connection[Any], job: Job | None, after: int, limit: int) -> list[Hide]:
    """Return hides that no job but this one has in its hands, and whose end is not known, by id."""
    return _hides(
        connection,
        """
        (h.hidden_at IS NULL OR h.purging_at IS NOT NULL) AND h.id > %s
        AND (h.run_id, h.taken) IS DISTINCT FROM (%s::bigint, %s::int) ORDER BY h.id LIMIT %s
        """,
        (after, None if job is None else job.id, None if job is None else job.taken, limit),
    )


def concealed(connection: Connection[Any], limit: int, after: int = 0) -> tuple[list[Hide], list[Digest]]:
    """Return what is needed and not served: hides to be undone, and blobs that were purged and came again.

    Of each so many, of blobs whose ids are greater than `after`.
    """
    hides = _hides(connection, f"{IS_WANTED} AND b.id > %s ORDER BY b.id LIMIT %s", (after, limit))
    purged = connection.execute(
        f"""
        SELECT b.digest FROM blobs b WHERE {IS_WANTED} AND b.state = {BlobState.PURGED:d} AND b.id > %s
        ORDER BY b.id LIMIT %s
        """,
        (after, limit),
    )
    return hides, [Digest(row[0]) for row in purged]


def asked_back(connection: Connection[Any], limit: int, after: int = 0) -> list[Hide]:
    """Return hides that an operator asked to undo (gc/controls.py), though nothing needs the blob, by id."""
    condition = "h.asked_at IS NOT NULL AND b.unreferenced_since IS NOT NULL AND h.id > %s ORDER BY h.id LIMIT %s"
    return _hides(connection, condition, (after, limit))


def hide(connection: Connection[Any], number: int) -> Hide | None:
    """Return a hide as it is now; None if it is over."""
    found = _hides(connection, "h.id = %s", (number,))
    return found[0] if found else None


def hide_of(connection: Connection[Any], digest: Digest) -> Hide | None:
    """Return the hide of a blob; None if there is none."""
    found = _hides(connection, "b.digest = %s", (digest,))
    return found[0] if found else None


_HIDES = """
SELECT h.id, h.blob_id, b.digest, b.state, b.unreferenced_since IS NULL,
       b.unreferenced_since IS DISTINCT FROM h.unreferenced_since, p.digest IS NOT NULL,
       h.intended_at, h.permitted_at, h.hidden_at, h.purging_at, h.size, h.marker, h.versions, clock_timestamp(),
       h.asked_why
FROM hides h JOIN blobs b ON b.id = h.blob_id LEFT JOIN pins p ON p.digest = b.digest
WHERE
"""


def _hides(connection: Connection[Any], condition: str, values: Sequence[Any]) -> list[Hide]:
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
        for row in connection.execute(_HIDES + condition, values)
    ]


def begin_purge(connection: Connection[Any], job: Job, hides: Sequence[Hide], evidence: dict[str, Any]) -> set[int]:
    """Write down that what these hides recorded is about to be deleted; return those that still may be.

    Also of those whose purge another job began. Raises TakenOverError, and StoppedCollectingError.
    """
    with connection.transaction():
        _ours(connection, job)
        # One that was pinned since the plan stays hidden as it is.
        wanted = [each.id for each in hides]
        ours = _locked(connection, wanted, BlobState.HIDDEN, BlobState.PURGING) - _pinned(connection, wanted)
        taken = [each for each in hides if each.id in ours]
        lifecycle.tell(connection, [each.blob for each in taken], BlobEvent.PURGE)
        connection.execute(
            """
            UPDATE hides SET purging_at = coalesce(purging_at, clock_timestamp()), run_id = %s, taken = %s
            WHERE id = ANY(%s::bigint[])
            """,
            (job.id, job.taken, integers(sorted(ours))),
        )
        ledger.write(
            connection,
            [
                Entry(
                    each.digest,
                    Decision.PURGE,
                    "hidden for long enough, everybody has reported since, and nothing needed it",
                    evidence | {"hidden_at": None if each.hidden_at is None else each.hidden_at.isoformat()},
                    job.id,
                    each.id,
                )
                for each in taken
            ],
        )
    return ours


def purged(connection: Connection[Any], job: Job, done: Sequence[Purged]) -> None:
    """Note that these hides are over, and what storage gave back. Raises TakenOverError."""
    with connection.transaction():
        jobs.hold(connection, job)
        numbers = _blobs_first(connection, [each.hide.id for each in done])
        over = [each for each in done if each.hide.id in numbers]
        lifecycle.tell(connection, [each.hide.blob for each in over], BlobEvent.PURGED)
        connection.execute("DELETE FROM hides WHERE id = ANY(%s::bigint[])", (integers(each.hide.id for each in over),))
        ledger.write(
            connection,
            [
                Entry(
                    each.hide.digest,
                    Decision.PURGED,
                    "what its hide had recorded is deleted",
                    {"freed_bytes": each.freed, "deleted": each.deletes},
                    job.id,
                    each.hide.id,
                )
                for each in over
            ],
        )


def shown(connection: Connection[Any], found: Hide, why: str) -> bool:
    """Note that a hide is over, and its blob is served again; False if it was over before.

    Only once no delete of the hide can land any more, and the bytes were seen after that (rules 8 and 14).
    """
    with connection.transaction():
        if not _blobs_first(connection, [found.id]):
            return False
        now = hide(connection, found.id)
        if now is None or (now.permitted_at, now.purging_at) != (found.permitted_at, found.purging_at):
            # A delete was let go since: what was looked at is not what counts.
            return False
        lifecycle.tell(connection, [found.blob], BlobEvent.SHOWN)
        connection.execute("DELETE FROM hides WHERE id = %s", (found.id,))
        # A table from before this would purge what is served again.
        mark.advance(connection)
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
        ledger.write(connection, [Entry(found.digest, decision, why, evidence, None, found.id)])
    return True


def give_back(
    connection: Connection[Any], job: Job, found: Sequence[tuple[Hide, Decision, str, dict[str, Any]]]
) -> None:
    """Void hides by a look at storage: nothing is deleted for them any more, and they are restored.

    Their blobs' time without references begins anew, so that the hides are *disturbed*. Raises TakenOverError.
    """
    with connection.transaction():
        jobs.hold(connection, job)
        numbers = _blobs_first(connection, [hide.id for hide, _, _, _ in found])
        void = [each for each in found if each[0].id in numbers]
        connection.execute(
            """
            UPDATE blobs SET unreferenced_since = clock_timestamp()
            WHERE id = ANY(%s::bigint[]) AND unreferenced_since IS NOT NULL
            """,
            (integers(hide.blob for hide, _, _, _ in void),),
        )
        ledger.write(
            connection,
            [Entry(hide.digest, decision, why, evidence, job.id, hide.id) for hide, decision, why, evidence in void],
        )


def keep(connection: Connection[Any], job: Job, kept: Sequence[tuple[Digest, str, dict[str, Any]]]) -> None:
    """Note that blobs are kept against the plan."""
    ledger.write(connection, [Entry(digest, Decision.KEPT, why, evidence, job.id) for digest, why, evidence in kept])


def recent_runs(connection: Connection[Any], limit: int) -> list[Amount]:
    """Return what each of the last runs took that were done, the newest first."""
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


def open_hides(connection: Connection[Any], wanted: Sequence[Digest]) -> set[tuple[Digest, int]]:
    """Return (digest, hide) of hides that are not over, of these blobs."""
    found = connection.execute(
        "SELECT b.digest, h.id FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE b.digest = ANY(%b::bytea[])",
        ([bytes(each) for each in wanted],),
    )
    return {(Digest(row[0]), row[1]) for row in found}


def _ours(connection: Connection[Any], job: Job) -> None:
    """Make sure that the job is ours until the transaction ends, and that nothing stops it now."""
    jobs.hold(connection, job)
    # Without a lock: a job that hangs here must not keep anybody from switching off.
    on = connection.execute("SELECT enabled, why FROM gc_switch").fetchone()
    if on is None or not on[0]:
        why = "it was never switched on" if on is None else on[1]
        raise StoppedCollectingError(
            f"Garbage collection is switched off ({why}): `baleen gc on --why …` switches it on."
        )
    held = connection.execute("SELECT scope, why FROM holds ORDER BY scope LIMIT 1").fetchone()
    if held is not None:
        raise StoppedCollectingError(f"{held[0]} is held ({held[1]}): `baleen release {held[0]}` lets go.")
    claimed = connection.execute("SELECT FROM gc_mark WHERE claimed_at IS NOT NULL").fetchone()
    if claimed is not None:
        raise StoppedCollectingError("The last claim is not verified: `baleen audit --repair`, see `baleen gc status`.")


def _locked(connection: Connection[Any], hides: Sequence[int], *states: BlobState) -> set[int]:
    """Lock the blobs of hides; return the hides that are not over, undisturbed, and in one of the states."""
    found = connection.execute(
        """
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id
        WHERE h.id = ANY(%s::bigint[]) AND b.state = ANY(%s::smallint[])
          AND b.unreferenced_since = h.unreferenced_since
        ORDER BY b.id FOR NO KEY UPDATE OF b
        """,
        (integers(hides), integers(states)),
    )
    locked = [row[0] for row in found]
    return (locked and _existing(connection, locked)) or set()


def _pinned(connection: Connection[Any], hides: Sequence[int]) -> set[int]:
    """Return those hides whose blobs are pinned."""
    found = connection.execute(
        """
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id JOIN pins p ON p.digest = b.digest
        WHERE h.id = ANY(%s::bigint[])
        """,
        (integers(hides),),
    )
    return {row[0] for row in found}


def _blobs_first(connection: Connection[Any], hides: Sequence[int]) -> set[int]:
    """Lock the blobs of hides; return those hides that are not over."""
    found = connection.execute(
        """
        SELECT h.id FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE h.id = ANY(%s::bigint[])
        ORDER BY b.id FOR NO KEY UPDATE OF b
        """,
        (integers(hides),),
    )
    return _existing(connection, [row[0] for row in found])


def _existing(connection: Connection[Any], hides: Sequence[int]) -> set[int]:
    """Of hides whose blobs are locked, those that are not over: the locks may have waited for who ended them."""
    found = connection.execute("SELECT id FROM hides WHERE id = ANY(%s::bigint[])", (integers(hides),))
    return {row[0] for row in found}
