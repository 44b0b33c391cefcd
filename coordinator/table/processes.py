"""SQL for registry processes: endpoints, probes, deaths and retirements.

Route: the prober records the addresses of names (`record_endpoints`), the probes it sends (`insert_probe`) and their
results (`record_probe_answer`, `record_probe_failure`); the batch apply records echoes (echoes.py); a reconcile retires
dead processes (`retire_dead_processes`) and resolves probes that were answered without an echo
(`delete_unechoed_probes`); an operator can retire any process (`retire_process`).

Locks: new rows of processes, by pod and instance id; then probes, by nonce; then endpoints, by their key; then
processes, by id. A transaction that has these locks takes no others after them; the batch apply takes them last. Rows
of watermarks are written only under the lock of their process.
Not here: what a refusal means (domain/watermarks.py), how W is read (pods/watermarks.py).
"""

import uuid
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import structlog
from psycopg import Connection

from coordinator.db.arrays import integer_array
from coordinator.domain.names import PodName
from coordinator.domain.progress import GapReason
from coordinator.domain.reasons import check_reason
from coordinator.domain.watermarks import (
    DeathReason,
    EndpointEcho,
    KnownProcess,
    is_retirable,
    process_ended_by_refusal,
)
from coordinator.errors import NotFoundError

log = structlog.get_logger()

#: Older probes are deleted, and their echoes ignored, except the first and the newest of those that W may not pass.
PROBES_RETENTION: Final = timedelta(days=1)
#: The default of the setting safety_request_bound, for callers that do not pass it.
REQUEST_BOUND: Final = timedelta(hours=1)
#: Endpoints that a name has not led to for this time are deleted.
ENDPOINTS_RETENTION: Final = timedelta(days=7)
BATCH_SIZE: Final = 1000

#: Pod id, URL and address of an endpoint.
EndpointKey = tuple[int, str, str]
#: Id of a process, topic and partition.
WatermarkKey = tuple[int, str, int]

# The prober's side


def record_endpoints(
    connection: Connection[Any], pod_id: int, found: Mapping[str, Collection[str]], asked_at: datetime
) -> None:
    """Record the addresses of the pod's registries: URL, as in pods.registries -> addresses.

    `asked_at`: a time by the database's clock before the look-up began: processes at new addresses since then are not
    known, however long the look-up took. A look-up that a later one has overtaken changes nothing.
    URLs that are not in `found` keep their endpoints; those that the pod no longer lists lose them.
    """
    pairs = sorted((url, address) for url, addresses in found.items() for address in addresses)
    with connection.transaction():
        # Lock all of them first, in the order in which echoes do.
        connection.execute(
            "SELECT FROM endpoints WHERE pod_id = %s ORDER BY pod_id, url, address FOR UPDATE", (pod_id,)
        )
        connection.execute(
            """
            INSERT INTO endpoints (pod_id, url, address, resolved_at)
            SELECT %s, url, address, %s FROM unnest(%s::text[], %s::text[]) d (url, address) ORDER BY url, address
            ON CONFLICT (pod_id, url, address) DO UPDATE
            SET resolved_at = greatest(endpoints.resolved_at, excluded.resolved_at)
            """,
            (pod_id, asked_at, [url for url, _ in pairs], [address for _, address in pairs]),
        )
        connection.execute(
            """
            DELETE FROM endpoints e USING pods p
            WHERE e.pod_id = %s AND p.id = e.pod_id
              AND (e.url <> ALL (p.registries) OR e.url = ANY (%s) AND e.resolved_at < now() - %s::interval)
            """,
            (pod_id, list(found), ENDPOINTS_RETENTION),
        )


