"""Collections of a bucket in which a registry with a database has its blobs, over HTTP, from the claim to the purge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import NamedTuple

import psycopg
import pytest

from coordinator.audit.audit import Ages, Audit
from coordinator.db.connection import Connections
from coordinator.domain.names import PodName, format_digest
from coordinator.errors import ConflictError
from coordinator.gitlab.database import GitlabDatabase
from coordinator.reconcile.presence import Presence
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_layer
from coordinator.settings import Secret
from coordinator.storage.layout import DATABASE_LOCK
from coordinator.table import statements
from tests.gc.harness import LANDED, Garbage
from tests.services.databases import DatabaseServer
from tests.storage.memory import MemoryObjectStore
from tests.support.claims import RowClaims
from tests.support.gitlab_registry import prepare_database, running_gitlab_registry

POD = PodName("team-g")
APP, OTHER = "team-g/app", "team-g/other"


class Scene(NamedTuple):
    garbage: Garbage
    client: RegistryClient
    rows: psycopg.Connection[tuple[object, ...]]

    def upload(self, name: str) -> str:
        """A client uploads a blob; return its digest."""
        self.client.push_blob(APP, self.garbage.body(name))
        return format_digest(self.garbage.digest(name))

    def remove_row(self, name: str) -> None:
        """The row collector removes the row of a blob, and with it all links."""
        self.rows.execute("DELETE FROM blobs WHERE digest = %s", (b"\x01" + self.garbage.digest(name),))


@contextmanager
def opened(server: DatabaseServer, *, versioned: bool) -> Iterator[Scene]:
    store = MemoryObjectStore(versioned=versioned)
    with server.databases() as databases:
        url = databases.empty()
        prepare_database(url)
        with (
            Garbage(databases.migrated(), store) as garbage,
            closing(GitlabDatabase(POD, lambda: Secret(url), per_s=10_000.0)) as database,
            running_gitlab_registry(store, url) as registry,
            RegistryClient(registry.url) as client,
            psycopg.connect(url, autocommit=True) as rows,
        ):
            garbage.claims = RowClaims(POD, database)
            garbage.delete_bound = LANDED
            yield Scene(garbage, client, rows)


@pytest.mark.parametrize("versioned", [True, False])
def test_from_the_claim_to_the_purge(database_server: DatabaseServer, *, versioned: bool) -> None:
    """A blob that nothing needs is kept as long as its row is there, since a mount is answered from that; without the
    row it is hidden. If the row is back before the purge, it is served again; else it is purged, and can be pushed.
    """
    with opened(database_server, versioned=versioned) as scene:
        garbage, client = scene.garbage, scene.client
        layer = scene.upload("l")
        garbage.upload("m")
        garbage.report("m", "l")
        garbage.forget("m")
        assert garbage.collect().kept["claimed"] == 1
        assert client.mount_blob(OTHER, layer, APP)
        assert client.get_blob(OTHER, layer) == garbage.body("l")

        scene.remove_row("l")
        garbage.collect()
        assert garbage.collect().hidden == 1
        assert not client.has_blob(OTHER, layer)
        assert not client.mount_blob(OTHER, layer, APP)

        # It finds no bytes, so it uploads them, and the registry writes the row.
        scene.upload("l")
        assert garbage.collect().kept["given back"] == 1
        assert client.mount_blob(OTHER, layer, APP)
        assert client.get_blob(OTHER, layer) == garbage.body("l")
        assert "purged" not in garbage.ledger("l")

        scene.remove_row("l")
        runs = [garbage.collect() for _ in range(4)]
        assert sum(run.purged for run in runs) == 1
        assert "purged" in garbage.ledger("l")
        scene.upload("l")
        assert client.get_blob(APP, layer) == garbage.body("l")


@pytest.mark.parametrize("versioned", [True, False])
def test_an_upload_while_it_is_hidden(database_server: DatabaseServer, *, versioned: bool) -> None:
    """A hidden blob that is uploaded again can be pulled, before the event of its manifest is applied and after it,
    through any number of runs.
    """
    with opened(database_server, versioned=versioned) as scene:
        garbage, client = scene.garbage, scene.client
        scene.upload("l")
        garbage.upload("m")
        garbage.report("m", "l")
        garbage.forget("m")
        scene.remove_row("l")
        assert garbage.collect().hidden == 2
        layer = scene.upload("l")
        garbage.report("n", "l")
        for _ in range(3):
            garbage.collect()
            garbage.restore()
            assert client.get_blob(APP, layer) == garbage.body("l")


def test_a_registry_that_nobody_registered(database_server: DatabaseServer) -> None:
    """A registry with a database shows no repository in the bucket, but a lock file: while no pod has a database, that
    blocks collections, and no orphan is taken up.
    """
    with opened(database_server, versioned=True) as (garbage, client, _):
        garbage.store.put(DATABASE_LOCK, b"")
        layer = make_layer("theirs")
        client.push_blob("third/app", layer.content)
        garbage.push_and_forget("m")
        with (
            closing(Connections(garbage.url, name="test", prepare=statements.prepare_connection)) as connections,
            closing(Presence(connections, garbage.store)) as presence,
        ):
            ages = Ages(timedelta(), timedelta())
            with pytest.raises(ConflictError, match="a GitLab registry with a metadata database"):
                Audit(connections, garbage.store, presence, ages, take_up=True).run()
        run = garbage.try_collection()
        assert run.hidden == 0
        assert "a GitLab registry with a metadata database" in str(run.progress["blocked_by"])
        garbage.connection.execute("UPDATE pods SET kind = 'gitlab' WHERE name = 'pod-a'")
        assert garbage.collect().hidden == 1
