"""Request, list and show jobs. Not here: running them (jobs/table.py, coordinator/jobs/work.py)."""

from typing import Any, Literal

from sqlalchemy import Engine, Row, Select, bindparam, select, text

from coordinator.db import paging
from coordinator.db.schema.jobs import jobs as table
from coordinator.db.schema.pods import pods
from coordinator.db.session import read_connection, write_transaction
from coordinator.domain.names import PodName
from coordinator.domain.pods import PodKind, check_reconcilable
from coordinator.domain.reasons import check_reason
from coordinator.errors import ConflictError, NotFoundError
from coordinator.jobs.shapes import Job, JobPage

JobKind = Literal["reconcile", "doctor", "gc"]

_JOBS: Select[Any] = select(
    *table.c["id", "kind", "why", "state", "asked_at", "began_at", "finished_at", "progress", "error"],
    pods.c.name.label("pod"),
).outerjoin_from(table, pods)
_ONE = _JOBS.where(table.c.id == bindparam("id"))
_POD = text("SELECT id, kind FROM pods WHERE name = :name FOR SHARE")
_KNOWN = text("SELECT EXISTS (SELECT FROM pods WHERE name = :name)")
_ASK = text("INSERT INTO jobs (kind, pod_id, why) VALUES (:kind, :pod, :why) ON CONFLICT DO NOTHING RETURNING id")
_OPEN = text("SELECT id FROM jobs WHERE kind = :kind AND pod_id = :pod AND state IN ('waiting', 'running')")

#: One that was open may end before it is read.
_ATTEMPTS = 3


def request_job(engine: Engine, pod: PodName, kind: JobKind, why: str) -> Job:
    """Request a job and return it, or the pod's pending job of this kind.

    Raises NotFoundError, or ConflictError for a pod that cannot be reconciled.
    """
    why = check_reason(why)
    for _ in range(_ATTEMPTS):
        with write_transaction(engine) as connection:
            row = connection.execute(_POD, {"name": pod}).one_or_none()
            if row is None:
                raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
            if kind == "reconcile":
                check_reconcilable(pod, PodKind(row.kind))
            values = {"kind": kind, "pod": row.id, "why": why}
            number = connection.scalar(_ASK, values) or connection.scalar(_OPEN, values)
            # Within the transaction: afterwards the new job may be taken already and look like one that ran before.
            row = connection.execute(_ONE, {"id": number}).one_or_none()
        if row is not None:
            return _make_job(row)
    raise ConflictError(f"Other jobs of pod {pod} began and ended at the same time: try again.")


def read_job(engine: Engine, number: int) -> Job:
    """Return one job; raises NotFoundError."""
    with read_connection(engine) as connection:
        row = connection.execute(_ONE, {"id": number}).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no job {number}: see `baleen jobs list`. Old jobs are deleted.")
    return _make_job(row)


def read_jobs(
    engine: Engine,
    *,
    pod: PodName | None = None,
    kind: JobKind | None = None,
    cursor: str | None = None,
    limit: int = paging.DEFAULT_LIMIT,
) -> JobPage:
    """Return a page of jobs, the newest first; raises NotFoundError for a pod that is not registered."""
    before = paging.decode_cursor("jobs", cursor, int) or paging.ID_LIMIT
    page = _JOBS.where(table.c.id < before).order_by(table.c.id.desc()).limit(limit)
    if pod is not None:
        page = page.where(pods.c.name == pod)
    if kind is not None:
        page = page.where(table.c.kind == kind)
    with read_connection(engine) as connection:
        rows = (connection.execute(page)).all()
        if not rows and pod is not None and not connection.scalar(_KNOWN, {"name": pod}):
            raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
    return JobPage(
        items=[_make_job(row) for row in rows],
        next=paging.encode_cursor("jobs", rows[-1].id) if len(rows) == limit else None,
    )


def _make_job(row: Row[Any]) -> Job:
    return Job(**{name: getattr(row, name) for name in Job.__struct_fields__})