def insert_probe(connection: Connection[Any], pod_id: int, url: str, address: str) -> str:
    """Record a probe that is about to be sent, and return its nonce: 32 hexadecimal digits. Commit before sending.

    Its time is that of this statement, so that the watermark covers nothing that the registry does afterwards.
    """
    nonce = uuid.uuid4().hex
    connection.execute(
        """
        INSERT INTO probes (nonce, pod_id, url, address, known_until)
        SELECT d.nonce::uuid, d.pod_id, d.url, d.address,
               CASE WHEN e.echoed_at IS NOT NULL THEN greatest(e.echoed_at, e.refused_at) END
        FROM (VALUES (%s, %s::smallint, %s, %s)) d (nonce, pod_id, url, address)
        LEFT JOIN endpoints e ON e.pod_id = d.pod_id AND e.url = d.url AND e.address = d.address
        """,
        (nonce, pod_id, url, address),
    )
    return nonce


def insert_trial_probe(connection: Connection[Any], pod_id: int, url: str, address: str) -> str:
    """Record a probe of a doctor, and return its nonce: ingest accepts its event, which moves no watermark.

    It is stored like a probe sent while the clock was ahead: its echo is ignored, and it is deleted after a day.
    """
    nonce = uuid.uuid4().hex
    connection.execute(
        """
        INSERT INTO probes (nonce, pod_id, url, address, known_until) VALUES (%s::uuid, %s, %s, %s, '-infinity')
        """,
        (nonce, pod_id, url, address),
    )
    return nonce


def record_probe_answer(connection: Connection[Any], nonce: str) -> None:
    """Record that the endpoint answered the probe as expected."""
    connection.execute(
        """
        WITH p AS (UPDATE probes SET answered_at = now() WHERE nonce = %s::uuid RETURNING pod_id, url, address)
        UPDATE endpoints e SET answered_at = now(), failing_since = NULL, error = NULL FROM p
        WHERE e.pod_id = p.pod_id AND e.url = p.url AND e.address = p.address
        """,
        (nonce,),
    )


def record_probe_failure(
    connection: Connection[Any], nonce: str, error: str, *, refused: bool, answered: bool = False
) -> str | None:
    """Record that the endpoint did not answer the probe as expected.

    `refused`: no process listens there, so the one that last echoed from it is dead. `answered`: a process is there,
    and gave another answer. Return the instance id of the process that is now known to be dead, if any.
    """
    with connection.transaction():
        row = connection.execute(
            """
            SELECT p.sent_at, e.pod_id, e.url, e.address, e.process_id, e.echoed_at, e.shared
            FROM probes p JOIN endpoints e ON e.pod_id = p.pod_id AND e.url = p.url AND e.address = p.address
            WHERE p.nonce = %s::uuid FOR NO KEY UPDATE OF e
            """,
            (nonce,),
        ).fetchone()
        if row is None:
            return None
        sent_at, key, place = row[0], row[1:4], EndpointEcho(*row[4:7])
        connection.execute(
            """
            UPDATE endpoints SET failing_since = coalesce(failing_since, now()), error = %s,
                                 refused_at = CASE WHEN %s THEN greatest(refused_at, %s) ELSE refused_at END,
                                 answered_at = CASE WHEN %s THEN now() ELSE answered_at END
            WHERE pod_id = %s AND url = %s AND address = %s
            """,
            (error, refused, sent_at, answered, *key),
        )
        return _mark_dead(connection, place, sent_at) if refused else None


def _mark_dead(connection: Connection[Any], place: EndpointEcho, sent_at: datetime) -> str | None:
    """Mark the process that last echoed from an endpoint as dead, if the refusal of a probe proves it."""
    locked = lock_processes(connection, set() if place.process is None else {place.process})
    dead = process_ended_by_refusal(place, sent_at, locked.processes)
    if dead is None:
        return None
    after = locked.processes[dead]._replace(dead_since=locked.now, dead_why=DeathReason.REFUSED)
    write_processes(connection, {dead: after}, set())
    return locked.names[dead]


