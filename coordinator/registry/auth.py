"""Log in at a registry that requires it: Basic authentication, or docker's token flow.

Route: request -> 401 with a challenge -> the realm that it names, with the credentials -> the request again, with the
token; later requests of that kind carry it at once, until shortly before it expires.
Invariants: credentials go to the registry and to the realm that it names, and never from https to http; only a
challenge of the registry itself counts, not that of a redirect's target; nothing here is ever logged.
Not here: which credentials (settings), the requests themselves (client.py).
"""

import base64
import re
import time
from collections.abc import Callable, Generator
from typing import Annotated, NamedTuple

import httpx
import msgspec

from coordinator.registry.errors import RegistryAuthenticationError
from coordinator.settings import Secret

#: The lifetime of a token, in seconds, if the issuer does not state it.
TOKEN_SECONDS = 60.0
#: A token is not used when only this much of its lifetime is left, because a request takes time.
LEEWAY_SECONDS = 10.0
#: Kinds of requests whose tokens are remembered; beyond it the oldest are forgotten.
TOKENS_LIMIT = 1000

_REPOSITORY = re.compile(r"/v2/(?P<name>.+)/(?:blobs|manifests|tags)/")
_CHALLENGE = re.compile(r"\s*(?P<scheme>Basic|Bearer)\s+(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r'(?P<name>[a-zA-Z_]+)\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s,"]+))')

#: What a token permits: pull, push or delete; the repository; the one that a blob is mounted from.
Purpose = tuple[str, str, str]


class Credentials(NamedTuple):
    """A user of the registry, or of its token issuer."""

    username: str
    password: Secret


#: What a header may contain.
_TokenText = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]+$")]


class _IssuerBody(msgspec.Struct, frozen=True):
    """An issuer's answer."""

    token: _TokenText | None = None
    access_token: _TokenText | None = None
    expires_in: float | None = None


_body_decoder = msgspec.json.Decoder(_IssuerBody)


class _Token(NamedTuple):
    header: str
    ends_at: float

    def __repr__(self) -> str:
        return "_Token(…)"


class RegistryAuth(httpx.Auth):
    """Answers the challenges of one registry. Without credentials it asks for anonymous tokens."""

    def __init__(
        self, base_url: str, credentials: Credentials | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = httpx.URL(base_url)
        self._credentials = credentials
        self._clock = clock
        self._tokens: dict[Purpose, _Token] = {}

    def __repr__(self) -> str:
        return f"RegistryAuth({str(self._registry)!r})"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        purpose = _purpose_of(request)
        if (known := self._cached_header(purpose)) is not None:
            request.headers["Authorization"] = known
        response = yield request
        if response.status_code != httpx.codes.UNAUTHORIZED or not is_same_origin(response.request.url, self._registry):
            return
        self._tokens.pop(purpose, None)
        found = _parse_challenge(response)
        if found is None:
            return
        scheme, parameters = found
        if scheme == "basic":
            if self._credentials is None or known is not None:
                return
            token = _Token(_basic_header(self._credentials), float("inf"))
        else:
            answer = yield self._make_token_request(parameters, request)
            answer.read()
            token = self._parse_token(answer)
        self._remember(purpose, token)
        # A body from a file or a generator cannot be sent again. The next request of this kind has the token.
        if isinstance(request.stream, httpx.ByteStream):
            request.headers["Authorization"] = token.header
            yield request

    def _cached_header(self, purpose: Purpose) -> str | None:
        token = self._tokens.get(purpose)
        if token is None or self._clock() >= token.ends_at:
            return None
        return token.header

    def _remember(self, purpose: Purpose, token: _Token) -> None:
        while len(self._tokens) >= TOKENS_LIMIT:
            self._tokens.pop(next(iter(self._tokens)))
        self._tokens[purpose] = token

    def _make_token_request(self, parameters: dict[str, str], cause: httpx.Request) -> httpx.Request:
        try:
            realm = httpx.URL(parameters["realm"])
        except (KeyError, httpx.InvalidURL) as error:
            raise self._make_error("names no token issuer: correct its `auth.token.realm`") from error
        if realm.scheme not in {"http", "https"} or not realm.host:
            raise self._make_error("names a token issuer that is not an http URL: correct its `auth.token.realm`")
        if realm.scheme == "http" and self._registry.scheme == "https":
            raise self._make_error("names a token issuer without TLS, which gets no credentials: enable TLS there too")
        asked = [("service", parameters["service"])] if parameters.get("service") else []
        asked += [("scope", scope) for scope in parameters.get("scope", "").split()]
        headers = {"Accept": "application/json"}
        if self._credentials is not None:
            asked.append(("account", self._credentials.username))
            headers["Authorization"] = _basic_header(self._credentials)
        for name, value in asked:
            realm = realm.copy_add_param(name, value)
        # It has the timeouts of the original request. Its answer is short, also if the original one's is long.
        timeouts = {name: value for name, value in cause.extensions.items() if name == "timeout"}
        return httpx.Request("GET", realm, headers=headers, extensions=timeouts)

    def _parse_token(self, answer: httpx.Response) -> _Token:
        issuer = f"{answer.request.url.scheme}://{answer.request.url.netloc.decode()}"
        if answer.status_code != httpx.codes.OK:
            raise RegistryAuthenticationError(
                f"The token issuer {issuer} of the registry {self._registry} answered {answer.status_code}: "
                "check BALEEN_REGISTRY_USERNAME and BALEEN_REGISTRY_PASSWORD.",
                registry_status=answer.status_code,
                challenged=answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN},
            )
        try:
            issued = _body_decoder.decode(answer.content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            issued = _IssuerBody()
        token = issued.token or issued.access_token
        if not token:
            raise RegistryAuthenticationError(
                f"The token issuer {issuer} of the registry {self._registry} sent no token: check its address.",
                registry_status=answer.status_code,
            )
        seconds = issued.expires_in or TOKEN_SECONDS
        return _Token(f"Bearer {token}", self._clock() + max(seconds - LEEWAY_SECONDS, 0))

    def _make_error(self, what: str) -> RegistryAuthenticationError:
        return RegistryAuthenticationError(
            f"The registry {self._registry} {what}.", registry_status=401, challenged=True
        )


def is_same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _purpose_of(request: httpx.Request) -> Purpose:
    match = _REPOSITORY.match(request.url.path)
    action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(request.method, "push")
    # Deleting an unfinished upload takes the right to push.
    if action == "delete" and "/blobs/uploads/" in request.url.path:
        action = "push"
    return action, "" if match is None else match["name"], request.url.params.get("from", "")


def _parse_challenge(response: httpx.Response) -> tuple[str, dict[str, str]] | None:
    """Return the first challenge that this client supports: its scheme in lower case and its parameters."""
    for header in response.headers.get_list("WWW-Authenticate"):
        if (match := _CHALLENGE.match(header)) is not None:
            found = _PARAMETER.finditer(match["rest"])
            return match["scheme"].lower(), {
                each["name"].lower(): each["quoted"] or each["plain"] or "" for each in found
            }
    return None


def _basic_header(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
