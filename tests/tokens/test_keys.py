"""Keys are read from files, have the names that registries give them, and change while they are used."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from coordinator.errors import SettingsError
from coordinator.tokens.keys import CHECK_SECONDS, KeyFile, KeysError, make_key, parse_trusted_keys
from coordinator.tokens.sign import SigningKeys, parse_signing_keys
from tests.tokens import cases, forge
from tests.tokens.forge import certificate, ec_key, kid, pem, private_pem, public_pem, rsa_key

RSA, EC = rsa_key(0), ec_key(0)


def jwks(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    return make_key(key.public_key()).jwk() | more


def unknown(change: tuple[str, str], label: str = "PUBLIC KEY") -> bytes:
    """The key on P-256, or its certificate, as PEM, with bytes that no library knows."""
    whole = {"PUBLIC KEY": public_pem(EC), "CERTIFICATE": pem(certificate(EC))}[label]
    der = base64.b64decode(b"".join(whole.splitlines()[1:-1])).replace(*map(bytes.fromhex, change), 1)
    return f"-----BEGIN {label}-----\n{base64.b64encode(der).decode()}\n-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    "content",
    [
        public_pem(RSA, EC),
        pem(certificate(RSA), certificate(EC)),
        b"a comment\n" + public_pem(RSA) + b"\n\n" + pem(certificate(EC)),
        jwks(jwk(RSA), jwk(EC)),
        b"\n " + jwks(jwk(EC), jwk(RSA), {"kty": "OKP", "crv": "Ed25519", "x": "AA"}, jwk(RSA, use="enc")),
    ],
)
def test_both_forms(content: bytes) -> None:
    """PEM and JWKS give the same keys, each under its libtrust fingerprint and its RFC 7638 thumbprint."""
    keys = parse_trusted_keys(content)
    for key in (RSA, EC):
        made = make_key(key.public_key())
        found = keys.find(made.fingerprint)
        assert found is not None
        assert found == keys.find(made.thumbprint)
        assert found.public == key.public_key()
    assert keys.find("unknown") is None


def test_the_thumbprint_of_the_specification() -> None:
    """The example of RFC 7638, 3.1, has the thumbprint of the specification."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs"
        "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5haj"
        "rn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    keys = parse_trusted_keys(jwks({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}))
    assert [key.thumbprint for key in keys.keys] == ["NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"]
    assert keys.find("2011-04-29") == keys.keys[0]._replace(algorithms=("RS256",))


def test_a_key_that_a_jwks_lists_twice() -> None:
    """A key that is listed once for each algorithm has all of them; `null` counts as absent."""
    twice = parse_trusted_keys(jwks(jwk(RSA, alg="RS256"), jwk(RSA, alg="RS512"), jwk(EC, alg=None, key_ops=None)))
    assert [key.algorithms for key in twice.keys] == [("RS256", "RS512"), ("ES256",)]
    assert [twice.find(kid(key)) for key in (RSA, EC)] == [*twice.keys]
    named = parse_trusted_keys(jwks(*(jwk(RSA, alg=each, kid="one") for each in ("RS256", "RS512"))))
    assert named.find("one") == named.keys[0] == twice.keys[0]


def test_what_a_jwks_calls_a_key() -> None:
    """A key has the name that its JWKS gives it, and no name of another key."""
    keys = parse_trusted_keys(jwks(jwk(RSA, kid="one"), jwk(EC, kid=kid(RSA))))
    assert keys.find("one") == keys.find(kid(RSA))
    assert keys.find(kid(RSA)) != make_key(EC.public_key())
    with pytest.raises(KeysError, match="same kid"):
        parse_trusted_keys(jwks(jwk(RSA, kid="one"), jwk(EC, kid="one")))


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        (b"", "There is no key"),
        (b"no PEM", "There is no key"),
        (jwks(), "There is no key"),
        (jwks(jwk(RSA, use="enc")), "There is no key"),
        (jwks({"kty": "oct", "k": "c2VjcmV0"}), "There is no key"),
        (b"{", "JWKS cannot be read"),
        (b'{"keys": 7}', "JWKS cannot be read"),
        (b'{"a": 1}', "JWKS cannot be read"),
        (jwks({"kty": "RSA", "n": "AA", "e": "AQAB"}), "cannot be read|bits"),
        (jwks({"kty": "RSA"}), "cannot be read"),
        (jwks(jwk(RSA, alg=[])), "There is no key"),
        (jwks(jwk(RSA, key_ops=7)), "There is no key"),
        (unknown(cases.KIND), "cannot be read"),
        (unknown(cases.CURVE), "cannot be read"),
        (unknown(cases.VERSION, "CERTIFICATE"), "cannot be read"),
        (jwks(jwk(RSA, d="AA")), "private"),
        (private_pem(RSA), "private key among them"),
        (public_pem(RSA) + private_pem(EC), "private key among them"),
        (public_pem(rsa_key(0, 1024)), "1024 bits"),
        (public_pem(ec_key(0, ec.SECP384R1)), "neither RSA nor"),
        (public_pem(RSA).replace(b"M", b"N", 3), "cannot be read"),
        (b"x" * (2 << 20), "bytes"),
        (public_pem(*(ec_key(number) for number in range(100, 201))), "more than 100 keys"),
    ],
)
def test_what_is_refused(content: bytes, stated: str) -> None:
    """A malformed key is refused in a sentence that gives the reason and does not quote it."""
    with pytest.raises(KeysError, match=stated) as refused:
        parse_trusted_keys(content)
    assert "BEGIN" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        (b"", "no private key"),
        (public_pem(RSA), "not a private key without a passphrase"),
        (private_pem(rsa_key(0, 1024)), "1024 bits"),
        (private_pem(ec_key(0, ec.SECP521R1)), "neither RSA nor"),
        (b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n", "replace it"),
    ],
)
def test_what_cannot_sign(content: bytes, stated: str) -> None:
    """A key that cannot sign is refused, and nothing of it is shown."""
    with pytest.raises(KeysError, match=stated) as refused:
        parse_signing_keys(content)
    assert "SECRET" not in str(refused.value)


