"""Measure how long a registry waits for the answer to a notification, which limits its rate: it posts one by one."""

import time
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from bench import client, events
from bench.run import Context, print_progress
from bench.services import Broker, Database
from bench.workload import Manifest, make_manifests

WARM_UP = 100
LIMIT_S = 60.0


def measure(context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in context.brokers():
        with context.services.database() as database, context.services.broker(kind, 8, database) as broker:
            found[kind] = _measure_posts(context, database, broker)
        print_progress(f"{kind}: {found[kind]}")
    return found


def _measure_posts(context: Context, database: Database, broker: Broker) -> dict[str, Any]:
    count = context.count(4000, quick=300)
    pushes = make_manifests(context.seed, WARM_UP + count)
    with context.services.api(database, broker) as url, client.Connection(url) as connection:
        for manifest in islice(pushes, WARM_UP):
            client.time_request(connection, make_push_request(database, manifest, datetime.now(UTC)), 202)
        taken, sizes = [], 0
        start = time.perf_counter()
        for manifest in pushes:
            made = make_push_request(database, manifest, datetime.now(UTC))
            taken.append(client.time_request(connection, made, 202))
            sizes += len(made)
            if time.perf_counter() - start > LIMIT_S:
                break
    return {
        "posts": len(taken),
        "request_bytes": round(sizes / len(taken)),
        **client.summarise_times(taken),
        "posts_per_s": round(len(taken) / sum(taken)),
    }


def make_push_request(database: Database, manifest: Manifest, at: datetime) -> bytes:
    """A registry's request for a push."""
    pod = manifest.repository.partition("/")[0]
    body = events.body_of(manifest, at)
    return client.make_request("POST", f"/v1/events/{pod}", database.pod_tokens[pod], body, events.CONTENT_TYPE)
