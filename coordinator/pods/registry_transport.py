"""How the bytes reach a registry: at one of its host's addresses, over TLS, and why they did not.

Not here: what is asked (registry_client.py), who asks (registry_auth.py).
"""

import errno
import functools
import socket
import ssl
from collections.abc import Iterator

import httpx

from coordinator.errors import SettingsError
from coordinator.pods.registry_auth import same_origin


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
