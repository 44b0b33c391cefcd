"""The narrowed token that the registry of a mount's source gets."""

from pathlib import Path

import pytest

from coordinator.compose import api as compose_api
from coordinator.domain.mounts import NotMountedError
from coordinator.domain.names import RepositoryName
from coordinator.settings import Settings
from coordinator.tokens.verify import TokenVerifier
from tests.tokens import forge
from tests.tokens.forge import ec_key
from tests.tokens.issuer import now

OURS, AUDIENCE = "baleen-of-tests", "all-registries"
SOURCE = RepositoryName("pod-a/base")
META = {"tag_deny_access_patterns": {"push": ["^v"]}}


def settings(tmp_path: Path, **more: str) -> Settings:
    file = tmp_path / "signing.pem"
    file.write_bytes(forge.private_pem(ec_key(50)))
    return Settings(jwt_signing_keys=str(file), jwt_issuer=OURS, jwt_audience=AUDIENCE, **more)


def test_to_pull_from_the_source_and_nothing_else(tmp_path: Path) -> None:
    """The token permits a pull from the source alone, and ends when the client's does."""
    known = settings(tmp_path)
    signing = compose_api.open_signing_keys(known)
    assert signing is not None
    shown = compose_api.make_token_narrower(known, compose_api.make_token_verifier(known, signing), signing)
    assert shown is not None
    ends = now() + 30
    granted = [
        {"type": "repository", "name": SOURCE, "actions": ["pull", "push"], "meta": META},
        {"type": "repository", "name": "pod-b/app", "actions": ["pull", "push"]},
    ]
    token = forge.token(ec_key(50), forge.claims(granted, iss=OURS, aud=AUDIENCE, exp=ends))
    made = shown(f"Bearer {token}", SOURCE)
    assert made is not None
    verified = TokenVerifier(lambda: signing.current().public, issuer=OURS, audience=AUDIENCE).verify(made)
    assert [(grant.name, set(grant.actions), grant.more) for grant in verified.access.grants] == [
        (SOURCE, {"pull"}, {"meta": META})
    ]
    assert (verified.subject, verified.expires_at) == ("alice", ends)
    assert shown(None, SOURCE) is None
    with pytest.raises(NotMountedError):
        shown("Bearer x.y.z", SOURCE)


@pytest.mark.parametrize("mounts", ["open", "token"])
def test_the_clients_own(tmp_path: Path, mounts: str) -> None:
    """Without tokens, or without a key of ours to sign with, a client's token is not narrowed."""
    known = settings(tmp_path, mounts=mounts)
    signing = compose_api.open_signing_keys(known)
    verifier = compose_api.make_token_verifier(known, signing)
    assert compose_api.make_token_narrower(known, verifier, signing if mounts == "open" else None) is None
