"""Tables of pods' registry processes, their watermarks and findings, and of jobs.

    pods ─< endpoints >─ sources ─< watermarks
    pods ─< probes    pods ─< findings    pods ─< failed_examinations    pods ─< token_refusals
    pods ─< jobs ─< job_parts    lifecycle_outbox

A *source* is one registry process. W(source, partition), a row of `watermarks`, is a time by the database's clock such
that every event of that source whose request finished before it, and that belongs to the partition, is applied.
Not here: how a pod's watermark follows from these (domain/watermarks.py).
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

    It counts for the pod's watermark until it is retired: by a reconcile that began late enough after its death was
    known, or by an operator with a reason.
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
    #: When it was first known to have ended.
    dead_since: Mapped[datetime.datetime | None]
    dead_why: Mapped[str | None]
    retired_at: Mapped[datetime.datetime | None]
    retired_why: Mapped[str | None]
    #: Incremented each time that it counts again after it was dead or retired: its configuration may have changed.
    life: Mapped[int] = mapped_column(Integer, server_default="1")
    #: The life that the doctor's last visit examined.
    examined_life: Mapped[int | None] = mapped_column(Integer)
    #: When it returned a probe again after a long silence (domain/watermarks.py, `was_paused`).
    paused_until: Mapped[datetime.datetime | None]


class Watermark(Base):
    """W(source, partition); moves only forward, unless the clock was set back (pods/clock.py).

    Also for registry.dead-letters: a dead letter blocks GC only once it is in the table.
    """

    __tablename__ = "watermarks"
    __table_args__ = (PrimaryKeyConstraint("source_id", "topic", "partition"),)

    source_id: Mapped[int] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    topic: Mapped[str] = mapped_column(server_default="registry.events")
    partition: Mapped[int] = mapped_column(Integer)
    #: -infinity while it is only known that the partition exists.
    at: Mapped[datetime.datetime]


class Endpoint(Base):
    """One network address of a pod's registry: a URL, and an address that its host's name resolves to."""

    __tablename__ = "endpoints"
    __table_args__ = (PrimaryKeyConstraint("pod_id", "url", "address"),)

    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    url: Mapped[str]
    address: Mapped[str]
    first_seen: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: The last look-up that gave this address; if later ones did not, it is not probed. -infinity: not known.
    resolved_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    answered_at: Mapped[datetime.datetime | None]
    #: Since when every probe has failed, and the last error.
    failing_since: Mapped[datetime.datetime | None]
    error: Mapped[str | None]
    #: When the last probe was sent whose connection was refused: no process was there.
    refused_at: Mapped[datetime.datetime | None]
    #: The process that last returned a nonce, and when that probe was sent.
    source_id: Mapped[int | None] = mapped_column(ForeignKey("sources.id", ondelete="SET NULL"))
    echoed_at: Mapped[datetime.datetime | None]
    #: More than one process answers here: an answer of another one does not prove that the first is dead.
    shared: Mapped[bool] = mapped_column(server_default=text("false"))


class Probe(Base):
    """A probe: a nonce sent to a registry. `sent_at` is taken before sending, so W never covers too much."""

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
    #: Up to when it was known which process is there, at the time of sending; None if that was never known. -infinity:
    #: it was sent while the clock was ahead, so its echo is ignored.
    known_until: Mapped[datetime.datetime | None]
    #: When the registry had answered it as expected: a process is there.
    answered_at: Mapped[datetime.datetime | None]
    #: An event has returned it, in at least one partition: it is known which process answered it.
    echoed: Mapped[bool] = mapped_column(server_default=text("false"))


class Job(Base):
    """Long work that one scheduler does and another can resume: a reconcile, a doctor's visit, a collection."""

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
    #: NULL for a collection, which concerns all pods.
    pod_id: Mapped[int | None] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    #: Why it was requested, in a sentence.
    why: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="waiting")
    asked_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: When it was first taken; a resumed job keeps it.
    began_at: Mapped[datetime.datetime | None]
    #: The last pulse of its worker; NULL while it has none.
    alive_at: Mapped[datetime.datetime | None]
    #: How often it was taken. Its worker names the number with every write: if it differs, the worker has lost the job.
    taken: Mapped[int] = mapped_column(Integer, server_default="0")
    finished_at: Mapped[datetime.datetime | None]
    #: Counts so far, and at the end what changed and why.
    progress: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    error: Mapped[str | None]
    #: Options of the request.
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class JobPart(Base):
    """A part of a job. A resumed job does only the parts that are not done."""

    __tablename__ = "job_parts"
    __table_args__ = (PrimaryKeyConstraint("job_id", "name"),)

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    #: Of a reconcile: the prefix of keys that this part lists.
    name: Mapped[str]
    done_at: Mapped[datetime.datetime | None]
    counts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class JobRepository(Base):
    """A repository whose links of one kind a reconcile has listed and compared.

    Repositories of the pod without a row at the end of the listing have no such links. Deleted at the end of the job.
    """

    __tablename__ = "job_repositories"
    __table_args__ = (PrimaryKeyConstraint("job_id", "repository_id", "kind"),)

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    repository_id: Mapped[int] = mapped_column(Integer)
    #: domain.merge.LinkKind.
    kind: Mapped[int] = mapped_column(SmallInteger)


class Finding(Base):
    """The doctor's last result for one check of a pod. What is not `proved` blocks GC."""

    __tablename__ = "findings"
    __table_args__ = (
        PrimaryKeyConstraint("pod_id", "check"),
        CheckConstraint("verdict IN ('proved', 'refuted', 'unproved')", name="verdict"),
    )

    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    check: Mapped[str]
    verdict: Mapped[str]
    #: What the result means for the pod, the evidence, and what to change and where.
    meaning: Mapped[str]
    proof: Mapped[str]
    mend: Mapped[str]
    found_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class FailedExamination(Base):
    """The scheduler's last own visit to unexamined processes of a pod, if it did not prove every check it made."""

    __tablename__ = "failed_examinations"

    pod_id: Mapped[int] = mapped_column(
        SmallInteger, ForeignKey("pods.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: Sentences for the operator.
    why: Mapped[list[str]] = mapped_column(ARRAY(Text))


class TokenRefusals(Base):
    """When events in a pod's name were first and last refused for their token. For information only."""

    __tablename__ = "token_refusals"

    pod_id: Mapped[int] = mapped_column(
        SmallInteger, ForeignKey("pods.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    since: Mapped[datetime.datetime]
    last_at: Mapped[datetime.datetime]


class LifecycleOutbox(Base):
    """A change of a blob's state that is not in blob.lifecycle yet: written with the change, published in order."""

    __tablename__ = "lifecycle_outbox"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    change: Mapped[str]
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    reference_count: Mapped[int] = mapped_column(Integer)
    link_count: Mapped[int] = mapped_column(Integer)
