"""What is read of a process's metrics, and what is no answer."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from coordinator.registry import metrics as reading
from coordinator.registry.errors import RegistryContentError, RegistryError, RegistryUnreachableError
from coordinator.registry.metrics import Metrics, read_metrics
from tests.services.http import HOST, Handler, HTTPServer


def read(answer: Callable[[Handler], None]) -> Metrics:
    class Answering(Handler):
        def do_GET(self) -> None:
            answer(self)

    with HTTPServer(Answering) as server:
        return read_metrics(server.address, "/metrics", HOST, ca_file=None, timeout=5)


def test_names_and_start() -> None:
    """Names of series are read with and without labels, and of those that are only described."""
    text = b'# TYPE registry_gc_runs_total counter\nplain 1\nlabelled{a="b"} 2\nprocess_start_time_seconds 1.5e+09\n'
    found = read(lambda handler: handler.reply(200, text))
    assert found.names == {"registry_gc_runs_total", "plain", "labelled", "process_start_time_seconds"}
    assert found.started_at == datetime.fromtimestamp(1.5e9, UTC)
    assert read(lambda handler: handler.reply(200, b"process_start_time_seconds 1e300\n")).started_at is None
    assert read(lambda handler: handler.reply(200)) == Metrics(frozenset(), None)


def test_an_answer_that_is_incomplete() -> None:
    """An answer that is cut off, too long, elsewhere or no 200 is an error: what it lacks may exist."""
    with pytest.raises(RegistryUnreachableError):
        read(lambda handler: handler.reply(200, b"plain 1\n", {"Content-Length": "100", "Connection": "close"}))
    with pytest.raises(RegistryContentError):
        read(lambda handler: handler.reply(200, bytes(reading.LIMIT_BYTES + 1)))
    with pytest.raises(RegistryError, match="answered 307"):
        read(lambda handler: handler.reply(307, headers={"Location": "/elsewhere"}))
