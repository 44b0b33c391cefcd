"""Valid and invalid tokens, for the tests of Baleen's verifier and of a real registry.

The bundle trusts `RSA`, `EC` and the certifying `ROOT`; nothing else.
"""

import base64
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography import x509

from coordinator.tokens.keys import make_key
from tests.tokens import forge
from tests.tokens.forge import claims, ec_key, kid, rsa_key, token

RSA, EC, ROOT, STRANGER = rsa_key(0), ec_key(0), ec_key(1), rsa_key(1)
RSA_CERTIFICATE = forge.certificate(RSA, name="rsa")
EC_CERTIFICATE = forge.certificate(EC, name="ec")
ROOT_CERTIFICATE = forge.certificate(ROOT, ca=True, name="root")
BUNDLE = forge.pem(RSA_CERTIFICATE, EC_CERTIFICATE, ROOT_CERTIFICATE)

MIDDLE, LEAF = ec_key(2), rsa_key(2)
OTHER_ROOT = ec_key(3)


def chain(
    *, middle_ca: bool = True, middle_days: tuple[float, float] = (-1, 1), leaf_days: tuple[float, float] = (-1, 1)
) -> list[str]:
    """Leaf and intermediate, up to the root of the bundle."""
    middle = forge.certificate(MIDDLE, by=(ROOT_CERTIFICATE, ROOT), ca=middle_ca, days=middle_days, name="middle")
    return forge.x5c(forge.certificate(LEAF, by=(middle, MIDDLE), days=leaf_days, name="leaf"), middle)


def by_another_root() -> list[str]:
    """A chain whose root has the name of ours, and another key."""
    root = forge.certificate(OTHER_ROOT, ca=True, name="root")
    return forge.x5c(forge.certificate(LEAF, by=(root, OTHER_ROOT), name="leaf"))


def by_a_leaf() -> list[str]:
    """Certified by one of the bundle that may not certify."""
    return forge.x5c(forge.certificate(LEAF, by=(EC_CERTIFICATE, EC), name="leaf"))


def changed(certificate: x509.Certificate, at: str, to: str) -> list[str]:
    """A chain of this certificate alone, in which some of its bytes are others."""
    (made,) = forge.x5c(certificate)
    before, found, after = base64.b64decode(made).partition(bytes.fromhex(at))
    assert found, "the certificate has no such bytes"
    return [base64.b64encode(before + bytes.fromhex(to) + after).decode()]


#: A certificate's version, the kind of its key, and the curve: in DER, as they are, and as nobody knows them.
VERSION = ("a003020102", "a003020107")
KIND = ("06072a8648ce3d0201", "06072a8648ce3d0209")
CURVE = ("06082a8648ce3d030107", "06082a8648ce3d030109")


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    made = make_key(key.public_key()).jwk()
    return {name: value for name, value in made.items() if name not in {"use", "alg"}} | more


def beside(**grant: Any) -> str:
    """A token that also has this grant."""
    return token(RSA, claims([*forge.PULL_APP, grant]))


def twice(name: str, value: str) -> str:
    """Claims in which one is written twice."""
    text = json.dumps(claims())
    return forge.raw(RSA, header(), f'{text[:-1]}, "{name}": {value}}}'.encode())


def header(**more: Any) -> bytes:
    return json.dumps({"alg": "RS256", "typ": "JWT", "kid": kid(RSA)} | more).encode()


class Case(NamedTuple):
    make: Callable[[], str]
    #: What a real registry (distribution 2.8) says of it, where that is not what Baleen says.
    registry_differs: bool = False


def ago(seconds: float) -> int:
    return int(time.time() - seconds)