def delete_old_probes(connection: Connection[Any], kept: timedelta = PROBES_RETENTION) -> int:
    """Delete probes whose echo no longer matters; return how many.

    Probes that W may not pass stay: for each endpoint the first, the newest, and one for all between them.
    """
    total = 0
    while True:
        forgotten = connection.execute(
            """
            WITH old AS MATERIALIZED (
                SELECT nonce FROM probes p WHERE sent_at < now() - %s::interval AND (answered_at IS NULL OR echoed)
                ORDER BY sent_at LIMIT %s FOR UPDATE SKIP LOCKED
            )
            DELETE FROM probes p USING old WHERE p.nonce = old.nonce
            """,
            (kept, BATCH_SIZE),
        ).rowcount
        total += forgotten
        if forgotten < BATCH_SIZE:
            return total + _merge_unechoed(connection, kept)


def _merge_unechoed(connection: Connection[Any], kept: timedelta) -> int:
    """Merge old probes of an endpoint that were answered without an echo into one; return how many are deleted.

    The remaining one limits W as all of them did, and is the last of them: a reconcile that covers it covers all. No
    echo may remove it, since another process may have answered the others: it gets a new nonce that was never sent.
    """
    return connection.execute(
        """
        WITH old AS MATERIALIZED (
            SELECT p.nonce, p.pod_id, p.url, p.address, p.sent_at, p.answered_at, p.known_until FROM probes p JOIN (
                SELECT nonce, row_number() OVER (place ORDER BY sent_at, nonce) AS nth,
                       row_number() OVER (place ORDER BY sent_at DESC, nonce DESC) AS nth_last
                FROM probes WHERE answered_at IS NOT NULL AND NOT echoed
                WINDOW place AS (PARTITION BY pod_id, url, address)
            ) u ON u.nonce = p.nonce
            WHERE p.sent_at < now() - %s::interval AND NOT p.echoed AND u.nth > 1 AND u.nth_last > 1
            FOR UPDATE OF p SKIP LOCKED
        ), ranked AS (
            SELECT nonce, row_number() OVER (place ORDER BY sent_at DESC, nonce) AS nth, count(*) OVER place AS n,
                   min(coalesce(known_until, '-infinity')) OVER place AS known_until,
                   max(answered_at) OVER place AS answered_at
            FROM old WINDOW place AS (PARTITION BY pod_id, url, address)
        ), bearer AS (
            UPDATE probes p SET nonce = gen_random_uuid(), known_until = nullif(r.known_until, '-infinity'),
                                answered_at = r.answered_at
            FROM ranked r WHERE p.nonce = r.nonce AND r.nth = 1 AND r.n > 1
        )
        DELETE FROM probes p USING ranked r WHERE p.nonce = r.nonce AND r.nth > 1
        """,
        (kept,),
    ).rowcount


# Retirements


def retire_process(
    connection: Connection[Any],
    pod: PodName,
    instance_id: str,
    why: str,
    request_bound: timedelta,
) -> None:
    """Retire a process for an operator; raises NotFoundError.

    What it had not delivered is lost. A gap is recorded, which only a reconcile resolves that begins after the writes
    of the process's last request have landed.
    """
    why = check_reason(why, "why it is retired")
    done = connection.execute(
        """
            WITH gone AS (
                UPDATE processes s SET retired_at = clock_timestamp(), retired_why = %(why)s FROM pods p
                WHERE p.id = s.pod_id AND p.name = %(pod)s AND s.instance_id = %(instance)s AND s.retired_at IS NULL
                RETURNING p.id, p.is_reconcilable
            ), gap AS (
                INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, resolves_from)
                SELECT id, '', -1, %(reason)s, 0, clock_timestamp() + %(bound)s FROM gone WHERE is_reconcilable
            )
            SELECT FROM gone
        """,
        {
            "pod": pod,
            "instance": instance_id,
            "why": why.strip(),
            "reason": GapReason.RETIRED.value,
            "bound": request_bound,
        },
    )
    if done.fetchone() is None:
        if connection.execute("SELECT FROM pods WHERE name = %s", (pod,)).fetchone() is None:
            raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
        raise NotFoundError(f"Pod {pod} has no process {instance_id} to retire: see `baleen pods show {pod}`.")


