"""Tables of garbage collection: pending hides, controls, and the record of what it did.

    blobs ─ hides     pins     holds     gc_switch     gc_ledger
    gc_leftovers     gc_unlinks     gc_mark     root_listing

A row of `hides` exists from the intent to hide a blob until the blob is purged or served again; then only the ledger
has it. So if there is no row with a hide's id, nothing of that hide remains to be done or undone.
Not here: SQL that changes them (gc/table.py, gc/controls.py, table/ledger.py, leftovers/table.py).
"""

import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.models.base import Base


class Hide(Base):
    """One hide of one blob, from its intent on."""

    __tablename__ = "hides"
    __table_args__ = (
        Index("uq_hides_blob_id", "blob_id", unique=True),
        Index(
            "ix_hides_hidden_at",
            "hidden_at",
            "id",
            postgresql_where=text("hidden_at IS NOT NULL AND purging_at IS NULL"),
        ),
        # Unfinished hides; empty except for those of running jobs and of crashes.
        Index("ix_hides_unfinished", "id", postgresql_where=text("hidden_at IS NULL OR purging_at IS NOT NULL")),
        Index("ix_hides_asked", "id", postgresql_where=text("asked_at IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    blob_id: Mapped[int] = mapped_column(ForeignKey("blobs.id"))
    #: The job, and how often it had been taken.
    run_id: Mapped[int]
    taken: Mapped[int] = mapped_column(Integer)
    #: t_u: the blob's `unreferenced_since` when it was decided. If it differs now, the blob was needed meanwhile.
    unreferenced_since: Mapped[datetime.datetime]
    intended_at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    #: When a delete of this hide was last sent to the store: written before it is sent.
    permitted_at: Mapped[datetime.datetime | None]
    #: t_h: read after the store answered the delete. NULL while it is not known whether it took effect.
    hidden_at: Mapped[datetime.datetime | None]
    #: Bytes of the hidden objects, by the store.
    size: Mapped[int | None]
    #: In a bucket with versions: the delete marker, and [version, bytes] of every version below it.
    marker: Mapped[str | None]
    versions: Mapped[list[Any] | None] = mapped_column(JSONB)
    purging_at: Mapped[datetime.datetime | None]
    #: An operator asked for the blob back.
    asked_at: Mapped[datetime.datetime | None]
    asked_why: Mapped[str | None]


class Pin(Base):
    """A blob that is never collected."""

    __tablename__ = "pins"
    __table_args__ = (CheckConstraint("octet_length(digest) = 32", name="digest"),)

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    why: Mapped[str]
    pinned_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Hold(Base):
    """A hold. While there is one, nothing is collected: pods share blobs."""

    __tablename__ = "holds"

    #: A pod, or a prefix of repositories' names.
    scope: Mapped[str] = mapped_column(primary_key=True)
    why: Mapped[str]
    held_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class GcSwitch(Base):
    """The kill switch: one row. Without it, or if it cannot be read, nothing is deleted."""

    __tablename__ = "gc_switch"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1", autoincrement=False)
    enabled: Mapped[bool] = mapped_column(Boolean)
    why: Mapped[str]
    changed_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class LedgerEntry(Base):
    """A decision about a blob, or its result. Never changed or deleted."""

    __tablename__ = "gc_ledger"
    __table_args__ = (
        CheckConstraint("octet_length(digest) = 32", name="digest"),
        Index("ix_gc_ledger_digest", "digest", "id"),
        Index("ix_gc_ledger_run_id", "run_id", "id"),
        Index("ix_gc_ledger_shown", "id", postgresql_where=text("decision = 'shown-by-others'")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    #: One of table/ledger.py, Decision.
    decision: Mapped[str]
    #: The job; NULL for a restore by a worker.
    run_id: Mapped[int | None]
    hide_id: Mapped[int | None]
    why: Mapped[str]
    evidence: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class LeftoversSwept(Base):
    """What one run deleted of one kind of leftovers (leftovers/run.py): one row, whose counts only grow."""

    __tablename__ = "gc_leftovers"
    __table_args__ = (
        PrimaryKeyConstraint("run_id", "kind"),
        Index("ix_gc_leftovers_ended_at", "kind", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    )

    run_id: Mapped[int]
    #: uploads, parts, versions, links, copies, markers.
    kind: Mapped[str]
    began_at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    #: When the run had finished this kind; NULL if it did not finish.
    ended_at: Mapped[datetime.datetime | None]
    #: Upload sessions, uploads in parts, versions, links, copies, markers.
    count: Mapped[int] = mapped_column(server_default="0")
    #: By the listings of the store.
    bytes: Mapped[int] = mapped_column(server_default="0")
    #: What the store did not delete.
    failed: Mapped[int] = mapped_column(server_default="0")
    #: The least age, the first one that was deleted, and where the next run continues.
    evidence: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class Unlink(Base):
    """A link of a purged blob: its delete may be under way, or clients may have relied on the link until it landed."""

    __tablename__ = "gc_unlinks"
    __table_args__ = (CheckConstraint("octet_length(digest) = 32", name="digest"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    #: The job, and how often it had been taken.
    run_id: Mapped[int]
    taken: Mapped[int] = mapped_column(Integer)
    repository: Mapped[str]
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    intended_at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    #: When its delete was last sent to the store: written before it is sent.
    permitted_at: Mapped[datetime.datetime | None]


class Mark(Base):
    """The database's side of the mark: its identity and epoch, compared with the mark in the bucket (gc/mark.py)."""

    __tablename__ = "gc_mark"
    __table_args__ = (CheckConstraint("id", name="one"),)

    #: There is one row.
    id: Mapped[bool] = mapped_column(Boolean, primary_key=True, server_default=text("true"))
    database: Mapped[str] = mapped_column(UUID(as_uuid=False), server_default=func.gen_random_uuid())
    #: Grows with every run, every hide that is undone, and every change of pods, prefixes, switch, holds and pins.
    epoch: Mapped[int] = mapped_column(server_default=text("0"))
    #: The latest epoch that was written to the bucket, or is about to be.
    writing: Mapped[int] = mapped_column(server_default=text("0"))
    #: The latest epoch that the bucket is known to have had.
    written: Mapped[int] = mapped_column(server_default=text("0"))
    #: When a write began whose result is not known yet.
    writing_since: Mapped[datetime.datetime | None]
    #: The instance of the database that wrote (domain/mark.py).
    instance: Mapped[str | None]
    #: Why bucket and database do not match, as the last comparison found.
    refused: Mapped[str | None]
    #: The last claim, until it is verified.
    claimed_at: Mapped[datetime.datetime | None]
    claimed_why: Mapped[str | None]
    #: No delete of the lost history can land any more from then on.
    verify_from: Mapped[datetime.datetime | None]


class RootListing(Base):
    """The last listing of the root for repositories that no pod owns: one row, or none before the first."""

    __tablename__ = "root_listing"
    __table_args__ = (CheckConstraint("id", name="one"),)

    id: Mapped[bool] = mapped_column(Boolean, primary_key=True, server_default=text("true"))
    #: By the database's clock, before the first request.
    began_at: Mapped[datetime.datetime]
    #: The prefixes of all pods at that time: what was below them was not listed.
    prefixes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    #: Folders below `repositories/` that none of these owns.
    unowned: Mapped[list[str]] = mapped_column(ARRAY(Text))
    #: `unowned` has all of them.
    complete: Mapped[bool] = mapped_column(Boolean)
