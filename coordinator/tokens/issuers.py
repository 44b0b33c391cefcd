"""Ask one pod's issuer for a token, with a client's own credentials, and believe only what is proved.

Route: `Issuers.ask` -> the issuer over HTTP -> its token by its own keys (verify.py), limited to what was asked.
Invariants: credentials go to the address that the operator registered, never further (no redirect is followed), and
nowhere into a log or an error; whatever an issuer does costs at most SECONDS, ANSWER_LIMIT bytes and IN_FLIGHT
requests at once.
Not here: which scopes are whose, what becomes of several answers (service.py).
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
from coordinator.registry.transport import tls_context, why
from coordinator.tokens import metrics
from coordinator.tokens.keys import KeySet, parse_trusted
from coordinator.tokens.verify import TOKEN_LIMIT, TokenRefusedError, TokenVerifier, Verified

#: A client waits for the slowest of its issuers, and no longer than this.
SECONDS = 5.0
ANSWER_LIMIT = 2 * TOKEN_LIMIT
#: Requests to one issuer that wait at once: beyond it, one that is slow is as good as away.
IN_FLIGHT = 32
CONNECTIONS = 512
#: Characters that an issuer's grants may take in a token, for each scope that it was asked for, and what it says of the
#: user. With more of it the token of all pods would be too long for a header.
GRANT_LIMIT = 4096
USER_LIMIT = 1000
#: How an issuer says that it knows no OAuth2 form (GitLab's does not).
_NO_FORM = frozenset({httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED})
#: Part of each request: the client adds its own to none that it has not made, nor others' cookies.
_HEADERS = {"User-Agent": "baleen", "Accept": "application/json", "Accept-Encoding": "identity"}

log = structlog.get_logger()


class Outcome(StrEnum):
    """What an issuer's answer comes to."""

    GRANTED = "granted"
    #: 401: it does not know these credentials.
    REFUSED = "refused"
    #: 403: it does not let them have anything.
    DENIED = "denied"
    #: A token that does not prove itself.
    INVALID = "invalid"
    #: Any other answer.
    FAILED = "failed"
    SLOW = "slow"
    UNREACHABLE = "unreachable"
    #: Too many of its answers are waited for.
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks, as they said it: Basic (GET), or a form of OAuth2 (POST); neither for anybody."""

    username: str = ""
    #: The header as it came.
    authorization: str | None = field(default=None, repr=False)
    #: `grant_type` and what belongs to it.
    form: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def as_basic(self) -> str | None:
        """The same as a header, where it is a password."""
        known = dict(self.form)
        if "password" not in known:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{known['password']}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Answer:
    outcome: Outcome
    #: What is granted, never more than was asked; None unless it is granted.
    verified: Verified | None = None


class _Issued(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


_issued = msgspec.json.Decoder(_Issued)


class _UnusableError(Exception):
    """An answer that is none."""


class Issuers:
    """Asks the issuers of all pods."""

    def __init__(
        self, *, ca_file: str | None = None, seconds: float = SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        """`ca_file` holds certificates to trust beside the system's; raises SettingsError."""
        self._seconds = seconds
        self._clock = clock
        self._waiting: Counter[PodName] = Counter()
        self._last: dict[PodName, Outcome] = {}
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
    ) -> Answer:
        """Ask for these scopes, or with none only whether it knows the credentials. Never raises for what it meets."""
        if self._waiting[pod] >= IN_FLIGHT:
            return self._told(pod, Answer(Outcome.BUSY), f"more than {IN_FLIGHT} requests wait for it")
        self._waiting[pod] += 1
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._asked(pod, issuer, scopes, credentials, client_id)
        except (TimeoutError, httpx.TimeoutException):
            return self._told(pod, Answer(Outcome.SLOW), f"it did not answer within {self._seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return self._told(pod, Answer(Outcome.UNREACHABLE), why(error))
        except _UnusableError as error:
            return self._told(pod, Answer(Outcome.FAILED), str(error))
        except BaleenError as error:
            return self._told(pod, Answer(Outcome.INVALID), str(error))
        finally:
            self._waiting[pod] -= 1
            metrics.ISSUER_SECONDS.labels(pod).observe(time.perf_counter() - began)

    async def _asked(
        self, pod: PodName, issuer: TokenIssuer, scopes: Sequence[Scope], credentials: Credentials, client_id: str
    ) -> Answer:
        status, body = await self._send(_request(issuer, scopes, credentials, client_id))
        basic = credentials.as_basic()
        if status in _NO_FORM and basic is not None:
            again = Credentials(credentials.username, basic)
            status, body = await self._send(_request(issuer, scopes, again, client_id))
        if status == httpx.codes.UNAUTHORIZED:
            return self._told(pod, Answer(Outcome.REFUSED))
        if status == httpx.codes.FORBIDDEN:
            return self._told(pod, Answer(Outcome.DENIED))
        if status != httpx.codes.OK:
            raise _UnusableError(f"it answered {status}")
        try:
            issued = _issued.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            issued = _Issued()
        token = issued.token or issued.access_token
        if not token:
            raise _UnusableError("it answered without a token")
        verified = _verifier(issuer, self._clock).verify(token)
        if verified.expires_at <= self._clock():
            # A registry would take it for a minute more. What we make of it must not live longer than it says.
            raise TokenRefusedError("expired", "it has expired")
        verified = verified._replace(access=verified.access.limited_to(scopes))
        _short(verified, len(scopes))
        return self._told(pod, Answer(Outcome.GRANTED, verified))

    async def _send(self, request: httpx.Request) -> tuple[int, bytes]:
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                return response.status_code, b""
            if "Content-Encoding" in response.headers:
                raise _UnusableError("it answered compressed, which nobody asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > ANSWER_LIMIT:
                    raise _UnusableError(f"it answered more than {ANSWER_LIMIT} bytes")
            return response.status_code, bytes(body)
        finally:
            await response.aclose()

    def _told(self, pod: PodName, answer: Answer, what: str = "") -> Answer:
        """Count an answer, and log it when it is another than the last: an issuer that is away says so once."""
        outcome = answer.outcome
        metrics.ANSWERS.labels(pod, outcome).inc()
        fault = outcome not in {Outcome.GRANTED, Outcome.REFUSED, Outcome.DENIED}
        if fault and self._last.get(pod) != outcome:
            log.warning("an issuer's part is left out of tokens", pod=pod, outcome=outcome.value, why=what)
        self._last[pod] = outcome
        return answer


def _request(issuer: TokenIssuer, scopes: Sequence[Scope], credentials: Credentials, client_id: str) -> httpx.Request:
    """As the Docker registry token specification writes it: GET ("Token authentication"), POST ("OAuth2 Token")."""
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


def _short(verified: Verified, scopes: int) -> None:
    """Raise TokenRefusedError if it would take too much of a token that is not of this issuer alone."""
    grants = json.dumps([[grant.name, *grant.actions, grant.more] for grant in verified.access.grants])
    if len(grants) > GRANT_LIMIT * max(scopes, 1):
        raise TokenRefusedError("claims", f"its grants take more than {GRANT_LIMIT} characters for a scope")
    if len(verified.subject) + len(verified.auth_type) > USER_LIMIT:
        raise TokenRefusedError("claims", f"it has more than {USER_LIMIT} characters about its user")


@functools.lru_cache(maxsize=1024)
def _trusted(keys: str) -> KeySet:
    return parse_trusted(keys.encode())


def _verifier(issuer: TokenIssuer, clock: Callable[[], float]) -> TokenVerifier:
    trusted = _trusted(issuer.keys)
    return TokenVerifier(lambda: trusted, issuer=issuer.issuer, audience=issuer.service, clock=clock)
