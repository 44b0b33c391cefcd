"""The queue of jobs: requested by operators or by Baleen, run by a scheduler, and resumed by another if it fails.

    waiting -- take --> running -- finish --> done
                        |  ^  |
                        |  |  +---- fail ---> failed
                        +--+ take, once its worker is silent

A job has at most one worker that may write: `take_job` increments `taken`, and every write names the number that its
writer got. A worker that was delayed and lost the job finds another number, and writes nothing (TakenOverError).
Only the job's record is fenced: what a job does to the table must be right, whichever worker does it and however often.
Not here: threads and pulses (coordinator/jobs/work.py), what jobs do (coordinator/reconcile, coordinator/pods).
"""

import datetime
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.types.json import Jsonb

from coordinator.domain.names import PodName
from coordinator.errors import BaleenError

#: A worker without a pulse for this time is taken for dead: several times the interval of its pulse.
SILENCE = timedelta(minutes=1)
#: The pause before Baleen asks again for a failed job: doubled with each failure, up to LONGEST_PAUSE.
PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(hours=1)
#: After a job that was done, the pause is as long as the job took, from SHORT_PAUSE to PAUSE, so that a pod is not
#: listed all the time.
SHORT_PAUSE = timedelta(seconds=5)
#: The name in job_parts of what is done after the parts; no part has this name.
_REST_PART = ""
#: Finished jobs of a kind that are kept for each pod.
JOBS_KEPT = 100


class Job(NamedTuple):
    """A job, as its worker has it."""

    id: int
    kind: str
    #: None for a collection, which concerns all pods.
    pod_id: int | None
    pod: PodName | None
    why: str
    #: When it was first taken, by the database's clock: before it reads anything outside the database.
    began_at: datetime.datetime
    #: How often it was taken: a worker with a smaller number has lost it.
    taken: int
    progress: dict[str, Any]
    options: Mapping[str, Any] = MappingProxyType({})
    #: The instance of the database that it was taken from (domain/mark.py): the job knows no other. None: not compared.
    instance: str | None = None

    @property
    def required_pod_id(self) -> int:
        """The pod's id, of a job that is of one."""
        assert self.pod_id is not None
        return self.pod_id


class TakenOverError(BaleenError):
    """Another worker has the job, or it was ended: the caller must stop working on it."""


def take_job(connection: Connection[Any], kinds: Collection[str]) -> Job | None:
    """Take the oldest job of these kinds that has no live worker, or return None."""
    row = connection.execute(
        """
        UPDATE jobs j SET state = 'running', taken = taken + 1, alive_at = clock_timestamp(),
               began_at = coalesce(began_at, clock_timestamp())
        WHERE j.id = (
            SELECT id FROM jobs
            WHERE kind = ANY(%s) AND (state = 'waiting'
                  OR (state = 'running' AND (alive_at IS NULL OR alive_at < clock_timestamp() - %s)))
            ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING j.id, j.kind, j.pod_id, (SELECT name FROM pods p WHERE p.id = j.pod_id), j.why, j.began_at, j.taken,
                  j.progress, j.options, gc_instance()
        """,
        (sorted(kinds), SILENCE),
    ).fetchone()
    return None if row is None else Job(*row)


def record_beat(connection: Connection[Any], job: Job, progress: Mapping[str, Any]) -> None:
    """Record that the job is alive, and its progress; raises TakenOverError."""
    _check_own(
        job,
        connection.execute(
            """
            UPDATE jobs SET alive_at = clock_timestamp(), progress = %s
            WHERE id = %s AND taken = %s AND state = 'running' AND gc_instance() = coalesce(%s, gc_instance())
            """,
            (Jsonb(progress), job.id, job.taken, job.instance),
        ).rowcount,
    )


def lock_job(connection: Connection[Any], job: Job) -> None:
    """Lock the job for its worker until the transaction ends; raises TakenOverError.

    It also raises if the database failed over or was restored since the job was taken: it may have a job with this id,
    but what this worker knows belongs to another history.
    """
    found = connection.execute(
        """
        SELECT FROM jobs
        WHERE id = %s AND taken = %s AND state = 'running' AND gc_instance() = coalesce(%s, gc_instance()) FOR UPDATE
        """,
        (job.id, job.taken, job.instance),
    )
    _check_own(job, found.rowcount)


def release_job(connection: Connection[Any], job: Job, progress: Mapping[str, Any]) -> None:
    """Release the job, so that another worker can take it at once; no effect if this worker has lost it."""
    connection.execute(
        "UPDATE jobs SET alive_at = NULL, progress = %s WHERE id = %s AND taken = %s AND state = 'running'",
        (Jsonb(progress), job.id, job.taken),
    )


def finish_job(connection: Connection[Any], job: Job, progress: Mapping[str, Any], kept: int = JOBS_KEPT) -> None:
    """Record that the job is done, in the transaction of its last effects; raises TakenOverError."""
    _end_job(connection, job, "done", progress, None, kept)


