"""What tests take for a GitLab registry's database answers as the real one does: one contract for both."""

from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from typing import Any

import psycopg
import pytest

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.errors import UnavailableError
from coordinator.gitlab.database import MANIFESTS_PAGE, GitlabDatabase, LinkTimes
from coordinator.settings import Secret
from tests.gitlab.memory import MemoryGitlabDatabase
from tests.gitlab.model import KEYS, make_captured
from tests.services.databases import DatabaseServer

ONE, TWO, OTHER = map(RepositoryName, ("group/one", "group/one/two", "group/other"))
#: Begins like a prefix, and is not below it.
ALIKE = RepositoryName("group/oneself")
NONE = RepositoryName("group/none")
PAGE = 2


def digest_of(name: str) -> Digest:
    return Digest(sha256(name.encode()).digest())


X, Y, Z, A, B, I = map(digest_of, "xyzABI")  # noqa: E741 - names of blobs and images
PODS_NAME = PodName("gitlab")


class Tables:
    """Writes to the model of the real tables as MemoryGitlabDatabase does, where the real one's keys decide."""

    def __init__(self, rows: psycopg.Connection[Any]) -> None:
        self._rows = rows
        self._last = 0

    def add_repository(self, path: RepositoryName) -> int:
        found = self._rows.execute("SELECT id FROM repositories WHERE path = %s", (path,)).fetchone()
        if found is not None:
            return int(found[0])
        self._rows.execute(
            "INSERT INTO top_level_namespaces (id, created_at, name) VALUES (1, now(), %s) ON CONFLICT DO NOTHING",
            (path.partition("/")[0],),
        )
        number = self._number()
        self._rows.execute(
            "INSERT INTO repositories (id, top_level_namespace_id, created_at, name, path)"
            " VALUES (%s, 1, now(), %s, %s)",
            (number, path.rpartition("/")[2], path),
        )
        return number

    def add_blob(self, digest: Digest) -> None:
        self._rows.execute(
            "INSERT INTO blobs (digest, size, created_at, media_type_id) VALUES (%s, 1, now(), 1)"
            " ON CONFLICT DO NOTHING",
            (_stored(digest),),
        )

    def add_link(self, path: RepositoryName, digest: Digest) -> bool:
        return self._write(
            "INSERT INTO repository_blobs (top_level_namespace_id, id, repository_id, created_at, blob_digest)"
            " VALUES (1, %s, %s, now(), %s) ON CONFLICT (top_level_namespace_id, repository_id, blob_digest) DO UPDATE"
            " SET blob_digest = excluded.blob_digest",
            (self._number(), self.add_repository(path), _stored(digest)),
        )

    def add_manifest(
        self,
        path: RepositoryName,
        digest: Digest,
        payload: bytes,
        blobs: Collection[Digest] = (),
        children: Collection[Digest] = (),
    ) -> bool:
        repository, number = self.add_repository(path), self._number()
        with self._rows.transaction():
            self._write(
                "INSERT INTO manifests (top_level_namespace_id, id, repository_id, created_at, digest, payload,"
                " schema_version, media_type_id, media_type_id_convert_to_bigint, total_size)"
                " VALUES (1, %s, %s, now(), %s, %s, 2, 1, 1, 0)",
                (number, repository, _stored(digest), payload),
            )
            for each in blobs:
                self._write(
                    "INSERT INTO layers (top_level_namespace_id, id, repository_id, manifest_id, size, created_at,"
                    " media_type_id, digest) VALUES (1, %s, %s, %s, 1, now(), 1, %s)",
                    (self._number(), repository, number, _stored(each)),
                )
            for each in children:
                self._write(
                    "INSERT INTO manifest_references (top_level_namespace_id, id, repository_id, parent_id, created_at,"
                    " child_id) VALUES (1, %s, %s, %s, now(), (SELECT id FROM manifests WHERE repository_id = %s"
                    " AND digest = %s))",
                    (self._number(), repository, number, repository, _stored(each)),
                )
        return True

    def remove_link(self, path: RepositoryName, digest: Digest) -> bool:
        return self._write(
            "DELETE FROM repository_blobs WHERE repository_id = %s AND blob_digest = %s",
            (self.add_repository(path), _stored(digest)),
        )

    def remove_manifest(self, path: RepositoryName, digest: Digest) -> bool:
        return self._write(
            "DELETE FROM manifests WHERE repository_id = %s AND digest = %s",
            (self.add_repository(path), _stored(digest)),
        )

    def remove_blob(self, digest: Digest) -> bool:
        return self._write("DELETE FROM blobs WHERE digest = %s", (_stored(digest),))

    def _write(self, statement: str, values: tuple[Any, ...]) -> bool:
        with suppress(psycopg.errors.ForeignKeyViolation):
            return self._rows.execute(statement, values).rowcount == 1
        return False

    def _number(self) -> int:
        self._last += 1
        return self._last


def _stored(digest: Digest) -> bytes:
    return b"\x01" + digest


@pytest.fixture(scope="module")
def url(database_server: DatabaseServer) -> Iterator[str]:
    with database_server.databases() as made:
        yield make_captured(made)


