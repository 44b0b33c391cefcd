"""Measure the router's cost for a pull: a blob of 100 MB directly from a registry, and through nginx, in turns.

Twice: from a CNCF distribution that sends the bytes itself, so that they pass through the router, and from one that
redirects to the store, so that they do not. Skipped without the programs `docker-registry` and nginx.
"""

import contextlib
import hashlib
import http.client
import statistics
import time
from typing import Any
from urllib.parse import urlsplit

from bench.run import Context, print_progress
from bench.workload import make_pod_names
from coordinator.domain.pods import parse_registry
from coordinator.errors import StackError
from coordinator.registry.client import RegistryClient
from coordinator.router import nginx as router
from coordinator.stack.distribution import find_program
from coordinator.stack.nginx import make_nginx, require_program
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import LOOPBACK

MB = 1_000_000
CHUNK = 1 << 20
TIMEOUT_S = 60.0


def measure(context: Context) -> dict[str, Any]:
    if find_program() is None:
        return {"skipped": "docker-registry is not installed"}
    try:
        require_program()
    except StackError as error:
        return {"skipped": str(error)}
    return {"sent": _measure_router(context, redirect=False), "redirected": _measure_router(context, redirect=True)}


def _measure_router(context: Context, *, redirect: bool) -> dict[str, Any]:
    services, size, turns = context.services, context.count(100, quick=10) * MB, context.count(15, quick=3)
    pod = make_pod_names(1)[0]
    state = services.directory / f"router-{'redirect' if redirect else 'send'}"
    state.mkdir()
    address = f"{LOOPBACK}:{Ports(state / 'ports.json', LOOPBACK).take('router')}"
    with (
        services.database() as database,
        # Nothing receives its events, which are not measured.
        services.registry(database, pod, f"http://{LOOPBACK}:9/v1/events/{pod}", redirect=redirect) as (registry, _),
    ):
        file = state / "router.conf"
        file.write_text(_make_configuration(pod, registry, address, str(state)))
        process = make_nginx(state, file, address).start()
        try:
            return _measure_turns(registry, f"http://{address}", f"{pod}/bench", size, turns)
        finally:
            process.stop()


def _make_configuration(pod: str, registry: str, address: str, state: str) -> str:
    options = router.Options(
        coordinator=[parse_registry(f"http://{LOOPBACK}:9")],
        request_bound_s=3600,
        listen=address,
        whole=True,
        state_dir=state,
        log_file=f"{state}/access.log",
    )
    return router.make_configuration([router.RoutedPod(pod, [pod], [parse_registry(registry)])], options)


def _measure_turns(direct: str, through: str, repository: str, size: int, turns: int) -> dict[str, Any]:
    with RegistryClient(direct, timeout=TIMEOUT_S) as client:
        digest = client.push_blob(repository, bytes(size))
    path = f"/v2/{repository}/blobs/{digest}"
    seconds: dict[str, list[float]] = {direct: [], through: []}
    for turn in range(turns + 1):
        # The order alternates with each turn.
        for url in (direct, through) if turn % 2 else (through, direct):
            taken = _time_pull(url, path, size)
            # The first turn fills caches.
            if turn:
                seconds[url].append(taken)
    straight, routed = (statistics.median(seconds[url]) for url in (direct, through))
    overhead = statistics.median(b / a - 1 for a, b in zip(seconds[direct], seconds[through], strict=True))
    print_progress(f"{turns} pulls of {size // MB} MB: {straight:.3f} s straight, {routed:.3f} s through the router")
    return {
        "bytes": size,
        "turns": turns,
        "direct_s": round(straight, 4),
        "routed_s": round(routed, 4),
        "overhead": round(overhead, 4),
    }


def _time_pull(url: str, path: str, size: int) -> float:
    """Return the seconds of a pull, from the start of the connection until the last byte was hashed."""
    buffer, hashed, seen = memoryview(bytearray(CHUNK)), hashlib.sha256(), 0
    begun = time.perf_counter()
    with contextlib.ExitStack() as closing:
        answer = _get(closing, f"{url}{path}")
        if answer.status == http.HTTPStatus.TEMPORARY_REDIRECT:
            answer = _get(closing, answer.headers["Location"])
        while count := answer.readinto(buffer):
            # As every client does.
            hashed.update(buffer[:count])
            seen += count
    taken = time.perf_counter() - begun
    assert path.endswith(hashed.hexdigest()), f"{seen} of {size} bytes came from {url}"
    return taken


def _get(closing: contextlib.ExitStack, url: str) -> http.client.HTTPResponse:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=TIMEOUT_S)
    closing.callback(connection.close)
    connection.request("GET", f"{place.path}?{place.query}" if place.query else place.path)
    return connection.getresponse()