GOOD: dict[str, Case] = {
    "RS256": Case(lambda: token(RSA)),
    "RS384": Case(lambda: token(RSA, algorithm="RS384")),
    "RS512": Case(lambda: token(RSA, algorithm="RS512")),
    "ES256": Case(lambda: token(EC)),
    "x5c of the bundle": Case(lambda: token(RSA, header={"x5c": forge.x5c(RSA_CERTIFICATE)})),
    "x5c chain": Case(lambda: token(LEAF, header={"x5c": chain()})),
    "x5c before kid": Case(lambda: token(LEAF, header={"x5c": chain(), "kid": kid(RSA)})),
    "jwk": Case(lambda: token(EC, header={"jwk": jwk(EC)})),
    "jwk before kid": Case(lambda: token(EC, header={"jwk": jwk(EC), "kid": kid(RSA)})),
    "expired within the leeway": Case(lambda: token(RSA, claims(exp=ago(30)))),
    "early within the leeway": Case(lambda: token(RSA, claims(nbf=ago(-30)))),
    "no nbf": Case(lambda: token(RSA, claims(nbf=None))),
    "issued in the future": Case(lambda: token(RSA, claims(iat=ago(-3600)))),
    "no subject": Case(lambda: token(RSA, claims(sub=None))),
    "everything": Case(lambda: token(RSA, claims([{"type": "repository", "name": "team/app", "actions": ["*"]}]))),
    "a meta": Case(lambda: token(RSA, claims([forge.PULL_APP[0] | {"meta": {"project_path": "team"}}]))),
    # As Go writes an empty list, and what has nothing to say.
    "null for actions, beside others": Case(lambda: beside(type="repository", name="team/none", actions=None)),
    "a grant without actions, beside others": Case(lambda: beside(type="repository", name="team/none")),
    "a grant without a name, beside others": Case(lambda: beside(type="repository", actions=["pull"])),
    "a grant without a type, beside others": Case(lambda: beside(name="team/none", actions=["pull"])),
    "null for the subject": Case(lambda: token(RSA, claims() | {"sub": None})),
    "null for nbf": Case(lambda: token(RSA, claims() | {"nbf": None})),
    "a number for auth_type": Case(lambda: token(RSA, claims(auth_type=7))),
    # Distribution 2 knows no such name.
    "kid by RFC 7638": Case(
        lambda: token(RSA, header={"kid": make_key(RSA.public_key()).thumbprint}), registry_differs=True
    ),
}