def retire_dead_processes(
    connection: Connection[Any], pod_id: int, began_at: datetime, request_bound: timedelta, why: str
) -> list[str]:
    """Retire the dead processes that a reconcile begun at `began_at` covers; return their instance ids."""
    with connection.transaction():
        dead = connection.execute(
            """
            SELECT id, instance_id, dead_since FROM processes
            WHERE pod_id = %s AND dead_since IS NOT NULL AND retired_at IS NULL ORDER BY id FOR NO KEY UPDATE
            """,
            (pod_id,),
        ).fetchall()
        covered = {row[0]: row[1] for row in dead if is_retirable(row[2], began_at, request_bound)}
        connection.execute(
            "UPDATE processes SET retired_at = clock_timestamp(), retired_why = %s WHERE id = ANY(%s)",
            (why, list(covered)),
        )
    return list(covered.values())


def delete_unechoed_probes(
    connection: Connection[Any], pod_id: int, began_at: datetime, request_bound: timedelta
) -> None:
    """Delete probes that were answered without an echo, if a reconcile begun at `began_at` covers them.

    The reconcile has seen what the process that answered them had done; if that process had ended, its last request's
    writes had landed. If it still runs, it has answered later probes, which stay. The time of the answer decides: a
    probe may be sent long after its row was written, by a scheduler that was stopped.
    """
    connection.execute(
        """
        WITH resolved AS MATERIALIZED (
            SELECT nonce FROM probes
            WHERE pod_id = %s AND answered_at <= %s AND NOT echoed
            ORDER BY nonce FOR UPDATE
        )
        DELETE FROM probes p USING resolved s WHERE p.nonce = s.nonce
        """,
        (pod_id, began_at - request_bound),
    )


# Rows of processes


class LockedProcesses(NamedTuple):
    """Sources whose rows are locked, by id."""

    names: dict[int, str]
    processes: dict[int, KnownProcess]
    #: None if nothing was applied yet.
    marks: dict[WatermarkKey, datetime | None]
    now: datetime


def lock_processes(connection: Connection[Any], ids: Collection[int]) -> LockedProcesses:
    """Lock processes, and read their watermarks."""
    found = connection.execute(
        """
        SELECT s.id, s.instance_id, s.dead_since, s.dead_why, s.retired_at
        FROM unnest(%s::bigint[]) d (id) JOIN processes s ON s.id = d.id ORDER BY s.id FOR NO KEY UPDATE OF s
        """,
        (integer_array(ids),),
    ).fetchall()
    rows = connection.execute(
        """
        SELECT w.process_id, w.topic, w.partition, nullif(w.at, '-infinity')
        FROM unnest(%s::bigint[]) d (id) JOIN watermarks w ON w.process_id = d.id
        """,
        (integer_array(ids),),
    ).fetchall()
    newest: dict[int, datetime] = {}
    for process, _, _, at in rows:
        if at is not None:
            newest[process] = max(at, newest.get(process, at))
    now = connection.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None
    return LockedProcesses(
        {row[0]: row[1] for row in found},
        {row[0]: KnownProcess(newest.get(row[0]), row[2], row[3], row[4]) for row in found},
        {(row[0], row[1], row[2]): row[3] for row in rows},
        now[0],
    )


def write_processes(
    connection: Connection[Any], processes: Mapping[int, KnownProcess], echoed: Collection[int]
) -> None:
    """Write the new state of locked processes. One that did not count and now does begins another life."""
    for process, known in processes.items():
        connection.execute(
            """
            UPDATE processes SET dead_since = %(dead_since)s, dead_why = %(dead_why)s,
                               echoed_at = CASE WHEN %(echoed)s THEN now() ELSE echoed_at END,
                               retired_at = CASE WHEN %(retired)s THEN retired_at END,
                               retired_why = CASE WHEN %(retired)s THEN retired_why END,
                               life = life + (%(counts)s AND (dead_since IS NOT NULL OR retired_at IS NOT NULL))::int
            WHERE id = %(process)s
            """,
            {
                "process": process,
                "echoed": process in echoed,
                "dead_since": known.dead_since,
                "dead_why": known.dead_why,
                "retired": known.retired_at is not None,
                "counts": known.dead_since is None and known.retired_at is None,
            },
        )
