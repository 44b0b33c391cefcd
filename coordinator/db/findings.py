"""What doctors found out about pods: the rows, and what a visit asks the table.

Route: `examined` -> the visit (coordinator/pods/doctor) -> `write`; queries/pods.py shows it.
Not here: the experiments, and what holds garbage collection (domain/findings.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.domain.findings import Finding
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import Linker, PodMode
from coordinator.errors import ConflictError, NotFoundError, UsageError

#: A constant of ours in the space of advisory locks of two numbers; the other is the pod's id.
VISITS = 0x62616C69


class ExaminedPod(NamedTuple):
    """A pod as a visit has to know it."""

    id: int
    name: PodName
    mode: PodMode
    linker: Linker
    #: The first of the prefixes that it owns.
    prefix: RepositoryName
    registries: tuple[str, ...]
    #: URL and address of each place at which something has answered the prober at some time.
    answered: frozenset[tuple[str, str]]


def examined(connection: Connection[Any], name: PodName) -> ExaminedPod:
    """Return the pod; raises NotFoundError."""
    row = connection.execute(
        """
        SELECT p.id, p.mode, p.linker, p.registries, (SELECT min(x.prefix) FROM pod_prefixes x WHERE x.pod_id = p.id)
        FROM pods p WHERE p.name = %s
        """,
        (name,),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
    if row[4] is None:
        raise UsageError(f"Pod {name} owns no prefix: there is nowhere to try anything.")
    answered = connection.execute(
        "SELECT url, address FROM endpoints WHERE pod_id = %s AND answered_at IS NOT NULL", (row[0],)
    )
    return ExaminedPod(
        row[0],
        name,
        PodMode(row[1]),
        Linker(row[2]),
        RepositoryName(row[4]),
        tuple(row[3]),
        frozenset((each[0], each[1]) for each in answered),
    )


@contextmanager
def visiting(connection: Connection[Any], pod: ExaminedPod) -> Iterator[None]:
    """Be the only visit of the pod until the block ends; raises ConflictError. The lock ends with the connection."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (VISITS, pod.id)).fetchone()
    if row is None or not row[0]:
        raise ConflictError(f"Another doctor is with pod {pod.name}: wait until that visit has ended.")
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s, %s)", (VISITS, pod.id))


def write(connection: Connection[Any], pod: ExaminedPod, findings: Sequence[Finding]) -> None:
    """Let these be what is known of the pod, in place of what was. Nothing, if the pod was removed meanwhile."""
    with connection.transaction():
        connection.execute("DELETE FROM findings WHERE pod_id = %s", (pod.id,))
        connection.cursor().executemany(
            """
            INSERT INTO findings (pod_id, "check", verdict, meaning, proof, mend)
            SELECT id, %s, %s, %s, %s, %s FROM pods WHERE id = %s
            """,
            [(each.check, each.verdict, each.meaning, each.proof, each.mend, pod.id) for each in findings],
        )


def now(connection: Connection[Any]) -> datetime:
    """The clock by which everything is measured."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def counting_processes(connection: Connection[Any], pod: ExaminedPod) -> set[str]:
    """Return the instance ids of the pod's processes that may run, as far as is known."""
    found = connection.execute(
        "SELECT instance_id FROM sources WHERE pod_id = %s AND dead_since IS NULL AND retired_at IS NULL", (pod.id,)
    )
    return {row[0] for row in found}


def applied_up_to(connection: Connection[Any], topic: str, ends: Mapping[int, int]) -> bool:
    """Whether every record before these offsets, by partition, is applied."""
    stands = {
        row[0]: row[1]
        for row in connection.execute(
            "SELECT partition, next_offset FROM partition_progress WHERE topic = %s AND partition = ANY(%s)",
            (topic, list(ends)),
        )
    }
    return all(stands.get(number, 0) >= end for number, end in ends.items())
