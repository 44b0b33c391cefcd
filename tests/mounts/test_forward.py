"""A request that is handed on is its client's: nothing is in it of other clients, and nothing of ours."""

from __future__ import annotations

import asyncio

from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.mounts.directory import MountPod
from coordinator.mounts.forward import Forwarder
from tests.services.http import Handler, HTTPServer


class Session(HTTPServer):
    """A registry, or what stands before it, that gives whoever asks a cookie."""

    def __init__(self) -> None:
        asked = self.asked = list[dict[str, str]]()

        class Answering(Handler):
            def do_POST(self) -> None:
                asked.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(202)
                self.send_header("Set-Cookie", f"session={self.headers['Authorization']}; Path=/")
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Answering)


def test_nobody_else_is_in_it() -> None:
    """A cookie is its client's answer, and not sent with the next client's request; what no client said is not said."""

    async def ask(pod: MountPod) -> list[bytes]:
        forwarder, given = Forwarder(), []
        for user in (b"alice", b"bob"):
            sent = [(b"host", b"router"), (b"authorization", user)]
            answer = await forwarder.upload(pod, RepositoryName("pod-a/app"), b"", sent)
            given.append(dict(answer.headers)[b"set-cookie"])
        await forwarder.close()
        return given

    with Session() as registry:
        pod = MountPod(1, PodName("pod-a"), PodKind.LINK, (registry.address,), ("pod-a",))
        assert asyncio.run(ask(pod)) == [b"session=alice; Path=/", b"session=bob; Path=/"]
    assert registry.asked == [
        {"host": "router", "authorization": user, "content-length": "0"} for user in ("alice", "bob")
    ]
