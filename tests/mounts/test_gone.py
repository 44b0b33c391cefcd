"""A request whose client, or its router, has not waited for the answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from coordinator.api.mounts import Mounts
from coordinator.domain.mounts import MountRequest, NotMountedError, Reason
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.mounts.directory import MountPod
from coordinator.mounts.forward import ANSWER_S, Forwarder, PodAnswer
from coordinator.mounts.mounter import Mounter
from tests.services.http import Handler, HTTPServer


class Opened(HTTPServer):
    """A registry that opens every requested upload."""

    def __init__(self) -> None:
        opened = self.opened = list[str]()

        class Answering(Handler):
            def do_POST(self) -> None:
                opened.append(self.path)
                self.reply(202)

        super().__init__(Answering)


class Dripping(HTTPServer):
    """A registry whose answer to an upload has no end."""

    def __init__(self) -> None:
        is_over = self.is_over = threading.Event()

        class Answering(Handler):
            def do_POST(self) -> None:
                self.send_response(202)
                self.send_header("Connection", "close")
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not is_over.wait(0.02):
                        self.wfile.write(b"?")

        super().__init__(Answering)


class Refusing:
    """A mounter that makes no mount."""

    def __init__(self, registry: str) -> None:
        self.pod = MountPod(1, PodName("pod-a"), PodKind.LINK, (registry,), ("pod-a",))

    def mount(self, _: MountRequest, __: str | None) -> None:
        raise NotMountedError(Reason.NOT_THERE)

    def target(self, _: RepositoryName) -> MountPod:
        return self.pod

    def close(self) -> None:
        pass


async def asked(registry: str, *, goes: bool, answer_s: float = ANSWER_S) -> PodAnswer:
    """Request a mount as a client that then waits, or one that goes away."""
    messages: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]
    messages += [{"type": "http.disconnect"}] * goes

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.get_running_loop().create_future()

    query = b"mount=sha256:" + b"0" * 64 + b"&from=pod-a/base"
    scope = {"method": "POST", "raw_path": b"/v2/pod-a/app/blobs/uploads/", "query_string": query, "headers": []}
    mounts = Mounts(cast("Mounter", Refusing(registry)), Forwarder(answer_s=answer_s), patience=10)
    try:
        return await mounts.answer(cast("Any", scope), receive)
    finally:
        await mounts.close()


@pytest.mark.parametrize("goes", [False, True])
def test_nobody_is_there_any_more(goes: bool) -> None:
    """An upload is opened for a client that waits, and not for one that has gone."""
    with Opened() as registry:
        answer = asyncio.run(asked(registry.address, goes=goes))
        assert registry.opened == ([] if goes else ["/v2/pod-a/app/blobs/uploads/"])
    assert answer.status == (400 if goes else 202)


def test_a_pod_whose_answer_has_no_end() -> None:
    """An endless answer of the pod is given up after the bound."""
    with Dripping() as registry:
        try:
            answer = asyncio.run(asyncio.wait_for(asked(registry.address, goes=False, answer_s=0.3), 10))
        finally:
            registry.is_over.set()
    assert answer.status == 502
    assert all(name != b"x-baleen-mount" for name, _ in answer.headers), "the router is to ask the pod itself"


def test_nothing_is_kept_of_who_went_away() -> None:
    """What a client had sent before it went away does not stay in memory."""
    scope = {
        "method": "POST",
        "raw_path": b"/v2/pod-a/app/blobs/uploads/",
        "query_string": b"",
        "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
    }

    def going_away() -> Callable[[], Awaitable[Any]]:
        sent: list[Any] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"m", "more_body": True}]

        async def receive() -> Any:
            return sent.pop()

        return receive

    async def some_go() -> list[weakref.ref[Any]]:
        mounts = Mounts(cast("Mounter", Refusing("http://127.0.0.1:9")), Forwarder(), patience=5)
        known = []
        for _ in range(3):
            receive = going_away()
            known.append(weakref.ref(receive))
            assert (await mounts.answer(cast("Any", scope), receive)).status == 400
        await mounts.close()
        return known

    known = asyncio.run(some_go())
    gc.collect()
    assert [each() for each in known] == [None] * 3
