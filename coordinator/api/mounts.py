"""`POST /v2/<name>/blobs/uploads/`: answer requests for a mount, or forward them to the pod as uploads.

Route: router -> `Mounts` -> Mounter -> 201, or HandOn -> the pod's own answer.
`X-Baleen-Mount` says which of the two it was. An answer without it is a failure of Baleen, and the router then sends
the request to the pod itself.
Errors are those of the OCI distribution-spec ("Error Codes"). Names have slashes, so this module parses paths itself.
Not here: the decision to mount (coordinator/mounts).
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl, urlencode

import msgspec
import structlog
from litestar import asgi
from litestar.types import HTTPScope, Receive, Scope, Send
from prometheus_client import Counter, Histogram

from coordinator.domain.mounts import MountOutcome, NotMountedError, Reason, parse_mount
from coordinator.domain.names import RepositoryName, parse_repository
from coordinator.errors import InvalidNameError, UnavailableError
from coordinator.mounts.forward import Forwarder, Header, PodAnswer
from coordinator.mounts.mounter import MadeMount, Mounter

log = structlog.get_logger()

#: Mounts in parallel. With QUEUED more waiting, requests are forwarded to the pod at once.
THREADS: Final = 16
QUEUED: Final = 200
FORM_BYTES: Final = 64 * 1024
#: Fields of a query or a form.
FIELDS_LIMIT: Final = 20
FORM_TYPE: Final = b"application/x-www-form-urlencoded"
OUTCOME_HEADER: Final = b"x-baleen-mount"
_PATH: Final = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?", re.ASCII)

MOUNTS = Counter("baleen_mounts_total", "Requests for a mount, by outcome.", ["outcome", "reason"])
MOUNTED_BYTES = Counter("baleen_mounted_bytes_total", "Bytes that clients did not upload because of mounts.")
MOUNT_SECONDS = Histogram(
    "baleen_mount_seconds",
    "Duration of requests for a mount, by outcome.",
    ["outcome"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)


class _Request(NamedTuple):
    repository: RepositoryName
    #: Of query and form, the query first.
    parameters: Mapping[str, Sequence[str]]
    #: The query of the upload without the mount.
    rest: bytes
    headers: Sequence[Header]

    @property
    def authorization(self) -> str | None:
        found = next((value for name, value in self.headers if name == b"authorization"), None)
        return None if found is None else found.decode("latin-1")


class _RefusedError(Exception):
    """The request is invalid for every registry."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = _make_error(status, code, message)


class Mounts:
    """Serves mounts. One for each process."""

    def __init__(
        self,
        mounter: Mounter,
        forwarder: Forwarder,
        *,
        patience: float,
        close_linkers: Callable[[], None] = lambda: None,
    ) -> None:
        """`patience`: seconds after which a mount that is not made yet is forwarded to the pod."""
        self._mounter = mounter
        self._patience = patience
        self._forwarder = forwarder
        self._close_linkers = close_linkers
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mounts")
        self._waiting = 0

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._mounter.close()
        self._close_linkers()
        await self._forwarder.close()

    async def answer(self, scope: HTTPScope, receive: Receive) -> PodAnswer:
        began = time.perf_counter()
        try:
            request = await _read_request(scope, receive)
        except _RefusedError as error:
            return error.answer
        try:
            mounted = await self._mount(request)
        except NotMountedError as error:
            reason, why = error.reason, str(error)
        except UnavailableError as error:
            reason, why = Reason.UNAVAILABLE, str(error)
        else:
            MOUNTS.labels(MountOutcome.MOUNTED, "").inc()
            MOUNTED_BYTES.inc(mounted.size)
            MOUNT_SECONDS.labels(MountOutcome.MOUNTED).observe(time.perf_counter() - began)
            return _make_created(request)
        if await _is_disconnected(receive):
            # The router has asked the pod itself by now, and nobody would use this upload.
            log.info("mount given up: the client went away", repository=request.repository, detail=why)
            return _make_disconnected().answer
        return await self._forward(request, reason, why, began)

    async def _mount(self, request: _Request) -> MadeMount:
        wanted = parse_mount(request.repository, request.parameters)
        if self._waiting >= THREADS + QUEUED:
            raise NotMountedError(Reason.BUSY)
        loop = asyncio.get_running_loop()
        future = self._threads.submit(self._mounter.mount, wanted, request.authorization)
        self._waiting += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._end_waiting))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._patience)
        except TimeoutError as error:
            # The mount may still be made. That is harmless: its reference expires, and the upload makes the same link.
            raise NotMountedError(Reason.UNAVAILABLE, "it took too long") from error

    def _end_waiting(self) -> None:
        self._waiting -= 1

    async def _forward(self, request: _Request, reason: Reason, why: str, began: float) -> PodAnswer:
        MOUNTS.labels(MountOutcome.FORWARDED, reason).inc()
        log.info("mount forwarded", repository=request.repository, reason=reason.value, detail=why)
        try:
            pod = await asyncio.to_thread(self._mounter.target, request.repository)
            answer = await self._forwarder.open_upload(pod, request.repository, request.rest, request.headers)
        except NotMountedError:
            return _make_error(
                404, "NAME_UNKNOWN", f"No pod owns {request.repository}: register it with `baleen pods add`."
            )
        except UnavailableError as error:
            return _make_error(502, "UNKNOWN", str(error))
        MOUNT_SECONDS.labels(MountOutcome.FORWARDED).observe(time.perf_counter() - began)
        return answer._replace(headers=[*answer.headers, (OUTCOME_HEADER, MountOutcome.FORWARDED.encode())])