def fail_job(
    connection: Connection[Any], job: Job, progress: Mapping[str, Any], error: str, kept: int = JOBS_KEPT
) -> None:
    """Record that the job has failed, and why; raises TakenOverError."""
    _end_job(connection, job, "failed", progress, error, kept)


def _end_job(
    connection: Connection[Any], job: Job, state: str, progress: Mapping[str, Any], error: str | None, kept: int
) -> None:
    _check_own(
        job,
        connection.execute(
            """
            UPDATE jobs SET state = %s, finished_at = clock_timestamp(), progress = %s, error = %s
            WHERE id = %s AND taken = %s AND state = 'running' AND gc_instance() = coalesce(%s, gc_instance())
            """,
            (state, Jsonb(progress), error, job.id, job.taken, job.instance),
        ).rowcount,
    )
    # Listed repositories are no longer needed, including those of jobs that were ended otherwise (pods/clock.py) or
    # whose worker continued for a moment.
    connection.execute(
        """
        DELETE FROM job_repositories r USING jobs j
        WHERE j.id = r.job_id AND j.pod_id = %s AND j.kind = %s AND j.finished_at IS NOT NULL
        """,
        (job.pod_id, job.kind),
    )
    # The last job that was done stays, however many failed after it: it says up to when the pod is known.
    connection.execute(
        """
        WITH of_kind AS (
            SELECT id, state FROM jobs WHERE pod_id IS NOT DISTINCT FROM %(pod)s AND kind = %(kind)s
        )
        DELETE FROM jobs j USING of_kind k
        WHERE j.id = k.id AND j.finished_at IS NOT NULL
          AND j.id < (SELECT min(id) FROM (SELECT id FROM of_kind ORDER BY id DESC LIMIT %(kept)s) newest)
          AND j.id IS DISTINCT FROM (SELECT max(id) FROM of_kind WHERE state = 'done')
        """,
        {"pod": job.pod_id, "kind": job.kind, "kept": kept},
    )


def _check_own(job: Job, rows: int) -> None:
    if not rows:
        raise TakenOverError(f"Job {job.id} is lost: another worker has it, or the database failed over.")


def write_parts(connection: Connection[Any], job: Job, names: Iterable[str]) -> None:
    """Store the names of the job's parts, unless it has any; raises TakenOverError."""
    with connection.transaction():
        lock_job(connection, job)
        connection.execute(
            """
            INSERT INTO job_parts (job_id, name) SELECT %(job)s, unnest(%(names)s::text[])
            WHERE NOT EXISTS (SELECT FROM job_parts WHERE job_id = %(job)s AND name <> %(rest)s)
            """,
            {"job": job.id, "names": list(names), "rest": _REST_PART},
        )


def read_parts(connection: Connection[Any], job: Job) -> dict[str, dict[str, Any] | None]:
    """Return the job's parts by name, with the counts of those that are done, and None for others."""
    found = connection.execute(
        "SELECT name, counts, done_at IS NOT NULL FROM job_parts WHERE job_id = %s AND name <> %s ORDER BY name",
        (job.id, _REST_PART),
    )
    return {row[0]: row[1] if row[2] else None for row in found}


def record_part_done(connection: Connection[Any], job: Job, name: str, counts: Mapping[str, Any]) -> None:
    """Record that a part is done; raises TakenOverError."""
    with connection.transaction():
        lock_job(connection, job)
        connection.execute(
            "UPDATE job_parts SET done_at = clock_timestamp(), counts = %s WHERE job_id = %s AND name = %s",
            (Jsonb(counts), job.id, name),
        )


def record_rest_done(connection: Connection[Any], job: Job) -> None:
    """Record that what follows the parts is done, too; raises TakenOverError.

    If a database has this row, it also has everything that was committed before it: `read_unfinished_parts` checks
    that.
    """
    with connection.transaction():
        lock_job(connection, job)
        connection.execute(
            """
            INSERT INTO job_parts (job_id, name, done_at, counts) VALUES (%s, %s, clock_timestamp(), '{}')
            ON CONFLICT (job_id, name) DO UPDATE SET done_at = excluded.done_at
            """,
            (job.id, _REST_PART),
        )


def read_unfinished_parts(connection: Connection[Any], job: Job, names: Collection[str]) -> list[str]:
    """Return the names of all parts, these and others of the job, that the database does not have as done.

    A database that failed over or was restored may have lost acknowledged commits. It loses the newest first: if it has
    a part as done, it has what the part has written.
    """
    found = connection.execute(
        """
        SELECT coalesce(p.name, d.name) FROM unnest(%s::text[]) d (name)
        FULL JOIN (SELECT name, done_at, counts FROM job_parts WHERE job_id = %s) p ON p.name = d.name
        WHERE p.done_at IS NULL OR p.counts IS NULL ORDER BY 1
        """,
        ([*names, _REST_PART], job.id),
    )
    return [row[0] for row in found]


