"""Public keys that are trusted to sign tokens: reading them, and finding the one that a token names.

Route: `parse_trusted_keys` reads PEM or JWKS -> `KeySet.find` by a token's `kid`, `find_by_chain` by its certificates;
`KeyFile` reads a file again when it changes.
Invariants: a key is RSA of 2048 bits or more, or P-256, and is used only with the algorithms of its type, so that no
header can choose another; a private key is never accepted as a public one.
Not here: private keys (sign.py), the content of a token (verify.py).
"""

import base64
import datetime as dt
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from coordinator.errors import SettingsError, UsageError
from coordinator.tokens.metrics import KEYS_UNREAD

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

#: NIST SP 800-131A no longer allows signatures by shorter keys.
RSA_BITS = 2048
RSA_ALGORITHMS = ("RS256", "RS384", "RS512")
EC_ALGORITHMS = ("ES256",)
ALGORITHMS = frozenset({*RSA_ALGORITHMS, *EC_ALGORITHMS})

FILE_LIMIT = 1 << 20
KEYS_LIMIT = 100
#: Certificates in a token's chain.
CHAIN_LIMIT = 5
#: Seconds between checks of a file.
CHECK_SECONDS = 1.0
#: Bits of a file's mode for its group and all others.
OTHER_USERS = 0o077

T = TypeVar("T")
#: What the library raises for unreadable input. Not everything is a ValueError: an unknown type of key and an unknown
#: version of a certificate have their own errors.
_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----.*?-----END \1-----", re.DOTALL)

log = structlog.get_logger()


def _check_may_certify(_: Policy, __: x509.Certificate, basic: x509.BasicConstraints) -> None:
    if not basic.ca:
        raise ValueError


def _check_signs_certificates(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError


#: A certifying certificate must have the right to certify. This is less than the web's rules for authorities, which
#: `openssl req -x509` alone does not meet, and the same as distribution's.
_CERTIFIERS = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _check_may_certify)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_signs_certificates)
)


class KeysError(UsageError):
    """Keys cannot be read from a file; the message says why, and never quotes them."""


class Key(NamedTuple):
    """A public key with its two names, and the algorithms that it may sign with."""

    public: PublicKey
    algorithms: Sequence[str]
    #: The key's fingerprint by docker's libtrust, which distribution 2 and GitLab's registry use as its name.
    fingerprint: str
    #: RFC 7638, with SHA-256.
    thumbprint: str

    def jwk(self) -> dict[str, Any]:
        """The key as a JSON Web Key (RFC 7517), under its libtrust name."""
        return {**_required_members(self.public), "use": "sig", "alg": self.algorithms[0], "kid": self.fingerprint}


class KeySet:
    """Trusted keys, and the certificates they came with, to which chains may lead."""

    def __init__(
        self,
        keys: Iterable[Key],
        certificates: Iterable[x509.Certificate] = (),
        called: Mapping[str, Key] | None = None,
    ) -> None:
        """`called` are names that a JWKS gives to keys; each is accepted only for its own key."""
        known: dict[str, Key] = {}
        for key in keys:
            known[key.thumbprint] = _join_algorithms(known.get(key.thumbprint), key)
        self.keys = tuple(known.values())
        if len(self.keys) > KEYS_LIMIT:
            raise KeysError(f"There are more than {KEYS_LIMIT} keys: remove those that no longer sign.")
        made = {name: key for key in self.keys for name in (key.fingerprint, key.thumbprint)}
        self._by_name = {**(called or {}), **made}
        certificates = tuple(certificates)
        self._certificates = {certificate.fingerprint(hashes.SHA256()) for certificate in certificates}
        self._store = Store(list(certificates)) if certificates else None

    def find(self, name: str) -> Key | None:
        """Return the key of this `kid`: its fingerprint, its thumbprint, or its name in the JWKS."""
        return self._by_name.get(name)

    def find_by_chain(self, find_by_chain: Sequence[str], now: float) -> Key:
        """Return the key of the first certificate of an `x5c` header (RFC 7515, 4.1.6); raises KeysError.

        It must be one of the certificates of this set, or lead to one through the others of the chain, each of them
        valid at `now` (Unix time) and, except for the first, allowed to certify.
        """
        if not 1 <= len(find_by_chain) <= CHAIN_LIMIT:
            raise KeysError(f"its chain does not have 1 to {CHAIN_LIMIT} certificates")
        try:
            leaf, *others = (
                x509.load_der_x509_certificate(base64.b64decode(each, validate=True)) for each in find_by_chain
            )
            key = make_key(leaf.public_key())
        except _UNREADABLE as error:
            raise KeysError("its chain cannot be read") from error
        at = dt.datetime.fromtimestamp(now, dt.UTC)
        if leaf.fingerprint(hashes.SHA256()) in self._certificates:
            if not leaf.not_valid_before_utc <= at <= leaf.not_valid_after_utc:
                raise KeysError("its certificate is not valid now")
            return key
        if self._store is None:
            raise KeysError("its chain leads to no trusted certificate")
        policy = (
            PolicyBuilder()
            .store(self._store)
            .time(at)
            .extension_policies(ca_policy=_CERTIFIERS, ee_policy=ExtensionPolicy.permit_all())
        )
        try:
            policy.build_client_verifier().verify(leaf, others)
        except (VerificationError, x509.UnsupportedGeneralNameType, *_UNREADABLE) as error:
            raise KeysError("its chain leads to no trusted certificate") from error
        return key


