"""Keys, certificates and tokens of every kind, also those that must be refused."""

import base64
import datetime as dt
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from coordinator.tokens.keys import make_key

ISSUER, AUDIENCE = "issuer-of-tests", "registry-of-tests"
PULL_APP = [{"type": "repository", "name": "team/app", "actions": ["pull"]}]

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@functools.cache
def rsa_key(_number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same for the same number, as making one takes a while."""
    return rsa.generate_private_key(65537, bits)


@functools.cache
def ec_key(_number: int = 0, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def private_pem(*keys: Private) -> bytes:
    return b"".join(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for key in keys
    )


def public_pem(*keys: Private) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return b"".join(key.public_key().public_bytes(serialization.Encoding.PEM, form) for key in keys)


def certificate(
    key: Private,
    *,
    by: tuple[x509.Certificate, Private] | None = None,
    ca: bool | None = None,
    path_length: int | None = None,
    days: tuple[float, float] = (-1, 1),
    name: str = "tests",
) -> x509.Certificate:
    """A certificate of a key, by another or by itself, from and to so many days from now."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    return builder.sign(key if by is None else by[1], hashes.SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def x5c(*certificates: x509.Certificate) -> list[str]:
    return [base64.b64encode(each.public_bytes(serialization.Encoding.DER)).decode() for each in certificates]


def kid(key: Private) -> str:
    return make_key(key.public_key()).fingerprint


def claims(access: Sequence[Mapping[str, Any]] = PULL_APP, **others: Any) -> dict[str, Any]:
    """Claims that are good now; one that is None is left out."""
    now = int(time.time())
    known: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "iat": now,
        "nbf": now - 5,
        "exp": now + 300,
        "jti": "1",
        "auth_type": "personal_access_token",
        "access": list(access),
    }
    return {name: value for name, value in (known | others).items() if value is not None}


def token(
    key: Private,
    stated: Mapping[str, Any] | None = None,
    *,
    algorithm: str | None = None,
    header: Mapping[str, Any] | None = None,
) -> str:
    """Sign claims, under the key's libtrust name if no header is given."""
    algorithm = algorithm or ("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
    headers = {"kid": kid(key)} if header is None else dict(header)
    return jwt.encode(dict(claims() if stated is None else stated), key, algorithm, headers=headers)


def raw(key: Private, header: bytes, stated: bytes) -> str:
    """Sign these very bytes, whatever they are."""
    signing = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, stated))
    algorithm: Any = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
    return b".".join((signing, base64.urlsafe_b64encode(algorithm.sign(signing, key)).rstrip(b"="))).decode()


def hmac_with_public_key(key: Private) -> str:
    header = json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid(key)}).encode()
    signing = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, json.dumps(claims()).encode()))
    signature = hmac.new(public_pem(key), signing, hashlib.sha256).digest()
    return b".".join((signing, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


def unsigned(key: Private) -> str:
    return jwt.encode(claims(), "", "none", headers={"kid": kid(key)})
