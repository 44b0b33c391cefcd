"""Read the metadata database of a GitLab Container Registry: which manifests and blobs its repositories hold.

One connection, one question at a time, at most `per_s` questions a second, each read-only and with a time limit; lists
are paged by the primary key. So the load on a database that serves an instance of GitLab has a bound.
Only SELECT on the tables that are named here is needed. Digests are stored as one byte for the algorithm (1: sha256)
and the hash. Repositories that are only marked as deleted count: what they hold may come back.
Not here: what a row means for the table (reconcile), the connection (connection.py), writing (writer.py).
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import DIGEST_BYTES, Digest, PodName, RepositoryName
from coordinator.domain.own import PROBE_REPOSITORY, SCRATCH_NAME
from coordinator.errors import UnavailableError
from coordinator.gitlab.connection import KNOWN_SCHEMAS, SHA256, GitlabConnection, ReadUrl, first_part

STATEMENT_TIMEOUT_S: Final = 10
#: How long a database that was too slow is not asked again for a worker, which asks for every batch.
SKIP_S: Final = 60.0
#: Questions a second, and rows of a page.
PER_S: Final = 50.0
PAGE: Final = 1000
#: Manifests that are read together: each may have four million bytes.
MANIFESTS_PAGE: Final = 32
#: The tables that are read. Reading a partitioned table needs no right on its partitions.
TABLES: Final = (
    "top_level_namespaces",
    "repositories",
    "repository_blobs",
    "manifests",
    "blobs",
    "schema_migrations",
    "post_deploy_schema_migrations",
)

T = TypeVar("T")


class SlowAnswerError(UnavailableError):
    """The database did not answer in time."""


class Repository(NamedTuple):
    path: RepositoryName
    #: Both are the beginning of all keys of its rows.
    namespace: int
    id: int


class Row(NamedTuple):
    """A manifest, or a link to a blob, of a repository."""

    id: int
    digest: Digest
    created_at: datetime
    #: Bytes of a manifest; 0 for a link.
    size: int


#: A repository and a digest.
Named = tuple[RepositoryName, Digest]


class LinkTimes(NamedTuple):
    """When a repository got the manifest of a digest, and the link to its blob; None where it has none."""

    revision: datetime | None
    layer: datetime | None

    def of(self, kind: LinkKind) -> datetime | None:
        return self.revision if kind is LinkKind.REVISION else self.layer


class GitlabDatabase:
    """Asks the database of one pod; for several threads, which wait for each other."""

    def __init__(
        self,
        pod: PodName,
        read_url: ReadUrl,
        *,
        per_s: float = PER_S,
        page: int = PAGE,
        schemas: Collection[tuple[str, str]] = KNOWN_SCHEMAS,
        skip_s: float = SKIP_S,
    ) -> None:
        options = f"-c statement_timeout={STATEMENT_TIMEOUT_S}s -c default_transaction_read_only=on"
        self._connection = GitlabConnection(pod, read_url, options, per_s=per_s, schemas=schemas)
        self._ask = self._connection.ask
        self.read_identity = self._connection.read_identity
        self._page = page
        self._pod = pod
        #: For questions whose caller waits no longer than it says. One thread: the others would wait for it anyway.
        self._lookups = ThreadPoolExecutor(1, thread_name_prefix="gitlab")
        self._skip_s = skip_s
        self._skip_until = 0.0

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._connection.close()

    def check(self) -> None:
        """Return if the database answers as a primary with a known schema; else raise.

        Raises UnavailableError and UnknownSchemaError.
        """
        self._ask(_ONE)

    def read_clock(self) -> datetime:
        """Return the time of the database's clock, which gives rows their times."""
        found: datetime = self._ask("SELECT clock_timestamp()")[0][0]
        return found

    def ask_within(self, ask: Callable[[], T], timeout_s: float | None) -> T:
        """Return what `ask`, which uses this database, returns; raises UnavailableError if that takes longer.

        The server's own limit ends the question later, or that of the connection, if the server does not answer at all.
        """
        if timeout_s is None:
            return ask()
        asked = self._lookups.submit(ask)
        try:
            return asked.result(timeout_s)
        except TimeoutError as error:
            asked.cancel()
            raise SlowAnswerError(f"The registry database of pod {self._pod} answers too slowly: try again.") from error

    def ask_or_skip(self, ask: Callable[[], T], timeout_s: float | None) -> T:
        """As `ask_within`; but for a while after that took too long, raise UnavailableError without asking.

        For callers that ask all the time, and whose other work waits.
        """
        if timeout_s is not None and time.monotonic() < self._skip_until:
            raise UnavailableError(f"The registry database of pod {self._pod} was too slow, and is asked again later.")
        try:
            return self.ask_within(ask, timeout_s)
        except SlowAnswerError:
            self._skip_until = time.monotonic() + self._skip_s
            raise

    # Repositories

    def read_repository(self, path: RepositoryName) -> Repository | None:
        found = self._ask(f"{_REPOSITORY} AND r.path = %(path)s", {"first": first_part(path), "path": path})
        return Repository(RepositoryName(found[0][1]), found[0][2], found[0][0]) if found else None

    def read_repositories(self, prefix: RepositoryName) -> Iterator[Repository]:
        """Yield the repositories that a prefix owns, by id."""
        values = {"first": first_part(prefix), "prefix": prefix}
        for number, path, namespace in self._read_pages(f"{_OWNED} AND r.id > %(after)s ORDER BY r.id", values):
            yield Repository(RepositoryName(path), namespace, number)

    # Links

    def read_links(self, repository: Repository, kind: LinkKind) -> Iterator[Row]:
        """Yield the manifests, or links to blobs, of a repository, by id."""
        values = {"namespace": repository.namespace, "id": repository.id}
        rows = self._read_pages(f"{_LINKS[kind]} AND id > %(after)s ORDER BY id", values)
        yield from filter(None, map(_parse_row, rows))

    def _read_pages(self, statement: str, values: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a statement in pages; the first column is the id after which the next page begins."""
        after = 0
        while True:
            found = self._ask(f"{statement} LIMIT %(limit)s", values | {"after": after, "limit": self._page})
            yield from found
            if len(found) < self._page:
                return
            after = found[-1][0]

    def find_links(self, named: Sequence[Named]) -> list[LinkTimes]:
        """Return for each repository and digest since when it holds the manifest, and since when it links the blob.

        All answers are of one moment. A repository that was deleted and made again has another id, so none is kept.
        """
        return [LinkTimes(*row) for row in self._ask(_FIND_LINKS, _make_values(named))]

    def has_link(self, prefixes: Collection[RepositoryName]) -> bool:
        """Return whether any repository that these prefixes own holds a manifest or links a blob.

        Asks first for the one of probes: an instance may have any number of empty repositories.
        """
        probed = (RepositoryName(f"{prefix}/{PROBE_REPOSITORY}") for prefix in prefixes)
        return any(map(self._has_manifest, probed)) or any(
            self._ask(_ANY_LINK, {"first": first_part(prefix), "prefix": prefix}) for prefix in prefixes
        )

    def has_manifest(
        self, prefixes: Collection[RepositoryName], image: Collection[Digest] = (), only: str | None = None
    ) -> bool:
        """Return whether any repository holds a manifest, besides those that Baleen pushed below these prefixes.

        Repositories that they do not own count: the registry serves them, whatever the pod has registered.
        `image`: the digests of the probes' image. In its repository, only that is Baleen's (domain/own.py).
        `only`: the identity of the one database that may answer.
        """
        own = {"scratch": f"^{SCRATCH_NAME}$", "probes": PROBE_REPOSITORY, "image": [SHA256 + each for each in image]}
        return any(
            self._ask(_ANY_MANIFEST, own | {"first": first_part(prefix), "prefix": prefix}, only) for prefix in prefixes
        ) or bool(self._ask(_ANY_MANIFEST_ELSEWHERE, {"prefixes": list(prefixes)}, only))

    def _has_manifest(self, path: RepositoryName) -> bool:
        repository = self.read_repository(path)
        if repository is None:
            return False
        values = {"namespace": repository.namespace, "id": repository.id}
        return bool(self._ask(f"{_LINKS[LinkKind.REVISION]} LIMIT 1", values))

    def read_manifests(self, named: Collection[Named]) -> dict[Digest, bytes]:
        """Return the bytes of those of these manifests that their repositories hold."""
        found: dict[Digest, bytes] = {}
        remaining = iter(named)
        while batch := list(islice(remaining, MANIFESTS_PAGE)):
            found |= {Digest(bytes(row[0][1:])): bytes(row[1]) for row in self._ask(_MANIFESTS, _make_values(batch))}
        return found

    # Blobs

    def find_known(self, digests: Sequence[Digest], only: str | None = None) -> set[Digest]:
        """Return those of these blobs that have a row: the registry confirms them without asking the object store.

        `only`: the identity of the one database that may answer.
        """
        return self._find("SELECT digest FROM blobs WHERE digest = ANY(%(digests)s::bytea[])", digests, only)

    def find_linked(self, digests: Sequence[Digest]) -> set[Digest]:
        """Return those of these blobs that any repository links."""
        return self._find(
            "SELECT DISTINCT blob_digest FROM repository_blobs WHERE blob_digest = ANY(%(digests)s::bytea[])", digests
        )

    def _find(self, statement: str, digests: Sequence[Digest], only: str | None = None) -> set[Digest]:
        found = self._ask(statement, {"digests": [SHA256 + digest for digest in digests]}, only)
        return set(filter(None, (_parse_digest(row[0]) for row in found)))

    def read_known(self) -> Iterator[Digest]:
        """Yield every blob that has a row, by digest."""
        after = b""
        while found := self._ask(
            "SELECT digest FROM blobs WHERE digest > %(after)s ORDER BY digest LIMIT %(limit)s",
            {"after": after, "limit": self._page},
        ):
            yield from filter(None, (_parse_digest(row[0]) for row in found))
            after = found[-1][0]


_ONE: Final = "SELECT 1"
#: The namespace is looked up by its name: a join through the path alone is planned over every partition.
_REPOSITORY: Final = """
    SELECT r.id, r.path, r.top_level_namespace_id FROM repositories r
    WHERE r.top_level_namespace_id = (SELECT id FROM top_level_namespaces WHERE name = %(first)s)
"""
_OF: Final = "top_level_namespace_id = %(namespace)s AND repository_id = %(id)s"
_LINKS: Final = {
    LinkKind.REVISION: f"SELECT id, digest, created_at, octet_length(payload) FROM manifests WHERE {_OF}",
    LinkKind.LAYER: f"SELECT id, blob_digest, created_at, 0 FROM repository_blobs WHERE {_OF}",
}
#: Repositories that a prefix owns.
_OWNED: Final = f"{_REPOSITORY} AND (r.path = %(prefix)s OR starts_with(r.path, %(prefix)s || '/'))"
_ANY_LINK: Final = f"""
    {_OWNED} AND (
        EXISTS (SELECT FROM manifests m
                WHERE m.top_level_namespace_id = r.top_level_namespace_id AND m.repository_id = r.id)
        OR EXISTS (SELECT FROM repository_blobs l
                   WHERE l.top_level_namespace_id = r.top_level_namespace_id AND l.repository_id = r.id))
    LIMIT 1
"""
_ANY_MANIFEST: Final = f"""
    {_OWNED} AND NOT substr(r.path, length(%(prefix)s) + 2) ~ %(scratch)s AND EXISTS (
        SELECT FROM manifests m WHERE m.top_level_namespace_id = r.top_level_namespace_id AND m.repository_id = r.id
          AND NOT (r.path = %(prefix)s || '/' || %(probes)s AND m.digest = ANY(%(image)s::bytea[])))
    LIMIT 1
"""
_ANY_MANIFEST_ELSEWHERE: Final = """
    SELECT 1 FROM repositories r
    WHERE NOT EXISTS (SELECT FROM unnest(%(prefixes)s::text[]) x (prefix)
                      WHERE r.path = x.prefix OR starts_with(r.path, x.prefix || '/'))
      AND EXISTS (SELECT FROM manifests m
                  WHERE m.top_level_namespace_id = r.top_level_namespace_id AND m.repository_id = r.id)
    LIMIT 1
"""
_FIND_LINKS: Final = """
    SELECT (SELECT m.created_at FROM manifests m WHERE m.top_level_namespace_id = r.top_level_namespace_id
            AND m.repository_id = r.id AND m.digest = d.digest),
           (SELECT l.created_at FROM repository_blobs l WHERE l.top_level_namespace_id = r.top_level_namespace_id
            AND l.repository_id = r.id AND l.blob_digest = d.digest)
    FROM unnest(%(paths)s::text[], %(digests)s::bytea[]) WITH ORDINALITY d (path, digest, number)
    LEFT JOIN repositories r ON r.path = d.path ORDER BY d.number
"""
_MANIFESTS: Final = """
    SELECT m.digest, m.payload FROM unnest(%(paths)s::text[], %(digests)s::bytea[]) d (path, digest)
    JOIN repositories r ON r.path = d.path
    JOIN manifests m ON m.top_level_namespace_id = r.top_level_namespace_id AND m.repository_id = r.id
     AND m.digest = d.digest
"""


def _make_values(named: Sequence[Named]) -> dict[str, Any]:
    return {"paths": [path for path, _ in named], "digests": [SHA256 + digest for _, digest in named]}


def _parse_digest(stored: bytes) -> Digest | None:
    """Return a stored digest; None for one of another algorithm, which no registry of this schema has written."""
    if not stored.startswith(SHA256) or len(stored) != 1 + DIGEST_BYTES:
        return None
    return Digest(bytes(stored[1:]))


def _parse_row(row: tuple[Any, ...]) -> Row | None:
    digest = _parse_digest(row[1])
    return None if digest is None else Row(row[0], digest, row[2], row[3])