def request_collection(connection: Connection[Any], every: timedelta) -> int | None:
    """Request a collection if GC is on and none began for `every`; return the job's id."""
    row = connection.execute(
        """
        INSERT INTO jobs (kind, why) SELECT 'gc', 'it is time'
        WHERE EXISTS (SELECT FROM gc_switch WHERE enabled)
          AND NOT EXISTS (SELECT FROM jobs WHERE kind = 'gc' AND NOT coalesce((options ->> 'dry')::bool, false)
                          AND (state IN ('waiting', 'running') OR began_at > now() - %s))
        ON CONFLICT DO NOTHING RETURNING id
        """,
        (every,),
    ).fetchone()
    return None if row is None else int(row[0])


def request_needed_reconciles(connection: Connection[Any], every: timedelta, request_bound: timedelta) -> list[int]:
    """Request a reconcile of each pod that needs one, with the reasons; return the jobs' ids.

    Only a reconcile that was done counts, and none with a begin in the future. Pods whose links are not in shared
    storage cannot be reconciled. An unmanaged pod needs one with each collection: what was hidden before it began is
    purged by the next.
    """
    found = connection.execute(
        """
        WITH state AS (
            SELECT p.id, p.name, p.managed, done.began_at,
                   (SELECT min(first_seen) FROM processes o WHERE o.pod_id = p.id) AS echoed_at,
                   (SELECT max(finished_at) FROM jobs j WHERE j.pod_id = p.id AND j.kind = 'reconcile') AS finished_at,
                   done.finished_at - done.began_at AS took,
                   (SELECT count(*) FROM jobs j WHERE j.pod_id = p.id AND j.kind = 'reconcile' AND j.state = 'failed'
                    AND j.id > coalesce(done.id, 0)) AS failures
            FROM pods p LEFT JOIN LATERAL (
                SELECT id, began_at, finished_at FROM jobs j
                WHERE j.pod_id = p.id AND j.kind = 'reconcile' AND j.state = 'done' AND j.began_at <= clock_timestamp()
                ORDER BY id DESC LIMIT 1
            ) done ON true
            WHERE p.is_reconcilable AND NOT EXISTS (
                SELECT FROM jobs j
                WHERE j.pod_id = p.id AND j.kind = 'reconcile' AND j.state IN ('waiting', 'running'))
        ), needed AS (
            SELECT s.id, concat_ws('; ',
                CASE WHEN s.began_at IS NULL THEN 'it was never reconciled'
                     WHEN s.began_at < now() - %(every)s THEN 'the last reconcile is long ago'
                     WHEN s.began_at < s.echoed_at + %(bound)s AND s.echoed_at + %(bound)s <= now()
                     THEN 'what it held before its first event was not compared' END,
                CASE WHEN NOT s.managed AND EXISTS (
                        SELECT FROM jobs c WHERE c.kind = 'gc' AND c.asked_at > s.began_at
                          AND NOT coalesce((c.options ->> 'dry')::bool, false))
                     THEN 'a collection was asked for, and its registry sends no events' END,
                CASE WHEN EXISTS (SELECT FROM gaps g WHERE g.pod_id = s.id AND g.resolved_at IS NULL
                                  AND g.resolves_from <= now())
                     THEN 'events may have been lost' END,
                CASE WHEN EXISTS (SELECT FROM processes o WHERE o.pod_id = s.id AND o.retired_at IS NULL
                                  AND o.dead_since + %(bound)s <= now())
                     THEN 'a registry process died' END,
                CASE WHEN EXISTS (SELECT FROM probes a
                                  WHERE a.pod_id = s.id AND a.answered_at IS NOT NULL AND NOT a.echoed
                                    AND a.sent_at <= now() - %(bound)s / 2
                                  GROUP BY a.url, a.address HAVING max(a.answered_at) <= now() - %(bound)s)
                     THEN 'a registry process answered probes and sent no events' END,
                CASE WHEN EXISTS (SELECT FROM dead_letters d WHERE d.pod = s.name AND d.resolved_at > s.began_at
                                  AND d.resolution <> 'reconciled')
                     THEN 'a dead letter was resolved' END,
                CASE WHEN EXISTS (SELECT FROM dead_letters d WHERE d.resolved_at IS NULL AND d.stored_at > s.began_at
                                  AND (d.pod = s.name OR d.repositories IS NULL OR EXISTS (
                                       SELECT FROM unnest(d.repositories) n (name)
                                       JOIN pod_prefixes x ON x.pod_id = s.id
                                        AND (n.name = x.prefix OR starts_with(n.name, x.prefix || '/')))))
                     THEN 'a dead letter may report something that it has' END) AS why
            FROM state s
            WHERE s.finished_at IS NULL
               OR s.finished_at < now() - CASE
                  WHEN s.failures = 0 THEN greatest(%(short)s, least(%(pause)s, s.took))
                  ELSE least(%(longest)s, %(pause)s * 2 ^ least(20, s.failures - 1)) END
        )
        INSERT INTO jobs (kind, pod_id, why) SELECT 'reconcile', id, why FROM needed WHERE why <> ''
        ON CONFLICT DO NOTHING RETURNING id
        """,
        {"every": every, "bound": request_bound, "short": SHORT_PAUSE, "pause": PAUSE, "longest": LONGEST_PAUSE},
    )
    return [row[0] for row in found]
