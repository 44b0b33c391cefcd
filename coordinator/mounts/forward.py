"""Forward a mount that was not made to the target pod as a plain upload, and return the pod's answer to the client.

`mount` and `from` are removed, so that the pod neither tries a mount itself, which answers 401 to a token without pull
on the source, nor leaves an unwanted upload behind. Everything else is as the client sent it.
Of several registries the first reachable one is used: one that refuses the connection has received nothing.
Not here: which requests (api/mounts.py).
"""

import asyncio
from collections.abc import Iterable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple

import httpx

from coordinator.domain.names import RepositoryName
from coordinator.errors import UnavailableError
from coordinator.mounts.directory import MountPod
from coordinator.registry.transport import describe_error, tls_context

CONNECT_S: Final = 2.0
ANSWER_S: Final = 30.0
#: Bytes of a pod's answer to an opened upload: a few words, or an error.
ANSWER_BYTES: Final = 1 << 20

Header = tuple[bytes, bytes]

#: Headers of one connection only (RFC 9110, 7.6.1), and headers that describe a body that is not forwarded.
_NOT_FORWARDED: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"expect",
    }
)


class PodAnswer(NamedTuple):
    """A pod's answer."""

    status: int
    headers: Sequence[Header]
    body: bytes


class Forwarder:
    """Forwards requests to pods; for the event loop of its first use."""

    def __init__(self, *, ca_file: str | None = None, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(answer_s, connect=CONNECT_S),
            verify=tls_context(ca_file),
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=50),
            # Cookies of one client's answer must not reach another client.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def open_upload(
        self, pod: MountPod, repository: RepositoryName, query: bytes, headers: Iterable[Header]
    ) -> PodAnswer:
        """Open an upload at the pod; `query` is without its `?`. Raises UnavailableError."""
        sent = [(name, value) for name, value in headers if name not in _NOT_FORWARDED] + [(b"content-length", b"0")]
        last: httpx.HTTPError | None = None
        for registry in pod.registries:
            base = httpx.URL(registry)
            path = f"/v2/{repository}/blobs/uploads/".encode() + (b"?" + query if query else b"")
            # Built here, because httpx would add its own Accept-Encoding (gzip).
            request = httpx.Request("POST", base.copy_with(raw_path=path), headers=sent)
            try:
                async with asyncio.timeout(self._answer_s):
                    return await self._send(request)
            except TimeoutError as error:
                # httpx limits only each silence: a registry that sends slowly would hold a connection forever.
                late = f"A registry of pod {pod.name} did not answer within {self._answer_s:g} s."
                raise UnavailableError(late) from error
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                last = error
            except httpx.HTTPError as error:
                raise UnavailableError(
                    f"A registry of pod {pod.name} did not answer ({describe_error(error)})."
                ) from error
        reason = "it has none" if last is None else describe_error(last)
        raise UnavailableError(f"No registry of pod {pod.name} can be reached ({reason}).") from last

    async def _send(self, request: httpx.Request) -> PodAnswer:
        response = await self._http.send(request, stream=True)
        try:
            body = b""
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > ANSWER_BYTES:
                    raise UnavailableError("The registry's answer to the upload is too long.")
        finally:
            await response.aclose()
        # A body is forwarded as it came, encoded or not.
        kept = [
            (name.lower(), value)
            for name, value in response.headers.raw
            if name.lower() not in _NOT_FORWARDED - {b"content-type", b"content-encoding"}
        ]
        return PodAnswer(response.status_code, kept, body)
