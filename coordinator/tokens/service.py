"""Issue one token for repositories of several pods: the union of what their own issuers grant, and never more.

Route: scopes -> each to the pod that owns its repository -> that pod's issuer, all at once (issuers.py) -> the union of
the verified grants -> one signature (sign.py).
Invariants: a scope goes only to its own pod's issuer, and an issuer's answer counts only for its own pod's scopes; a
token lives no longer than the shortest-lived of the tokens it is made of; if no issuer accepted the credentials,
nothing is signed. If an issuer does not answer, only its own part is missing.
Not here: HTTP (api/token_service.py), what a scope is (domain/access.py).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from coordinator.domain.access import REPOSITORY, Access, Scope
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import TokenIssuer, owner_of
from coordinator.errors import BaleenError, ForbiddenError, UnauthorizedError, UnavailableError, UsageError
from coordinator.tokens import metrics
from coordinator.tokens.issuers import Credentials, IssuerAnswer, IssuerOutcome, Issuers
from coordinator.tokens.sign import SignedToken, Signer

#: Requests that are processed at once. They wait for issuers, and no longer than issuers.SECONDS.
IN_FLIGHT = 256


class CredentialsRefusedError(UnauthorizedError):
    """Every issuer that was asked refused the credentials."""

    headers = MappingProxyType({"WWW-Authenticate": 'Basic realm="Baleen"'})


class BusyError(UnavailableError):
    """The limit of requests for tokens at once is reached."""


class IssuingPod(Protocol):
    """What the token service needs to know of a pod."""

    @property
    def prefixes(self) -> Sequence[str]: ...

    @property
    def issuer(self) -> TokenIssuer | None: ...


Pods = Mapping[PodName, IssuingPod]
ReadPods = Callable[[], Awaitable[Pods]]


class TokenRequest(NamedTuple):
    """A request for a token."""

    scopes: Sequence[Scope]
    credentials: Credentials
    #: The name of the registry as the client sends it; None if it does not.
    service: str | None = None
    client_id: str = ""


class TokenService:
    def __init__(self, pods: ReadPods, issuers: Issuers, signer: Signer, *, in_flight: int = IN_FLIGHT) -> None:
        """`pods` returns the registered pods."""
        self._pods = pods
        self._issuers = issuers
        self._signer = signer
        self._in_flight = in_flight
        self._running = 0

    def jwks(self) -> dict[str, Any]:
        """The public keys of its tokens, as a JWKS."""
        return self._signer.jwks()

    async def close(self) -> None:
        await self._issuers.close()

    async def issue(self, request: TokenRequest) -> SignedToken:
        """Sign what the issuers grant of the request.

        Raises CredentialsRefusedError or ForbiddenError if all of them refuse, UnavailableError if none grants anything
        and one did not answer, UsageError if the request is for another service.
        """
        began = time.perf_counter()
        outcome = "failed"
        try:
            signed = await self._issue(request)
            outcome = "issued"
        except BaleenError as error:
            outcome = _OUTCOMES.get(type(error), "malformed")
            raise
        else:
            return signed
        finally:
            metrics.REQUESTS.labels(outcome).inc()
            metrics.REQUEST_SECONDS.observe(time.perf_counter() - began)

    async def _issue(self, request: TokenRequest) -> SignedToken:
        if request.service is not None and request.service != self._signer.audience:
            raise UsageError(
                "This token service issues tokens for another service: set `auth.token.service` of the registry, or "
                "its equivalent, to the BALEEN_JWT_AUDIENCE of this token service."
            )
        if self._running >= self._in_flight:
            raise BusyError("Too many requests for tokens wait for their issuers: try again in a moment.")
        self._running += 1
        try:
            pods = await self._pods()
            parts = divide_by_pod(request.scopes, pods)
            answers = await (self._ask_owners(parts, pods, request) if parts else self._ask_any(pods, request))
        finally:
            self._running -= 1
        granted = [answer.verified for answer in answers if answer.verified is not None]
        if not granted:
            raise _make_refusal(answers)
        return self._signer.sign(
            _common_value((each.subject for each in granted), request.credentials.username),
            reduce(or_, (each.access for each in granted), Access()),
            auth_type=_common_value((each.auth_type for each in granted), ""),
            not_before=max(each.not_before for each in granted),
            not_after=min(each.expires_at for each in granted),
        )

    async def _ask_owners(
        self, parts: Mapping[PodName, Sequence[Scope]], pods: Pods, request: TokenRequest
    ) -> list[IssuerAnswer]:
        """Ask the issuer of each part, all at once."""
        return await asyncio.gather(
            *(
                self._issuers.ask(pod, issuer, scopes, request.credentials, request.client_id)
                for pod, scopes in parts.items()
                if (issuer := pods[pod].issuer) is not None
            )
        )

    async def _ask_any(self, pods: Pods, request: TokenRequest) -> list[IssuerAnswer]:
        """Ask each issuer only whether it knows the credentials (`docker login`); the first that does is enough."""
        # Pods with the same issuer ask it once, if they trust the same keys for it: the keys of one may be old.
        issuers = {known.issuer: pod for pod, known in pods.items() if known.issuer is not None}
        waiting = [
            asyncio.create_task(self._issuers.ask(pod, issuer, (), request.credentials, request.client_id))
            for issuer, pod in issuers.items()
        ]
        answers: list[IssuerAnswer] = []
        try:
            for done in asyncio.as_completed(waiting):
                answers.append(await done)
                if answers[-1].verified is not None:
                    break
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return answers


def divide_by_pod(scopes: Iterable[Scope], pods: Pods) -> dict[PodName, list[Scope]]:
    """Assign each scope to the pod that owns its repository.

    Scopes of no pod, of a pod without an issuer, and of other things than repositories (`registry:catalog:*`) are left
    out, and so not granted.
    """
    owners = {prefix: name for name, pod in pods.items() if pod.issuer is not None for prefix in pod.prefixes}
    parts: dict[PodName, list[Scope]] = {}
    for scope in scopes:
        owner = owner_of(RepositoryName(scope.name), owners) if scope.type == REPOSITORY else None
        if owner is not None:
            parts.setdefault(owner, []).append(scope)
    return parts


def _common_value(values: Iterable[str], otherwise: str) -> str:
    """Return the value on which all agree, or else the other one."""
    known = set(values)
    return known.pop() if len(known) == 1 else otherwise


def _make_refusal(answers: Sequence[IssuerAnswer]) -> BaleenError:
    outcomes = {answer.outcome for answer in answers}
    if not outcomes:
        return UnavailableError("No pod has a token issuer: give it one with `baleen pods set-issuer`.")
    if outcomes - {IssuerOutcome.REFUSED, IssuerOutcome.DENIED}:
        return UnavailableError(
            "No token can be issued now, because a token issuer does not answer correctly: try again."
        )
    if IssuerOutcome.REFUSED in outcomes:
        return CredentialsRefusedError("The token issuer does not accept these credentials: log in again.")
    return ForbiddenError("The token issuer grants nothing to these credentials.")


_OUTCOMES: Mapping[type[BaleenError], str] = {
    CredentialsRefusedError: "refused",
    ForbiddenError: "denied",
    UnavailableError: "unavailable",
    BusyError: "busy",
}
