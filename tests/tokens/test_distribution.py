"""A real registry and Baleen agree on tokens; a registry accepts Baleen's own, also while keys change."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from coordinator.domain.access import Access, Grant
from coordinator.tokens.keys import parse_trusted_keys
from coordinator.tokens.sign import Signer, SigningKeys, parse_signing_keys
from coordinator.tokens.verify import TokenRefusedError, TokenVerifier
from tests.support.registries import running_distribution
from tests.support.sink import NotificationSink
from tests.tokens import cases, forge
from tests.tokens.forge import AUDIENCE, ISSUER, ec_key, rsa_key

pytestmark = pytest.mark.registry

#: Of a registry on a machine that is slow for a moment.
CLIENT_S = 60.0


def guarded(bundle: Path) -> str:
    """The section of distribution's configuration that requires tokens."""
    return (
        f"auth:\n  token: {{realm: 'http://127.0.0.1:9/jwt/auth', service: {AUDIENCE}, issuer: {ISSUER},"
        f" rootcertbundle: '{bundle}'}}\n"
    )


class Registry(NamedTuple):
    url: str

    def takes(self, token: str) -> bool:
        """Whether a pull from `team/app`, which has nothing, is permitted."""
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(f"{self.url}/v2/team/app/tags/list", headers=headers, timeout=CLIENT_S, trust_env=False)
        assert answer.status_code in {401, 404}, answer.text
        return answer.status_code == 404


@contextmanager
def running(directory: Path, bundle: bytes) -> Iterator[Registry]:
    """A registry that trusts these certificates, until the block ends."""
    file = directory / "bundle.crt"
    file.write_bytes(bundle)
    with NotificationSink() as sink, running_distribution(sink, directory, more=guarded(file)) as started:
        yield Registry(started.url)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One that trusts the bundle of the cases."""
    with running(tmp_path_factory.mktemp("registry"), cases.BUNDLE) as started:
        yield started


@pytest.mark.parametrize("name", cases.GOOD)
def test_what_is_good(registry: Registry, name: str) -> None:
    """A registry accepts what Baleen accepts, except key names that only later registries know."""
    case = cases.GOOD[name]
    assert registry.takes(case.make()) is not case.registry_differs


@pytest.mark.parametrize("name", cases.BAD)
def test_what_is_bad(registry: Registry, name: str) -> None:
    """A registry refuses what Baleen refuses, except what only a lenient reader accepts."""
    _, case = cases.BAD[name]
    assert registry.takes(case.make()) is case.registry_differs


def test_rotation(tmp_path: Path) -> None:
    """When a key is added to the bundle, then signs, and the old one is removed, only the old key's tokens are
    refused.
    """
    old, new = ec_key(50), rsa_key(50)
    old_certificate, new_certificate = forge.certificate(old), forge.certificate(new)
    access = Access((Grant("team/app", frozenset({"pull"})),))

    def signed(*keys: forge.Private) -> str:
        held = SigningKeys(list(keys))
        return Signer(lambda: held, issuer=ISSUER, audience=AUDIENCE, lifetime=300).sign("alice", access).token

    before, during, after = signed(old), signed(new, old), signed(new)
    for bundle, taken, refused in (
        ([old_certificate], [before], [during, after]),
        ([old_certificate, new_certificate], [before, during, after], []),
        ([new_certificate], [during, after], [before]),
    ):
        content = forge.pem(*bundle)
        trusted = parse_trusted_keys(content)
        verifier = TokenVerifier(lambda trusted=trusted: trusted, issuer=ISSUER, audience=AUDIENCE)  # type: ignore[misc]
        with running(tmp_path, content) as registry:
            for token in taken:
                assert registry.takes(token)
                assert verifier.verify(token).access == access
            for token in refused:
                assert not registry.takes(token)
                with pytest.raises(TokenRefusedError):
                    verifier.verify(token)


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """The commands of docs/TOKENS.md make a signing key, and a certificate with which a registry trusts it."""
    page = (Path(__file__).parents[2] / "docs" / "TOKENS.md").read_text()
    (commands,) = (block for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) if "openssl" in block)
    subprocess.run(["bash", "-ec", commands], cwd=tmp_path, check=True, capture_output=True)
    held = parse_signing_keys((tmp_path / "signing.pem").read_bytes())
    signer = Signer(lambda: held, issuer=ISSUER, audience=AUDIENCE, lifetime=300)
    signed = signer.sign("alice", Access((Grant("team/app", frozenset({"pull"})),)))
    with running(tmp_path, (tmp_path / "baleen.crt").read_bytes()) as registry:
        assert registry.takes(signed.token)
        assert not registry.takes(signed.token[:-8])
