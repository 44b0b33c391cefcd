"""A real GitLab Container Registry with its metadata database, beside a pod of distribution on the same bucket.

The program is whatever BALEEN_TEST_GITLAB_REGISTRY names; its own command makes its tables. Baleen reads them as a role
that may do nothing but read those that it needs.
Route: `GitlabStage.opened` -> pod-a of distribution, pod-b of GitLab's registry -> pushes and deletes by clients ->
`Rows`, which says by SELECTs of its own what the registry has -> `differences` between them and Baleen's table.
Not here: a model of these tables (model.py), what must hold (test_real_registry.py), collections (tests/scenarios).
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, cast

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.demo import bucket
from coordinator.domain.names import PodName
from coordinator.domain.pods import PodKind
from coordinator.gc.claims import Claims
from coordinator.gitlab.database import GitlabDatabase
from coordinator.gitlab.links import GitlabLinks
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.registry.client import RegistryClient
from coordinator.settings import Secret
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry
from coordinator.stack.process import ManagedProcess
from coordinator.storage.port import ObjectStore
from tests.doctor.store import OTHER_POD, Key, Store
from tests.registries.harness import HTTP_SECRET, Pairs, Registry
from tests.registries.s3_proxy import S3Proxy
from tests.scenarios.harness import CLIENT_S, Member, Skewed, Stage
from tests.support.claims import RowClaims
from tests.support.wait import eventually

VARIABLE = "BALEEN_TEST_GITLAB_REGISTRY"
PROGRAM = os.environ.get(VARIABLE, "")
needs_program = pytest.mark.skipif(
    not PROGRAM, reason=f"{VARIABLE} does not name the program of a GitLab Container Registry (4.32, with database)"
)
MIGRATION_S = 300.0
DATABASE, READER = "registry", "baleen_reader"
#: All that Baleen reads.
TABLES = (
    *("top_level_namespaces", "repositories", "manifests", "repository_blobs", "blobs"),
    *("schema_migrations", "post_deploy_schema_migrations"),
)
LOCK_FILES = ["docker/registry/lockfiles/database-in-use", "docker/registry/lockfiles/filesystem-in-use"]


@dataclass(frozen=True, kw_only=True)
class GitlabRegistry(DistributionRegistry):
    """A process that serves clients: it collects no garbage, and locks the root for registries with a database."""

    database_url: str = field(repr=False)
    debug_port: int

    def configuration(self) -> dict[str, object]:
        known: dict[str, Any] = dict(super().configuration())
        url = make_url(self.database_url)
        names = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
        known["database"] = names | {"enabled": True, "dbname": url.database, "sslmode": "disable"}
        known["gc"] = {"disabled": True}
        debug = {"addr": f"{self.host}:{self.debug_port}", "prometheus": {"enabled": True, "path": "/metrics"}}
        known["http"] |= {"debug": debug}
        return known

    def process(self) -> ManagedProcess:
        made = super().process()
        made.argv = [PROGRAM, *made.argv[1:]]
        made.env = dict(made.env or {}) | {"REGISTRY_FF_ENFORCE_LOCKFILES": "true"}
        return made

    def migrate(self) -> None:
        """Make the tables, by the program's own command."""
        argv = [PROGRAM, "database", "migrate", "up", self.process().argv[-1]]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=MIGRATION_S, check=False)
        assert done.returncode == 0, done.stderr


class RowCollector(GitlabRegistry):
    """One more process on the same database, without clients or a store: it deletes rows of dead blobs, and no bytes.

    Untagged manifests it leaves alone: no event would tell that they are gone.
    """

    def configuration(self) -> dict[str, object]:
        known = dict(super().configuration())
        known["storage"] = {"inmemory": {}}
        often = {"interval": "50ms"}
        known["gc"] = {"noidlebackoff": True, "maxbackoff": "1s", "blobs": often, "manifests": {"disabled": True}}
        return known