@pytest.fixture(params=["memory", "real"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Give the questions, and the writes."""
    if request.param == "memory":
        memory = MemoryGitlabDatabase(page=PAGE)
        yield memory, memory
        return
    url = request.getfixturevalue("url")
    with (
        psycopg.connect(url, autocommit=True) as rows,
        closing(GitlabDatabase(PODS_NAME, lambda: Secret(url), per_s=10_000.0, page=PAGE)) as database,
    ):
        rows.execute(f"TRUNCATE {', '.join(KEYS.keys() - {'schema_migrations'})}")
        yield database, Tables(rows)


def fill(rows: Any) -> None:
    for path in (TWO, ONE, ALIKE, OTHER):
        rows.add_repository(path)
    for digest in (X, Y, Z):
        rows.add_blob(digest)
    for path, digest in ((ONE, Z), (ONE, X), (ONE, Y), (OTHER, X)):
        assert rows.add_link(path, digest)
    assert rows.add_manifest(ONE, A, b"the bytes of A", blobs=[X])
    assert rows.add_manifest(ONE, B, b"the bytes of B", blobs=[X, Y])
    assert rows.add_manifest(ONE, I, b"the bytes of I", children=[A, B])


def read(database: Any, path: RepositoryName, kind: LinkKind) -> list[Digest]:
    repository = database.read_repository(path)
    return [] if repository is None else [row.digest for row in database.read_links(repository, kind)]


def test_repositories_and_their_links_are_read_in_the_order_of_their_rows(both: tuple[Any, Any]) -> None:
    """A prefix has its repository and those below it; their rows come by id, in pages, each once."""
    database, rows = both
    fill(rows)
    found = [each.path for each in database.read_repositories(ONE)]
    assert found == [TWO, ONE]
    assert len(list(database.read_repositories(RepositoryName("group")))) == 4
    assert database.read_repository(NONE) is None
    assert list(database.read_repositories(NONE)) == []
    assert read(database, ONE, LinkKind.LAYER) == [Z, X, Y]
    assert read(database, ONE, LinkKind.REVISION) == [A, B, I]
    assert read(database, TWO, LinkKind.LAYER) == read(database, TWO, LinkKind.REVISION) == []
    sizes = [row.size for row in database.read_links(database.read_repository(ONE), LinkKind.REVISION)]
    assert sizes == [len(b"the bytes of A")] * 3


def test_links_are_found_by_name(both: tuple[Any, Any]) -> None:
    """A look-up answers for each repository and digest since when there is a manifest, and since when a link."""
    database, rows = both
    fill(rows)
    named = [(ONE, X), (ONE, A), (OTHER, A), (NONE, X), (OTHER, X), (ONE, X)]
    found = database.find_links(named)
    assert [(each.revision is not None, each.layer is not None) for each in found] == [
        (False, True),
        (True, False),
        (False, False),
        (False, False),
        (False, True),
        (False, True),
    ]
    assert found[2] == LinkTimes(None, None)
    row = next(iter(database.read_links(database.read_repository(OTHER), LinkKind.LAYER)))
    assert found[4].layer == row.created_at
    assert [database.has_link([path]) for path in (ONE, TWO, ALIKE, OTHER, NONE)] == [True, False, False, True, False]
    assert database.has_link([TWO, OTHER])
    assert not database.has_link([])


def test_bytes_are_those_of_manifests_that_their_repositories_hold(both: tuple[Any, Any]) -> None:
    """Bytes are given of what is held where it is asked for, however many are asked for."""
    database, rows = both
    fill(rows)
    others = [(ONE, digest_of(str(number))) for number in range(MANIFESTS_PAGE)]
    assert database.read_manifests([(ONE, A), *others, (ONE, I), (OTHER, B)]) == {
        A: b"the bytes of A",
        I: b"the bytes of I",
    }
    assert database.read_manifests([]) == {}


def test_a_blob_is_known_for_as_long_as_it_has_a_row(both: tuple[Any, Any]) -> None:
    """Neither links nor manifests decide whether a blob is known. Its links go with its row."""
    database, rows = both
    fill(rows)
    assert database.find_known([X, Y, Z, A, digest_of("none")]) == {X, Y, Z}
    assert database.find_known([]) == set()
    assert rows.remove_link(ONE, Z)
    assert not rows.remove_link(ONE, Z)
    assert database.find_known([Z]) == {Z}
    assert rows.remove_blob(Z)
    assert database.find_known([Z]) == set()
    assert not rows.add_link(ONE, Z)
    rows.add_blob(Z)
    rows.add_link(ONE, Z)
    assert rows.remove_blob(Z)
    assert read(database, ONE, LinkKind.LAYER) == [X, Y]


def test_a_manifest_goes_once_no_index_lists_it(both: tuple[Any, Any]) -> None:
    """A child of an index stays; a manifest that goes takes no link and no blob along."""
    database, rows = both
    fill(rows)
    assert not rows.remove_manifest(ONE, A)
    assert rows.remove_manifest(ONE, I)
    assert rows.remove_manifest(ONE, A)
    assert not rows.remove_manifest(ONE, A)
    assert read(database, ONE, LinkKind.REVISION) == [B]
    assert read(database, ONE, LinkKind.LAYER) == [Z, X, Y]
    assert database.find_known([X]) == {X}


def test_a_database_that_is_away_is_unavailable() -> None:
    """Both raise the same error when the database does not answer."""

    def fail() -> None:
        raise UnavailableError("The registry database does not answer.")

    away: Any
    with closing(GitlabDatabase(PODS_NAME, lambda: Secret("postgresql://127.0.0.1:1/registry"))) as real:
        for away in (real, MemoryGitlabDatabase(before=fail)):
            for ask in (
                away.check,
                lambda away=away: away.find_known([X]),
                lambda away=away: away.find_links([(ONE, X)]),
                lambda away=away: list(away.read_repositories(ONE)),
            ):
                with pytest.raises(UnavailableError):
                    ask()
