"""Ask one pod's issuer for a token, with a client's own credentials, and verify it.

Route: `Issuers.ask` -> the issuer over HTTP -> its token, verified with its own keys (verify.py) and limited to what
was asked.
Invariants: credentials go only to the address that the operator registered (no redirect is followed), and never into a
log or an error; whatever an issuer does costs at most SECONDS, ANSWER_LIMIT bytes and IN_FLIGHT requests at once.
Not here: which scopes belong to which pod, how several answers are joined (service.py).
"""

import asyncio
import base64
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx
import msgspec
import structlog

from coordinator.domain.access import Scope
from coordinator.domain.names import PodName
from coordinator.domain.pods import TokenIssuer
from coordinator.errors import BaleenError
from coordinator.registry.transport import describe_error, tls_context
from coordinator.tokens import metrics
from coordinator.tokens.keys import KeySet, parse_trusted_keys
from coordinator.tokens.verify import TOKEN_LIMIT, TokenRefusedError, TokenVerifier, VerifiedToken

#: A client waits for the slowest of its issuers, and no longer than this.
ANSWER_SECONDS = 5.0
ANSWER_LIMIT = 2 * TOKEN_LIMIT
#: Waiting requests to one issuer at once: beyond it, a slow issuer counts as away.
IN_FLIGHT = 32
CONNECTIONS = 512
#: The most characters of a token for an issuer's grants, per requested scope, and for its claims about the user.
#: With more of them the joined token would be too long for a header.
GRANT_LIMIT = 4096
USER_LIMIT = 1000
#: An issuer's answers if it does not support the OAuth2 form (GitLab's does not).
_NO_FORM = frozenset({httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED})
#: Set on each request, so that httpx adds no headers of its own, nor cookies of other clients.
_HEADERS = {"User-Agent": "baleen", "Accept": "application/json", "Accept-Encoding": "identity"}

log = structlog.get_logger()


class IssuerOutcome(StrEnum):
    """The outcome of a request to an issuer."""

    GRANTED = "granted"
    #: 401: it does not know these credentials.
    REFUSED = "refused"
    #: 403: it grants them nothing.
    DENIED = "denied"
    #: A token that fails verification.
    INVALID = "invalid"
    #: Any other answer.
    FAILED = "failed"
    SLOW = "slow"
    UNREACHABLE = "unreachable"
    #: Too many requests wait for it.
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The client's credentials as it sent them: Basic (GET), or an OAuth2 form (POST); neither if anonymous."""

    username: str = ""
    #: The header as it came.
    authorization: str | None = field(default=None, repr=False)
    #: `grant_type` and what belongs to it.
    form: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def as_basic(self) -> str | None:
        """The same as a Basic header, if it is a password."""
        known = dict(self.form)
        if "password" not in known:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{known['password']}".encode()).decode()


@dataclass(frozen=True, slots=True)
class IssuerAnswer:
    outcome: IssuerOutcome
    #: The grant, never more than was requested; None if it is not granted.
    verified: VerifiedToken | None = None


