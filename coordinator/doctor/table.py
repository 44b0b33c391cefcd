"""Rows of findings, and a visit's queries of the table.

Route: `read_pod` -> the visit (coordinator/doctor) -> `lock_processes` and `write_findings`; pods/view.py shows the
findings. For the scheduler's own visits: `read_unexamined` -> the visit -> `write_findings` if all is proved, else
`write_failed_visit`.
Invariant: a process that counts and was not in the set of `lock_processes`, or came back since the visit began, is
reported as newer: the visit was of another life of it, or of none. That does not depend on a clock, which may be set
back.
Not here: the experiments, and what blocks GC (domain/findings.py).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import Connection

from coordinator.db import locks
from coordinator.db.locks import PODS_LOCK
from coordinator.domain.findings import Finding, Result
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind, PodMode, ProbeMethod
from coordinator.errors import ConflictError, NotFoundError, UsageError

#: A constant of ours in the space of advisory locks of two numbers; the other is the pod's id.
VISIT_LOCK = 0x62616C69

#: Processes that may be running, as far as Baleen knows.
_COUNTED_PROCESSES: Final[LiteralString] = "pod_id = %s AND dead_since IS NULL AND retired_at IS NULL"

#: Prefixes of other pods on which one visit tries the pod's key.
FOREIGN_LIMIT = 100


class ExaminedPod(NamedTuple):
    """What a visit needs to know of a pod."""

    id: int
    name: PodName
    mode: PodMode
    kind: PodKind
    #: The first of the prefixes that it owns.
    prefix: RepositoryName
    #: All of them, in order.
    prefixes: tuple[RepositoryName, ...]
    #: Prefixes of other pods, FOREIGN_LIMIT at most.
    foreign: tuple[RepositoryName, ...]
    registries: tuple[str, ...]
    #: URL and address of each place at which something has answered the prober at some time.
    answered: frozenset[tuple[str, str]]
    #: The life of each process that may be running, at the beginning of the visit.
    lives: Mapping[str, int]
    #: How Baleen probes its registry.
    probe: ProbeMethod = ProbeMethod.PUSH
    #: Its registry sends events.
    managed: bool = True


def read_pod(connection: Connection[Any], name: PodName) -> ExaminedPod:
    """Return the pod; raises NotFoundError."""
    row = connection.execute(
        """
        SELECT p.id, p.mode, p.kind, p.registries,
               ARRAY(SELECT x.prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY x.prefix),
               ARRAY(SELECT x.prefix FROM pod_prefixes x WHERE x.pod_id <> p.id ORDER BY x.prefix LIMIT %s),
               p.probe, p.managed
        FROM pods p WHERE p.name = %s
        """,
        (FOREIGN_LIMIT, name),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
    if not row[4]:
        raise UsageError(f"Pod {name} owns no prefix, so the doctor has no repository to use. Give the pod a prefix.")
    answered = connection.execute(
        "SELECT url, address FROM endpoints WHERE pod_id = %s AND answered_at IS NOT NULL", (row[0],)
    )
    lives = connection.execute(f"SELECT instance_id, life FROM processes WHERE {_COUNTED_PROCESSES}", (row[0],))
    return ExaminedPod(
        row[0],
        name,
        PodMode(row[1]),
        PodKind(row[2]),
        RepositoryName(row[4][0]),
        tuple(RepositoryName(each) for each in row[4]),
        tuple(RepositoryName(each) for each in row[5]),
        tuple(row[3]),
        frozenset((each[0], each[1]) for each in answered),
        {each[0]: each[1] for each in lives},
        ProbeMethod(row[6]),
        row[7],
    )


def read_token_sha256(connection: Connection[Any], pod: ExaminedPod) -> bytes:
    """Return the hash by which ingest accepts the pod's events; only Baleen has it."""
    row = connection.execute("SELECT event_token_sha256 FROM pods WHERE id = %s", (pod.id,)).fetchone()
    if row is None:
        raise NotFoundError(f"There is no pod {pod.name} any more.")
    return bytes(row[0])


