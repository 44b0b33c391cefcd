"""What is known of pods' registry processes: the SQL of probes, deaths and retirements.

Route: the prober notes where names lead (`endpoints_seen`), what it sends (`insert_probe`) and what came of it
(`probe_answered`, `probe_failed`); the batch apply notes what comes back (echoes.py); a reconcile retires the dead
(`retire_dead`), an operator whom he likes (`retire`).

Locks: rows of sources that are new, by pod and instance id; then endpoints, by their key; then sources, by id. Whoever
holds one of these takes nothing else after it; the batch apply takes them last. Rows of watermarks are written only
under the lock of their source.
Not here: what a refusal means (domain/watermarks.py), how W is read (queries/watermarks.py).
"""

import uuid
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import structlog
from psycopg import Connection
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.db.arrays import integers
from coordinator.domain.names import PodName
from coordinator.domain.watermarks import DeathReason, Known, Place, may_retire, refused
from coordinator.errors import NotFoundError, UsageError

log = structlog.get_logger()

#: An echo of an older probe is not known any more, and ignored.
PROBES_KEPT: Final = timedelta(days=1)
#: Endpoints to which a name has not led for so long are of no interest.
ENDPOINTS_KEPT: Final = timedelta(days=7)
WHY_LIMIT: Final = 1000
BATCH: Final = 1000

#: Pod id, URL and address of an endpoint.
Key = tuple[int, str, str]
#: Id of a source, topic and partition.
MarkKey = tuple[int, str, int]

# The prober's side


def endpoints_seen(connection: Connection[Any], pod_id: int, found: Mapping[str, Collection[str]]) -> None:
    """Note to which addresses each URL of the pod's registries leads now: URL, as in pods.registries -> addresses.

    URLs that are not named keep their endpoints; those that the pod does not list any more lose them.
    """
    pairs = sorted((url, address) for url, addresses in found.items() for address in addresses)
    with connection.transaction():
        # All of them at first and in order, as an echo takes them.
        connection.execute(
            "SELECT FROM endpoints WHERE pod_id = %s ORDER BY pod_id, url, address FOR UPDATE", (pod_id,)
        )
        connection.execute(
            """
            INSERT INTO endpoints (pod_id, url, address)
            SELECT %s, url, address FROM unnest(%s::text[], %s::text[]) d (url, address) ORDER BY url, address
            ON CONFLICT (pod_id, url, address) DO UPDATE SET resolved_at = excluded.resolved_at
            """,
            (pod_id, [url for url, _ in pairs], [address for _, address in pairs]),
        )
        connection.execute(
            """
            DELETE FROM endpoints e USING pods p
            WHERE e.pod_id = %s AND p.id = e.pod_id
              AND (e.url <> ALL (p.registries) OR e.resolved_at < now() - %s::interval)
            """,
            (pod_id, ENDPOINTS_KEPT),
        )


def insert_probe(connection: Connection[Any], pod_id: int, url: str, address: str) -> str:
    """Note a probe that is about to be sent, and return its nonce: 32 hexadecimal digits. Commit before sending.

    Its time is that of this statement: nothing that the registry does afterwards is claimed.
    """
    nonce = uuid.uuid4().hex
    connection.execute(
        "INSERT INTO probes (nonce, pod_id, url, address) VALUES (%s::uuid, %s, %s, %s)", (nonce, pod_id, url, address)
    )
    return nonce


def probe_answered(connection: Connection[Any], nonce: str) -> None:
    """The endpoint answered as it should."""
    connection.execute(
        """
        UPDATE endpoints e SET answered_at = now(), failing_since = NULL, error = NULL FROM probes p
        WHERE p.nonce = %s::uuid AND e.pod_id = p.pod_id AND e.url = p.url AND e.address = p.address
        """,
        (nonce,),
    )


def probe_failed(
    connection: Connection[Any], nonce: str, error: str, *, refused: bool, answered: bool = False
) -> str | None:
    """The endpoint did not answer as it should.

    `refused`: nobody listens there, so the process that last echoed from it is dead. `answered`: somebody is there,
    and said something else. Return the instance id of a process that is known to be dead from now on.
    """
    with connection.transaction():
        row = connection.execute(
            """
            SELECT p.sent_at, e.pod_id, e.url, e.address, e.source_id, e.echoed_at, e.shared
            FROM probes p JOIN endpoints e ON e.pod_id = p.pod_id AND e.url = p.url AND e.address = p.address
            WHERE p.nonce = %s::uuid FOR NO KEY UPDATE OF e
            """,
            (nonce,),
        ).fetchone()
        if row is None:
            return None
        sent_at, key, place = row[0], row[1:4], Place(*row[4:7])
        connection.execute(
            """
            UPDATE endpoints SET failing_since = coalesce(failing_since, now()), error = %s,
                                 refused_at = CASE WHEN %s THEN greatest(refused_at, %s) ELSE refused_at END,
                                 answered_at = CASE WHEN %s THEN now() ELSE answered_at END
            WHERE pod_id = %s AND url = %s AND address = %s
            """,
            (error, refused, sent_at, answered, *key),
        )
        return _bury(connection, place, sent_at) if refused else None


