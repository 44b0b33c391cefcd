"""Measure look-ups over HTTP, compared with PostgreSQL's own time for a row by its primary key (pgbench).

The table holds a million references. Single look-ups are of one hot base blob, again and again, and of blobs drawn at
random from all; a batch looks up a thousand at once.
"""

import os
import re
import subprocess
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg

from bench import client
from bench.database import Loader
from bench.run import Context
from bench.services import Database
from bench.workload import REFERENCES_PER_MANIFEST
from coordinator.stack.postgres import require_binaries

CONNECTIONS = (1, 8)
BATCH = 1000
SAMPLE = 20_000
SCRIPT = """\\set id random(1, {last})
SELECT id, size, reference_count, link_count, state, digest FROM blobs WHERE id = :id;
"""


def measure(context: Context) -> dict[str, Any]:
    services = context.services
    references = context.count(1_000_000, quick=50_000)
    seconds = context.seconds(5.0, quick=0.3)
    with services.database() as database, services.broker("embedded", 8, database) as broker:
        with Loader(database, context.seed) as loader:
            loader.load(references // REFERENCES_PER_MANIFEST)
            hot, cold, last = _read_digests(loader.connection)
            loader.connection.execute("VACUUM ANALYZE")
        found: dict[str, Any] = {"references": references}
        Random(context.seed).shuffle(cold)
        with services.api(database, broker) as url:
            token = database.read_token
            single = [client.make_request("GET", f"/v1/blobs/{digest}", token) for digest in cold]
            one = client.make_request("GET", f"/v1/blobs/{hot}", token)
            batches = [_make_batch(cold[at : at + BATCH], token) for at in range(0, len(cold) - BATCH + 1, BATCH)]
            kinds: dict[str, Callable[[int], bytes]] = {
                "hot": lambda _: one,
                "cold": lambda number: single[number % len(single)],
                "batch_of_1000": lambda number: batches[number % len(batches)],
            }
            client.run_closed_loop(url, 1, seconds / 5, kinds["cold"])
            for name, made in kinds.items():
                for connections in CONNECTIONS:
                    key = f"{name}_{connections}_connections"
                    found[key] = client.run_closed_loop(url, connections, seconds, made)
        for connections in CONNECTIONS:
            found[f"pgbench_{connections}_connections"] = _run_pgbench(context, database, last, connections, seconds)
    for connections in CONNECTIONS:
        base = found[f"pgbench_{connections}_connections"]["requests_per_s"]
        for name in ("hot", "cold"):
            result = found[f"{name}_{connections}_connections"]
            result["of_pgbench"] = round(result["requests_per_s"] / base, 3)
        result = found[f"batch_of_1000_{connections}_connections"]
        result["blobs_per_s"] = result["requests_per_s"] * BATCH
        result["of_pgbench"] = round(result["blobs_per_s"] / base, 2)
    return found


def _make_batch(digests: list[str], token: str) -> bytes:
    body = msgspec.json.encode({"digests": digests})
    return client.make_request("POST", "/v1/blobs/lookup", token, body, "application/json")


def _read_digests(connection: psycopg.Connection[Any]) -> tuple[str, list[str], int]:
    """The blob with most references, a sample of all blobs, and the last id."""
    rows = connection.execute(
        "SELECT 'sha256:' || encode(digest, 'hex') FROM blobs"
        " WHERE id %% (SELECT greatest(1, count(*) / %s) FROM blobs) = 0",
        [SAMPLE],
    ).fetchall()
    most = connection.execute(
        "SELECT 'sha256:' || encode(digest, 'hex') FROM blobs ORDER BY reference_count DESC LIMIT 1"
    ).fetchone()
    last = connection.execute("SELECT max(id) FROM blobs").fetchone()
    assert most is not None
    assert last is not None
    return most[0], [row[0] for row in rows], last[0]


def _run_pgbench(context: Context, database: Database, last: int, connections: int, seconds: float) -> dict[str, Any]:
    script = context.services.directory / "pgbench.sql"
    script.write_text(SCRIPT.format(last=last))
    url = urlsplit(database.url)
    command = [
        str(require_binaries() / "pgbench"),
        "-n",
        "-M",
        "prepared",
        "-f",
        str(script),
        "-T",
        str(max(1, int(seconds))),
    ]
    command += ["-c", str(connections), "-h", str(url.hostname), "-p", str(url.port), "-U", str(url.username)]
    done = subprocess.run(
        [*command, url.path.lstrip("/")],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
        env=os.environ | {"PGPASSWORD": str(url.password)},
    )
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return {"requests_per_s": round(float(found[1]))}
