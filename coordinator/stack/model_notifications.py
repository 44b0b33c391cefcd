"""Deliver a registry's notifications as CNCF distribution 2.8 delivers them.

Route: model_registry -> Notifier.emit -> queue in memory -> one thread -> POST to the webhook
Invariants: one event per POST, in order, one POST at a time; an event keeps its id and timestamp in all attempts;
after an answer outside 2xx and 3xx, or none in time, it is retried forever and delays all later events; a process
that ends loses its queue.
Not here: what happens and when an event is sent (model_registry.py).
"""

import json
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from coordinator.errors import SettingsError

EVENTS_TYPE = "application/vnd.docker.distribution.events.v1+json"


@dataclass(frozen=True)
class Webhook:
    url: str
    token: str | None
    timeout_seconds: float
    backoff_seconds: float
    #: Whether pull events are sent.
    pulls: bool = False

    def __repr__(self) -> str:
        return f"Webhook({self.url!r})"


class Notifier:
    def __init__(self, webhook: Webhook | None, source_address: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._webhook = webhook
        self._clock = clock
        self._source = {"addr": source_address, "instanceID": str(uuid.uuid4())}
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._closed = threading.Event()
        if webhook is not None:
            target = urlsplit(webhook.url)
            if target.scheme != "http" or target.hostname is None:
                raise SettingsError("The model registry notifies http:// URLs only: correct the URL.")
            self._address = (target.hostname, target.port or 80)
            self._path = (target.path or "/") + (f"?{target.query}" if target.query else "")
            threading.Thread(target=self._deliver_all, args=(webhook,), daemon=True).start()

    def close(self) -> None:
        """Stop delivering; the queue is lost, as when the process is killed."""
        self._closed.set()
        self._queue.put(b"")  # wakes the thread, which then ends

    def emit(self, action: str, target: dict[str, Any], request: dict[str, str]) -> None:
        if self._webhook is None or (action == "pull" and not self._webhook.pulls):
            return
        event = {
            "id": str(uuid.uuid4()),
            "timestamp": _format_go_time(self._clock()),
            "action": action,
            "target": target,
            "request": request,
            "actor": {},
            "source": self._source,
        }
        self._queue.put(json.dumps({"events": [event]}).encode())

    def _deliver_all(self, webhook: Webhook) -> None:
        while not self._closed.is_set():
            envelope = self._queue.get()
            while not (self._closed.is_set() or self._deliver(webhook, envelope)):
                self._closed.wait(webhook.backoff_seconds)

    def _deliver(self, webhook: Webhook, envelope: bytes) -> bool:
        headers = {"Content-Type": EVENTS_TYPE}
        if webhook.token is not None:
            headers["Authorization"] = f"Bearer {webhook.token}"
        connection = HTTPConnection(*self._address, timeout=webhook.timeout_seconds)
        try:
            connection.request("POST", self._path, envelope, headers)
            return 200 <= connection.getresponse().status < 400
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def _format_go_time(time_ns: int) -> str:
    """Return a time as Go writes it: nanoseconds, without trailing zeros."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
