"""Every kind of pod has its module, and docs/KINDS.md shows how to add one."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind, PodMode
from coordinator.errors import UnavailableError
from coordinator.gitlab.database import GitlabDatabase
from coordinator.kinds.kind import Kind
from coordinator.kinds.kinds import KINDS, Kinds
from coordinator.pods.of_kind import PodOfKind
from coordinator.settings import Secret, Settings
from tests.gitlab.model import make_captured
from tests.services.databases import DatabaseServer
from tests.storage.memory import MemoryObjectStore
from tests.support.pages import ROOT

POD = PodName("gitlab")
UNKNOWN = Digest(bytes(32))


@pytest.fixture
def directory(database_server: DatabaseServer, tmp_path: Path) -> Iterator[Path]:
    """A directory of URLs, with that of the captured rows."""
    with database_server.databases() as made:
        (tmp_path / POD).write_text(make_captured(made))
        yield tmp_path


def test_every_kind_has_a_module() -> None:
    """There is one class for each kind, and no other."""
    assert sorted(each.kind for each in KINDS) == sorted(PodKind)


def test_the_skeleton_of_the_page_is_a_kind() -> None:
    """The class that docs/KINDS.md shows can be made, and answers to every method of the interface."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "KINDS.md").read_text(), re.DOTALL)
    names: dict[str, type[Kind]] = {}
    exec(compile(code, "docs/KINDS.md", "exec"), names)
    made = names["ExamplePods"]
    with Kinds(Settings(), MemoryObjectStore(), [made]) as kinds:
        assert kinds.links.of(PodKind.LINK, POD) is kinds.links.bucket
        pod = PodOfKind(POD, PodKind.LINK, PodMode.MANIFEST, [RepositoryName("team")])
        assert kinds.make_claims(lambda: [pod]).find_claims([UNKNOWN]) == {}
    methods = {name for name in vars(Kind) if not name.startswith("_")} - {"kind"}
    assert methods <= vars(made).keys()


def test_claims_of_a_registry_with_a_database(directory: Path, database_server: DatabaseServer) -> None:
    """What the database lists that the doctor has proved is claimed; no other database is believed, whatever it has."""
    url = (directory / POD).read_text()
    with closing(GitlabDatabase(POD, lambda: Secret(url))) as database:
        identity = database.read_identity()
        known = set(database.read_known())
    pod = PodOfKind(POD, PodKind.GITLAB, PodMode.MANIFEST, [RepositoryName("fx")], identity, identity)
    other = PodOfKind(PodName("other"), PodKind.LINK, PodMode.MANIFEST, [RepositoryName("other")])
    pods = [other, pod]
    with Kinds(Settings(gitlab_databases=str(directory)), MemoryObjectStore()) as kinds:
        claims = kinds.make_claims(lambda: pods)
        listed = min(known)
        assert claims.find_claims([listed, UNKNOWN]) == {listed: POD}
        (read,) = claims.read_claims()
        assert (read.pod, set(read.blobs)) == (POD, known)
        assert listed in read.find_linked([listed, UNKNOWN]) <= known
        assert kinds.still_holds(pod)

        pods[1] = pod._replace(database="")
        with pytest.raises(UnavailableError, match="The doctor has not proved"):
            claims.find_claims([UNKNOWN])
        assert kinds.still_holds(pods[1])
        assert kinds.still_holds(pod._replace(prefixes=[RepositoryName("gone")])), "manifests outside the prefixes"

        pods[1] = pod
        with database_server.databases() as made:
            (directory / POD).write_text(make_captured(made))
            with pytest.raises(UnavailableError, match="run `baleen pods doctor gitlab`"):
                claims.find_claims([UNKNOWN])
            with pytest.raises(UnavailableError, match="is not the one"):
                # Also while a later visit has proved nothing.
                kinds.still_holds(pod._replace(database=""))
            (directory / POD).write_text(url)
            assert claims.find_claims([listed]) == {listed: POD}
