"""Measure the time of a mount, and the rate of a relay.

mount     a blob of one pod mounted in another on the same root: by Baleen through the router, and by the registry
          itself, which finds the other pod's link in the bucket; some of each in turns. A turn's first are not counted:
          the registry is still sending the events of its own mounts.
secrecy   a mount from a repository without the blob, of blobs that other pods have and of blobs that no pod has, in
          turns: the probability that the first takes longer than the second. One half means that the time shows
          nothing.
relay     a blob sent to a pod with its own root: by Baleen, compared with a client's upload to the same registry.
The programs `docker-registry` and nginx, or nothing is measured.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import psycopg

from bench import client
from bench.run import Context, print_progress
from bench.workload import make_pod_names
from coordinator.domain.pods import parse_registry
from coordinator.errors import StackError
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import sha256_digest
from coordinator.router import nginx as router
from coordinator.stack.distribution import find_program
from coordinator.stack.nginx import make_nginx, require_program
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import LOOPBACK

MB = 1_000_000
#: At most 500 blobs with two requests each, because nginx closes a connection after 1000.
TURN = WARM_UP = 20
UNCOUNTED = 5
SMALL = 2000
WRITERS = 8
TIMEOUT_S = 120.0


class Place(NamedTuple):
    """The pods, with their registries and the router."""

    #: Pods on the shared root, and one with its own root.
    source: str
    target: str
    apart: str
    registries: dict[str, str]
    router: str


def measure(context: Context) -> dict[str, Any]:
    if find_program() is None:
        return {"skipped": "docker-registry is not installed"}
    try:
        require_program()
    except StackError as error:
        return {"skipped": str(error)}
    with ExitStack() as stack:
        place = _start_pods(context, stack)
        digests = _push_blobs(context, place)
        return {
            "mount": _measure_mounts(place, digests),
            "secrecy": _measure_secrecy(place, digests),
            "relay": _measure_relays(context, place),
        }


def _start_pods(context: Context, stack: ExitStack) -> Place:
    services = context.services
    database = stack.enter_context(services.database())
    database = database._replace(values=database.values | {"mounts": "open", "mount_timeout": "60s"})
    apart = database._replace(values=database.values | {"s3_root": "bench-apart"})
    source, target, other = make_pod_names(3)
    broker = stack.enter_context(services.broker("embedded", 8, database))
    api = stack.enter_context(services.api(database, broker))
    registries = {
        pod: stack.enter_context(services.registry(where, pod, f"{api}/v1/events/{pod}"))[0]
        for pod, where in ((source, database), (target, database), (other, apart))
    }
    with psycopg.connect(database.url, autocommit=True, connect_timeout=10) as connection:
        for pod, url in registries.items():
            linker = "relay" if pod == other else "link"
            connection.execute("UPDATE pods SET registries = %s, kind = %s WHERE name = %s", ([url], linker, pod))
    state = services.directory / "mounts-router"
    state.mkdir()
    address = f"{LOOPBACK}:{Ports(state / 'ports.json', LOOPBACK).take('router')}"
    options = router.Options(
        coordinator=[parse_registry(api)],
        request_bound_s=3600,
        listen=address,
        coordinator_timeout_s=60,
        whole=True,
        state_dir=str(state),
        log_file=f"{state}/access.log",
    )
    pods = [router.RoutedPod(pod, [pod], [parse_registry(url)]) for pod, url in registries.items()]
    (state / "router.conf").write_text(router.make_configuration(pods, options))
    process = make_nginx(state, state / "router.conf", address).start()
    stack.callback(process.stop)
    return Place(source, target, other, registries, f"http://{address}")


def _push_blobs(context: Context, place: Place) -> list[str]:
    """Push small blobs to the first pod; return their digests."""
    count = WARM_UP + context.count(480, quick=60)
    print_progress(f"pushing {count} blobs")
    blobs = [os.urandom(SMALL) for _ in range(count)]
    with (
        RegistryClient(place.registries[place.source], timeout=TIMEOUT_S) as pusher,
        ThreadPoolExecutor(WRITERS) as pool,
    ):
        return list(pool.map(lambda blob: pusher.push_blob(f"{place.source}/bench", blob), blobs))


def _measure_mounts(place: Place, digests: Sequence[str]) -> dict[str, Any]:
    taken: dict[str, list[float]] = {"native": [], "through": []}
    with (
        client.Connection(place.registries[place.target]) as native,
        client.Connection(place.router) as through,
    ):
        for first in range(0, len(digests), TURN):
            for name, connection in (("native", native), ("through", through)):
                for number, digest in enumerate(digests[first : first + TURN]):
                    path = f"/v2/{place.target}/{name}/blobs/uploads/?mount={digest}&from={place.source}/bench"
                    seconds = client.time_request(connection, _make_post(path), 201)
                    if first and number >= UNCOUNTED:
                        taken[name].append(seconds)
    found = {name: client.summarise_times(each) for name, each in taken.items()}
    return {
        "mounts": len(taken["native"]),
        **found,
        "p50_of_native": round(found["through"]["p50_ms"] / found["native"]["p50_ms"], 2),
        "p99_of_native": round(found["through"]["p99_ms"] / found["native"]["p99_ms"], 2),
    }


def _measure_secrecy(place: Place, digests: Sequence[str]) -> dict[str, Any]:
    taken: dict[str, list[float]] = {"elsewhere": [], "nowhere": []}
    with client.Connection(place.router) as connection:
        for number, digest in enumerate(digests):
            asked = [("elsewhere", digest), ("nowhere", f"sha256:{os.urandom(32).hex()}")]
            # The order alternates with each turn.
            for name, each in asked if number % 2 else asked[::-1]:
                path = f"/v2/{place.target}/secret/blobs/uploads/?mount={each}&from={place.source}/empty"
                seconds = client.time_request(connection, _make_post(path), 202)
                if number >= WARM_UP:
                    taken[name].append(seconds)
    nowhere = sorted(taken["nowhere"])
    longer = sum(bisect_left(nowhere, each) for each in taken["elsewhere"]) / len(nowhere) / len(taken["elsewhere"])
    return {name: client.summarise_times(each) for name, each in taken.items()} | {"longer": round(longer, 3)}


def _make_post(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n".encode()


def _measure_relays(context: Context, place: Place) -> dict[str, Any]:
    size, turns = context.count(100, quick=20) * MB, context.count(6, quick=2)
    source, registry = f"{place.source}/bench", place.registries[place.apart]
    taken: dict[str, list[float]] = {"upload": [], "relay": []}
    with (
        RegistryClient(place.registries[place.source], timeout=TIMEOUT_S) as pusher,
        RegistryClient(registry, timeout=TIMEOUT_S) as uploader,
        RegistryClient(place.router, timeout=TIMEOUT_S) as mounter,
    ):
        for turn in range(turns + 1):
            blob = os.urandom(size)
            digest = pusher.push_blob(source, blob)
            other = os.urandom(size)
            named = sha256_digest(other)
            begun = time.perf_counter()
            uploader.push_blob(f"{place.apart}/bench", other, digest=named)
            uploaded = time.perf_counter()
            if not mounter.mount_blob(f"{place.apart}/bench", digest, source):
                raise AssertionError("A relay was forwarded to the pod.")
            # The first turn opens connections.
            if turn:
                taken["upload"].append(uploaded - begun)
                taken["relay"].append(time.perf_counter() - uploaded)
    upload, relay = (size / MB / sorted(taken[name])[turns // 2] for name in ("upload", "relay"))
    return {
        "bytes": size,
        "turns": turns,
        "upload_mb_per_s": round(upload, 1),
        "relay_mb_per_s": round(relay, 1),
        "of_upload": round(relay / upload, 3),
    }
