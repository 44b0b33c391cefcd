"""Measure what a page of each list costs over HTTP with a large table, compared with a small one.

The first page and one from the middle of every list of the API are requested, with a table of a million references and
again with fifty million. SQL writes the table at once, in the form of the workload's pushes (workload.py), with what
long use leaves: unreferenced blobs, links of the last day, missing blobs, dead letters.
Not here: look-ups of single blobs under load (lookups.py).
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg

from bench import client
from bench.run import Context, print_progress
from bench.services import PODS
from bench.workload import (
    BASE_LAYERS,
    BASE_LAYERS_PER_MANIFEST,
    REFERENCES_PER_MANIFEST,
    make_pod_names,
    make_repositories,
)
from coordinator.db import paging
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.references import ManifestKind

SMALL, LARGE = 1_000_000, 50_000_000
#: Pages requested of each list. The first is measured separately: it may count what later ones find counted.
REQUESTS = 30
PATIENCE_S = 60.0

OWN = REFERENCES_PER_MANIFEST - BASE_LAYERS_PER_MANIFEST
#: A manifest's own blobs and itself follow each other, after the base layers.
STRIDE = OWN + 1
#: One of this many manifests has been deleted everywhere: its own blobs are unreferenced.
DELETED = 50
MISSING = 1_000
LINKS = 200_000
DEAD_LETTERS = 20_000


class Question(NamedTuple):
    name: str
    first: str
    #: The same list from its middle on; None if a list has no middle.
    middle: str | None = None


def measure(context: Context) -> dict[str, Any]:
    sizes = {"small": context.count(SMALL, quick=20_000), "large": context.count(LARGE, quick=100_000)}
    found: dict[str, Any] = {}
    for name, references in sizes.items():
        manifests = references // REFERENCES_PER_MANIFEST
        with context.services.database() as database, context.services.broker("embedded", 8, database) as broker:
            begun = time.monotonic()
            with psycopg.connect(database.url, autocommit=True, connect_timeout=10) as connection:
                _fill_table(connection, manifests)
                print_progress(f"{references / 1e6:g} million references written in {time.monotonic() - begun:.0f} s")
                questions = list(_make_questions(connection, manifests))
            with context.services.api(database, broker) as url:
                pages = {each.name: _time_question(url, database.read_token, each) for each in questions}
            found[name] = {"references": references, "pages": pages}
    return found


def _time_question(url: str, token: str, question: Question) -> dict[str, Any]:
    with client.Connection(url, PATIENCE_S) as connection:
        first = client.make_request("GET", question.first, token)
        answer = {"first_ms": round(client.time_request(connection, first, 200) * 1000, 1)}
        for name, path in (("again_ms", question.first), ("middle_ms", question.middle)):
            if path is not None:
                made = client.make_request("GET", path, token)
                taken = [client.time_request(connection, made, 200) for _ in range(REQUESTS)]
                answer[name] = client.summarise_times(taken)["p50_ms"]
    return answer


def _make_questions(connection: psycopg.Connection[Any], manifests: int) -> Iterator[Question]:
    """Yield every list with each of its filters, then single objects whose cost might grow with the table."""
    pods = make_pod_names(PODS)
    half = BASE_LAYERS + STRIDE * (manifests // 2)

    def paged(name: str, path: str, kind: str, key: Any) -> Question:
        cursor = quote(paging.encode_cursor(kind, key), safe="")
        return Question(name, path, f"{path}{'&' if '?' in path else '?'}cursor={cursor}")

    yield paged("blobs", "/v1/blobs", "blobs", half)
    yield paged("blobs with 1000 references or more", "/v1/blobs?min_references=1000", "blobs", half)
    yield paged("unreferenced blobs", "/v1/blobs?state=unreferenced", "blobs", half)
    yield paged("missing blobs", "/v1/blobs?state=missing", "blobs", BASE_LAYERS + STRIDE * MISSING // 2)
    yield paged("blobs of a pod", f"/v1/blobs?pod={pods[0]}", "blobs", half)
    since = connection.execute(_MEDIAN_UNREFERENCED).fetchone()
    yield paged("longest unreferenced", "/v1/blobs?sort=unreferenced_since", "unreferenced", since)
    rank = connection.execute(_MIDDLE_RANK).fetchone()
    yield paged("most references", "/v1/blobs?sort=references", "ranking", rank)
    for name, number in (
        ("the most popular blob", 1),
        ("a popular blob", BASE_LAYERS // 2),
        ("a blob of one image", half + 2),
    ):
        path = f"/v1/blobs/{_read_digest(connection, number)}"
        yield paged(f"references of {name}", f"{path}/references", "references", (half, 0))
        yield Question(f"counts of {name}", path)
    names = sorted(make_repositories(PODS))
    yield paged("repositories", "/v1/repositories", "repositories", names[len(names) // 2])
    team = names[len(names) // 2].rpartition("/")[0]
    yield paged("repositories of a pod", f"/v1/repositories?pod={pods[0]}", "repositories", f"{pods[0]}/team-2")
    yield Question("repositories below a prefix", f"/v1/repositories?prefix={quote(team, safe='')}")
    yield Question("one repository", f"/v1/repositories/{names[0]}")
    yield Question("pods", "/v1/pods")
    yield Question("one pod", f"/v1/pods/{pods[0]}")
    yield Question("status", "/v1/status")
    yield paged("dead letters", "/v1/dead-letters", "dead-letters", DEAD_LETTERS // 2)
    yield paged("dead letters of a pod", f"/v1/dead-letters?pod={pods[0]}", "dead-letters", DEAD_LETTERS // 2)


_MEDIAN_UNREFERENCED = """
SELECT unreferenced_since, id FROM blobs WHERE unreferenced_since IS NOT NULL
ORDER BY 1, 2 OFFSET (SELECT count(*) / 2 FROM blobs WHERE unreferenced_since IS NOT NULL) LIMIT 1
"""
_MIDDLE_RANK = "SELECT reference_count, id FROM blobs ORDER BY reference_count DESC, id OFFSET 1000 LIMIT 1"


def _read_digest(connection: psycopg.Connection[Any], number: int) -> str:
    row = connection.execute("SELECT 'sha256:' || encode(digest, 'hex') FROM blobs WHERE id = %s", [number]).fetchone()
    assert row is not None
    return str(row[0])


def _fill_table(connection: psycopg.Connection[Any], manifests: int) -> None:
    """Write the table. What is indexed last is indexed several times faster."""
    connection.execute("SELECT setseed(0.5)")
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute("SET work_mem = '256MB'")
    late = connection.execute(_LATE_INDEXES).fetchall()
    connection.execute("ALTER TABLE blobs DROP CONSTRAINT uq_blobs_digest")
    for name, _ in late:
        connection.execute(f"DROP INDEX {name}")
    values = {
        "manifests": manifests,
        "base": BASE_LAYERS,
        "picks": BASE_LAYERS_PER_MANIFEST,
        "own": OWN,
        "stride": STRIDE,
        "deleted": DELETED,
        "missing": min(MISSING, manifests // 2),
        "links": min(LINKS, manifests),
        "letters": DEAD_LETTERS,
        "kind": int(ManifestKind.IMAGE),
        "live": int(BlobState.LIVE),
        "unreferenced": int(BlobState.UNREFERENCED),
        "gone": int(BlobState.MISSING),
        "pods": PODS,
        "names": make_repositories(PODS),
        "pod_names": make_pod_names(PODS),
    }
    for statement in _FILL:
        connection.execute(statement, values)
    connection.execute("ALTER TABLE blobs ADD CONSTRAINT uq_blobs_digest EXCLUDE USING hash (digest WITH =)")
    for _, made in late:
        connection.execute(made)
    connection.execute("VACUUM ANALYZE")


_LATE_INDEXES = """
SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
WHERE indrelid = ANY('{blobs,manifests,repository_manifests}'::regclass[]) AND NOT indisprimary AND NOT indisexclusion
"""

# Digests and choices are hashes of numbers: no two alike, in no order, the same each time. A base layer's id is its
# rank; the cube makes few of them popular, as in the workload.
_FILL = (
    """
    INSERT INTO repositories (pod_id, name)
    SELECT p.id, x.name FROM unnest(%(names)s::text[]) x (name) JOIN pods p ON p.name = split_part(x.name, '/', 1)
    """,
    """
    INSERT INTO blobs (id, size, first_seen, unreferenced_since, reference_count, link_count, state, digest)
    OVERRIDING SYSTEM VALUE
    SELECT id, 1000 + id %% 10000000, now() - interval '1 year',
           CASE WHEN gone THEN now() - interval '7 days' * (id %% 100000) / 100000 END,
           CASE WHEN gone THEN 0 ELSE 1 END, 0, CASE WHEN gone THEN %(unreferenced)s ELSE %(live)s END,
           sha256(int8send(id))
    FROM (
      SELECT id, (id - %(base)s - 1) / %(stride)s %% %(deleted)s = 0 AS gone
      FROM generate_series(1 + %(base)s::bigint, %(base)s + %(stride)s * %(manifests)s::bigint) id
    ) x
    """,
    """
    INSERT INTO manifests (id, kind, refs, verified)
    SELECT %(base)s + %(stride)s * n + %(stride)s, %(kind)s,
           array_prepend(%(base)s + %(stride)s * n + 1, ARRAY(
             SELECT DISTINCT 1 + (%(base)s * power((hashint8extended(n * 16 + x, 1) & 1048575) / 1048576.0, 3))::bigint
             FROM generate_series(1, %(picks)s) x
           )) || ARRAY(SELECT %(base)s + %(stride)s * n + x FROM generate_series(2::bigint, %(own)s) x),
           true
    FROM generate_series(0::bigint, %(manifests)s - 1) n
    """,
    """
    INSERT INTO repository_manifests (manifest_id, repository_id, pushed_at)
    SELECT m.id, 1 + (hashint8extended(m.id, 2) & 2147483647) %% cardinality(%(names)s::text[]),
           now() - interval '1 year' + (m.id || ' ms')::interval
    FROM manifests m WHERE (m.id - %(base)s - 1) / %(stride)s %% %(deleted)s <> 0
    """,
    """
    INSERT INTO blobs (id, size, unreferenced_since, reference_count, link_count, state, digest)
    OVERRIDING SYSTEM VALUE
    SELECT id, 50000000, CASE WHEN n IS NULL THEN now() END, coalesce(n, 0), 0,
           CASE WHEN n IS NULL THEN %(unreferenced)s ELSE %(live)s END, sha256(int8send(id))
    FROM generate_series(1, %(base)s::bigint) id LEFT JOIN (
      SELECT x.id, count(*) AS n
      FROM repository_manifests h JOIN manifests m ON m.id = h.manifest_id CROSS JOIN LATERAL unnest(m.refs) x (id)
      WHERE x.id <= %(base)s GROUP BY 1
    ) used USING (id)
    """,
    """
    UPDATE blobs SET state = %(gone)s
    WHERE id IN (SELECT %(base)s + %(stride)s * n::bigint + 1 FROM generate_series(1, %(missing)s) n)
      AND reference_count > 0
    """,
    """
    INSERT INTO repository_blobs (blob_id, repository_id, event_at, linked_at)
    SELECT h.manifest_id - 1, h.repository_id, now(), now() - interval '1 day' * n / %(links)s
    FROM generate_series(1, %(links)s) n
    JOIN repository_manifests h ON h.manifest_id = %(base)s + %(stride)s * (%(manifests)s - n + 1)::bigint
    """,
    "UPDATE blobs SET link_count = 1 WHERE id IN (SELECT blob_id FROM repository_blobs)",
    """
    INSERT INTO dead_letters (pod, reason, detail, received_at, payload, payload_bytes, content_type,
                              origin_topic, origin_partition, origin_offset, origin_log)
    SELECT (%(pod_names)s::text[])[1 + n %% %(pods)s], 'malformed', 'as it came', now(), repeat('x', 1000), 1000,
           'text/plain', 'registry.events', 0, n, 0
    FROM generate_series(1, %(letters)s) n
    """,
)
