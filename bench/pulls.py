"""Measure how readers delay a registry's events: the lag of probes while its manifests are pulled.

Uses CNCF distribution with a webhook that takes 20 ms. Skipped without the program `docker-registry`. A probe is a push
of a known manifest; its lag is the time from before it was sent until the webhook had its event. The watermark lags by
that and by what ingest and a worker add. Once with pull events and once without. The registry stores everything in
memory, because an object store would limit how fast it can be read, and is not measured here.
"""

import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bench import client
from bench.run import Context, print_progress
from bench.services import Database
from bench.workload import make_pod_names
from coordinator.pods.prober import make_probe_image
from coordinator.registry.client import RegistryClient
from coordinator.stack.distribution import DistributionRegistry, find_program

WEBHOOK_S = 0.02
READERS = 16
PROBE_EVERY_S = 0.5


class InMemory(DistributionRegistry):
    def configuration(self) -> dict[str, object]:
        return super().configuration() | {"storage": {"inmemory": {}}}


class _Webhook:
    """Takes 20 ms for each notification, and records when it received that of each User-Agent."""

    def __init__(self) -> None:
        self.received: dict[str, float] = {}
        self.events = 0
        webhook = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(WEBHOOK_S)
                for event in json.loads(body)["events"]:
                    webhook.events += 1
                    webhook.received.setdefault(event["request"]["useragent"], time.perf_counter())
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    @contextmanager
    def serve(self) -> Iterator[None]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()


def measure(context: Context) -> dict[str, Any]:
    if find_program() is None:
        return {"skipped": "docker-registry is not installed"}
    seconds = context.seconds(20.0, quick=3.0)
    found: dict[str, Any] = {"webhook_ms": WEBHOOK_S * 1000, "readers": READERS, "seconds": seconds}
    with context.services.database() as database:
        for name, pulls in (("pulls_ignored", False), ("pulls_sent", True)):
            found[name] = _measure_lags(context, database, seconds, pulls=pulls)
            print_progress(f"{name}: {found[name]}")
    return found


def _measure_lags(context: Context, database: Database, seconds: float, *, pulls: bool) -> dict[str, Any]:
    pod, image, webhook = make_pod_names(1)[0], make_probe_image(), _Webhook()
    repository = f"{pod}/baleen-probe"
    with (
        webhook.serve(),
        context.services.registry(database, pod, webhook.url, pulls=pulls, kind=InMemory) as (url, _),
        RegistryClient(url) as registry,
    ):
        registry.push_image(repository, image, "known")
        quiet = _measure_probes(registry, repository, webhook, seconds / 4)
        made = client.make_request("GET", f"/v2/{repository}/manifests/{image.digest}", "none")
        made = made.replace(b"\r\n\r\n", f"\r\nAccept: {image.media_type}\r\n\r\n".encode())
        loads: list[dict[str, Any]] = []
        flood = threading.Thread(
            target=lambda: loads.append(client.run_closed_loop(url, READERS, seconds, lambda _: made)), daemon=True
        )
        flood.start()
        flooded = _measure_probes(registry, repository, webhook, seconds - PROBE_EVERY_S)
        flood.join()
    return {
        "pulls_per_s": loads[0]["requests_per_s"] if loads else None,
        "quiet": quiet,
        "flooded": flooded,
    }


def _measure_probes(registry: RegistryClient, repository: str, webhook: _Webhook, seconds: float) -> dict[str, Any]:
    """Probe for `seconds`; return the lag of the probes, and how many events came by then."""
    image, sent = make_probe_image(), dict[str, float]()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        agent = f"probe/{len(sent)}/{time.perf_counter_ns()}"
        sent[agent] = time.perf_counter()
        registry.put_manifest(repository, image.digest, image.media_type, image.content, user_agent=agent)
        time.sleep(PROBE_EVERY_S)
    # A probe without an event yet lags by at least its age.
    lags = [webhook.received.get(agent, time.perf_counter()) - at for agent, at in sent.items()]
    came = sum(agent in webhook.received for agent in sent)
    return {
        "probes": len(sent),
        "came": came,
        "median_ms": round(statistics.median(lags) * 1000),
        "max_ms": round(max(lags) * 1000),
    }