@contextmanager
def lock_visits(connection: Connection[Any], pod: ExaminedPod) -> Iterator[None]:
    """Lock the pod against other visits during the block; raises ConflictError. The lock ends with the connection."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (VISIT_LOCK, pod.id)).fetchone()
    if row is None or not row[0]:
        raise ConflictError(f"Another doctor examines pod {pod.name}: wait until it has ended.")
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s, %s)", (VISIT_LOCK, pod.id))


@contextmanager
def lock_processes(connection: Connection[Any], pod: ExaminedPod) -> Iterator[set[str]]:
    """Give the instance ids of the processes that may be running; none can be added in the block, one transaction.

    Raises ConflictError if the pod's registries, or how they are probed, are not those of the visit.
    """
    with connection.transaction():
        # Writers that change pods or add processes wait until the findings are written.
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PODS_LOCK,))
        locks.lock_facts(connection, alone=True)
        row = connection.execute("SELECT registries, probe, managed FROM pods WHERE id = %s", (pod.id,)).fetchone()
        if row is None or set(row[0]) != set(pod.registries) or row[1] != pod.probe or row[2] != pod.managed:
            raise ConflictError(
                f"The registries of pod {pod.name}, how they are probed, or whether it is managed, were changed during "
                "the visit, so no finding was written. Run the doctor again."
            )
        found = connection.execute(f"SELECT instance_id FROM processes WHERE {_COUNTED_PROCESSES}", (pod.id,))
        yield {row[0] for row in found}


def read_unexamined(connection: Connection[Any]) -> dict[PodName, frozenset[tuple[int, int]]]:
    """Return examined pods that have unexamined processes, with the ids and lives of these.

    Leaves out a pod until a probe has come back from each such process: then the processes that they replaced are
    known to have ended. Processes of registries that send no events are not known.
    """
    found: dict[PodName, set[tuple[int, int]]] = {}
    unechoed: set[PodName] = set()
    for name, process, life, has_echo in connection.execute(
        """
        SELECT p.name, s.id, s.life, s.echoed_at IS NOT NULL FROM processes s JOIN pods p ON p.id = s.pod_id
        WHERE p.managed AND s.retired_at IS NULL AND s.dead_since IS NULL AND s.examined_life IS DISTINCT FROM s.life
          AND EXISTS (SELECT FROM findings f WHERE f.pod_id = p.id)
        """
    ):
        found.setdefault(PodName(name), set()).add((process, life))
        if not has_echo:
            unechoed.add(PodName(name))
    return {name: frozenset(processes) for name, processes in found.items() if name not in unechoed}


def write_failed_visit(connection: Connection[Any], pod: PodName, why: Sequence[str]) -> None:
    """Write what the scheduler's own visit did not prove; findings of an earlier visit stay."""
    connection.execute(
        """
        INSERT INTO failed_examinations (pod_id, at, why)
        SELECT id, clock_timestamp(), %s::text[] FROM pods WHERE name = %s
        ON CONFLICT (pod_id) DO UPDATE SET (at, why) = (excluded.at, excluded.why)
        """,
        (list(why), pod),
    )


def write_findings(
    connection: Connection[Any], pod: ExaminedPod, findings: Sequence[Finding], kept: Collection[str] = ()
) -> None:
    """Replace the pod's findings by these, in the block of `lock_processes`.

    `kept`: checks that were not made, whose findings stay. What was proved last stays known (`subject`).
    """
    rows = connection.execute('SELECT "check", subject FROM findings WHERE pod_id = %s', (pod.id,))
    proved_last = dict(rows.fetchall())
    connection.execute('DELETE FROM findings WHERE pod_id = %s AND "check" <> ALL (%s)', (pod.id, list(kept)))
    connection.execute("DELETE FROM failed_examinations WHERE pod_id = %s", (pod.id,))
    connection.cursor().executemany(
        """
        INSERT INTO findings (pod_id, "check", result, meaning, proof, fix, subject, found_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s, clock_timestamp())
        """,
        [
            (
                *(pod.id, each.check, each.result, each.meaning, each.proof, each.fix),
                each.subject if each.result is Result.PROVED else proved_last.get(each.check, ""),
            )
            for each in findings
        ],
    )
    # A process that came back during the visit was perhaps examined only before, so its life at the beginning is
    # written. One that did not count at the beginning can only have been examined in its first life.
    connection.execute(
        f"""
        WITH counting AS MATERIALIZED (
            SELECT id, instance_id FROM processes WHERE {_COUNTED_PROCESSES} ORDER BY id FOR NO KEY UPDATE
        )
        UPDATE processes s SET examined_life = coalesce(b.life, 1)
        FROM counting c LEFT JOIN unnest(%s::text[], %s::int[]) b (instance_id, life) USING (instance_id)
        WHERE s.id = c.id
        """,
        (pod.id, list(pod.lives), list(pod.lives.values())),
    )


def read_clock(connection: Connection[Any]) -> datetime:
    """Return the time of the database's clock, by which everything is measured."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def is_applied_up_to(connection: Connection[Any], topic: str, ends: Mapping[int, int]) -> bool:
    """Whether every record before these offsets, by partition, is applied."""
    stands = {
        row[0]: row[1]
        for row in connection.execute(
            "SELECT partition, next_offset FROM partition_progress WHERE topic = %s AND partition = ANY(%s)",
            (topic, list(ends)),
        )
    }
    return all(stands.get(number, 0) >= end for number, end in ends.items())
