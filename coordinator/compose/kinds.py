"""The kinds of pods, from the settings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from coordinator.db.connection import Connections
from coordinator.kinds.kinds import KindClaims, Kinds
from coordinator.pods.of_kind import PodOfKind, read_pods_of_kinds
from coordinator.settings import Settings
from coordinator.storage.port import ObjectStore


@contextmanager
def open_claims(settings: Settings, connections: Connections, store: ObjectStore) -> Iterator[KindClaims]:
    with Kinds(settings, store) as kinds:
        yield make_claims(connections, kinds)


def make_claims(connections: Connections, kinds: Kinds) -> KindClaims:
    def read_pods() -> Sequence[PodOfKind]:
        with connections.use() as connection:
            return read_pods_of_kinds(connection)

    return kinds.make_claims(read_pods)
