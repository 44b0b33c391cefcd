"""The connection to a registry: at one of its host's addresses, over TLS; and the reason of a failure.

Not here: requests (client.py), authentication (auth.py).
"""

import errno
import functools
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final

import httpx

from coordinator.errors import SettingsError
from coordinator.registry.auth import is_same_origin

#: OpenSSL's names, by release, for bytes that are not TLS.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})

#: The most bytes of an answer that is no blob and no manifest: an error, a token, a few words.
SHORT_ANSWER_BYTES: Final = 256 * 1024
#: Marks a request whose answer may be long.
LONG_ANSWER: Final = "baleen_long"


class AddressTransport(httpx.HTTPTransport):
    """Connects to one address of the registry's host; the Host header and TLS still name the host."""

    def __init__(self, base_url: str, address: str, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=tls, limits=limits, trust_env=False)
        self._registry = httpx.URL(base_url)
        self._address = address

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if not is_same_origin(url, self._registry):
            return super().handle_request(request)  # a token's issuer, a redirect's target
        there = httpx.Request(
            request.method,
            url.copy_with(host=self._address),
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions | {"sni_hostname": url.host},
        )
        return super().handle_request(there)


class _ShortAnswer(httpx.SyncByteStream):
    """A short answer: nothing is read after SHORT_ANSWER_BYTES, or after its time.

    Otherwise a registry could delay the reader of its error, byte by byte, for as long as it likes.
    """

    def __init__(self, stream: httpx.SyncByteStream, seconds: float) -> None:
        self._stream = stream
        self._until = time.monotonic() + seconds

    def __iter__(self) -> Iterator[bytes]:
        left = SHORT_ANSWER_BYTES
        for piece in self._stream:
            left -= len(piece)
            if left < 0 or time.monotonic() > self._until:
                return
            yield piece

    def close(self) -> None:
        self._stream.close()


def make_response_limiter(seconds: float) -> Callable[[httpx.Response], None]:
    """Return a hook for responses that limits them in size and time, except for the 200 of a LONG request."""

    def limit_response(response: httpx.Response) -> None:
        is_long = response.status_code == httpx.codes.OK and response.request.extensions.get(LONG_ANSWER)
        if not is_long and isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _ShortAnswer(response.stream, seconds)

    return limit_response


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the TLS context that all clients share, because reading the certificates takes a while."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # also raised for what is no certificate
            raise SettingsError(f"BALEEN_REGISTRY_CA_FILE cannot be read: {error}.") from error
    return context


def request_url(error: httpx.HTTPError) -> httpx.URL | None:
    try:
        return error.request.url
    except RuntimeError:  # it failed before there was a request
        return None


def is_refused(error: BaseException) -> bool:
    """Whether the other side refused the connection, which proves more than silence."""
    return any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))


def describe_error(error: BaseException) -> str:
    """Return the reason of a failure, in the system's words if possible: httpx has one name for all of them."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            # Its errno is not one of the system's.
            if cause.reason in _NO_TLS:
                return "it does not speak TLS at this port: use http:// if that is intended"
            return f"no TLS could be agreed on: {cause.reason or type(cause).__name__}"
        if isinstance(cause, socket.gaierror):
            return "its name is not known here"
        if isinstance(cause, OSError) and cause.errno is not None:
            return errno.errorcode.get(cause.errno, type(cause).__name__)
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    known: BaseException | None = error
    while known is not None:
        yield known
        known = known.__cause__ or known.__context__
