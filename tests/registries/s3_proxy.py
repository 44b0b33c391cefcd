"""A proxy between a registry and its object store: it answers chosen calls itself, and passes all others on.

Requests are signed together with their headers, Host among them, so all of them go on as they came.
"""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from tests.services.http import Handler, HTTPServer

#: A call that is held waits for all that a test does meanwhile.
DEADLINE_S = 300.0
#: What goes from hop to hop, or is said anew here.
NOT_PASSED_ON = {"connection", "content-length", "transfer-encoding"}


class Call(NamedTuple):
    """One request to the store. `target` is its path with its query, decoded."""

    method: str
    target: str
    body: bytes

    @property
    def deletes(self) -> list[str]:
        """The keys that it would delete: registries delete in batches, and Baleen does."""
        if self.method != "POST" or self.target.partition("?")[2] not in {"delete", "delete="}:
            return []
        return [key.text or "" for key in ElementTree.fromstring(self.body).iter() if key.tag.endswith("Key")]

    def lists(self, folder: str) -> bool:
        """Whether it lists keys of which all have this in their names."""
        return self.method == "GET" and folder in self.target.partition("prefix=")[2]


class Answer(NamedTuple):
    status: int
    content: bytes


#: The whole call is refused.
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>a test</Message></Error>")
BROKEN = Answer(500, b"<Error><Code>InternalError</Code><Message>a test</Message></Error>")


def denied_each(call: Call) -> Answer:
    """A batch of deletes as S3 answers it where none is allowed: the call succeeds, and its body says what did not."""
    errors = "".join(f"<Error><Key>{key}</Key><Code>AccessDenied</Code></Error>" for key in call.deletes)
    return Answer(200, f"<DeleteResult>{errors}</DeleteResult>".encode())


class S3Proxy(HTTPServer):
    """`answer` says what a call is answered; one for which it gives None is passed on."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self.answer: Callable[[Call], Answer | None] | None = None
        #: Calls that were answered so.
        self.answered: list[Call] = []
        super().__init__(self._handler())
        self.url = self.address

    def _handler(self) -> type[Handler]:
        proxy = self

        class Answering(Handler):
            def _do(self) -> None:
                body = self.body()
                call = Call(self.command, unquote(self.path), body)
                # It may be set anew meanwhile.
                decide = proxy.answer
                answer = None if decide is None else decide(call)
                if answer is None:
                    self._pass_on(body)
                    return
                proxy.answered.append(call)
                self.reply(answer.status, answer.content, {"Content-Type": "application/xml"})

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

            def _pass_on(self, body: bytes) -> None:
                host, port = proxy._target.hostname or "", proxy._target.port or 80
                connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    self._send(answer.status, answer.getheaders(), answer.read())
                finally:
                    connection.close()

            def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response_only(status)
                length = str(len(content))
                for name, value in headers:
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    elif name.lower() not in NOT_PASSED_ON:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        return Answering


class Held(NamedTuple):
    """Calls that wait: `reached` once the first has come, until it is `over`."""

    reached: threading.Event
    over: threading.Event


@contextmanager
def held(storage: S3Proxy, which: Callable[[Call], bool]) -> Iterator[Held]:
    """Let a registry's calls to storage wait until the block ends or says `over`."""
    hold = Held(threading.Event(), threading.Event())

    def wait(call: Call) -> None:
        if which(call):
            hold.reached.set()
            hold.over.wait(DEADLINE_S)

    storage.answer = wait
    try:
        yield hold
    finally:
        hold.over.set()
        storage.answer = None
