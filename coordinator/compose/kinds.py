"""The kinds of pods, from the settings."""

from collections.abc import Sequence

from coordinator.db.connection import Connections
from coordinator.domain.names import PodName
from coordinator.domain.pods import PodKind
from coordinator.gc.claims import Claims
from coordinator.kinds.kinds import Kinds


def make_claims(connections: Connections, kinds: Kinds) -> Claims:
    def read_pods() -> Sequence[tuple[PodName, PodKind]]:
        with connections.use() as connection:
            found = connection.execute("SELECT name, kind FROM pods ORDER BY id")
            return [(PodName(row[0]), PodKind(row[1])) for row in found]

    return kinds.make_claims(read_pods)