def _join_algorithms(one: Key | None, other: Key) -> Key:
    """Return the same key with the algorithms of both: a JWKS may list a key once for each."""
    if one is None:
        return other
    return other._replace(algorithms=tuple(dict.fromkeys((*one.algorithms, *other.algorithms))))


def make_key(public: Any) -> Key:
    """Make a named key of a public key; raises KeysError for one that registries would not accept."""
    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size < RSA_BITS:
            raise KeysError(f"An RSA key has {public.key_size} bits: use one of at least {RSA_BITS}.")
        algorithms: Sequence[str] = RSA_ALGORITHMS
    elif isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        algorithms = EC_ALGORITHMS
    else:
        raise KeysError("A key is neither RSA nor on the curve P-256: use one of these, registries accept no others.")
    return Key(public, algorithms, _fingerprint(public), thumbprint(_required_members(public)))


def _fingerprint(public: PublicKey) -> str:
    """Return libtrust's name of a key: base32 of the first 30 bytes of the SHA-256 of its DER form, in fours."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[at : at + 4] for at in range(0, len(text), 4))


def thumbprint(members: Mapping[str, Any]) -> str:
    """Return the thumbprint by RFC 7638: the SHA-256 of the required members, in order and without spaces."""
    text = json.dumps({name: members[name] for name in sorted(members)}, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def _required_members(public: PublicKey) -> dict[str, Any]:
    """Return the required members of a JSON Web Key, and no others."""
    if isinstance(public, rsa.RSAPublicKey):
        made: dict[str, Any] = RSAAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = ECAlgorithm.to_jwk(public, as_dict=True)
    return {name: made[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in made}


def parse_jwk(jwk: Mapping[str, Any]) -> Key:
    """Read a public key in the format of RFC 7517; raises KeysError."""
    if "d" in jwk or "k" in jwk:
        raise KeysError("A key is private, or a shared secret: include only public keys.")
    # Only the required members: the library must not see others.
    known = {name: jwk[name] for name in ("kty", "n", "e", "crv", "x", "y") if isinstance(jwk.get(name), str)}
    algorithm: Any = {"RSA": RSAAlgorithm, "EC": ECAlgorithm}.get(known.get("kty", ""))
    try:
        if algorithm is not None:
            return make_key(algorithm.from_jwk(known))
    except (InvalidKeyError, ValueError, KeyError, TypeError) as error:
        raise KeysError("A key of the JWKS cannot be read: correct or remove it.") from error
    raise KeysError("A key is neither RSA nor on the curve P-256: use one of these, registries accept no others.")


def parse_trusted_keys(content: bytes) -> KeySet:
    """Read the keys of an issuer: PEM (certificates or public keys) or JWKS; raises KeysError."""
    if len(content) > FILE_LIMIT:
        raise KeysError(f"The keys take more than {FILE_LIMIT} bytes: remove those that no longer sign.")
    keys = _parse_jwks(content) if content.lstrip().startswith(b"{") else _parse_pem(content)
    if not keys.keys:
        raise KeysError("There is no key: write PEM (certificates or public keys) or a JWKS.")
    return keys


def pem_blocks(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the blocks of a PEM file, each with its label."""
    return ((match[1].decode(), match[0]) for match in _PEM.finditer(content))


