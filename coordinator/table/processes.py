"""What is known of pods' registry processes: the SQL of probes, deaths and retirements.

Route: the prober notes where names lead (`endpoints_seen`), what it sends (`insert_probe`) and what came of it
(`probe_answered`, `probe_failed`); the batch apply notes what comes back (echoes.py); a reconcile retires the dead
(`retire_dead`) and settles who answered and was never heard (`settle_unheard`), an operator retires whom he likes
(`retire`).

Locks: rows of sources that are new, by pod and instance id; then probes, by nonce; then endpoints, by their key; then
sources, by id. Whoever holds one of these takes nothing else after it; the batch apply takes them last. Rows of
watermarks are written only under the lock of their source.
Not here: what a refusal means (domain/watermarks.py), how W is read (pods/watermarks.py).
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
from coordinator.domain.progress import GapReason
from coordinator.domain.reasons import reason
from coordinator.domain.watermarks import DeathReason, Known, Place, may_retire, refused
from coordinator.errors import NotFoundError

log = structlog.get_logger()

#: An echo of an older probe is not known any more, and ignored; but for the first and the newest that keep W from
#: passing them.
PROBES_KEPT: Final = timedelta(days=1)
#: Of the setting safety_request_bound, for whoever does not say what it is.
REQUEST_BOUND: Final = timedelta(hours=1)
#: Endpoints to which a name has not led for so long are of no interest.
ENDPOINTS_KEPT: Final = timedelta(days=7)
BATCH: Final = 1000

#: Pod id, URL and address of an endpoint.
Key = tuple[int, str, str]
#: Id of a source, topic and partition.
MarkKey = tuple[int, str, int]

# The prober's side


def endpoints_seen(
    connection: Connection[Any], pod_id: int, found: Mapping[str, Collection[str]], asked_at: datetime
) -> None:
    """Note to which addresses each URL of the pod's registries leads: URL, as in pods.registries -> addresses.

    `asked_at`: by the database's clock, no later than names were asked for: who has come since then is not known,
    however long the answer was on its way. One that was overtaken by a later one changes nothing.
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
            (pod_id, list(found), ENDPOINTS_KEPT),
        )


def insert_probe(connection: Connection[Any], pod_id: int, url: str, address: str) -> str:
    """Note a probe that is about to be sent, and return its nonce: 32 hexadecimal digits. Commit before sending.

    Its time is that of this statement: nothing that the registry does afterwards is claimed.
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
    """Note a probe of a doctor, and return its nonce: ingest takes its report, and the report moves no watermark.

    It is like one that a clock that was ahead has timed: nobody goes by it, and it is forgotten after a day.
    """
    nonce = uuid.uuid4().hex
    connection.execute(
        """
        INSERT INTO probes (nonce, pod_id, url, address, known_until) VALUES (%s::uuid, %s, %s, %s, '-infinity')
        """,
        (nonce, pod_id, url, address),
    )
    return nonce


def probe_answered(connection: Connection[Any], nonce: str) -> None:
    """The endpoint answered as it should."""
    connection.execute(
        """
        WITH p AS (UPDATE probes SET answered_at = now() WHERE nonce = %s::uuid RETURNING pod_id, url, address)
        UPDATE endpoints e SET answered_at = now(), failing_since = NULL, error = NULL FROM p
        WHERE e.pod_id = p.pod_id AND e.url = p.url AND e.address = p.address
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
    """Delete probes whose echo nobody waits for any more; return how many.

    Those that keep W from passing them stay, in each endpoint the first, the newest, and one for all between them.
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
            (kept, BATCH),
        ).rowcount
        total += forgotten
        if forgotten < BATCH:
            return total + _merge_unheard(connection, kept)


def _merge_unheard(connection: Connection[Any], kept: timedelta) -> int:
    """Let one old probe that was never heard stand for others of its endpoint; return how many are deleted.

    It keeps W from what any of them did, and is the last of them: a reconcile that covers it covers all. No echo may
    take it away, since others of them were perhaps answered by somebody else: it gets a nonce that nobody was sent.
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


async def retire(
    connection: AsyncConnection,
    pod: PodName,
    instance_id: str,
    why: str,
    request_bound: timedelta,
) -> None:
    """Let a source count no more, on an operator's word; raises NotFoundError.

    What it had not delivered is lost: a gap, until a reconcile that begins when its last request's writes have landed.
    """
    why = reason(why, "why it counts no more")
    done = await connection.execute(
        text("""
            WITH gone AS (
                UPDATE sources s SET retired_at = clock_timestamp(), retired_why = :why FROM pods p
                WHERE p.id = s.pod_id AND p.name = :pod AND s.instance_id = :instance AND s.retired_at IS NULL
                RETURNING p.id, p.linker
            ), gap AS (
                INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, settles_from)
                SELECT id, '', -1, :reason, 0, clock_timestamp() + :bound FROM gone WHERE linker = 'link'
            )
            SELECT FROM gone
        """),
        {
            "pod": pod,
            "instance": instance_id,
            "why": why.strip(),
            "reason": GapReason.RETIRED.value,
            "bound": request_bound,
        },
    )
    if done.first() is None:
        if not await connection.scalar(text("SELECT EXISTS (SELECT FROM pods WHERE name = :pod)"), {"pod": pod}):
            raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
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


def settle_unheard(connection: Connection[Any], pod_id: int, began_at: datetime, request_bound: timedelta) -> None:
    """Forget probes that were answered and never echoed, as far as a reconcile that began at `began_at` covers them.

    It has seen what whoever answered them had done; and if he ran no more, his last request's writes had landed. If he
    ran on he has answered others since then, which stay: what he did after it began is not known. It goes by when they
    were answered: one may be sent long after its row was written, by a scheduler that was stopped.
    """
    connection.execute(
        """
        WITH settled AS MATERIALIZED (
            SELECT nonce FROM probes
            WHERE pod_id = %s AND answered_at <= %s AND NOT echoed
            ORDER BY nonce FOR UPDATE
        )
        DELETE FROM probes p USING settled s WHERE p.nonce = s.nonce
        """,
        (pod_id, began_at - request_bound),
    )


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
    """Let locked sources be as they are known now. One that did not count, and does, begins another life."""
    for source, known in sources.items():
        connection.execute(
            """
            UPDATE sources SET dead_since = %(dead_since)s, dead_why = %(dead_why)s,
                               heard_at = CASE WHEN %(heard)s THEN now() ELSE heard_at END,
                               retired_at = CASE WHEN %(retired)s THEN retired_at END,
                               retired_why = CASE WHEN %(retired)s THEN retired_why END,
                               life = life + (%(counts)s AND (dead_since IS NOT NULL OR retired_at IS NOT NULL))::int
            WHERE id = %(source)s
            """,
            {
                "source": source,
                "heard": source in heard_of,
                "dead_since": known.dead_since,
                "dead_why": known.dead_why,
                "retired": known.retired_at is not None,
                "counts": known.dead_since is None and known.retired_at is None,
            },
        )
