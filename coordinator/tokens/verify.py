"""Verify a registry token by the rules of CNCF distribution 2.8 (registry/auth/token), and return what it grants.

Route: header -> key (`x5c`, else `jwk`, else `kid`) -> signature -> claims -> Verified.
Invariants: the key decides which algorithms are possible, never the header; `iss` and `aud` are compared as text; `exp`
is required; no error quotes a token. A token with something ambiguous that distribution accepts (duplicate members;
critical headers, which RFC 7515 demands to refuse) is refused.
Not here: which keys are trusted (keys.py), where tokens come from.
"""

import base64
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from coordinator.domain.access import REPOSITORY, Access, Grant
from coordinator.errors import UnauthorizedError
from coordinator.tokens.keys import ALGORITHMS, Key, KeysError, KeySet, parse_jwk

#: Allowed difference of clocks in seconds, as in distribution.
LEEWAY_SECONDS = 60
#: The longest token in characters. It is sent in a header, and servers accept headers of some 8 to 64 KiB.
TOKEN_LIMIT = 64 * 1024
#: The deepest nesting of objects and lists. Grants are serialised again, which must not fail.
DEPTH_LIMIT = 20

FailedCheck = Literal[
    "form", "algorithm", "key", "signature", "issuer", "audience", "expired", "not yet valid", "claims"
]


class TokenRefusedError(UnauthorizedError):
    """A token is not accepted; `check` names the failed check."""

    def __init__(self, check: FailedCheck, why: str) -> None:
        super().__init__(f"The token is not accepted: {why}.")
        self.check = check


class VerifiedToken(NamedTuple):
    """The content of a verified token."""

    subject: str
    access: Access
    #: Unix time.
    expires_at: int = 0
    not_before: int = 0
    #: How its owner authenticated, as GitLab's tokens name it.
    auth_type: str = ""


class _Entry(msgspec.Struct, frozen=True):
    """An entry of `access`; further members are only in the raw claims."""

    type: str | None = None
    name: str | None = None
    actions: list[str] | None = None


class _Claims(msgspec.Struct, frozen=True):
    """The claims of a token. `null` means absent: Go, used by many issuers, writes it for an empty list."""

    iss: str
    aud: str
    exp: int
    nbf: int | None = None
    sub: str | None = None
    access: list[_Entry] | None = None
    auth_type: Any = None


class TokenVerifier:
    """Accepts tokens of one issuer for one audience."""

    def __init__(
        self, keys: Callable[[], KeySet], *, issuer: str, audience: str, clock: Callable[[], float] = time.time
    ) -> None:
        """`keys` returns the keys that are trusted now."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def verify(self, token: str) -> VerifiedToken:
        """Return what a token grants; raises TokenRefusedError."""
        if len(token) > TOKEN_LIMIT:
            _refuse("form", f"it is longer than {TOKEN_LIMIT} characters")
        header, claims = _parse_unverified(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            _refuse("algorithm", "its algorithm is not RS256, RS384, RS512 or ES256")
        if "crit" in header:
            _refuse("form", "its header has critical extensions, of which none is known here")
        key = self._find_key(header)
        if algorithm not in key.algorithms:
            _refuse("algorithm", "its algorithm is not one of its key")
        try:
            _jws.decode(token, key.public, algorithms=[algorithm])
        except (PyJWTError, ValueError, TypeError):
            _refuse("signature", "its signature is wrong")
        return self._read_claims(claims)

    def _find_key(self, header: Mapping[str, Any]) -> Key:
        """Return the key in distribution's order: the first header that is present counts, even if others fit."""
        keys, chain, jwk, name = self._keys(), header.get("x5c"), header.get("jwk"), header.get("kid")
        try:
            if chain:
                if not isinstance(chain, list) or not all(isinstance(each, str) for each in chain):
                    _refuse("key", "its chain cannot be read")
                return keys.find_by_chain(chain, self._clock())
            if jwk is not None:
                # The equal trusted key, not the one from the header.
                found = keys.find(parse_jwk(jwk).thumbprint) if isinstance(jwk, dict) else None
            else:
                found = keys.find(name) if isinstance(name, str) else None
        except KeysError as error:
            _refuse("key", f"{error}".rstrip("."))
        if found is None:
            _refuse("key", "its key is not trusted here")
        return found

    def _read_claims(self, raw: dict[str, Any]) -> VerifiedToken:
        try:
            claims = msgspec.convert(raw, _Claims)
        except msgspec.ValidationError:
            _refuse("claims", "its claims are not those of a registry token")
        now = self._clock()
        if claims.iss != self._issuer:
            _refuse("issuer", "another issuer made it")
        if claims.aud != self._audience:
            _refuse("audience", "it is for another audience")
        if now > claims.exp + LEEWAY_SECONDS:
            _refuse("expired", "it has expired")
        not_before = claims.nbf or 0
        if now < not_before - LEEWAY_SECONDS:
            _refuse("not yet valid", "it is not valid yet")
        if not _is_shallow(raw, DEPTH_LIMIT):
            _refuse("claims", "its claims are nested too deeply")
        grants = tuple(
            Grant(
                entry.name,
                frozenset(entry.actions),
                # Nor names that a registry could take for one of these: Go ignores the case of a name.
                {name: value for name, value in raw["access"][at].items() if name.casefold() not in _ENTRY_FIELDS},
            )
            for at, entry in enumerate(claims.access or ())
            if entry.type == REPOSITORY and entry.name is not None and entry.actions
        )
        auth_type = claims.auth_type if isinstance(claims.auth_type, str) else ""
        return VerifiedToken(claims.sub or "", Access(grants), claims.exp, not_before, auth_type)


_jws = PyJWS()
_ENTRY_FIELDS = frozenset(_Entry.__struct_fields__)


def _parse_unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse header and claims without verifying them."""
    try:
        header, claims, _ = token.encode("ascii").split(b".")
        return _parse_object(header), _parse_object(claims)
    except (ValueError, RecursionError):
        _refuse(
            "form", "it is not three parts of base64url, the first two of them JSON objects without repeated members"
        )


def _parse_object(part: bytes) -> dict[str, Any]:
    # Strict base64url is checked together with the signature.
    text = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    value = json.loads(
        text, object_pairs_hook=_refuse_repeated, parse_constant=_refuse_constant, parse_float=_parse_number
    )
    if not isinstance(value, dict):
        raise ValueError  # noqa: TRY004 - what is caught above
    return value


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError


def _parse_number(text: str) -> float:
    # Too large a number would be serialised as `Infinity`, which is not JSON.
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    return levels > 0 and all(
        _is_shallow(each, levels - 1) for each in (value.values() if isinstance(value, dict) else value)
    )


def _refuse(check: FailedCheck, why: str) -> NoReturn:
    raise TokenRefusedError(check, why) from None