def _bury(connection: Connection[Any], place: Place, sent_at: datetime) -> str | None:
    """Let the process that last echoed from an endpoint be dead, if the refusal of a probe proves it."""
    locked = lock(connection, set() if place.source is None else {place.source})
    dead = refused(place, sent_at, locked.sources)
    if dead is None:
        return None
    after = locked.sources[dead]._replace(dead_since=locked.now, dead_why=DeathReason.REFUSED)
    write(connection, {dead: after}, set())
    return locked.names[dead]


def forget_old_probes(connection: Connection[Any], kept: timedelta = PROBES_KEPT) -> int:
    """Delete probes whose echo nobody waits for any more; return how many."""
    total = 0
    while True:
        forgotten = connection.execute(
            """
            WITH old AS MATERIALIZED (
                SELECT nonce FROM probes WHERE sent_at < now() - %s::interval
                ORDER BY sent_at LIMIT %s FOR UPDATE SKIP LOCKED
            )
            DELETE FROM probes p USING old WHERE p.nonce = old.nonce
            """,
            (kept, BATCH),
        ).rowcount
        total += forgotten
        if forgotten < BATCH:
            return total


# Retirements


async def retire(connection: AsyncConnection, pod: PodName, instance_id: str, why: str) -> None:
    """Let a source count no more, on an operator's word; raises NotFoundError."""
    if not why.strip() or len(why) > WHY_LIMIT or "\0" in why:
        raise UsageError(f"Say why it counts no more, in up to {WHY_LIMIT} characters.")
    done = await connection.execute(
        text("""
            UPDATE sources s SET retired_at = clock_timestamp(), retired_why = :why FROM pods p
            WHERE p.id = s.pod_id AND p.name = :pod AND s.instance_id = :instance AND s.retired_at IS NULL
        """),
        {"pod": pod, "instance": instance_id, "why": why.strip()},
    )
    if not done.rowcount:
        raise NotFoundError(f"Pod {pod} has no process {instance_id} that counts: see `baleen pods show {pod}`.")


def retire_dead(
    connection: Connection[Any], pod_id: int, began_at: datetime, request_bound: timedelta, why: str
) -> list[str]:
    """Retire the sources that a reconcile which began at `began_at` has covered; return their instance ids."""
    with connection.transaction():
        dead = connection.execute(
            """
            SELECT id, instance_id, dead_since FROM sources
            WHERE pod_id = %s AND dead_since IS NOT NULL AND retired_at IS NULL ORDER BY id FOR NO KEY UPDATE
            """,
            (pod_id,),
        ).fetchall()
        covered = {row[0]: row[1] for row in dead if may_retire(row[2], began_at, request_bound)}
        connection.execute(
            "UPDATE sources SET retired_at = clock_timestamp(), retired_why = %s WHERE id = ANY(%s)",
            (why, list(covered)),
        )
    return list(covered.values())


# Rows of sources


class Locked(NamedTuple):
    """Sources whose rows are locked, by id."""

    names: dict[int, str]
    sources: dict[int, Known]
    #: None where nothing was applied yet.
    marks: dict[MarkKey, datetime | None]
    now: datetime


def lock(connection: Connection[Any], ids: Collection[int]) -> Locked:
    """Lock sources, and read their watermarks."""
    found = connection.execute(
        """
        SELECT s.id, s.instance_id, s.dead_since, s.dead_why, s.retired_at
        FROM unnest(%s::bigint[]) d (id) JOIN sources s ON s.id = d.id ORDER BY s.id FOR NO KEY UPDATE OF s
        """,
        (integers(ids),),
    ).fetchall()
    rows = connection.execute(
        """
        SELECT w.source_id, w.topic, w.partition, nullif(w.at, '-infinity')
        FROM unnest(%s::bigint[]) d (id) JOIN watermarks w ON w.source_id = d.id
        """,
        (integers(ids),),
    ).fetchall()
    newest: dict[int, datetime] = {}
    for source, _, _, at in rows:
        if at is not None:
            newest[source] = max(at, newest.get(source, at))
    now = connection.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None
    return Locked(
        {row[0]: row[1] for row in found},
        {row[0]: Known(newest.get(row[0]), row[2], row[3], row[4]) for row in found},
        {(row[0], row[1], row[2]): row[3] for row in rows},
        now[0],
    )


def write(connection: Connection[Any], sources: Mapping[int, Known], heard_of: Collection[int]) -> None:
    for source, known in sources.items():
        connection.execute(
            """
            UPDATE sources SET dead_since = %(dead_since)s, dead_why = %(dead_why)s,
                               heard_at = CASE WHEN %(heard)s THEN now() ELSE heard_at END,
                               retired_at = CASE WHEN %(retired)s THEN retired_at END,
                               retired_why = CASE WHEN %(retired)s THEN retired_why END
            WHERE id = %(source)s
            """,
            {
                "source": source,
                "heard": source in heard_of,
                "dead_since": known.dead_since,
                "dead_why": known.dead_why,
                "retired": known.retired_at is not None,
            },
        )
