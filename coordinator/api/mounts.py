"""`POST /v2/<name>/blobs/uploads/`: mounts, and what the router sends here that turns out to be none.

Route: router -> `Mounts` -> Mounter -> 201, or HandOn -> the pod's own answer, whatever it is.
`X-Baleen-Mount` says which of both it was. An answer without it is one of Baleen's own failures, for which a router
sends the request to the pod itself.
Errors are those of the OCI distribution-spec ("Error Codes"). Names have slashes within, so this reads paths itself.
Not here: whether it is mounted (coordinator/mounts).
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl, urlencode

import msgspec
import structlog
from litestar import asgi
from litestar.types import HTTPScope, Receive, Scope, Send
from prometheus_client import Counter, Histogram

from coordinator.domain.mounts import NotMountedError, Outcome, Reason, parse
from coordinator.domain.names import RepositoryName, parse_repository
from coordinator.errors import InvalidNameError, UnavailableError
from coordinator.mounts.hand_on import Answer, HandOn, Header
from coordinator.mounts.mounter import Mounted, Mounter

log = structlog.get_logger()

#: Mounts that are made at once; beyond QUEUED more the pod is asked at once.
THREADS: Final = 16
QUEUED: Final = 200
FORM_BYTES: Final = 64 * 1024
#: Names and values of a query or a form.
FIELDS_LIMIT: Final = 20
FORM: Final = b"application/x-www-form-urlencoded"
TOLD: Final = b"x-baleen-mount"
_PATH: Final = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?", re.ASCII)

MOUNTS = Counter("baleen_mounts_total", "Requests for a mount, by what became of them.", ["outcome", "reason"])
MOUNTED_BYTES = Counter("baleen_mounted_bytes_total", "Bytes that clients did not upload, by mounts.")
SECONDS = Histogram(
    "baleen_mount_seconds",
    "How long a request for a mount took, by what became of it.",
    ["outcome"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)


class _Request(NamedTuple):
    repository: RepositoryName
    #: Of query and form together, the query first.
    parameters: Mapping[str, Sequence[str]]
    #: The query of the plain upload.
    rest: bytes
    headers: Sequence[Header]

    @property
    def authorization(self) -> str | None:
        found = next((value for name, value in self.headers if name == b"authorization"), None)
        return None if found is None else found.decode("latin-1")


class _RefusedError(Exception):
    """No registry would take the request."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = _error(status, code, message)


class Mounts:
    """Serves mounts. One for each process."""

    def __init__(self, mounter: Mounter, hand_on: HandOn, *, patience: float) -> None:
        """`patience`: seconds after which a mount that is not made is handed on."""
        self._mounter = mounter
        self._patience = patience
        self._hand_on = hand_on
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mounts")
        self._waiting = 0

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._mounter.close()
        await self._hand_on.close()

    async def answer(self, scope: HTTPScope, receive: Receive) -> Answer:
        began = time.perf_counter()
        try:
            request = await _read(scope, receive)
        except _RefusedError as error:
            return error.answer
        try:
            mounted = await self._mount(request)
        except NotMountedError as error:
            reason, why = error.reason, str(error)
        except UnavailableError as error:
            reason, why = Reason.UNAVAILABLE, str(error)
        else:
            MOUNTS.labels(Outcome.MOUNTED, "").inc()
            MOUNTED_BYTES.inc(mounted.size)
            SECONDS.labels(Outcome.MOUNTED).observe(time.perf_counter() - began)
            return _created(request)
        if await _is_gone(receive):
            # A router has long asked the pod itself, where this upload would stay open for nobody.
            log.info("mount given up: the client went away", repository=request.repository, detail=why)
            return _gone().answer
        return await self._handed_on(request, reason, why, began)

    async def _mount(self, request: _Request) -> Mounted:
        wanted = parse(request.repository, request.parameters)
        if self._waiting >= THREADS + QUEUED:
            raise NotMountedError(Reason.BUSY)
        loop = asyncio.get_running_loop()
        future = self._threads.submit(self._mounter.mount, wanted, request.authorization)
        self._waiting += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._patience)
        except TimeoutError as error:
            # What is under way may be made yet: a reference that expires, and the link that an upload makes, too.
            raise NotMountedError(Reason.UNAVAILABLE, "it took too long") from error

    def _ended(self) -> None:
        self._waiting -= 1

    async def _handed_on(self, request: _Request, reason: Reason, why: str, began: float) -> Answer:
        MOUNTS.labels(Outcome.HANDED_ON, reason).inc()
        log.info("mount handed on", repository=request.repository, reason=reason.value, detail=why)
        try:
            pod = await asyncio.to_thread(self._mounter.target, request.repository)
            answer = await self._hand_on.upload(pod, request.repository, request.rest, request.headers)
        except NotMountedError:
            return _error(404, "NAME_UNKNOWN", f"No pod owns {request.repository}.")
        except UnavailableError as error:
            return _error(502, "UNKNOWN", str(error))
        SECONDS.labels(Outcome.HANDED_ON).observe(time.perf_counter() - began)
        return answer._replace(headers=[*answer.headers, (TOLD, Outcome.HANDED_ON.encode())])


