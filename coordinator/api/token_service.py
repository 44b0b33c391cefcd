"""`/jwt/auth`: one token for repositories of several pods, and `/.well-known/jwks.json`: the keys that verify it.

This is the realm of the pods' registries. GET with Basic, or POST with a form, by the Docker registry token
specification ("Token Authentication Specification", "OAuth2 Token Authentication"). Unknown parameters are ignored, as
issuers do. Credentials are never in a URL, log or error, and answers with a token are not cacheable.
Not here: what is granted (coordinator/tokens/service.py).
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Parameter, RequestBody, Schema
from msgspec import Meta

from coordinator.api.deps import deps_of
from coordinator.api.problems import document_problems
from coordinator.domain.access import parse_scopes
from coordinator.errors import NotFoundError, UsageError
from coordinator.tokens import metrics
from coordinator.tokens.issuers import Credentials
from coordinator.tokens.service import CredentialsRefusedError, TokenRequest, TokenService
from coordinator.tokens.sign import SignedToken

BODY_LIMIT = 256 * 1024
FIELDS_LIMIT = 200
#: Characters of a user name, a service or a client's name.
FIELD_LIMIT = 1000
#: The credentials in a form, by its `grant_type`.
GRANTS: Mapping[str, Sequence[str]] = {"password": ("username", "password"), "refresh_token": ("refresh_token",)}
_NO_STORE = {"Cache-Control": "no-store"}

Parameters = list[tuple[str, str]]


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token in the format of issuers. Clients use either name of the token; there is never a refresh token."""

    token: str
    access_token: str
    expires_in: Annotated[int, Meta(description="In seconds.")]
    issued_at: Annotated[str, Meta(description="RFC 3339.")]


