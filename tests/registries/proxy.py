"""A proxy between a registry and ingest: it can be away, can answer late, and remembers what passed."""

import http.client
import json
import threading
from collections import Counter
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.services.http import Handler, HTTPServer

DEADLINE_S = 180.0


class Delivery(NamedTuple):
    """One POST that ingest has answered, or None if it was not asked."""

    event: dict[str, Any]
    status: int | None


class WebhookProxy(HTTPServer):
    """`away`: connections are closed without an answer. `repeats`: answers come when ingest has it so often."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._changed = threading.Condition()
        self._attempts = 0
        self._accepted: Counter[str] = Counter()
        self.deliveries: list[Delivery] = []
        self.away = False
        self.repeats = 1
        super().__init__(self._handler())
        self.url = f"{self.address}{self._target.path}"

    def accepted(self) -> list[dict[str, Any]]:
        """The events that ingest has taken, in the order in which it did; repeated ones too."""
        with self._changed:
            return [each.event for each in self.deliveries if each.status == http.client.ACCEPTED]

    def attempts(self) -> int:
        with self._changed:
            return self._attempts

    def _take(self, body: bytes, headers: dict[str, str]) -> int | None:
        """Pass one POST on; None if nothing is to be answered."""
        (event,) = json.loads(body)["events"]
        with self._changed:
            self._attempts += 1
            away = self.away
        status = None if away else self._pass_on(body, headers)
        with self._changed:
            self.deliveries.append(Delivery(event, status))
            # One that is refused, as of a pod that ingest does not know yet, has to come again anyhow.
            if status == http.client.ACCEPTED:
                self._accepted[event["id"]] += 1
                self._changed.notify_all()
                # The registry gives up in the meantime, and comes again.
                self._changed.wait_for(lambda: self._accepted[event["id"]] >= self.repeats, DEADLINE_S)
        return status

    def _pass_on(self, body: bytes, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port or 80, timeout=30)
        try:
            connection.request("POST", self._target.path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def _handler(self) -> type[Handler]:
        proxy = self

        class Answering(Handler):
            def do_POST(self) -> None:
                kept = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
                status = proxy._take(self.body(), kept)
                if status is None:
                    self.close_connection = True
                    return
                try:
                    self.reply(status)
                except OSError:  # it has given up
                    self.close_connection = True

        return Answering
