"""The API behind a real HTTP server, a table filled by SQL, and what the sets say. Not here: what must hold."""

import json
import secrets
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import psycopg
import uvicorn
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.api.app import create_app
from coordinator.api.deps import Deps
from coordinator.api.server import KEEP_ALIVE_SECONDS
from coordinator.compose import api as compose_api
from coordinator.compose import database as compose_database
from coordinator.db import migrate
from coordinator.domain.references import ManifestKind, reference_kind
from coordinator.ingest.dead_letters import repositories_in
from coordinator.kafka.topics import ensure_topics
from coordinator.lookup.sizes import PRODUCTION, Sizes
from coordinator.settings import Settings, make_settings
from coordinator.stack.supervisor import StackEndpoints
from coordinator.tokens.table import hash_token
from tests.services.s3 import s3_settings
from tests.support.tables import NOW, add_dead_letter, add_pod, id_of, insert
from tests.support.wait import eventually

READ, OPERATE = "token-that-may-read", "token-that-may-operate"
#: Nothing is cached: figures and rankings are of now.
FRESH = Sizes(figures_s=0, ranking_s=0, cost_factor=0)
Json = Any


def settings_for(endpoints: StackEndpoints, **others: Any) -> Settings:
    """Settings of a database of its own on the stack's server, migrated, and of the stack's other services."""
    assert endpoints.database_url is not None
    name = f"api_tests_{secrets.token_hex(4)}"
    with psycopg.connect(endpoints.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = make_url(endpoints.database_url).set(database=name).render_as_string(hide_password=False)
    migrate.upgrade(url)
    ours = {"database_url": url, "kafka_bootstrap": endpoints.kafka_bootstrap}
    return make_settings(ours | s3_settings(endpoints) | others)


class Served(NamedTuple):
    """One API replica and its database."""

    url: str
    settings: Settings
    db: psycopg.Connection[Any]
    client: httpx.Client

    def get(self, path: str, token: str | None = READ, **parameters: Any) -> httpx.Response:
        return self.ask("GET", path, token, params=parameters)

    def ask(self, method: str, path: str, token: str | None = OPERATE, **options: Any) -> httpx.Response:
        headers = options.pop("headers", {}) | ({} if token is None else {"Authorization": f"Bearer {token}"})
        return self.client.request(method, path, headers=headers, **options)

    def pages(self, path: str, between: Callable[[], None] = lambda: None, **parameters: Any) -> list[Json]:
        """All items of a list; `between` runs after each page but the last."""
        items: list[Json] = []
        cursor: str | None = None
        while True:
            answer = self.get(path, **parameters, **({} if cursor is None else {"cursor": cursor}))
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert len(page["items"]) <= parameters.get("limit", 100)
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                return items
            between()

    def metric(self, name: str) -> float:
        lines = self.get("/metrics", None).text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def served(
    settings: Settings, sizes: Sizes = PRODUCTION, change: Callable[[Deps], Deps] = lambda deps: deps
) -> Iterator[Served]:
    """Serve the API on a free port until the end of the block; `change` replaces parts of it."""
    ensure_topics(settings)
    with psycopg.connect(compose_database.database_url(settings), autocommit=True) as db:
        db.cursor().executemany(
            "INSERT INTO api_tokens (name, role, token_sha256) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            [("read", "read", hash_token(READ)), ("operate", "operate", hash_token(OPERATE))],
        )
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            config = uvicorn.Config(
                create_app(change(compose_api.deps(settings, sizes))),
                log_config=None,
                access_log=False,
                lifespan="on",
                # As in service: a client that has kept a connection for as long as the server would lose a request.
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                eventually(lambda: server.started or not thread.is_alive(), "the API has started")
                with httpx.Client(base_url=url, timeout=30) as client:
                    yield Served(url, settings, db, client)
            finally:
                server.should_exit = True
                thread.join()


class Facts:
    """Facts as plain sets, with names that nobody else has, and what follows from them."""

    def __init__(self, db: psycopg.Connection[Any], pods: int = 2) -> None:
        self._db = db
        self.mark = f"t{secrets.token_hex(4)}"
        self.pods = [f"{self.mark}-{n}" for n in range(pods)]
        self.holdings: set[tuple[str, int]] = set()
        self.links: set[tuple[str, int]] = set()
        self.kinds: dict[int, ManifestKind] = {}
        self.refs: dict[int, list[int]] = {}
        self.sizes: dict[int, int] = {}
        self._digests: dict[int, str] = {}
        self._ids: dict[int, int] = {}
        self._repositories: dict[str, int] = {}
        for pod in self.pods:
            add_pod(db, pod, event_token_sha256=secrets.token_bytes(32))

    def repository(self, pod: int, name: str) -> str:
        """The full name of a repository; made when it is first named."""
        full = f"{self.pods[pod]}/{name}"
        if full not in self._repositories:
            pod_id = id_of(self.pods[pod])
            self._repositories[full] = insert(self._db, "repositories", "id", pod_id=pod_id, name=full)
        return full

    def digest(self, blob: int) -> str:
        if blob not in self._digests:
            raw = secrets.token_bytes(32)
            self._digests[blob] = f"sha256:{raw.hex()}"
            self.sizes[blob] = 100 + blob
            unused = {"reference_count": 0, "link_count": 0, "state": 1, "unreferenced_since": NOW}
            self._ids[blob] = insert(self._db, "blobs", "id", size=self.sizes[blob], digest=raw, **unused)
        return self._digests[blob]

    def manifest(self, blob: int, kind: ManifestKind, refs: list[int] | None) -> None:
        self.digest(blob)
        for ref in refs or ():
            self.digest(ref)
        ids = None if refs is None else [self._ids[ref] for ref in refs]
        insert(self._db, "manifests", id=self._ids[blob], kind=None if refs is None else int(kind), refs=ids)
        self.kinds[blob] = kind
        self.refs[blob] = refs or []

    def hold(self, repository: str, manifest: int) -> None:
        if (repository, manifest) in self.holdings:
            return
        self.holdings.add((repository, manifest))
        held = {"manifest_id": self._ids[manifest], "repository_id": self._repositories[repository]}
        insert(self._db, "repository_manifests", pushed_at=NOW, **held)
        self._count([manifest, *self.refs[manifest]], "reference_count")

    def link(self, repository: str, blob: int) -> None:
        self.digest(blob)
        if (repository, blob) in self.links:
            return
        self.links.add((repository, blob))
        linked = {"blob_id": self._ids[blob], "repository_id": self._repositories[repository]}
        insert(self._db, "repository_blobs", event_at=NOW, **linked)
        self._count([blob], "link_count")

    def removal(self, repository: str, *, doubtful: bool) -> None:
        values = {"doubtful_since": NOW if doubtful else None, "digest": secrets.token_bytes(32)}
        insert(self._db, "removals", repository_id=self._repositories[repository], removed_at=NOW, **values)

    # What follows

    def blobs(self) -> list[int]:
        return sorted(self._digests)

    def reference_counts(self) -> Counter[int]:
        return Counter(blob for _, manifest in self.holdings for blob in (manifest, *self.refs[manifest]))

    def needed_by(self) -> dict[int, set[str]]:
        """Repositories that need or link each blob."""
        found: dict[int, set[str]] = defaultdict(set)
        for repository, manifest in self.holdings:
            for blob in (manifest, *self.refs[manifest]):
                found[blob].add(repository)
        for repository, blob in self.links:
            found[blob].add(repository)
        return found

    def references(self, blob: int) -> set[tuple[str, str, str, str]]:
        """(pod, repository, manifest, kind) of each holding that needs the blob."""
        found = set()
        for repository, manifest in self.holdings:
            pod = repository.split("/")[0]
            if manifest == blob:
                found.add((pod, repository, self.digest(manifest), "self"))
            if blob in self.refs[manifest]:
                kind = reference_kind(self.kinds[manifest], self.refs[manifest].index(blob))
                found.add((pod, repository, self.digest(manifest), kind.name.lower()))
        return found

    def _count(self, blobs: list[int], column: str) -> None:
        statement = sql.SQL("UPDATE blobs SET {0} = {0} + 1, state = 0, unreferenced_since = NULL WHERE id = ANY(%s)")
        ids = [self._ids[blob] for blob in set(blobs)]
        self._db.execute(statement.format(sql.Identifier(column)), (ids,))


def envelope(repository: str) -> str:
    """A registry's report of one push."""
    target = {"repository": repository, "digest": f"sha256:{'a' * 64}", "mediaType": "application/octet-stream"}
    event = {"id": "e1", "timestamp": "2026-01-01T00:00:00Z", "action": "push", "target": target}
    return json.dumps({"events": [event]})


def dead_letter(db: psycopg.Connection[Any], pod: str, payload: str, content_type: str, **others: Any) -> int:
    """Insert an open dead letter that names its repositories; return its id."""
    values = {
        "reason": "not-owned",
        "payload": payload,
        "payload_bytes": len(payload.encode()),
        "content_type": content_type,
        "origin_topic": "registry.dead-letters",
        "origin_offset": secrets.randbits(40),
        "repositories": repositories_in(payload.encode()),
    }
    return add_dead_letter(db, pod, **values | others)
