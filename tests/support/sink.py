"""A webhook that records a registry's notifications and fails on request."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from tests.services.http import Handler, HTTPServer

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Delivery:
    """One POST: what came, and the status it was answered with."""

    content_type: str
    authorization: str | None
    envelope: dict[str, Any]
    status: int

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(self.envelope["events"])


class NotificationSink(HTTPServer):
    """Records every delivery; `answer` is the status of its answers."""

    def __init__(self) -> None:
        self.answer = 200
        self._changed = threading.Condition()
        self._deliveries: list[Delivery] = []
        super().__init__(self._handler())
        self.url = f"{self.address}/events"

    @property
    def deliveries(self) -> list[Delivery]:
        with self._changed:
            return list(self._deliveries)

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """The events of the deliveries that were answered with success."""
        return [event for delivery in self.deliveries if delivery.status < 400 for event in delivery.events]

    def wait(self, enough: Callable[[Self], bool]) -> None:
        """Wait until the condition holds for what was recorded; fails after a deadline."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self), DEADLINE_SECONDS):
                raise AssertionError(f"the sink waited in vain; it has {self._deliveries}")

    def _handler(self) -> type[Handler]:
        sink = self

        class Answering(Handler):
            def do_POST(self) -> None:
                body = self.body()
                with sink._changed:
                    status = sink.answer
                    headers = self.headers
                    delivery = Delivery(headers["Content-Type"], headers["Authorization"], json.loads(body), status)
                    sink._deliveries.append(delivery)
                    sink._changed.notify_all()
                self.reply(status)

        return Answering
