"""Where the pods of each kind keep their links, from the settings."""

from collections.abc import Sequence
from pathlib import Path

from coordinator.db.connection import Connections
from coordinator.domain.names import PodName
from coordinator.domain.pods import PodKind
from coordinator.gc.claims import Claims
from coordinator.gitlab.databases import GitlabClaims, GitlabDatabases
from coordinator.gitlab.links import GitlabLinks
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.settings import Settings
from coordinator.storage.port import ObjectStore


def make_gitlab_databases(settings: Settings) -> GitlabDatabases:
    directory = settings.gitlab_databases
    return GitlabDatabases(None if directory is None else Path(directory))


def make_links(store: ObjectStore, databases: GitlabDatabases) -> Links:
    return Links(BucketLinks(store), {PodKind.GITLAB: lambda pod: GitlabLinks(databases.of(pod))})


def make_claims(connections: Connections, databases: GitlabDatabases) -> Claims:
    def read_pods() -> Sequence[PodName]:
        with connections.use() as connection:
            found = connection.execute("SELECT name FROM pods WHERE kind = %s ORDER BY id", (str(PodKind.GITLAB),))
            return [PodName(row[0]) for row in found]

    return GitlabClaims(databases, read_pods)
