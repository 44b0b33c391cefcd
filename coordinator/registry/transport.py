"""How the bytes reach a registry: at one of its host's addresses, over TLS, and why they did not.

Not here: what is asked (client.py), who asks (auth.py).
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
from coordinator.registry.auth import same_origin

#: What OpenSSL, by its release, calls bytes that are no TLS.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})

#: Bytes of an answer that is no blob and no manifest: an error, a token, a few words.
WORDS_BYTES: Final = 256 * 1024
#: Of a request whose answer may be long.
LONG: Final = "baleen_long"


class AtAddress(httpx.HTTPTransport):
    """Connects to one address of the registry's host; the Host header and TLS go on naming the host."""

    def __init__(self, base_url: str, address: str, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=tls, limits=limits, trust_env=False)
        self._registry = httpx.URL(base_url)
        self._address = address

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if not same_origin(url, self._registry):
            return super().handle_request(request)  # a token's issuer, a redirect's target
        there = httpx.Request(
            request.method,
            url.copy_with(host=self._address),
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions | {"sni_hostname": url.host},
        )
        return super().handle_request(there)


class _Words(httpx.SyncByteStream):
    """An answer of a few words: what comes after WORDS_BYTES, or after its time, is not read.

    A registry could else hold whoever reads its error, byte by byte, for as long as it likes.
    """

    def __init__(self, stream: httpx.SyncByteStream, seconds: float) -> None:
        self._stream = stream
        self._until = time.monotonic() + seconds

    def __iter__(self) -> Iterator[bytes]:
        left = WORDS_BYTES
        for piece in self._stream:
            left -= len(piece)
            if left < 0 or time.monotonic() > self._until:
                return
            yield piece

    def close(self) -> None:
        self._stream.close()


def bounded(seconds: float) -> Callable[[httpx.Response], None]:
    """A hook for responses: only a LONG request's 200 may be long, also in time."""

    def bound(response: httpx.Response) -> None:
        is_long = response.status_code == httpx.codes.OK and response.request.extensions.get(LONG)
        if not is_long and isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _Words(response.stream, seconds)

    return bound


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """What all clients share: reading the certificates takes a while."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # also of what is no certificate
            raise SettingsError(f"BALEEN_REGISTRY_CA_FILE cannot be read: {error}.") from error
    return context


def asked(error: httpx.HTTPError) -> httpx.URL | None:
    try:
        return error.request.url
    except RuntimeError:  # it failed before there was a request
        return None


def was_refused(error: BaseException) -> bool:
    """Whether the other side said that nothing listens there, which is more than silence."""
    return any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))


def why(error: BaseException) -> str:
    """Name the failure as the system does, where it does: httpx has one name for all ways of not connecting."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            # Its errno is none of the system's.
            if cause.reason in _NO_TLS:
                return "it speaks no TLS at this port: http:// may be what is meant"
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
