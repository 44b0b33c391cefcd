"""Of a client's token make one that lets pull from a single repository: for a registry that need not know more.

It says nothing that the client's does not, and lives no longer.
Not here: who is shown it (coordinator/mounts/sources.py).
"""

from coordinator.domain.access import ANY, PULL, Access, Grant
from coordinator.tokens.sign import Signer
from coordinator.tokens.verify import TokenVerifier


def pull_only(token: str, repository: str, verifier: TokenVerifier, signer: Signer) -> str:
    """Return the token; raises TokenRefusedError if that of the client is not good."""
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
