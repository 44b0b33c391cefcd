"""What Baleen reads in a GitLab registry's database is what a real one's rows say."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, PodName, RepositoryName, format_digest, parse_digest
from coordinator.errors import UnavailableError
from coordinator.gitlab.connection import UnknownSchemaError
from coordinator.gitlab.database import GitlabDatabase
from coordinator.gitlab.links import GitlabLinks
from coordinator.settings import Secret
from coordinator.storage.layout import link_key
from tests.gitlab.model import CAPTURED, make_captured
from tests.services.databases import DatabaseServer

POD = PodName("gitlab")
FAST = 10_000.0


@pytest.fixture(scope="module")
def url(database_server: DatabaseServer) -> Iterator[str]:
    with database_server.databases() as made:
        yield make_captured(made)


@pytest.fixture(scope="module")
def expected() -> Any:
    return json.loads((CAPTURED / "expected.json").read_text())["repositories"]


@pytest.fixture
def read(url: str) -> Iterator[Callable[..., GitlabDatabase]]:
    made: list[GitlabDatabase] = []

    def make(**options: Any) -> GitlabDatabase:
        made.append(GitlabDatabase(POD, lambda: Secret(url), per_s=FAST, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


#: A connection to a database that no other test has, and what reads it.
Own = tuple[psycopg.Connection[Any], GitlabDatabase]


@pytest.fixture
def own(database_server: DatabaseServer) -> Iterator[Own]:
    with database_server.databases() as made:
        url = make_captured(made)
        with (
            psycopg.connect(url, autocommit=True) as connection,
            closing(GitlabDatabase(POD, lambda: Secret(url), per_s=FAST)) as database,
        ):
            yield connection, database


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_links_of_all_repositories(read: Callable[..., GitlabDatabase], expected: Any, page: int) -> None:
    """Every manifest and every link of every repository is read once, in pages of any size."""
    database = read(page=page)
    found = {
        repository.path: tuple(
            sorted(format_digest(row.digest) for row in database.read_links(repository, kind)) for kind in LinkKind
        )
        for prefix in {path.partition("/")[0] for path in expected}
        for repository in database.read_repositories(RepositoryName(prefix))
    }
    assert found == {path: (sorted(each["manifests"]), sorted(each["blob_links"])) for path, each in expected.items()}


def test_a_prefix_owns_whole_parts_of_names(read: Callable[..., GitlabDatabase], expected: Any) -> None:
    """A prefix has the repository of its name and those below it, and no other that begins alike."""
    database = read()
    for prefix in expected:
        found = {repository.path for repository in database.read_repositories(RepositoryName(prefix))}
        assert found == {path for path in expected if f"{path}/".startswith(f"{prefix}/")}


def test_links_are_looked_up(read: Callable[..., GitlabDatabase], expected: Any) -> None:
    """A look-up of many gives for each whether the repository holds the manifest, and whether it links the blob."""
    database = read()
    digests = {digest for each in expected.values() for digest in (*each["manifests"], *each["blob_links"])}
    named = [(path, digest) for path in [*expected, "fx/none"] for digest in sorted(digests)]
    found = database.find_links([(RepositoryName(path), parse_digest(digest)) for path, digest in named])
    for (path, digest), links in zip(named, found, strict=True):
        held = expected.get(path, {"manifests": {}, "blob_links": []})
        is_held = (links.revision is not None, links.layer is not None)
        assert is_held == (digest in held["manifests"], digest in held["blob_links"]), (path, digest)


def test_bytes_of_manifests(read: Callable[..., GitlabDatabase], expected: Any) -> None:
    """The bytes of every manifest are read, and have its digest."""
    named = [
        (RepositoryName(path), parse_digest(each)) for path, held in expected.items() for each in held["manifests"]
    ]
    found = read().read_manifests(named)
    assert found.keys() == {digest for _, digest in named}
    assert all(hashlib.sha256(body).digest() == digest for digest, body in found.items())


def test_another_schema_is_refused(read: Callable[..., GitlabDatabase]) -> None:
    """Nothing is read from a schema that was never compared with what Baleen asks."""
    with pytest.raises(UnknownSchemaError, match="last migrations: 2025"):
        read(schemas={("1", "2")}).check()


def test_a_slow_database_holds_nobody_up(read: Callable[..., GitlabDatabase], url: str) -> None:
    """A look-up with a timeout ends after it if the database does not answer in time, and later ones are answered."""
    links, place = GitlabLinks(read(skip_s=0)), (RepositoryName("fx/app"),)
    key = link_key(place[0], LinkKind.LAYER, Digest(bytes(32)))
    assert links.find([key], 60) == [None]
    assert links.find_proved([place], timeout_s=60) == {place}
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE repositories IN ACCESS EXCLUSIVE MODE")
        for ask in (lambda: links.find([key], 0.1), lambda: links.find_proved([place], timeout_s=0.1)):
            with pytest.raises(UnavailableError, match="answers too slowly"):
                ask()
    assert links.find([key], 60) == [None]


def test_a_slow_database_is_not_asked_all_the_time(read: Callable[..., GitlabDatabase], url: str) -> None:
    """After a look-up that took too long, those with a timeout are refused at once; those without one are answered."""
    links = GitlabLinks(read())
    key = link_key(RepositoryName("fx/app"), LinkKind.LAYER, Digest(bytes(32)))
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE repositories IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(UnavailableError, match="answers too slowly"):
            links.find([key], 0.1)
    for ask in (lambda: links.find([key], 60), lambda: links.find_proved([(RepositoryName("fx"),)], timeout_s=60)):
        with pytest.raises(UnavailableError, match="asked again later"):
            ask()
    assert links.find([key]) == [None]


def test_the_identity_of_a_database(read: Callable[..., GitlabDatabase], database_server: DatabaseServer) -> None:
    """It stays the same from connection to connection, and another database of the same server has another one."""
    first = read().read_identity()
    assert read().read_identity() == first
    with database_server.databases() as made:
        url = make_captured(made)
        with closing(GitlabDatabase(POD, lambda: Secret(url))) as other:
            assert other.read_identity() != first
            assert other.find_known([Digest(bytes(32))], other.read_identity()) == set()
            with pytest.raises(UnavailableError, match="is not the one"):
                other.find_known([Digest(bytes(32))], first)


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_all_known_blobs(read: Callable[..., GitlabDatabase], url: str, page: int) -> None:
    """Every blob that has a row is read once, by digest, in pages of any size."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT digest FROM blobs ORDER BY digest").fetchall()
    assert list(read(page=page).read_known()) == [Digest(bytes(row[0][1:])) for row in rows]