class Rows:
    """What a registry's database says, asked without Baleen."""

    def __init__(self, url: str) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        self._connection.close()

    def execute(self, statement: str, *values: object) -> psycopg.Cursor[Any]:
        return self._connection.execute(cast("Any", statement), values)

    def manifests(self, below: str) -> dict[tuple[str, str], set[str]]:
        """(repository, manifest) of the repositories below a name, and what each manifest needs."""
        found: dict[tuple[str, str], set[str]] = {}
        for path, digest, needed in self.execute(
            """
            SELECT r.path, encode(m.digest, 'hex'), encode(n.digest, 'hex')
            FROM manifests m
            JOIN repositories r ON (r.top_level_namespace_id, r.id) = (m.top_level_namespace_id, m.repository_id)
            LEFT JOIN LATERAL (
                SELECT m.configuration_blob_digest AS digest WHERE m.configuration_blob_digest IS NOT NULL
                UNION SELECT l.digest FROM layers l WHERE l.top_level_namespace_id = m.top_level_namespace_id
                    AND l.repository_id = m.repository_id AND l.manifest_id = m.id
                UNION SELECT c.digest FROM manifest_references x JOIN manifests c
                    ON c.top_level_namespace_id = x.top_level_namespace_id AND c.repository_id = x.repository_id
                    AND c.id = x.child_id
                    WHERE x.top_level_namespace_id = m.top_level_namespace_id
                    AND x.repository_id = m.repository_id AND x.parent_id = m.id
            ) n ON true
            WHERE starts_with(r.path || '/', %s)
            """,
            f"{below}/",
        ):
            needs = found.setdefault((path, _text(digest)), set())
            if needed is not None:
                needs.add(_text(needed))
        return found

    def subjects(self, below: str) -> set[str]:
        """Manifests that others name as their subject. Events list a subject among what a manifest needs, and the table
        may count it: it cannot be deleted as long as the other is there.
        """
        found = self.execute(
            """
            SELECT DISTINCT encode(s.digest, 'hex') FROM manifests m
            JOIN repositories r ON (r.top_level_namespace_id, r.id) = (m.top_level_namespace_id, m.repository_id)
            JOIN manifests s ON s.top_level_namespace_id = m.top_level_namespace_id
                AND s.repository_id = m.repository_id AND s.id = m.subject_id
            WHERE starts_with(r.path || '/', %s)
            """,
            f"{below}/",
        )
        return {_text(digest) for (digest,) in found}

    def links(self, below: str) -> Pairs:
        found = self.execute(
            """
            SELECT r.path, encode(l.blob_digest, 'hex') FROM repository_blobs l
            JOIN repositories r ON (r.top_level_namespace_id, r.id) = (l.top_level_namespace_id, l.repository_id)
            WHERE starts_with(r.path || '/', %s)
            """,
            f"{below}/",
        )
        return {(path, _text(digest)) for path, digest in found}

    def has_blob(self, digest: str) -> bool:
        found = self.execute("SELECT FROM blobs WHERE digest = decode(%s, 'hex')", f"01{digest.partition(':')[2]}")
        return found.fetchone() is not None


def _text(stored: str) -> str:
    assert stored.startswith("01"), stored
    return f"sha256:{stored[2:]}"


