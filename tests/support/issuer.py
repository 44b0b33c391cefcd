"""An issuer of tokens as docker's registries expect one: it grants every scope to the right password."""

import base64
import datetime as dt
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.registry.auth import Credentials
from coordinator.settings import Secret
from tests.services.http import Handler, HTTPServer

ISSUER, SERVICE = "issuer-of-tests", "registry-of-tests"
CREDENTIALS = Credentials("prober", Secret("pass:word"))


class TokenRequest(NamedTuple):
    """One request for a token."""

    authorization: str | None
    scopes: tuple[str, ...]


class TokenIssuer(HTTPServer):
    """Signs tokens that CNCF distribution trusts; `bundle` is the file that its configuration names."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[TokenRequest] = []
        self.seconds = 300
        self.bundle = directory / "issuer.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.bundle.write_bytes(_make_certificate(self._key))
        super().__init__(self._handler())
        self.realm = f"{self.address}/jwt/auth"

    def configuration(self) -> str:
        """The section of distribution's configuration that names this issuer."""
        return (
            f"auth:\n  token: {{realm: '{self.realm}', service: {SERVICE}, issuer: {ISSUER},"
            f" rootcertbundle: '{self.bundle}'}}\n"
        )

    def token(self, scopes: tuple[str, ...]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {"iss": ISSUER, "aud": SERVICE, "sub": "prober", "nbf": now - 5, "iat": now, "exp": now + self.seconds}
        return jwt.encode(claims | {"access": access}, self._key, "ES256", headers={"kid": _libtrust_id(self._key)})

    def _handler(self) -> type[Handler]:
        issuer = self

        class Answering(Handler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                asked = TokenRequest(self.headers["Authorization"], tuple(query.get("scope", ())))
                issuer.asked.append(asked)
                if asked.authorization == basic_header(CREDENTIALS):
                    answer = {"token": issuer.token(asked.scopes), "expires_in": issuer.seconds}
                    self.reply(200, json.dumps(answer).encode())
                else:
                    self.reply(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')

        return Answering


def basic_header(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _make_certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=now - dt.timedelta(days=1),
        not_valid_after=now + dt.timedelta(days=1),
    ).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def _libtrust_id(key: ec.EllipticCurvePrivateKey) -> str:
    """How distribution names a key."""
    raw = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(raw).digest()[:30]).decode()
    return ":".join(text[at : at + 4] for at in range(0, len(text), 4))
