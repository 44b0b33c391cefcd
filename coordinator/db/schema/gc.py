"""Tables of garbage collection: pending hides, controls, and the record of what it did.

    blobs ─ hides     claims     pins     holds     gc_switch     gc_ledger
    gc_leftovers     gc_unlinks     gc_mark     root_listing

A row of `hides` exists from the intent to hide a blob until the blob is purged or served again; then only the ledger
has it. So if there is no row with a hide's id, nothing of that hide remains to be done or undone.
Not here: SQL that changes them (gc/table.py, gc/controls.py, table/ledger.py, leftovers/table.py).
"""

from sqlalchemy import BigInteger, Boolean, ForeignKey, Integer, SmallInteger, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from coordinator.db.schema.columns import (
    BEGIN,
    NOW,
    TRUE,
    ZERO,
    check,
    column,
    digest,
    identity,
    index,
    table,
    time,
)

#: One hide of one blob, from its intent on.
hides = table(
    "hides",
    identity(BigInteger),
    column("blob_id", BigInteger, ForeignKey("blobs.id")),
    # The job, and how often it had been taken.
    column("run_id", BigInteger),
    column("taken", Integer),
    # t_u: the blob's `unreferenced_since` when it was decided. If it differs now, the blob was needed meanwhile.
    time("unreferenced_since"),
    time("intended_at", default=NOW),
    # When a delete of this hide was last sent to the store: written before it is sent.
    time("permitted_at", null=True),
    # t_h: read after the store answered the delete. NULL while it is not known whether it took effect.
    time("hidden_at", null=True),
    # Bytes of the hidden objects, by the store.
    column("size", BigInteger, null=True),
    # In a bucket with versions: the delete marker, and [version, bytes] of every version below it.
    column("marker", Text, null=True),
    column("versions", JSONB, null=True),
    time("purging_at", null=True),
    # An operator asked for the blob back.
    time("asked_at", null=True),
    column("asked_why", Text, null=True),
    index("uq_hides_blob_id", "blob_id", unique=True),
    index("ix_hides_hidden_at", "hidden_at", "id", where="hidden_at IS NOT NULL AND purging_at IS NULL"),
    # Unfinished hides; empty except for those of running jobs and of crashes.
    index("ix_hides_unfinished", "id", where="hidden_at IS NULL OR purging_at IS NOT NULL"),
    index("ix_hides_asked", "id", where="asked_at IS NOT NULL"),
)

#: A blob that a registry confirms without asking the object store, as the last run that asked its pod found (rule 18).
claims = table(
    "claims", column("blob_id", BigInteger, ForeignKey("blobs.id", ondelete="CASCADE"), key=True), column("pod", Text)
)

#: A blob that is never collected.
pins = table("pins", digest(key=True), column("why", Text), time("pinned_at", default=BEGIN))

#: A hold. While there is one, nothing is collected: pods share blobs.
holds = table(
    "holds",
    # A pod, or a prefix of repositories' names.
    column("scope", Text, key=True),
    column("why", Text),
    time("held_at", default=BEGIN),
)

#: The kill switch: one row. Without it, or if it cannot be read, nothing is deleted.
gc_switch = table(
    "gc_switch",
    column("id", SmallInteger, default="1", key=True),
    column("enabled", Boolean),
    column("why", Text),
    time("changed_at", default=BEGIN),
    check("one", "id = 1"),
)

#: A decision about a blob, or its result. Never changed or deleted.
gc_ledger = table(
    "gc_ledger",
    identity(BigInteger),
    time("at", default=NOW),
    digest(),
    # One of table/ledger.py, Decision.
    column("decision", Text),
    # The job; NULL for a restore by a worker.
    column("run_id", BigInteger, null=True),
    column("hide_id", BigInteger, null=True),
    column("why", Text),
    column("evidence", JSONB, default="{}"),
    index("ix_gc_ledger_digest", "digest", "id"),
    index("ix_gc_ledger_run_id", "run_id", "id"),
    index("ix_gc_ledger_shown", "id", where="decision = 'shown-by-others'"),
)

#: What one run deleted of one kind of leftovers (leftovers/run.py): one row, whose counts only grow.
gc_leftovers = table(
    "gc_leftovers",
    column("run_id", BigInteger, key=True),
    # uploads, parts, versions, links, copies, markers.
    column("kind", Text, key=True),
    time("began_at", default=NOW),
    # When the run had finished this kind; NULL if it did not finish.
    time("ended_at", null=True),
    # Upload sessions, uploads in parts, versions, links, copies, markers.
    column("count", BigInteger, default="0"),
    # By the listings of the store.
    column("bytes", BigInteger, default="0"),
    # What the store did not delete.
    column("failed", BigInteger, default="0"),
    # The least age, the first one that was deleted, and where the next run continues.
    column("evidence", JSONB, default="{}"),
    index("ix_gc_leftovers_ended_at", "kind", "ended_at", where="ended_at IS NOT NULL"),
)

#: A link of a purged blob: its delete may be under way, or clients may have relied on the link until it landed.
gc_unlinks = table(
    "gc_unlinks",
    identity(BigInteger),
    # The job, and how often it had been taken.
    column("run_id", BigInteger),
    column("taken", Integer),
    column("repository", Text),
    digest(),
    time("intended_at", default=NOW),
    # When its delete was last sent to the store: written before it is sent.
    time("permitted_at", null=True),
)

#: The database's side of the mark: its identity and epoch, compared with the mark in the bucket (gc/mark.py).
gc_mark = table(
    "gc_mark",
    # There is one row.
    column("id", Boolean, default=TRUE, key=True),
    column("database", UUID(as_uuid=False), default=func.gen_random_uuid()),
    # Grows with every run, every hide that is undone, and every change of pods, prefixes, switch, holds and pins.
    column("epoch", BigInteger, default=ZERO),
    # The latest epoch that was written to the bucket, or is about to be.
    column("writing", BigInteger, default=ZERO),
    # The latest epoch that the bucket is known to have had.
    column("written", BigInteger, default=ZERO),
    # When a write began whose result is not known yet.
    time("writing_since", null=True),
    # The instance of the database that wrote (domain/mark.py).
    column("instance", Text, null=True),
    # Why bucket and database do not match, as the last comparison found.
    column("refused", Text, null=True),
    # The last claim, until it is verified.
    time("claimed_at", null=True),
    column("claimed_why", Text, null=True),
    # No delete of the lost history can land any more from then on.
    time("verify_from", null=True),
    check("one", "id"),
)

#: The last listing of the root for repositories that no pod owns: one row, or none before the first.
root_listing = table(
    "root_listing",
    column("id", Boolean, default=TRUE, key=True),
    # By the database's clock, before the first request.
    time("began_at"),
    # The prefixes of all pods at that time: what was below them was not listed.
    column("prefixes", ARRAY(Text)),
    # Folders below `repositories/` that none of these owns.
    column("unowned", ARRAY(Text)),
    # `unowned` has all of them.
    column("complete", Boolean),
    check("one", "id"),
)
