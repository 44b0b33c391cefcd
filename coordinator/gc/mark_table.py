"""The database's side of the mark in the bucket: which database this is, on which instance, and in which epoch.

The epoch grows with every run, twice with every reconcile, with every hide that is undone, and with every change of
pods, prefixes, the switch, holds and pins, in the same transaction: an older database would collect blobs that it must
not. Then the mark in the bucket is written: `begin_mark_write` commits that an epoch is about to be written,
`confirm_mark_write` that the bucket has it. So the bucket is never later than `writing` nor earlier than `written`,
unless one of both went back in time.
Not here: the rules (domain/mark.py), the mark in the bucket (gc/mark.py), what status shows (gc/mark_view.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from psycopg import Connection
from psycopg.errors import LockNotAvailable

from coordinator.db.locks import MARK_LOCK
from coordinator.domain.mark import EPOCHS_LIMIT, Instance, Mark
from coordinator.domain.progress import GapReason
from coordinator.errors import BaleenError
from coordinator.gc import controls
from coordinator.table import epochs, progress

#: A write without a result may still land within this time, and replace a later mark by an earlier one. Stores refuse
#: requests with an older signature (15 minutes, with the skew of clocks on top).
DELETE_LANDS_WITHIN = timedelta(hours=1)
#: A writer that hangs for longer is ended by the next one.
LOCK_TIMEOUT_S = 5.0
#: After a claim, hides and jobs get ids that the lost history cannot have used.
ID_DISTANCE = 1_000_000_000


def read_mark(connection: Connection[Any]) -> Mark:
    row = connection.execute(_READ, (DELETE_LANDS_WITHIN,)).fetchone()
    if row is None:
        # A database that is new.
        connection.execute("INSERT INTO gc_mark DEFAULT VALUES ON CONFLICT DO NOTHING")
        row = connection.execute(_READ, (DELETE_LANDS_WITHIN,)).fetchone()
    assert row is not None
    recorded = None if row[4] is None else Instance.parse(row[4])
    return Mark(row[0], row[1], row[2], row[3], recorded, Instance.parse(row[5]), row[6], row[7])


_READ = """
SELECT database::text, epoch, writing, written, instance, gc_instance(), refused,
       coalesce(writing_since > clock_timestamp() - %s, false) FROM gc_mark
"""


def advance_epoch(connection: Connection[Any]) -> None:
    """Advance the epoch, for a change that an older state of this database does not have.

    The last statement of the transaction that makes the change.
    """
    connection.execute(epochs.ADVANCE_EPOCH)


@contextmanager
def lock_mark(connection: Connection[Any], timeout_s: float) -> Iterator[None]:
    """Lock out other writers of the mark, in all processes; raises psycopg's LockNotAvailable.

    A writer that holds the lock for longer than `timeout_s` loses its connection: a suspended one must not stop
    collection. If it had not begun to write, it can no longer do so; if it had, its write has no result, and may land
    late (`begin_mark_write`).
    """
    try:
        _take_mark_lock(connection, timeout_s)
    except LockNotAvailable:
        connection.execute(_END_HOLDERS, (MARK_LOCK,))
        _take_mark_lock(connection, timeout_s)
    try:
        yield
    finally:
        # A connection that broke has lost the lock already.
        if not connection.closed and not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s)", (MARK_LOCK,))


def _take_mark_lock(connection: Connection[Any], timeout_s: float) -> None:
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{timeout_s}s'")
        connection.execute("SELECT pg_advisory_lock(%s)", (MARK_LOCK,))


_END_HOLDERS = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND classid = 0 AND objid = %s AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def begin_mark_write(connection: Connection[Any], epoch: int) -> datetime | None:
    """Write that the bucket is about to get this epoch, from this instance; under `lock_mark`.

    Return when an earlier write without a result began, None if there is none.
    """
    with connection.transaction():
        row = connection.execute("SELECT writing_since FROM gc_mark FOR UPDATE").fetchone()
        connection.execute(
            """
            UPDATE gc_mark SET writing = greatest(writing, %s), instance = gc_instance(),
                               writing_since = clock_timestamp()
            """,
            (epoch,),
        )
    return None if row is None else row[0]


def confirm_mark_write(connection: Connection[Any], epoch: int, earlier: datetime | None) -> None:
    """Write that the bucket was read with this epoch; under `lock_mark`. `earlier` is what `begin_mark_write` returned.

    While an earlier write without a result may still land, it may replace the mark that the bucket has now.
    """
    connection.execute(
        """
        UPDATE gc_mark SET written = CASE WHEN d.earlier IS NULL THEN greatest(written, %s) ELSE written END,
                           writing_since = d.earlier
        FROM (SELECT CASE WHEN e > clock_timestamp() - %s THEN e END AS earlier FROM (SELECT %s::timestamptz AS e) x) d
        """,
        (epoch, DELETE_LANDS_WITHIN, earlier),
    )


def record_refusal(connection: Connection[Any], why: str | None) -> None:
    """Write for status why bucket and database do not match; None: they do."""
    connection.execute("UPDATE gc_mark SET refused = %(why)s WHERE refused IS DISTINCT FROM %(why)s", {"why": why})


class ClaimResult(NamedTuple):
    """The changes that a claim made."""

    #: Pods, each with a new gap that only a later reconcile resolves.
    pods: int
    #: Hides that the next run gives back.
    hides: int
    #: An audit that begins from then on verifies what is live in the table.
    verify_from: datetime | None = None


class PendingClaim(NamedTuple):
    """A claim whose verification is pending."""

    claimed_at: datetime
    verify_from: datetime
    #: Pods that were not reconciled since the claim.
    pods: Sequence[str]


class StillRunningError(BaleenError):
    """Other processes of Baleen are connected to the database."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"Other processes are connected to this database: {', '.join(names)}. Stop all processes of Baleen, and "
            "try again. If `baleen up` runs the database, stop it, and start it with `baleen up --claim WHY`."
        )


