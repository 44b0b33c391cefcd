"""A forwarded request contains only its client's data, none of other clients and none of ours."""

from __future__ import annotations

import asyncio

from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.mounts.directory import MountPod
from coordinator.mounts.forward import Forwarder
from tests.services.http import Handler, HTTPServer


class Session(HTTPServer):
    """A registry, or a proxy before it, that sets a cookie."""

    def __init__(self) -> None:
        asked = self.asked = list[dict[str, str]]()

        class Answering(Handler):
            def do_POST(self) -> None:
                asked.append({name.lower(): value for name, value in self.headers.items()})
                self.reply(202, headers={"Set-Cookie": f"session={self.headers['Authorization']}; Path=/"})

        super().__init__(Answering)


def test_nobody_else_is_in_it() -> None:
    """A cookie is returned to its client, and not sent with the next client's request."""

    async def ask(pod: MountPod) -> list[bytes]:
        forwarder, given = Forwarder(), []
        for user in (b"alice", b"bob"):
            sent = [(b"host", b"router"), (b"authorization", user)]
            answer = await forwarder.open_upload(pod, RepositoryName("pod-a/app"), b"", sent)
            given.append(dict(answer.headers)[b"set-cookie"])
        await forwarder.close()
        return given

    with Session() as registry:
        pod = MountPod(1, PodName("pod-a"), PodKind.LINK, (registry.address,), ("pod-a",))
        assert asyncio.run(ask(pod)) == [b"session=alice; Path=/", b"session=bob; Path=/"]
    assert registry.asked == [
        {"host": "router", "authorization": user, "content-length": "0"} for user in ("alice", "bob")
    ]
