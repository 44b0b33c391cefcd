"""Tables of jobs, from the request to the result.

    pods ─< jobs ─< job_parts
                 ─< job_repositories

Not here: SQL that changes them (jobs/table.py, reconcile/table.py).
"""

from sqlalchemy import BigInteger, ForeignKey, Integer, SmallInteger, Text
from sqlalchemy.dialects.postgresql import JSONB

from coordinator.db.schema.columns import BEGIN, check, column, identity, index, pod_id, table, time

#: Long work that one scheduler does and another can resume: a reconcile, a doctor's visit, a collection.
jobs = table(
    "jobs",
    identity(BigInteger),
    column("kind", Text),
    # NULL for a collection, which concerns all pods.
    pod_id(null=True),
    # Why it was requested, in a sentence.
    column("why", Text),
    column("state", Text, default="waiting"),
    time("asked_at", default=BEGIN),
    # When it was first taken; a resumed job keeps it.
    time("began_at", null=True),
    # The last pulse of its worker; NULL while it has none.
    time("alive_at", null=True),
    # How often it was taken. Its worker names the number with every write: if it differs, the worker has lost the job.
    column("taken", Integer, default="0"),
    time("finished_at", null=True),
    # Counts so far, and at the end what changed and why.
    column("progress", JSONB, default="{}"),
    column("error", Text, null=True),
    # Options of the request.
    column("options", JSONB, default="{}"),
    check("kind", "kind IN ('reconcile', 'doctor', 'gc')"),
    check("pod", "(pod_id IS NULL) = (kind = 'gc')"),
    check("state", "state IN ('waiting', 'running', 'done', 'failed')"),
    check("finished", "(state IN ('done', 'failed')) = (finished_at IS NOT NULL)"),
    # At most one of a kind is open for a pod.
    index("uq_jobs_open", "kind", "pod_id", where="state IN ('waiting', 'running')", unique=True),
    index("uq_jobs_open_gc", "kind", where="pod_id IS NULL AND state IN ('waiting', 'running')", unique=True),
    index("ix_jobs_pod_id", "pod_id", "kind", "id"),
    index("ix_jobs_gc", "id", where="kind = 'gc'"),
)

#: A part of a job. A resumed job does only the parts that are not done.
job_parts = table(
    "job_parts",
    column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), key=True),
    # Of a reconcile: the prefix of keys that this part lists.
    column("name", Text, key=True),
    time("done_at", null=True),
    column("counts", JSONB, default="{}"),
)

#: A repository whose links of one kind a reconcile has listed and compared. Repositories of the pod without a row at
#: the end of the listing have no such links. Deleted at the end of the job.
job_repositories = table(
    "job_repositories",
    column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), key=True),
    column("repository_id", Integer, key=True),
    # domain.merge.LinkKind.
    column("kind", SmallInteger, key=True),
)
