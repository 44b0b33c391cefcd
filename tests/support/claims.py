"""Claims of registries (coordinator/gc/claims.py): of none, and of one whose database is known."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from coordinator.domain.names import Digest, PodName
from coordinator.gitlab.database import GitlabDatabase


class NoClaims:
    """Every registry looks at storage."""

    def find_claims(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:  # noqa: ARG002 - of an interface
        return {}


NO_CLAIMS = NoClaims()


class RowClaims(NamedTuple):
    """What the database of one pod's registry lists, without a proof of the doctor."""

    pod: PodName
    database: GitlabDatabase

    def find_claims(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:
        return dict.fromkeys(self.database.find_known(blobs), self.pod)
