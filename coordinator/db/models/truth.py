"""What is known of pods' registry processes, how far each has reported, and the jobs that find out more.

    pods ─< endpoints >─ sources ─< watermarks
    pods ─< probes    pods ─< findings    pods ─< failed_examinations    pods ─< token_refusals
    pods ─< jobs ─< job_parts    lifecycle_outbox

A *source* is one registry process. W(source, partition), a row of `watermarks`, is a time by the database's clock such
that every event of that source whose request finished before it, and that belongs to the partition, is applied.
Not here: what follows from them (domain/watermarks.py).
"""

import datetime
import uuid
from typing import Any

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.models.base import Base


class Source(Base):
    """One registry process: a pod, and the `source.instanceID` that its events carry.

    It counts for the pod's watermark until it is retired: by a reconcile that began late enough after it was known
    dead, or by an operator with a reason.
    """

    __tablename__ = "sources"
    __table_args__ = (
        UniqueConstraint("pod_id", "instance_id"),
        CheckConstraint("(dead_since IS NULL) = (dead_why IS NULL)", name="dead"),
        CheckConstraint("(retired_at IS NULL) = (retired_why IS NULL)", name="retired"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    instance_id: Mapped[str]
    first_seen: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: When its last watermark was applied.
    heard_at: Mapped[datetime.datetime | None]
    #: When it was first known to run no more.
    dead_since: Mapped[datetime.datetime | None]
    dead_why: Mapped[str | None]
    retired_at: Mapped[datetime.datetime | None]
    retired_why: Mapped[str | None]
    #: One more each time that it counts again, against what was believed: it may be configured in another way now.
    life: Mapped[int] = mapped_column(Integer, server_default="1")
    #: The life that the last visit of a doctor was of.
    examined_life: Mapped[int | None] = mapped_column(Integer)
    #: When it was heard again after it had brought no probe back for long (domain/watermarks.py, `was_paused`).
    paused_until: Mapped[datetime.datetime | None]


class Watermark(Base):
    """W(source, partition); only ever moves forward, unless the clock was set back (pods/clock.py).

    Of registry.dead-letters too: what could not be understood holds GC, but only once it is in the table.
    """

    __tablename__ = "watermarks"
    __table_args__ = (PrimaryKeyConstraint("source_id", "topic", "partition"),)

    source_id: Mapped[int] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    topic: Mapped[str] = mapped_column(server_default="registry.events")
    partition: Mapped[int] = mapped_column(Integer)
    #: -infinity while all that is known is that there is such a partition.
    at: Mapped[datetime.datetime]


class Endpoint(Base):
    """One network address of a pod's registry: a URL, and an address that its host's name resolves to."""

    __tablename__ = "endpoints"
    __table_args__ = (PrimaryKeyConstraint("pod_id", "url", "address"),)

    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    url: Mapped[str]
    address: Mapped[str]
    first_seen: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: The name led here the last time; an endpoint that it leads to no more is not probed. -infinity: not known when.
    resolved_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    answered_at: Mapped[datetime.datetime | None]
    #: Since when probes have failed without a break, and with what.
    failing_since: Mapped[datetime.datetime | None]
    error: Mapped[str | None]
    #: When the last probe was sent whose connection was refused: nobody was there.
    refused_at: Mapped[datetime.datetime | None]
    #: The process whose event brought the last nonce back, and when that probe was sent.
    source_id: Mapped[int | None] = mapped_column(ForeignKey("sources.id", ondelete="SET NULL"))
    echoed_at: Mapped[datetime.datetime | None]
    #: More than one process answers here: that another one answers does not say that the first is dead.
    shared: Mapped[bool] = mapped_column(server_default=text("false"))


class Probe(Base):
    """A nonce on its way through a registry. `sent_at` is taken before it is sent, so it never claims too much."""

    __tablename__ = "probes"
    __table_args__ = (
        Index("ix_probes_sent_at", "sent_at"),
        Index(
            "ix_probes_unheard",
            "pod_id",
            "url",
            "address",
            postgresql_where=text("answered_at IS NOT NULL AND NOT echoed"),
        ),
    )

    nonce: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    url: Mapped[str]
    address: Mapped[str]
    sent_at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    #: Up to when it was known who is there, as it was sent; None if that was never known. -infinity: it was sent while
    #: the clock was ahead, so that its echo says nothing.
    known_until: Mapped[datetime.datetime | None]
    #: When the registry had answered it as it should: somebody is there.
    answered_at: Mapped[datetime.datetime | None]
    #: An event has brought it back, in some partition at least: it is known who answered it.
    echoed: Mapped[bool] = mapped_column(server_default=text("false"))


class Job(Base):
    """Long work that one scheduler does, and that another goes on with: a reconcile, a doctor's visit, a collection."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("kind IN ('reconcile', 'doctor', 'gc')", name="kind"),
        CheckConstraint("(pod_id IS NULL) = (kind = 'gc')", name="pod"),
        CheckConstraint("state IN ('waiting', 'running', 'done', 'failed')", name="state"),
        CheckConstraint("(state IN ('done', 'failed')) = (finished_at IS NOT NULL)", name="finished"),
        # At most one of a kind is open for a pod.
        Index("uq_jobs_open", "kind", "pod_id", unique=True, postgresql_where=text("state IN ('waiting', 'running')")),
        Index(
            "uq_jobs_open_gc",
            "kind",
            unique=True,
            postgresql_where=text("pod_id IS NULL AND state IN ('waiting', 'running')"),
        ),
        Index("ix_jobs_pod_id", "pod_id", "kind", "id"),
        Index("ix_jobs_gc", "id", postgresql_where=text("kind = 'gc'")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    kind: Mapped[str]
    #: NULL of a collection, which is of all pods.
    pod_id: Mapped[int | None] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    #: Why it was asked for, for a person.
    why: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="waiting")
    asked_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: When its first look at the world began; a job that is resumed keeps it.
    began_at: Mapped[datetime.datetime | None]
    #: Whoever works on it says so now and then; NULL while nobody does.
    alive_at: Mapped[datetime.datetime | None]
    #: How often it was taken. Its worker names the number with every write: another one means that it was lost.
    taken: Mapped[int] = mapped_column(Integer, server_default="0")
    finished_at: Mapped[datetime.datetime | None]
    #: Counts so far, and at the end what was changed and why.
    progress: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    error: Mapped[str | None]
    #: What was asked for in particular.
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class JobPart(Base):
    """A part of a job that is done on its own; a resumed job does those that are not done."""

    __tablename__ = "job_parts"
    __table_args__ = (PrimaryKeyConstraint("job_id", "name"),)

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    #: Of a reconcile: the prefix of keys that this part lists.
    name: Mapped[str]
    done_at: Mapped[datetime.datetime | None]
    counts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class JobRepository(Base):
    """A repository of which a reconcile's listing showed links of a kind, and compared them.

    Those of the pod that are not here at its end were not listed. Deleted with the job's end.
    """

    __tablename__ = "job_repositories"
    __table_args__ = (PrimaryKeyConstraint("job_id", "repository_id", "kind"),)

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    repository_id: Mapped[int] = mapped_column(Integer)
    #: domain.merge.LinkKind.
    kind: Mapped[int] = mapped_column(SmallInteger)


class Finding(Base):
    """What the doctor found out about a pod the last time. What is not `proved` holds GC for the pod."""

    __tablename__ = "findings"
    __table_args__ = (
        PrimaryKeyConstraint("pod_id", "check"),
        CheckConstraint("verdict IN ('proved', 'refuted', 'unproved')", name="verdict"),
    )

    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    check: Mapped[str]
    verdict: Mapped[str]
    #: What it means for the pod, how it was found out, and what to write where to mend it.
    meaning: Mapped[str]
    proof: Mapped[str]
    mend: Mapped[str]
    found_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class FailedExamination(Base):
    """The scheduler's last own visit to processes of a pod that no visit was of, if it did not prove what it tried."""

    __tablename__ = "failed_examinations"

    pod_id: Mapped[int] = mapped_column(
        SmallInteger, ForeignKey("pods.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: Sentences for a person.
    why: Mapped[list[str]] = mapped_column(ARRAY(Text))


class TokenRefusals(Base):
    """Since when, and when last, events in a pod's name were refused for their token. Nothing is decided by it."""

    __tablename__ = "token_refusals"

    pod_id: Mapped[int] = mapped_column(
        SmallInteger, ForeignKey("pods.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    since: Mapped[datetime.datetime]
    last_at: Mapped[datetime.datetime]


class LifecycleOutbox(Base):
    """A change of a blob's state that blob.lifecycle has not got yet: written with the change, published in order."""

    __tablename__ = "lifecycle_outbox"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    change: Mapped[str]
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    reference_count: Mapped[int] = mapped_column(Integer)
    link_count: Mapped[int] = mapped_column(Integer)