def _parse_pem(content: bytes) -> KeySet:
    keys: list[Key] = []
    certificates: list[x509.Certificate] = []
    for label, block in pem_blocks(content):
        if "PRIVATE" in label:
            raise KeysError("There is a private key among them: include only public keys or certificates.")
        try:
            if label == "CERTIFICATE":
                certificate = x509.load_pem_x509_certificate(block)
                keys.append(make_key(certificate.public_key()))
                certificates.append(certificate)
            else:
                keys.append(make_key(serialization.load_pem_public_key(block)))
        except _UNREADABLE as error:
            raise KeysError(f"A PEM block ({label}) cannot be read: write certificates or public keys.") from error
    return KeySet(keys, certificates)


def _parse_jwks(content: bytes) -> KeySet:
    try:
        known = json.loads(content)
        entries = [entry for entry in known["keys"] if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeysError('The JWKS cannot be read: it must be {"keys": […]}.') from error
    keys: list[Key] = []
    called: dict[str, Key] = {}
    # A JWKS may also have keys of other types, or for other uses (RFC 7517, 5).
    for entry in filter(_is_signing_key, entries):
        key = parse_jwk(entry)
        if entry.get("alg") is not None:
            key = key._replace(algorithms=tuple(name for name in key.algorithms if name == entry["alg"]))
        keys.append(key)
        name = entry.get("kid")
        if isinstance(name, str):
            if called.get(name, key).thumbprint != key.thumbprint:
                raise KeysError("Two keys of the JWKS have the same kid: give each its own.")
            called[name] = _join_algorithms(called.get(name), key)
    return KeySet(keys, called=called)


def _is_signing_key(entry: Mapping[str, Any]) -> bool:
    kinds = entry.get("kty") == "RSA" or (entry.get("kty") == "EC" and entry.get("crv") == "P-256")
    operations, algorithm = entry.get("key_ops"), entry.get("alg")
    return (
        kinds
        and entry.get("use", "sig") == "sig"
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
        and (algorithm is None or algorithm in (*RSA_ALGORITHMS, *EC_ALGORITHMS))
    )


class KeyFile(Generic[T]):
    """A file of keys, read again when it changes. While it cannot be read, the previous keys stay in use."""

    def __init__(
        self,
        setting: str,
        path: str,
        read: Callable[[bytes], T],
        clock: Callable[[], float] = time.monotonic,
        *,
        private: bool = False,
    ) -> None:
        """Read it; raises SettingsError with the setting's name. A `private` file is for its owner only."""
        self._setting = setting
        self._path = Path(path)
        self._read = read
        self._clock = clock
        self._seen = self._read_stamp()
        self._checked_at = clock()
        self._value = self._load()
        KEYS_UNREAD.labels(setting).set(0)
        if private and self._path.stat().st_mode & OTHER_USERS:
            log.warning("others can read a file of private keys: chmod 600", setting=setting, file=path)

    def __repr__(self) -> str:
        return f"KeyFile({self._setting})"

    def current(self) -> T:
        """The content of the file when it could last be read."""
        if self._clock() - self._checked_at >= CHECK_SECONDS:
            self._checked_at = self._clock()
            # Taken before reading, so that a change meanwhile is noticed the next time.
            stamp = self._read_stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._reload()
        return self._value

    def _reload(self) -> None:
        try:
            self._value = self._load()
        except SettingsError as error:
            KEYS_UNREAD.labels(self._setting).set(1)
            log.warning("keys cannot be read: the previous ones stay in use", setting=self._setting, why=str(error))
        else:
            KEYS_UNREAD.labels(self._setting).set(0)
            log.info("keys were read again", setting=self._setting)

    def _load(self) -> T:
        try:
            with self._path.open("rb") as file:
                return self._read(file.read(FILE_LIMIT + 1))
        except OSError as error:
            raise SettingsError(
                f"{self._setting} cannot be read: {error.strerror or 'no file'} ({self._path})."
            ) from error
        except KeysError as error:
            raise SettingsError(f"{self._setting} is malformed ({self._path}): {error}") from error

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            known = self._path.stat()
        except OSError:
            return None
        return known.st_mtime_ns, known.st_size, known.st_ino


def public_key_of(private: Any) -> Key:
    """Return the public half of a private key; raises KeysError."""
    return make_key(private.public_key())
