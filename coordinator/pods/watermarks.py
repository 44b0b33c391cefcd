"""Read the watermark of each pod.

Everything is read in one statement: with several, a new process could be missed while the watermarks of the others are
already later than its first event. If a time in the result is later than now, such times are voided (pods/clock.py),
and everything is read again.
Not here: what follows from it (domain/watermarks.py).
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from coordinator.domain.watermarks import (
    Endpoint,
    EndpointView,
    PodWatermark,
    Process,
    ReportingPod,
    UnechoedProbes,
    compute_pod_watermark,
    find_time_ahead,
)
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.pods import clock

#: Limits for one pod. A process that counts and is beyond the limit makes W unknown; the last retired ones are shown.
PROCESSES_LIMIT: Final = 200
RETIRED_SHOWN: Final = 20
ENDPOINTS_LIMIT: Final = 200

_PODS = text("""
WITH ranked AS (
  SELECT s.*, s.retired_at IS NULL AS counts,
         row_number() OVER (PARTITION BY s.pod_id, s.retired_at IS NULL
                            ORDER BY coalesce(s.retired_at, s.first_seen) DESC, s.id DESC) AS place
  FROM processes s
), shown AS (
  SELECT * FROM ranked WHERE place <= CASE WHEN counts THEN :processes ELSE :retired END
), marks AS (
  SELECT process_id, jsonb_agg(jsonb_build_array(topic, partition, nullif(at, '-infinity'))) AS marks
  FROM watermarks WHERE process_id IN (SELECT id FROM shown) GROUP BY process_id
), reported AS (
  SELECT s.pod_id, jsonb_agg(
    jsonb_build_object(
      'instance_id', s.instance_id, 'first_seen', s.first_seen, 'echoed_at', s.echoed_at,
      'dead_since', s.dead_since, 'dead_why', s.dead_why, 'retired_at', s.retired_at, 'retired_why', s.retired_why,
      'marks', coalesce(m.marks, '[]')
    ) ORDER BY s.counts DESC, s.place
  ) AS processes
  FROM shown s LEFT JOIN marks m ON m.process_id = s.id GROUP BY s.pod_id
), unread AS (
  SELECT pod_id, count(*) AS n FROM ranked WHERE counts AND place > :processes GROUP BY pod_id
), addresses AS (
  SELECT e.*, s.instance_id,
         e.url = ANY (p.registries) AND e.resolved_at = max(e.resolved_at) OVER (PARTITION BY e.pod_id, e.url) AS listed
  FROM endpoints e JOIN pods p ON p.id = e.pod_id LEFT JOIN processes s ON s.id = e.process_id
), places AS (
  SELECT a.pod_id, jsonb_agg(
    jsonb_build_object(
      'url', a.url, 'address', a.address, 'first_seen', a.first_seen, 'answered_at', a.answered_at,
      'failing_since', a.failing_since, 'error', a.error, 'process', a.instance_id, 'echoed_at', a.echoed_at,
      'shared', a.shared, 'listed', a.listed, 'resolved_at', nullif(a.resolved_at, '-infinity'),
      'refused_at', a.refused_at
    ) ORDER BY a.listed DESC, a.url, a.address
  ) AS endpoints
  FROM addresses a GROUP BY a.pod_id
), unechoed AS (
  SELECT pod_id, url, address, min(sent_at) AS since,
         CASE WHEN bool_and(known_until IS NOT NULL) THEN nullif(min(known_until), '-infinity') END AS known_until
  FROM probes WHERE answered_at IS NOT NULL AND NOT echoed GROUP BY pod_id, url, address
), answers AS (
  SELECT pod_id, jsonb_agg(
    jsonb_build_object('url', url, 'address', address, 'since', since, 'known_until', known_until)
    ORDER BY url, address
  ) AS unechoed
  FROM unechoed GROUP BY pod_id
), numbers AS (
  SELECT partition FROM partition_progress WHERE topic = :events
  UNION SELECT w.partition FROM watermarks w JOIN processes s ON s.id = w.process_id
        WHERE w.topic = :events AND s.retired_at IS NULL
)
SELECT p.name, p.registries, clock_timestamp() AS now, r.processes, e.endpoints, a.unechoed, coalesce(u.n, 0) AS unread,
       ARRAY(SELECT partition FROM numbers) AS partitions,
       (SELECT max(paused_until) FROM processes s WHERE s.pod_id = p.id) AS paused_until
FROM pods p
LEFT JOIN reported r ON r.pod_id = p.id LEFT JOIN places e ON e.pod_id = p.id LEFT JOIN answers a ON a.pod_id = p.id
LEFT JOIN unread u ON u.pod_id = p.id
ORDER BY p.name COLLATE "C"
""")
_VOID = text(clock.VOID_SQL)


def read_watermarks(connection: Connection, silence: dt.timedelta) -> dict[str, PodWatermark]:
    """Return the watermark of every pod, by name; a process without an echo for `silence` is shown as silent."""
    rows = _read_rows(connection)
    if any(find_time_ahead(_make_pod(row), row.now) for row in rows):
        clock.warn_set_back()
        connection.execute(_VOID)
        rows = _read_rows(connection)
    return {
        row.name: _limit_endpoints(compute_pod_watermark(_make_pod(row), row.partitions, row.now, silence))
        for row in rows
    }


def _read_rows(connection: Connection) -> Sequence[Row[Any]]:
    values = {"processes": PROCESSES_LIMIT, "retired": RETIRED_SHOWN, "events": EVENTS}
    return connection.execute(_PODS, values).all()


def _make_pod(row: Row[Any]) -> ReportingPod:
    return ReportingPod(
        row.registries,
        [_make_process(process) for process in row.processes or ()],
        [_make_endpoint(endpoint) for endpoint in row.endpoints or ()],
        [_make_unechoed(probes) for probes in row.unechoed or ()],
        row.unread,
        row.paused_until,
    )


def _limit_endpoints(pod: PodWatermark) -> PodWatermark:
    """Limit the endpoints that are shown; all of them have bounded W."""
    return pod._replace(endpoints=pod.endpoints[:ENDPOINTS_LIMIT])


def _make_process(row: Mapping[str, Any]) -> Process:
    return Process(
        row["instance_id"],
        dt.datetime.fromisoformat(row["first_seen"]),
        _parse_time(row["echoed_at"]),
        _parse_time(row["dead_since"]),
        row["dead_why"],
        _parse_time(row["retired_at"]),
        row["retired_why"],
        _parse_marks(row["marks"], EVENTS),
        _parse_marks(row["marks"], DEAD_LETTERS),
    )


def _parse_marks(rows: Sequence[tuple[str, int, str | None]], wanted: str) -> dict[int, dt.datetime | None]:
    return {number: _parse_time(at) for topic, number, at in rows if topic == wanted}


def _make_endpoint(row: Mapping[str, Any]) -> Endpoint:
    view = EndpointView(
        row["url"],
        row["address"],
        _parse_time(row["answered_at"]),
        _parse_time(row["failing_since"]),
        row["error"],
        row["process"],
        _parse_time(row["echoed_at"]),
        row["shared"],
    )
    return Endpoint(
        view,
        dt.datetime.fromisoformat(row["first_seen"]),
        row["listed"],
        _parse_time(row["resolved_at"]),
        _parse_time(row["refused_at"]),
    )


def _make_unechoed(row: Mapping[str, Any]) -> UnechoedProbes:
    return UnechoedProbes(
        row["url"], row["address"], dt.datetime.fromisoformat(row["since"]), _parse_time(row["known_until"])
    )


def _parse_time(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)