class GitlabStage(Stage):
    """The stage of scenarios, whose second pod is a GitLab registry."""

    more_objects: ClassVar[Mapping[Key, list[str]]] = MappingProxyType({**Stage.more_objects, OTHER_POD: LOCK_FILES})

    def __init__(self, directory: Path, children: Children, store: Store) -> None:
        urls = directory / "gitlab-databases"
        urls.mkdir()
        super().__init__(directory, children, store, {"GITLAB_DATABASES": str(urls)})
        # What is on this server outlives no test.
        self._connection.execute("ALTER SYSTEM SET fsync = off")
        self._connection.execute("SELECT pg_reload_conf()")
        self._connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        url = make_url(self._database()).set(database=DATABASE)
        self.database_url = url.render_as_string(hide_password=False)
        self.registry_rows = Rows(self.database_url)
        read_url = url.set(username=READER, password=READER).render_as_string(hide_password=False)
        (urls / "pod-b").write_text(read_url)
        self._database_read = GitlabDatabase(PodName("pod-b"), lambda: Secret(read_url))

    @classmethod
    @contextmanager
    def opened(cls, directory: Path) -> Iterator[GitlabStage]:
        with super().opened(directory) as stage, closing(stage.registry_rows), closing(stage._database_read):
            yield stage

    def _member(self, name: str, stack: ExitStack) -> Member:
        if name != "pod-b":
            return super()._member(name, stack)
        pod = self.add_pod(name, kind="gitlab")
        storage = stack.enter_context(S3Proxy(self.objects.url))
        webhook = stack.enter_context(Skewed(self.webhook(pod)))
        kind = partial(GitlabRegistry, database_url=self.database_url, debug_port=self._ports.take("debug"))
        made = kind(
            name="migrations", directory=self._directory / "m", port=0, storage=self._storage(pod), http_secret="none"
        )
        made.migrate()
        self.registry_rows.execute(f"CREATE ROLE {READER} LOGIN PASSWORD '{READER}'")
        self.registry_rows.execute(f"GRANT SELECT ON {', '.join(TABLES)} TO {READER}")
        registry = self.registry(kind, pod, url=webhook.url, s3_url=storage.url)
        client = stack.enter_context(RegistryClient(registry.url, timeout=CLIENT_S))
        return Member(pod, registry, storage, webhook, client)

    def _links(self, store: ObjectStore) -> Links:
        return Links(BucketLinks(store), {PodKind.GITLAB: lambda _: GitlabLinks(self._database_read)})

    def _claims(self) -> Claims:
        return RowClaims(PodName("pod-b"), self._database_read)

    @contextmanager
    def row_collector(self) -> Iterator[None]:
        """Run the process that deletes rows."""
        made = RowCollector(
            name="row-collector",
            directory=self._directory / "row-collector",
            port=self._ports.take("row-collector"),
            storage=self._storage(self.b.pod),
            http_secret=HTTP_SECRET,
            database_url=self.database_url,
            debug_port=self._ports.take("row-collector-debug"),
        )
        registry = Registry(self._children, made)
        try:
            yield
        finally:
            registry.terminate()

    def let_review(self) -> None:
        self.registry_rows.execute("UPDATE gc_blob_review_queue SET review_after = now() - interval '1 hour'")

    # What the registry has, and what the table says

    def parted(self, below: str) -> list[str]:
        """Where the table and the registry's rows part, both ways, in repositories below a name."""
        # The table first: the event of a manifest comes after its row is there.
        held = self._find_holdings(below)
        links = {pair for pair in self.links() if f"{pair[0]}/".startswith(f"{below}/")}
        rows, stored = self.registry_rows.manifests(below), self.registry_rows.links(below)
        subjects = self.registry_rows.subjects(below)
        found = [f"holding {pair}" for pair in sorted(held.keys() ^ rows.keys())]
        found += [
            f"{pair} needs {sorted(rows[pair] ^ held[pair])} or not"
            for pair in sorted(held.keys() & rows.keys())
            if rows[pair] - held[pair] or held[pair] - rows[pair] - subjects
        ]
        return found + [f"link {pair}" for pair in sorted(links ^ stored)]

    def _find_holdings(self, below: str) -> dict[tuple[str, str], set[str]]:
        found = self.rows(
            """
            SELECT r.name, encode(b.digest, 'hex'),
                   ARRAY(SELECT encode(n.digest, 'hex') FROM unnest(m.refs) x (id) JOIN blobs n ON n.id = x.id)
            FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
            JOIN blobs b ON b.id = h.manifest_id JOIN manifests m ON m.id = h.manifest_id
            WHERE starts_with(r.name || '/', %s)
            """,
            f"{below}/",
        )
        return {(name, f"sha256:{digest}"): {f"sha256:{each}" for each in needs} for name, digest, needs in found}

    def wanted_counts(self) -> Counter[str]:
        """How many holdings need each digest: those of the rows, and those whose links are in the bucket."""
        counts = Counter(bucket.read_expected_counts(self.store).reference_counts)
        for (_, digest), needs in self.registry_rows.manifests("pod-b").items():
            counts.update({digest, *needs})
        return counts

    def queue(self) -> list[Any]:
        """The blobs that the registry has still to review."""
        return self.registry_rows.execute("SELECT * FROM gc_blob_review_queue").fetchall()

    def await_parted(self, below: str, wanted: list[str]) -> None:
        eventually(lambda: self.parted(below) == wanted, why=lambda: (self.parted(below), self.status()))