#: By the check that they must fail.
BAD: dict[str, tuple[str, Case]] = {
    "another audience": ("audience", Case(lambda: token(RSA, claims(aud="another")))),
    "a list of audiences": ("claims", Case(lambda: token(RSA, claims(aud=[forge.AUDIENCE])))),
    "no audience": ("claims", Case(lambda: token(RSA, claims(aud=None)))),
    "another issuer": ("issuer", Case(lambda: token(RSA, claims(iss="another")))),
    "an issuer that begins so": ("issuer", Case(lambda: token(RSA, claims(iss=forge.ISSUER + "x")))),
    "expired": ("expired", Case(lambda: token(RSA, claims(exp=ago(70))))),
    "no expiry": ("claims", Case(lambda: token(RSA, claims(exp=None)))),
    "expiry of text": ("claims", Case(lambda: token(RSA, claims(exp=str(ago(-300)))))),
    "early": ("not yet valid", Case(lambda: token(RSA, claims(nbf=ago(-90))))),
    "unsigned": ("algorithm", Case(lambda: forge.unsigned(RSA))),
    "HS256 with the public key": ("algorithm", Case(lambda: forge.hmac_with_public_key(RSA))),
    "PS256": ("algorithm", Case(lambda: token(RSA, algorithm="PS256"))),
    "no key named": ("key", Case(lambda: token(RSA, header={}))),
    "a key that is not trusted": ("key", Case(lambda: token(STRANGER))),
    "a trusted name, another key": ("signature", Case(lambda: token(STRANGER, header={"kid": kid(RSA)}))),
    "ES256 under the name of an RSA key": ("algorithm", Case(lambda: token(ec_key(9), header={"kid": kid(RSA)}))),
    "RS256 under the name of an EC key": ("algorithm", Case(lambda: token(RSA, header={"kid": kid(EC)}))),
    "its own jwk": ("key", Case(lambda: token(STRANGER, header={"jwk": jwk(STRANGER)}))),
    "its own jwk with a trusted kid": (
        "key",
        Case(lambda: token(STRANGER, header={"jwk": jwk(STRANGER, kid=kid(RSA)), "kid": kid(RSA)})),
    ),
    "a trusted jwk, another key": ("signature", Case(lambda: token(STRANGER, header={"jwk": jwk(RSA)}))),
    "x5c of another root": ("key", Case(lambda: token(LEAF, header={"x5c": by_another_root()}))),
    "x5c of itself": ("key", Case(lambda: token(LEAF, header={"x5c": forge.x5c(forge.certificate(LEAF, ca=True))}))),
    "x5c by one that may not certify": ("key", Case(lambda: token(LEAF, header={"x5c": by_a_leaf()}))),
    "x5c with an expired intermediate": ("key", Case(lambda: token(LEAF, header={"x5c": chain(middle_days=(-2, -1))}))),
    "x5c with an early leaf": ("key", Case(lambda: token(LEAF, header={"x5c": chain(leaf_days=(1, 2))}))),
    "x5c with an intermediate that may not certify": (
        "key",
        Case(lambda: token(LEAF, header={"x5c": chain(middle_ca=False)})),
    ),
    "x5c without its intermediate": ("key", Case(lambda: token(LEAF, header={"x5c": chain()[:1]}))),
    "x5c of a trusted certificate, another key": (
        "signature",
        Case(lambda: token(LEAF, header={"x5c": forge.x5c(RSA_CERTIFICATE)})),
    ),
    "x5c that is wrong beside a right kid": (
        "key",
        Case(lambda: token(RSA, header={"x5c": ["AAAA"], "kid": kid(RSA)})),
    ),
    "x5c of an unknown version": ("key", Case(lambda: token(EC, header={"x5c": changed(EC_CERTIFICATE, *VERSION)}))),
    "x5c with an unknown kind of key": ("key", Case(lambda: token(EC, header={"x5c": changed(EC_CERTIFICATE, *KIND)}))),
    "x5c with an unknown curve": ("key", Case(lambda: token(EC, header={"x5c": changed(EC_CERTIFICATE, *CURVE)}))),
    "x5c that is no list": ("key", Case(lambda: token(RSA, header={"x5c": "AAAA", "kid": kid(RSA)}))),
    "an empty signature": ("signature", Case(lambda: token(RSA).rpartition(".")[0] + ".")),
    "two parts": ("form", Case(lambda: token(RSA).rpartition(".")[0])),
    "four parts": ("form", Case(lambda: token(RSA) + ".x")),
    "nothing": ("form", Case(lambda: "..")),
    "claims that are no object": ("form", Case(lambda: forge.raw(RSA, header(), b"[]"))),
    "actions that are no list": ("claims", Case(lambda: token(RSA, claims([forge.PULL_APP[0] | {"actions": "pull"}])))),
    "an access that is no list": ("claims", Case(lambda: token(RSA, claims() | {"access": {}}))),
    # Go takes the last of two, and passes critical headers over.
    "an audience twice": ("form", Case(lambda: twice("aud", f'"{forge.AUDIENCE}"'), registry_differs=True)),
    "an access twice": ("form", Case(lambda: twice("access", json.dumps(forge.PULL_APP)), registry_differs=True)),
    "a critical header": (
        "form",
        Case(lambda: forge.raw(RSA, header(crit=["exp"], exp=1), json.dumps(claims()).encode()), registry_differs=True),
    ),
}


def tampered(made: str, change: Callable[[dict[str, Any]], None]) -> str:
    """The same signature under other claims."""
    first, second, third = made.split(".")
    stated = json.loads(base64.urlsafe_b64decode(second + "=="))
    change(stated)
    changed = base64.urlsafe_b64encode(json.dumps(stated).encode()).decode().rstrip("=")
    return f"{first}.{changed}.{third}"
