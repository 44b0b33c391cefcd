"""Record new registry processes and apply echoes, in the transaction that applies the records before them.

Route: apply.py -> `insert_processes` the processes of its slices, `apply_echoes` the echoes in them -> rows of
processes, watermarks and endpoints. Locks: see processes.py.

Invariants: a watermark moves only to a probe that was sent to the same pod, and only in the transaction that applies
all records before its echo in that partition; it never moves back here (pods/clock.py may move it). A repeated echo
changes nothing. A probe is marked as echoed only in a transaction that records which process answered it.
Not here: what an echo means (domain/watermarks.py), from which record it came (workers/interpret.py).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import structlog
from psycopg import Connection

from coordinator.db.arrays import integer_array
from coordinator.domain.progress import GapReason
from coordinator.domain.watermarks import DeathReason, EndpointEcho, KnownProcess, apply_echo, was_paused
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.table import processes
from coordinator.table.batch import Echo, ProcessKey, Slice
from coordinator.table.processes import EndpointKey, LockedProcesses, WatermarkKey

log = structlog.get_logger()


class KnownProcesses:
    """A worker's cache of processes that have a row, so that its batches do not look them up.

    It has only committed processes, and is emptied after any failure: the next database may be another one.
    """

    LIMIT: Final = 10_000

    def __init__(self) -> None:
        self._known: set[ProcessKey] = set()

    def find_unknown(self, slices: Iterable[Slice]) -> set[ProcessKey]:
        return {process for piece in slices for process in piece.processes if process not in self._known}

    def add(self, processes: Collection[ProcessKey]) -> None:
        if len(self._known) + len(processes) > self.LIMIT:
            self._known.clear()
        if len(processes) <= self.LIMIT:
            self._known.update(processes)

    def forget(self) -> None:
        self._known.clear()


class EchoCounts(NamedTuple):
    """How many echoes were of a known probe, and how many of an unknown one."""

    known: int = 0
    unknown: int = 0


class _Probe(NamedTuple):
    place: EndpointKey
    sent_at: datetime
    echoed: bool


class _EchoCopy(NamedTuple):
    """An echo in one partition, and its probe."""

    topic: str
    partition: int
    process: ProcessKey
    echo: Echo
    probe: _Probe


def insert_processes(connection: Connection[Any], processes: Collection[ProcessKey]) -> None:
    """Insert these processes if they have no row. Those of removed pods are skipped."""
    if not processes:
        return
    wanted = sorted(processes)
    connection.execute(
        """
        INSERT INTO processes (pod_id, instance_id, first_seen)
        SELECT d.pod_id, d.instance_id, clock_timestamp()
        FROM unnest(%s::smallint[], %s::text[]) d (pod_id, instance_id)
        JOIN pods p ON p.id = d.pod_id ORDER BY d.pod_id, d.instance_id COLLATE "C"
        ON CONFLICT (pod_id, instance_id) DO NOTHING
        """,
        (integer_array(pod for pod, _ in wanted), [instance for _, instance in wanted]),
    )


def apply_echoes(connection: Connection[Any], slices: Sequence[Slice], request_bound: timedelta) -> EchoCounts:
    """Move watermarks to the probes whose echoes are in these slices, and update the state of processes.

    Part of the transaction that applies the slices: records before an echo are applied with it or before it.
    """
    found = [(piece, item) for piece in slices for item in piece.items if item.echo is not None]
    if not found:
        return EchoCounts()
    probes = _read_probes(connection, {item.echo.nonce for _, item in found if item.echo is not None})
    copies = [
        _EchoCopy(piece.topic, piece.partition, (item.pod_id, item.echo.instance_id), item.echo, probe)
        for piece, item in found
        if item.echo is not None
        and (probe := probes.get(item.echo.nonce)) is not None
        and probe.place[0] == item.pod_id
    ]
    if copies:
        _apply_copies(connection, copies, request_bound)
    return EchoCounts(len(copies), len(found) - len(copies))


def _apply_copies(connection: Connection[Any], copies: Sequence[_EchoCopy], request_bound: timedelta) -> None:
    ids = _process_ids(connection, {copy.process for copy in copies})
    _mark_echoed(connection, {copy.echo.nonce for copy in copies if not copy.probe.echoed})
    places = _lock_endpoints(connection, {copy.probe.place for copy in copies})
    others = {place.process for place in places.values() if place.process is not None}
    locked = processes.lock_processes(connection, others.union(ids.values()))
    moved = _new_watermarks(copies, ids, locked.marks)
    _record_pauses(connection, set(ids.values()), locked, request_bound)
    places_after, processes_after = _new_states(copies, ids, places, locked)
    _log_revived(locked, processes_after)
    echoed = {process for (process, _, _), at in moved.items() if at is not None}
    _write_endpoints(connection, {key: place for key, place in places_after.items() if place != places[key]})
    processes.write_processes(
        connection,
        {
            process: after
            for process, after in processes_after.items()
            if process in echoed or after._replace(newest=None) != locked.processes[process]._replace(newest=None)
        },
        echoed,
    )
    if moved:
        _write_watermarks(connection, moved)
    restarted = {
        process
        for process, before in locked.processes.items()
        if before.dead_why == DeathReason.REFUSED and processes_after[process].dead_why != DeathReason.REFUSED
    }
    _record_restarts(connection, {pod for (pod, _), process in ids.items() if process in restarted}, request_bound)


def _read_probes(connection: Connection[Any], nonces: Collection[str]) -> dict[str, _Probe]:
    """Return the probes of these nonces, except those that were sent while the clock was ahead."""
    found = connection.execute(
        """
        SELECT p.nonce, p.pod_id, p.url, p.address, p.sent_at, p.echoed
        FROM unnest(%s::uuid[]) d (nonce) JOIN probes p ON p.nonce = d.nonce
        WHERE p.sent_at <= clock_timestamp() AND p.known_until IS DISTINCT FROM '-infinity'
        """,
        (f"{{{','.join(nonces)}}}",),
    )
    return {row[0].hex: _Probe((row[1], row[2], row[3]), row[4], row[5]) for row in found}


def _mark_echoed(connection: Connection[Any], nonces: Collection[str]) -> None:
    """Mark probes as echoed; called only for the first copy of an echo that is applied."""
    if nonces:
        connection.execute(
            """
            WITH found AS MATERIALIZED (
                SELECT p.nonce FROM unnest(%s::uuid[]) d (nonce) JOIN probes p ON p.nonce = d.nonce
                ORDER BY p.nonce FOR NO KEY UPDATE OF p
            )
            UPDATE probes p SET echoed = true FROM found WHERE p.nonce = found.nonce
            """,
            (f"{{{','.join(nonces)}}}",),
        )


def _process_ids(connection: Connection[Any], processes: Collection[ProcessKey]) -> dict[ProcessKey, int]:
    """Return the ids of processes; insert those that were in the cache and have no row."""
    ids = _read_process_ids(connection, processes)
    if len(ids) < len(processes):
        insert_processes(connection, processes - ids.keys())
        ids = _read_process_ids(connection, processes)
    return ids


def _read_process_ids(connection: Connection[Any], processes: Collection[ProcessKey]) -> dict[ProcessKey, int]:
    wanted = list(processes)
    found = connection.execute(
        """
        SELECT s.pod_id, s.instance_id, s.id FROM unnest(%s::smallint[], %s::text[]) d (pod_id, instance_id)
        JOIN processes s ON s.pod_id = d.pod_id AND s.instance_id = d.instance_id
        """,
        (integer_array(pod for pod, _ in wanted), [instance for _, instance in wanted]),
    )
    return {(row[0], row[1]): row[2] for row in found}


def _lock_endpoints(connection: Connection[Any], keys: Collection[EndpointKey]) -> dict[EndpointKey, EndpointEcho]:
    """Lock these endpoints and return those that exist."""
    wanted = list(keys)
    found = connection.execute(
        """
        SELECT e.pod_id, e.url, e.address, e.process_id, e.echoed_at, e.shared
        FROM unnest(%s::smallint[], %s::text[], %s::text[]) d (pod_id, url, address)
        JOIN endpoints e ON e.pod_id = d.pod_id AND e.url = d.url AND e.address = d.address
        ORDER BY e.pod_id, e.url, e.address FOR NO KEY UPDATE OF e
        """,
        (integer_array(key[0] for key in wanted), [key[1] for key in wanted], [key[2] for key in wanted]),
    )
    return {(row[0], row[1], row[2]): EndpointEcho(*row[3:]) for row in found}


def _new_watermarks(
    copies: Iterable[_EchoCopy], ids: Mapping[ProcessKey, int], marks: Mapping[WatermarkKey, datetime | None]
) -> dict[WatermarkKey, datetime | None]:
    """Return the new values of the watermarks that move; None for a partition that becomes known only now."""
    moved: dict[WatermarkKey, datetime | None] = {}
    named: set[WatermarkKey] = set()
    for copy in copies:
        process, echo, sent_at = ids[copy.process], copy.echo, copy.probe.sent_at
        key = (process, copy.topic, copy.partition)
        stands = moved.get(key) or marks.get(key)
        if stands is None or sent_at > stands:
            moved[key] = sent_at
        named.update((process, EVENTS, number) for number in range(echo.partitions))
        if echo.dead_letters_partition is not None:
            named.add((process, DEAD_LETTERS, echo.dead_letters_partition))
    return moved | dict.fromkeys(named - moved.keys() - marks.keys())


def _new_states(
    copies: Iterable[_EchoCopy],
    ids: Mapping[ProcessKey, int],
    places: Mapping[EndpointKey, EndpointEcho],
    locked: LockedProcesses,
) -> tuple[dict[EndpointKey, EndpointEcho], dict[int, KnownProcess]]:
    """Return endpoints and processes after these echoes, applied in the order of their probes."""
    places, known = dict(places), dict(locked.processes)
    echoes = sorted({(copy.probe.sent_at, copy.probe.place, ids[copy.process]) for copy in copies})
    for sent_at, _, process in echoes:
        newest = known[process].newest or sent_at
        known[process] = known[process]._replace(newest=max(sent_at, newest))
    for sent_at, key, process in echoes:
        # Even if the probe's endpoint was deleted since, its echo shows that the process is alive.
        result = apply_echo(places.get(key, EndpointEcho()), process, sent_at, known)
        if key in places:
            places[key] = result.place
        if result.revived:
            known[process] = known[process]._replace(dead_since=None, dead_why=None, retired_at=None)
        if result.dead is not None:
            known[result.dead] = known[result.dead]._replace(dead_since=locked.now, dead_why=DeathReason.REPLACED)
    return places, known


def _record_pauses(
    connection: Connection[Any], echoed: Collection[int], locked: LockedProcesses, request_bound: timedelta
) -> None:
    """Record processes that may have been paused until now: their requests of that time continue."""
    paused = sorted(
        process for process in echoed if was_paused(locked.processes[process].newest, locked.now, request_bound)
    )
    if paused:
        connection.execute("UPDATE processes SET paused_until = %s WHERE id = ANY(%s)", (locked.now, paused))


def _log_revived(locked: LockedProcesses, after: Mapping[int, KnownProcess]) -> None:
    for process, known in after.items():
        if locked.processes[process].retired_at is not None and known.retired_at is None:
            log.warning(
                "a retired registry process is alive",
                instance=locked.names[process],
                action="it counts again; garbage collection did not wait for it while it was retired",
            )


def _record_restarts(connection: Connection[Any], pods: Collection[int], request_bound: timedelta) -> None:
    """Record a gap for a process that was dead and is back under the same id: undelivered events may be lost.

    Also for pods whose links no reconcile can read: no operator has confirmed that nothing is lost.
    """
    for pod in sorted(pods):
        connection.execute(
            """
            INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, resolves_from)
            SELECT id, '', -1, %s, 0, clock_timestamp() + %s FROM pods WHERE id = %s
            """,
            (GapReason.RESTARTED, request_bound, pod),
        )


def _write_endpoints(connection: Connection[Any], places: Mapping[EndpointKey, EndpointEcho]) -> None:
    for (pod_id, url, address), place in places.items():
        connection.execute(
            """
            UPDATE endpoints SET process_id = %s, echoed_at = %s, shared = %s
            WHERE pod_id = %s AND url = %s AND address = %s
            """,
            (*place, pod_id, url, address),
        )


def _write_watermarks(connection: Connection[Any], moved: Mapping[WatermarkKey, datetime | None]) -> None:
    keys = sorted(moved)
    marks = (moved[key] for key in keys)
    connection.execute(
        """
        INSERT INTO watermarks (process_id, topic, partition, at)
        SELECT * FROM unnest(%s::bigint[], %s::text[], %s::int[], %s::timestamptz[])
        ON CONFLICT (process_id, topic, partition) DO UPDATE SET at = greatest(watermarks.at, excluded.at)
        """,
        (
            integer_array(process for process, _, _ in keys),
            [topic for _, topic, _ in keys],
            integer_array(partition for _, _, partition in keys),
            f"{{{','.join('-infinity' if mark is None else mark.isoformat() for mark in marks)}}}",
        ),
    )