def may_have_lost_history(connection: Connection[Any]) -> bool:
    """Whether deletes may be under way that this database does not know: it lost commits, or the bucket lost writes.

    After a claim that ends once its delete bound has passed.
    """
    row = connection.execute(
        """
        SELECT coalesce(verify_from > clock_timestamp(), false) OR refused IS NOT NULL
               OR coalesce(instance <> gc_instance(), false) FROM gc_mark
        """
    ).fetchone()
    return row is not None and bool(row[0])


#: Connections of a claim, and those of `baleen up` before it: closed ones are still visible for a moment.
_NAMES_DURING_CLAIM: Final = ["baleen-claim", "baleen-migrate", "baleen-up"]


def refuse_if_running(connection: Connection[Any]) -> None:
    """Raise StillRunningError if any other process of Baleen is connected."""
    running = connection.execute(
        """
        SELECT DISTINCT application_name FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND application_name LIKE 'baleen-%%' AND application_name <> ALL (%s) ORDER BY 1
        """,
        (_NAMES_DURING_CLAIM,),
    ).fetchall()
    if running:
        raise StillRunningError([row[0] for row in running])


def count_uncertain(connection: Connection[Any]) -> tuple[int, int, int]:
    """Return the counts of pods, hides and referenced blobs that a claim makes uncertain."""
    row = connection.execute(
        """
        SELECT (SELECT count(*) FROM pods), (SELECT count(*) FROM hides),
               (SELECT count(*) FROM blobs WHERE unreferenced_since IS NULL)
        """
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def claim_bucket(connection: Connection[Any], why: str, topic: str, delete_bound: timedelta) -> ClaimResult:
    """Make this database the bucket's, however much of the bucket's history it lost.

    It becomes another database with an epoch of its own, so that no older mark, and no older state of it, matches.
    Switches GC off; restarts the unreferenced time of every blob, so that hides of this table are given back instead of
    purged; uses no id twice; records a gap for every pod; and blocks GC until an audit has verified the blobs that are
    live in the table (`end_verified_claim`). Raises StillRunningError.
    """
    with connection.transaction():
        refuse_if_running(connection)
        # Millions of blobs may be unreferenced.
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute(
            "UPDATE blobs SET unreferenced_since = clock_timestamp() WHERE unreferenced_since IS NOT NULL"
        )
        for table in ("hides", "jobs"):
            connection.execute(
                f"""
                SELECT setval(pg_get_serial_sequence('{table}', 'id'),
                              nextval(pg_get_serial_sequence('{table}', 'id')) + {ID_DISTANCE})
                """
            )
        row = connection.execute("SELECT count(*) FROM hides").fetchone()
        hides = 0 if row is None else row[0]
        pods = progress.record_log_cut(connection, topic)
        controls.set_switch(connection, why, on=False)
        row = connection.execute(
            """
            UPDATE gc_mark SET database = gen_random_uuid(),
                   epoch = CASE WHEN epoch < %(limit)s THEN epoch + 1 ELSE 1 END, writing = 0, written = 0,
                   writing_since = NULL, instance = gc_instance(), refused = NULL, claimed_at = now(),
                   claimed_why = %(why)s, verify_from = clock_timestamp() + %(bound)s
            RETURNING verify_from
            """,
            {"limit": EPOCHS_LIMIT // 2, "why": why, "bound": delete_bound},
        ).fetchone()
        return ClaimResult(pods, hides, None if row is None else row[0])


_SELECT_CLAIM = """
SELECT claimed_at, verify_from, ARRAY(
    SELECT p.name FROM pods p WHERE EXISTS (
        SELECT FROM gaps g WHERE g.pod_id = p.id AND g.reason = %(cut)s
          AND g.noticed_at <= %(at)s AND (g.resolved_at IS NULL OR g.resolved_at > %(at)s)
          AND g.resolves_from >= claimed_at)
    ORDER BY 1)
FROM gc_mark WHERE claimed_at IS NOT NULL
"""


def read_pending_claim(connection: Connection[Any], at: datetime) -> PendingClaim | None:
    """Return the claim that an audit which began at `at` leaves pending, if any, as of that time."""
    row = connection.execute(_SELECT_CLAIM, {"cut": GapReason.LOG_CUT, "at": at}).fetchone()
    return None if row is None else PendingClaim(*row)


def end_verified_claim(connection: Connection[Any], began_at: datetime, instance: str) -> PendingClaim | None:
    """End the claim if a whole audit, begun at `began_at` on this instance, has verified it; else return the claim."""
    with connection.transaction():
        pending = read_pending_claim(connection, began_at)
        if pending is None:
            return None
        if pending.verify_from > began_at or pending.pods or read_instance(connection) != instance:
            return pending
        connection.execute("UPDATE gc_mark SET claimed_at = NULL, claimed_why = NULL, verify_from = NULL")
        return None


def read_instance(connection: Connection[Any]) -> str:
    """Return the instance that answers this connection."""
    row = connection.execute("SELECT gc_instance()").fetchone()
    assert row is not None
    return str(row[0])