class Jwks(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


_TEXT = Schema(type=OpenAPIType.STRING)
_FIELDS = {
    "service": "The audience: BALEEN_JWT_AUDIENCE.",
    "scope": "type:name:actions, any number of them, separated by spaces.",
    "account": "The user. Ignored: the credentials decide.",
    "client_id": "The client's name.",
    "offline_token": "Ignored: Baleen issues no refresh tokens.",
}


@dataclass
class _QueryOperation(Operation):
    def __post_init__(self) -> None:
        self.parameters = [
            Parameter(name=name, param_in="query", required=False, schema=_TEXT, description=what)
            for name, what in _FIELDS.items()
        ]


@dataclass
class _FormOperation(Operation):
    def __post_init__(self) -> None:
        fields = dict.fromkeys(("service", "scope", "client_id", "username", "password", "refresh_token"), _TEXT)
        grant = Schema(type=OpenAPIType.STRING, enum=list(GRANTS))
        form = Schema(type=OpenAPIType.OBJECT, properties={"grant_type": grant, **fields}, required=["grant_type"])
        self.request_body = RequestBody(
            required=True, content={"application/x-www-form-urlencoded": OpenAPIMediaType(schema=form)}
        )


_DOCUMENTATION: dict[str, Any] = {"tags": ["tokens"], "responses": document_problems(404, 413)}


@get(
    "/jwt/auth",
    operation_class=_QueryOperation,
    operation_id="getToken",
    summary="Issue a token for repositories of several pods (GET)",
    **_DOCUMENTATION,
)
async def get_token(request: Request[Any, Any, Any]) -> Response[Token]:
    """Baleen requests each scope, with these credentials, from the issuer of the repository's pod. It issues
    one token with everything that was granted. 404 where Baleen issues no tokens.
    """
    service = _require_service(request)
    query = request.scope["query_string"]
    with metrics.count_malformed():
        parameters = _parse_parameters(query)
        credentials = _parse_basic(request.headers.get("authorization"))
        asked = _make_request(parameters, credentials)
    return _make_answer(await service.issue(asked))


@post(
    "/jwt/auth",
    status_code=200,
    request_max_body_size=BODY_LIMIT,
    operation_class=_FormOperation,
    operation_id="postToken",
    summary="Issue a token for repositories of several pods (POST)",
    **_DOCUMENTATION,
)
async def post_token(request: Request[Any, Any, Any]) -> Response[Token]:
    """The same with an OAuth2 form, whose credentials are passed through unchanged. An issuer that does not support the
    form is asked by GET, if the grant is a password.
    """
    service = _require_service(request)
    body = await request.body()
    with metrics.count_malformed():
        parameters = _parse_parameters(body)
        asked = _make_request(parameters, _parse_form(dict(parameters)))
    return _make_answer(await service.issue(asked))


@get(
    "/.well-known/jwks.json",
    operation_id="getKeys",
    summary="Get the keys that verify Baleen's tokens",
    **_DOCUMENTATION,
)
async def get_keys(request: Request[Any, Any, Any]) -> Response[Jwks]:
    """A JWKS (RFC 7517) with all keys, also those that no longer sign or do not sign yet."""
    return Response(Jwks(_require_service(request).jwks()["keys"]), headers={"Cache-Control": "max-age=60"})


def _require_service(request: Request[Any, Any, Any]) -> TokenService:
    service = deps_of(request).token_service
    if service is None:
        raise NotFoundError("Baleen issues no tokens here: set BALEEN_JWT_SIGNING_KEYS.")
    return service


def _make_answer(signed: SignedToken) -> Response[Token]:
    issued_at = signed.issued_at.isoformat().replace("+00:00", "Z")
    token = Token(token=signed.token, access_token=signed.token, expires_in=signed.expires_in, issued_at=issued_at)
    return Response(token, headers=_NO_STORE)


def _make_request(parameters: Parameters, credentials: Credentials) -> TokenRequest:
    known = dict(parameters)
    if any(len(known.get(name, "")) > FIELD_LIMIT for name in ("service", "client_id")):
        raise UsageError(f"`service` and `client_id` must have up to {FIELD_LIMIT} characters.")
    scopes = parse_scopes(value for name, value in parameters if name == "scope")
    return TokenRequest(scopes, credentials, known.get("service"), known.get("client_id", ""))


def _parse_parameters(text: bytes) -> Parameters:
    """Parse the parameters of a query or a form, in their order; raises UsageError."""
    try:
        return parse_qsl(text.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS_LIMIT, errors="strict")
    except ValueError as error:
        raise UsageError(f"The parameters cannot be read: send up to {FIELDS_LIMIT} of them, as UTF-8.") from error


def _parse_basic(header: str | None) -> Credentials:
    """Return the credentials of a GET; raises CredentialsRefusedError if they are malformed."""
    if header is None:
        return Credentials()
    scheme, _, encoded = header.partition(" ")
    try:
        # The password may be in any encoding: it is passed through undecoded.
        name, colon, _ = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        username = name.decode()
    except (binascii.Error, ValueError):
        username, colon = "", b""
    if scheme.lower() != "basic" or not colon or len(username) > FIELD_LIMIT:
        raise CredentialsRefusedError("The credentials cannot be read: send `Authorization: Basic …`, or none.")
    return Credentials(username, f"Basic {encoded.strip()}")


def _parse_form(fields: Mapping[str, str]) -> Credentials:
    """Return the credentials of a POST; raises UsageError."""
    kind = fields.get("grant_type", "")
    names = GRANTS.get(kind)
    if names is None:
        raise UsageError(f"`grant_type` must be one of {', '.join(GRANTS)}.")
    if any(not fields.get(name) for name in names) or len(fields.get("username", "")) > FIELD_LIMIT:
        raise UsageError(f"With this `grant_type` the form must have {' and '.join(names)}.")
    credentials = (("grant_type", kind), *((name, fields[name]) for name in names))
    return Credentials(fields["username"] if "username" in names else "", form=credentials)


HANDLERS = [get_token, post_token, get_keys]
