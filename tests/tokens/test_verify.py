"""A token is verified by distribution's rules, and refused by the check that it fails."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import BaleenError
from coordinator.tokens.keys import parse_trusted_keys
from coordinator.tokens.verify import TOKEN_LIMIT, TokenRefusedError, TokenVerifier
from tests.tokens import forge
from tests.tokens.cases import BAD, BUNDLE, EC, GOOD, RSA, header, tampered
from tests.tokens.forge import AUDIENCE, ISSUER, claims, token

TRUSTED = parse_trusted_keys(BUNDLE)
VERIFIER = TokenVerifier(lambda: TRUSTED, issuer=ISSUER, audience=AUDIENCE)


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    """A token grants its access to its subject, whichever way it names the key."""
    verified = VERIFIER.verify(GOOD[name].make())
    assert verified.access.permits("team/app", "pull")
    assert verified.access.permits("team/app", "push") is (name == "everything")
    assert not verified.access.permits("team/other", "pull")
    assert verified.subject == ("" if name in {"no subject", "null for the subject"} else "alice")


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    """A token is refused by the check that it fails, with 401, and is not quoted."""
    check, case = BAD[name]
    made = case.make()
    with pytest.raises(TokenRefusedError) as refused:
        VERIFIER.verify(made)
    assert (refused.value.check, refused.value.status) == (check, 401)
    assert not any(part and part in str(refused.value) for part in made.split("."))
    assert refused.value.__cause__ is None


def test_other_types_grant_nothing() -> None:
    """A grant of another type than repository grants nothing."""
    stated = [
        {"type": "registry", "name": "team/app", "actions": ["*"]},
        {"type": "Repository", "name": "team/app", "actions": ["*"]},
    ]
    assert VERIFIER.verify(token(RSA, claims(stated))).access.grants == ()


def test_nothing_granted() -> None:
    """A token without any access, or with null, is valid and grants nothing."""
    for stated in (claims([]), claims() | {"access": None}):
        assert VERIFIER.verify(token(RSA, stated)).access.grants == ()


def test_what_else_a_grant_says_is_kept() -> None:
    """GitLab's protected tags are neither lost nor merged."""
    first = {"type": "repository", "name": "team/app", "actions": ["pull"], "meta": {"deny": ["a"]}}
    second = first | {"actions": ["push"], "meta": {"deny": ["b"]}}
    grants = VERIFIER.verify(token(RSA, claims([first, second]))).access.grants
    assert [grant.more for grant in grants] == [{"meta": {"deny": ["a"]}}, {"meta": {"deny": ["b"]}}]


def test_huge_and_deep() -> None:
    """A token that is too long is not read, and one that is nested too deeply is refused."""
    began = time.perf_counter()
    for text in ("x" * (TOKEN_LIMIT + 1), ".".join(["e30" * 30_000] * 3)):
        with pytest.raises(TokenRefusedError) as refused:
            VERIFIER.verify(text)
        assert refused.value.check == "form"
    deep: object = "x"
    for _ in range(200):
        deep = [deep]
    for levels in (json.dumps(deep), "[" * 20_000 + "]" * 20_000):
        stated = json.dumps(claims([{**forge.PULL_APP[0], "meta": 1}])).replace('"meta": 1', f'"meta": {levels}')
        with pytest.raises(TokenRefusedError) as refused:
            VERIFIER.verify(forge.raw(RSA, header(), stated.encode()))
        assert refused.value.check in {"form", "claims"}
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("stated", ['{"exp": NaN}', '{"exp": 1e999}', '{"exp": ' + "9" * 5000 + "}", "\ud800"])
def test_strange_numbers(stated: str) -> None:
    """Malformed and infinite numbers are refused."""
    with pytest.raises(TokenRefusedError):
        VERIFIER.verify(forge.raw(RSA, header(), stated.encode("utf-8", "surrogatepass")))


def test_tampered() -> None:
    """Any change after the signature is noticed."""
    for key in (RSA, EC):
        made = token(key)
        for change in (
            lambda stated: stated["access"].append({"type": "repository", "name": "other/app", "actions": ["*"]}),
            lambda stated: stated.update(exp=stated["exp"] + 1),
            lambda stated: stated.update(sub="bob"),
        ):
            with pytest.raises(TokenRefusedError) as refused:
                VERIFIER.verify(tampered(made, change))
            assert refused.value.check == "signature"


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_whatever_comes(text: str) -> None:
    """Any text is refused as a token, without another error."""
    with pytest.raises(TokenRefusedError):
        VERIFIER.verify(text)


@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "x5c", "jwk", "typ", "crit", "b64"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["kty", "n", "e", "crv", "x", "y", "d"]), inner, max_size=4)
            ),
            max_leaves=8,
        ),
    )
)
def test_whatever_header_comes(stated: dict[str, object]) -> None:
    """Any header is refused with an error of ours."""
    made = forge.raw(RSA, json.dumps({"alg": "RS256"} | stated).encode(), json.dumps(claims()).encode())
    with pytest.raises(BaleenError):
        VERIFIER.verify(made)


def test_keys_of_now() -> None:
    """A removed key is refused with the next token, and an added one is accepted."""
    keys = parse_trusted_keys(forge.public_pem(RSA))
    verifier = TokenVerifier(lambda: keys, issuer=ISSUER, audience=AUDIENCE)
    assert verifier.verify(token(RSA)).subject == "alice"
    with pytest.raises(TokenRefusedError):
        verifier.verify(token(EC))
    keys = parse_trusted_keys(forge.public_pem(EC))
    assert verifier.verify(token(EC)).subject == "alice"
    with pytest.raises(TokenRefusedError):
        verifier.verify(token(RSA))