@asgi("/v2", is_mount=True, copy_scope=True)
async def serve_mounts(scope: Scope, receive: Receive, send: Send) -> None:
    mounts: Mounts | None = scope["litestar_app"].state.deps.mounts
    if mounts is None:
        answer = _make_error(404, "UNSUPPORTED", "Mounts are off: set BALEEN_MOUNTS.")
    else:
        answer = await mounts.answer(cast("HTTPScope", scope), receive)
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _make_created(request: _Request) -> PodAnswer:
    digest = request.parameters["mount"][0]
    return PodAnswer(
        201,
        [
            (b"location", f"/v2/{request.repository}/blobs/{digest}".encode()),
            (b"docker-content-digest", digest.encode()),
            (b"docker-distribution-api-version", b"registry/2.0"),
            (OUTCOME_HEADER, MountOutcome.MOUNTED.encode()),
        ],
        b"",
    )


async def _read_request(scope: HTTPScope, receive: Receive) -> _Request:
    match = _PATH.fullmatch(_raw_path(scope))
    if match is None:
        raise _RefusedError(404, "UNSUPPORTED", "Only mounts are served here: POST /v2/<name>/blobs/uploads/.")
    if scope["method"] != "POST":
        raise _RefusedError(405, "UNSUPPORTED", "Only POST is served here.")
    try:
        repository = parse_repository(match["name"])
    except InvalidNameError as error:
        raise _RefusedError(400, "NAME_INVALID", str(error)) from error
    headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    form = await _read_form(receive) if kind.partition(b";")[0].strip().lower() == FORM_TYPE else b""
    query = _parse_fields(scope["query_string"])
    parameters: dict[str, list[str]] = {}
    for name, value in [*query, *_parse_fields(form)]:
        parameters.setdefault(name, []).append(value)
    # Without `digest`: it would make the body the blob, and the body has been read.
    rest = urlencode([field for field in query if field[0] not in {"mount", "from", "digest"}]).encode()
    return _Request(repository, parameters, rest, headers)


def _raw_path(scope: HTTPScope) -> str:
    """Return the path as it was sent, undecoded: names of repositories need no encoding."""
    return scope["raw_path"].decode("latin-1").partition("?")[0]


def _parse_fields(text: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text.decode(), keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
    except ValueError as error:
        raise _RefusedError(400, "UNSUPPORTED", f"The parameters are malformed: {error}.") from error


async def _read_form(receive: Receive) -> bytes:
    body = b""
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            raise _make_disconnected()
        body += bytes(message.get("body", b""))
        if len(body) > FORM_BYTES:
            raise _RefusedError(
                413, "UNSUPPORTED", f"The form is too large for a mount: send up to {FORM_BYTES} bytes."
            )
        if not message.get("more_body"):
            return body


async def _is_disconnected(receive: Receive) -> bool:
    """Has the client closed the connection? Unread parts of its body are dropped."""
    try:
        async with asyncio.timeout(0):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


def _make_error(status: int, code: str, message: str) -> PodAnswer:
    body = msgspec.json.encode({"errors": [{"code": code, "message": message, "detail": None}]})
    return PodAnswer(status, [(b"content-type", b"application/json")], body)


def _make_disconnected() -> _RefusedError:
    # A new one each time: one that is raised again keeps the frames of earlier requests, with clients' data.
    return _RefusedError(400, "UNSUPPORTED", "The client closed the connection.")