@asgi("/v2", is_mount=True, copy_scope=True)
async def serve_mounts(scope: Scope, receive: Receive, send: Send) -> None:
    mounts: Mounts | None = scope["litestar_app"].state.deps.mounts
    if mounts is None:
        answer = _error(404, "UNSUPPORTED", "Mounts are not served here: see BALEEN_MOUNTS.")
    else:
        answer = await mounts.answer(cast("HTTPScope", scope), receive)
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _created(request: _Request) -> Answer:
    digest = request.parameters["mount"][0]
    return Answer(
        201,
        [
            (b"location", f"/v2/{request.repository}/blobs/{digest}".encode()),
            (b"docker-content-digest", digest.encode()),
            (b"docker-distribution-api-version", b"registry/2.0"),
            (TOLD, Outcome.MOUNTED.encode()),
        ],
        b"",
    )


async def _read(scope: HTTPScope, receive: Receive) -> _Request:
    match = _PATH.fullmatch(_path(scope))
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
    form = await _body(receive) if kind.partition(b";")[0].strip().lower() == FORM else b""
    query = _fields(scope["query_string"])
    parameters: dict[str, list[str]] = {}
    for name, value in [*query, *_fields(form)]:
        parameters.setdefault(name, []).append(value)
    # With `digest` the body would be the blob, and there is none any more.
    rest = urlencode([field for field in query if field[0] not in {"mount", "from", "digest"}]).encode()
    return _Request(repository, parameters, rest, headers)


def _path(scope: HTTPScope) -> str:
    """Give the path as it was sent: names of repositories need no encoding, and others are none."""
    return scope["raw_path"].decode("latin-1").partition("?")[0]


def _fields(text: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text.decode(), keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
    except ValueError as error:
        raise _RefusedError(400, "UNSUPPORTED", f"The parameters cannot be read: {error}.") from error


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            raise _gone()
        body += bytes(message.get("body", b""))
        if len(body) > FORM_BYTES:
            raise _RefusedError(413, "UNSUPPORTED", f"A form of more than {FORM_BYTES} bytes is no mount.")
        if not message.get("more_body"):
            return body


async def _is_gone(receive: Receive) -> bool:
    """Whether the client has gone away by now; what it sent and nobody has read is passed over."""
    try:
        async with asyncio.timeout(0):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


def _error(status: int, code: str, message: str) -> Answer:
    body = msgspec.json.encode({"errors": [{"code": code, "message": message, "detail": None}]})
    return Answer(status, [(b"content-type", b"application/json")], body)


def _gone() -> _RefusedError:
    # Made anew: one that is raised again keeps the frames of every time before, with what clients sent.
    return _RefusedError(400, "UNSUPPORTED", "The client went away.")