def test_signing_keys() -> None:
    """The first signs, all are published without their private halves, and no repr shows one."""
    keys = parse_signing_keys(pem(certificate(RSA)) + private_pem(EC, RSA))
    assert keys.active.fingerprint == kid(EC)
    assert [each["kid"] for each in keys.jwks()["keys"]] == [kid(EC), kid(RSA)]
    assert not {"d", "p", "q"} & {name for each in keys.jwks()["keys"] for name in each}
    assert parse_trusted_keys(json.dumps(keys.jwks()).encode()).find(kid(RSA)) is not None
    assert repr(keys) == f"SigningKeys({kid(EC)})"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def unread(setting: str) -> float | None:
    return REGISTRY.get_sample_value("baleen_token_keys_unread", {"setting": setting})


def test_a_file_that_changes(tmp_path: Path) -> None:
    """A file is read again when it changes, also if another of the same size and time replaces it."""
    path, clock = tmp_path / "keys.pem", Clock()
    path.write_bytes(public_pem(ec_key(0)))
    file = KeyFile("BALEEN_A", str(path), parse_trusted_keys, clock)
    other = tmp_path / "new"
    other.write_bytes(public_pem(ec_key(1)))
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert file.current().find(kid(ec_key(0))) is not None
    clock.now += CHECK_SECONDS
    assert file.current().find(kid(ec_key(0))) is None
    assert file.current().find(kid(ec_key(1))) is not None


@pytest.mark.parametrize("broken", [b"", b"no PEM", None])
def test_a_file_that_breaks(tmp_path: Path, broken: bytes | None) -> None:
    """While a file is malformed the earlier keys stay in force, the metric reports it, and a valid file is read
    again.
    """
    path, clock = tmp_path / "keys.pem", Clock()
    path.write_bytes(private_pem(ec_key(0)))
    file: KeyFile[SigningKeys] = KeyFile("BALEEN_B", str(path), parse_signing_keys, clock)
    assert unread("BALEEN_B") == 0
    path.unlink()
    if broken is not None:
        path.write_bytes(broken)
    for _ in range(3):
        clock.now += CHECK_SECONDS
        assert file.current().active.fingerprint == kid(ec_key(0))
    assert unread("BALEEN_B") == 1
    path.write_bytes(private_pem(ec_key(1)))
    clock.now += CHECK_SECONDS
    assert file.current().active.fingerprint == kid(ec_key(1))
    assert unread("BALEEN_B") == 0


def test_a_file_that_is_not_there_at_the_beginning(tmp_path: Path) -> None:
    """A process does not start with keys that cannot be read, and names the setting."""
    with pytest.raises(SettingsError, match="BALEEN_C cannot be read: No such file"):
        KeyFile("BALEEN_C", str(tmp_path / "none"), parse_trusted_keys)
    (tmp_path / "bad").write_bytes(b"{}")
    with pytest.raises(SettingsError, match="BALEEN_C is malformed"):
        KeyFile("BALEEN_C", str(tmp_path / "bad"), parse_trusted_keys)


def test_how_far_a_chain_may_go() -> None:
    """A root's path length is respected, and a chain has a limited length."""
    root = certificate(ec_key(1), ca=True, path_length=0, name="root")
    middle = certificate(ec_key(2), by=(root, ec_key(1)), ca=True, name="middle")
    under_root = certificate(RSA, by=(root, ec_key(1)), name="leaf")
    leaf = certificate(RSA, by=(middle, ec_key(2)), name="leaf")
    keys = parse_trusted_keys(pem(root))
    now = root.not_valid_before_utc.timestamp() + 90_000
    assert keys.find_by_chain(forge.x5c(under_root), now).fingerprint == kid(RSA)
    for chain in (forge.x5c(leaf, middle), forge.x5c(*[under_root] * 9), []):
        with pytest.raises(KeysError):
            keys.find_by_chain(chain, now)
    with pytest.raises(KeysError, match="not valid now"):
        keys.find_by_chain(forge.x5c(root), now + 900_000)


def test_private_keys_that_others_can_read(tmp_path: Path) -> None:
    """A file of private keys that others can read is used with a warning."""
    path = tmp_path / "signing.pem"
    path.write_bytes(forge.private_pem(ec_key(0)))
    for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
        path.chmod(mode)
        with capture_logs() as logs:
            KeyFile("BALEEN_D", str(path), parse_signing_keys, private=True)
        assert [each["log_level"] for each in logs] == ["warning"] * warned
