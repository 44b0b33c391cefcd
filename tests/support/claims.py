"""Claims of registries (coordinator/gc/claims.py) for tests without such a registry."""

from collections.abc import Mapping, Sequence

from coordinator.domain.names import Digest, PodName


class NoClaims:
    """Every registry looks at storage."""

    def find_claims(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:  # noqa: ARG002 - of an interface
        return {}


NO_CLAIMS = NoClaims()
