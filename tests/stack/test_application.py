"""Baleen's own processes beside a stack: the address of the API. Not here: that they run (tests/cli/test_up.py)."""

import pytest

from coordinator.settings import make_settings
from coordinator.stack.application import is_answering, local_url
from tests.services.http import Handler, HTTPServer


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8640"),
        ("0.0.0.0", "http://127.0.0.1:8640"),
        ("::", "http://[::1]:8640"),
        ("0::0", "http://[::1]:8640"),
        ("::1", "http://[::1]:8640"),
        ("fd00::7", "http://[fd00::7]:8640"),
        ("localhost", "http://localhost:8640"),
    ],
)
def test_where_the_api_is_found(host: str, url: str) -> None:
    """Commands get an address at which the API can be reached from here, wherever it listens."""
    assert local_url(host, 8640) == url
    assert make_settings({"url": url}).url == url


class Alive(Handler):
    def do_GET(self) -> None:
        self.reply()


def test_no_proxy_is_asked_whether_the_api_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment does not hide from `baleen up` that its API is ready."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with HTTPServer(Alive) as server:
        assert is_answering(server.address)
