"""The kinds of pods, from the settings."""

from collections.abc import Sequence

from coordinator.db.connection import Connections
from coordinator.domain.names import PodName
from coordinator.domain.pods import PodKind
from coordinator.gc.claims import Claims
from coordinator.kinds.kind import ClaimingPod
from coordinator.kinds.kinds import Kinds


def make_claims(connections: Connections, kinds: Kinds) -> Claims:
    def read_pods() -> Sequence[ClaimingPod]:
        with connections.use() as connection:
            found = connection.execute(
                """
                SELECT name, kind, ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY prefix)
                FROM pods p ORDER BY id
                """
            )
            return [ClaimingPod(PodName(row[0]), PodKind(row[1]), row[2]) for row in found]

    return kinds.make_claims(read_pods)
