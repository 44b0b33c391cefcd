"""Sign Baleen's own tokens, in the format of GitLab's, and publish their public keys.

The file of BALEEN_JWT_SIGNING_KEYS holds private keys: the first signs, the others are only published. So a key can be
published before it signs and after it has signed, and there is never a token whose key is unknown.
Not here: what is granted (service.py), how a token is verified (verify.py).
"""

import datetime as dt
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from coordinator.domain.access import REPOSITORY, Access
from coordinator.tokens.keys import FILE_LIMIT, KeysError, KeySet, pem_blocks, public_key_of

#: How far a registry's clock may be behind, besides its own leeway; GitLab does the same.
BACKDATED_SECONDS = 5
#: PEM blocks allowed beside a private key: openssl writes the first, and a key is often stored with the second.
_IGNORED_LABELS = frozenset({"EC PARAMETERS", "CERTIFICATE"})


class SigningKeys:
    """Private keys with their public halves; never shown in a `repr`."""

    def __init__(self, private: list[Any]) -> None:
        """Take keys; the first one signs. Raises KeysError."""
        if not private:
            raise KeysError("There is no private key: write one as PEM (`openssl genpkey`).")
        self.active = public_key_of(private[0])
        self.private = private[0]
        self.public = KeySet(map(public_key_of, private))

    def __repr__(self) -> str:
        return f"SigningKeys({self.active.fingerprint})"

    def jwks(self) -> dict[str, Any]:
        """All public keys as a JWKS (RFC 7517), the signing one first."""
        return {"keys": [key.jwk() for key in self.public.keys]}


def parse_signing_keys(content: bytes) -> SigningKeys:
    """Read private keys from PEM; raises KeysError."""
    if len(content) > FILE_LIMIT:
        raise KeysError(f"The keys take more than {FILE_LIMIT} bytes: remove those that no longer sign.")
    private = []
    for label, block in pem_blocks(content):
        if label in _IGNORED_LABELS:
            continue
        try:
            private.append(serialization.load_pem_private_key(block, password=None))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # The library's message may quote the key.
            raise KeysError(f"A PEM block ({label}) is not a private key without a passphrase: replace it.") from (
                error if isinstance(error, TypeError) else None
            )
    return SigningKeys(private)


class SignedToken(NamedTuple):
    """A signed token with its lifetime."""

    token: str
    expires_in: int
    issued_at: dt.datetime

    def __repr__(self) -> str:
        return f"Signed(…, expires_in={self.expires_in})"


class Signer:
    """Signs with the key that is now the first."""

    def __init__(
        self,
        keys: Callable[[], SigningKeys],
        *,
        issuer: str,
        audience: str,
        lifetime: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`lifetime` is the longest lifetime of a token in seconds."""
        self._keys = keys
        self._issuer = issuer
        self.audience = audience
        self._lifetime = lifetime
        self._clock = clock

    def jwks(self) -> dict[str, Any]:
        return self._keys().jwks()

    def sign(
        self,
        subject: str,
        access: Access,
        *,
        auth_type: str = "",
        not_before: float = 0,
        not_after: float = float("inf"),
    ) -> SignedToken:
        """Sign a grant that is valid only between these two times (Unix time)."""
        now, keys = int(self._clock()), self._keys()
        expires = int(min(now + self._lifetime, not_after))
        claims = {
            "access": [
                {**grant.more, "type": REPOSITORY, "name": grant.name, "actions": sorted(grant.actions)}
                for grant in access.grants
            ],
            "jti": str(uuid.uuid4()),
            "aud": self.audience,
            "sub": subject,
            "iss": self._issuer,
            "iat": now,
            "nbf": int(max(now - BACKDATED_SECONDS, not_before)),
            "exp": expires,
            "auth_type": auth_type,
        }
        active = keys.active
        token = jwt.encode(claims, keys.private, active.algorithms[0], headers={"kid": active.fingerprint})
        return SignedToken(token, max(expires - now, 0), dt.datetime.fromtimestamp(now, dt.UTC))