def test_a_database_that_is_away_shows_no_secret() -> None:
    """The error of a database that does not answer has no part of its URL."""
    secret = "postgresql://reader:hunter2@127.0.0.1:1/registry"
    with closing(GitlabDatabase(POD, lambda: Secret(secret))) as database, pytest.raises(UnavailableError) as raised:
        database.check()
    assert not any(part in str(raised.value) for part in ("hunter2", "reader", "127.0.0.1"))
    assert raised.value.__cause__ is None


def test_a_prefix_with_links_and_one_without(read: Callable[..., GitlabDatabase], url: str) -> None:
    """A prefix has links if any of its repositories has, however many empty ones come first."""
    database = read()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO repositories (top_level_namespace_id, id, name, path)
            SELECT n.id, -number, 'e', 'fx/empty/e' || number
            FROM top_level_namespaces n, generate_series(1, 300) number WHERE n.name = 'fx'
            """
        )
        try:
            assert database.has_link([RepositoryName("fx")])
            assert database.has_manifest([RepositoryName("fx")])
            assert database.has_manifest([RepositoryName("nobodys")]), "the registry serves what is elsewhere, too"
            assert not database.has_link([RepositoryName("fx/empty")])
            assert not database.has_link([RepositoryName("nobodys")])
        finally:
            connection.execute("DELETE FROM repositories WHERE id < 0")


def test_what_baleen_pushed_holds_nothing(database_server: DatabaseServer) -> None:
    """A pod whose only manifests are those of probes and doctors has links, and holds nothing."""
    with database_server.databases() as made:
        url = make_captured(made)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DELETE FROM manifest_references")
            connection.execute(
                "DELETE FROM manifests m USING repositories r WHERE r.id = m.repository_id AND r.path <> 'fx/app'"
            )
            with closing(GitlabDatabase(POD, lambda: Secret(url), per_s=FAST)) as database:
                fx = [RepositoryName("fx")]
                found = connection.execute("SELECT digest FROM manifests").fetchall()
                image = [Digest(bytes(row[0][1:])) for row in found]
                assert database.has_manifest(fx, image)
                for own in ("fx/baleen-probe", "fx/baleen-doctor-0123456789abcdef-other"):
                    connection.execute(
                        "UPDATE repositories SET path = %s WHERE path LIKE 'fx/%%' AND id = ("
                        "SELECT repository_id FROM manifests LIMIT 1)",
                        (own,),
                    )
                    assert database.has_link(fx)
                    assert not database.has_manifest(fx, image)
                    # In the repository of probes a client's image is a client's.
                    assert database.has_manifest(fx) is (own == "fx/baleen-probe")


def test_a_database_that_has_moved(database_server: DatabaseServer) -> None:
    """When the URL changes, the next question goes to the other database."""
    with database_server.databases() as made:
        urls = [make_captured(made), make_captured(made)]
        with psycopg.connect(urls[1], autocommit=True) as connection:
            connection.execute("DELETE FROM repository_blobs")
        now = urls[0]
        with closing(GitlabDatabase(POD, lambda: Secret(now), per_s=FAST)) as database:
            (repository,) = [each for each in database.read_repositories(RepositoryName("fx")) if each.path == "fx/app"]
            assert list(database.read_links(repository, LinkKind.LAYER))
            now = urls[1]
            assert not list(database.read_links(repository, LinkKind.LAYER))


def test_a_logical_replica_is_refused(own: Own) -> None:
    """A database with a subscription gets its rows from another one, and may lag behind like any replica."""
    connection, database = own
    database.check()
    connection.execute(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 dbname=x' PUBLICATION p WITH (connect = false)"
    )
    try:
        with pytest.raises(UnavailableError, match="is a replica"):
            database.check()
    finally:
        connection.execute("ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        connection.execute("DROP SUBSCRIPTION s")
    database.check()


def test_a_schema_that_changes_meanwhile(own: Own) -> None:
    """An answer is refused if the schema is another one by then, as while a dump is restored into the database."""
    connection, database = own
    assert list(database.read_known())
    connection.execute("DELETE FROM schema_migrations")
    with pytest.raises(UnknownSchemaError):
        list(database.read_known())
    connection.execute("DROP TABLE schema_migrations")
    with pytest.raises(UnknownSchemaError):
        list(database.read_known())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"port": 1}, "nothing listens there"),
        ({"database": "nobodys"}, "there is no such database or user"),
        ({"host": "nowhere.invalid"}, "its host name is not known"),
    ],
)
def test_why_a_database_does_not_answer(url: str, change: dict[str, Any], why: str) -> None:
    """The error says what is wrong with the URL, without any part of it."""
    wrong = make_url(url).set(**change).render_as_string(hide_password=False)
    with closing(GitlabDatabase(POD, lambda: Secret(wrong))) as database, pytest.raises(UnavailableError) as raised:
        database.check()
    assert f"does not answer ({why})" in str(raised.value)
    assert not any(str(part) in str(raised.value) for part in change.values() if part != 1)
