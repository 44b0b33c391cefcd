"""Narrow a client's token to one that permits only pull from a single repository, to show to that registry.

It grants nothing that the client's token does not, and lives no longer.
Not here: its use (coordinator/mounts/sources.py).
"""

from coordinator.domain.access import ANY, PULL, Access, Grant
from coordinator.tokens.sign import Signer
from coordinator.tokens.verify import TokenVerifier


def narrow_to_pull(token: str, repository: str, verifier: TokenVerifier, signer: Signer) -> str:
    """Return the narrow token; raises TokenRefusedError if the client's token is not valid."""
    verified = verifier.verify(token)
    grants = (
        Grant(grant.name, frozenset({PULL}), grant.more)
        for grant in verified.access.grants
        if grant.name == repository and grant.actions & {PULL, ANY}
    )
    signed = signer.sign(
        verified.subject,
        Access(tuple(grants)),
        auth_type=verified.auth_type,
        not_before=verified.not_before,
        not_after=verified.expires_at,
    )
    return signed.token