class _IssuerBody(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


_body_decoder = msgspec.json.Decoder(_IssuerBody)


class _UnusableError(Exception):
    """An answer that cannot be used."""


class Issuers:
    """Asks the issuers of all pods."""

    def __init__(
        self, *, ca_file: str | None = None, seconds: float = ANSWER_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        """`ca_file` has certificates to trust in addition to the system's; raises SettingsError."""
        self._seconds = seconds
        self._clock = clock
        self._waiting: Counter[PodName] = Counter()
        self._last: dict[PodName, IssuerOutcome] = {}
        self._http = httpx.AsyncClient(
            timeout=seconds,
            verify=tls_context(ca_file),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=64),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(
        self, pod: PodName, issuer: TokenIssuer, scopes: Sequence[Scope], credentials: Credentials, client_id: str
    ) -> IssuerAnswer:
        """Ask for these scopes, or without any, only whether it knows the credentials. Never raises for its answer."""
        if self._waiting[pod] >= IN_FLIGHT:
            return self._count_answer(
                pod, IssuerAnswer(IssuerOutcome.BUSY), f"more than {IN_FLIGHT} requests wait for it"
            )
        self._waiting[pod] += 1
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._request_token(pod, issuer, scopes, credentials, client_id)
        except (TimeoutError, httpx.TimeoutException):
            return self._count_answer(
                pod, IssuerAnswer(IssuerOutcome.SLOW), f"it did not answer within {self._seconds:g} s"
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return self._count_answer(pod, IssuerAnswer(IssuerOutcome.UNREACHABLE), describe_error(error))
        except _UnusableError as error:
            return self._count_answer(pod, IssuerAnswer(IssuerOutcome.FAILED), str(error))
        except BaleenError as error:
            return self._count_answer(pod, IssuerAnswer(IssuerOutcome.INVALID), str(error))
        finally:
            self._waiting[pod] -= 1
            metrics.ISSUER_SECONDS.labels(pod).observe(time.perf_counter() - began)

    async def _request_token(
        self, pod: PodName, issuer: TokenIssuer, scopes: Sequence[Scope], credentials: Credentials, client_id: str
    ) -> IssuerAnswer:
        status, body = await self._send(_make_request(issuer, scopes, credentials, client_id))
        basic = credentials.as_basic()
        if status in _NO_FORM and basic is not None:
            again = Credentials(credentials.username, basic)
            status, body = await self._send(_make_request(issuer, scopes, again, client_id))
        if status == httpx.codes.UNAUTHORIZED:
            return self._count_answer(pod, IssuerAnswer(IssuerOutcome.REFUSED))
        if status == httpx.codes.FORBIDDEN:
            return self._count_answer(pod, IssuerAnswer(IssuerOutcome.DENIED))
        if status != httpx.codes.OK:
            raise _UnusableError(f"it answered {status}")
        try:
            issued = _body_decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            issued = _IssuerBody()
        token = issued.token or issued.access_token
        if not token:
            raise _UnusableError("it answered without a token")
        verified = _make_verifier(issuer, self._clock).verify(token)
        if verified.expires_at <= self._clock():
            # A registry would accept it for a minute more, but Baleen's token must not live longer than it.
            raise TokenRefusedError("expired", "it has expired")
        verified = verified._replace(access=verified.access.limit_to(scopes))
        _check_length(verified, len(scopes))
        return self._count_answer(pod, IssuerAnswer(IssuerOutcome.GRANTED, verified))

    async def _send(self, request: httpx.Request) -> tuple[int, bytes]:
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                return response.status_code, b""
            if "Content-Encoding" in response.headers:
                raise _UnusableError("it sent a compressed answer without being asked to")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > ANSWER_LIMIT:
                    raise _UnusableError(f"it answered more than {ANSWER_LIMIT} bytes")
            return response.status_code, bytes(body)
        finally:
            await response.aclose()

    def _count_answer(self, pod: PodName, answer: IssuerAnswer, what: str = "") -> IssuerAnswer:
        """Count an answer, and log it if it differs from the last: an issuer that is away is logged once."""
        outcome = answer.outcome
        metrics.ANSWERS.labels(pod, outcome).inc()
        fault = outcome not in {IssuerOutcome.GRANTED, IssuerOutcome.REFUSED, IssuerOutcome.DENIED}
        if fault and self._last.get(pod) != outcome:
            log.warning("an issuer's part is left out of tokens", pod=pod, outcome=outcome.value, why=what)
        self._last[pod] = outcome
        return answer


def _make_request(
    issuer: TokenIssuer, scopes: Sequence[Scope], credentials: Credentials, client_id: str
) -> httpx.Request:
    """Build the request of the Docker registry token specification: GET ("Token authentication") or POST ("OAuth2")."""
    asked = [str(scope) for scope in scopes]
    if credentials.form:
        fields = [("service", issuer.service), ("client_id", client_id or "baleen"), *credentials.form]
        if asked:
            fields.append(("scope", " ".join(asked)))
        return httpx.Request("POST", issuer.url, data=dict(fields), headers=_HEADERS)
    parameters: list[tuple[str, Any]] = [("service", issuer.service), *(("scope", scope) for scope in asked)]
    if credentials.username:
        parameters.append(("account", credentials.username))
    if client_id:
        parameters.append(("client_id", client_id))
    proof = {} if credentials.authorization is None else {"Authorization": credentials.authorization}
    return httpx.Request("GET", issuer.url, params=parameters, headers=_HEADERS | proof)


def _check_length(verified: VerifiedToken, scopes: int) -> None:
    """Raise TokenRefusedError if it would take too much space in a token joined from several issuers."""
    grants = json.dumps([[grant.name, *grant.actions, grant.more] for grant in verified.access.grants])
    if len(grants) > GRANT_LIMIT * max(scopes, 1):
        raise TokenRefusedError("claims", f"its grants take more than {GRANT_LIMIT} characters for a scope")
    if len(verified.subject) + len(verified.auth_type) > USER_LIMIT:
        raise TokenRefusedError("claims", f"it has more than {USER_LIMIT} characters about its user")


@functools.lru_cache(maxsize=1024)
def _parse_keys(keys: str) -> KeySet:
    return parse_trusted_keys(keys.encode())


def _make_verifier(issuer: TokenIssuer, clock: Callable[[], float]) -> TokenVerifier:
    trusted = _parse_keys(issuer.keys)
    return TokenVerifier(lambda: trusted, issuer=issuer.issuer, audience=issuer.service, clock=clock)
