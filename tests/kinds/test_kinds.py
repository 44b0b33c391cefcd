"""Every kind of pod has its module, and docs/KINDS.md shows how to add one."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.kinds.kind import ClaimingPod, Kind
from coordinator.kinds.kinds import KINDS, Kinds
from coordinator.settings import Settings
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
        pod = ClaimingPod(POD, PodKind.LINK, ["team"])
        assert kinds.make_claims(lambda: [pod]).find_claims([UNKNOWN]) == {}
    methods = {name for name in vars(Kind) if not name.startswith("_")} - {"kind"}
    assert methods <= vars(made).keys()


def test_claims_of_a_registry_with_a_database(directory: Path) -> None:
    """What the pod's own database lists is claimed; a database that has nothing of the pod is not believed."""
    with psycopg.connect((directory / POD).read_text()) as connection:
        (stored, prefix) = connection.execute(
            "SELECT l.blob_digest, split_part(r.path, '/', 1) FROM repository_blobs l JOIN repositories r"
            " ON r.top_level_namespace_id = l.top_level_namespace_id AND r.id = l.repository_id ORDER BY 1 LIMIT 1"
        ).fetchone() or (b"", "")
    listed = Digest(stored[1:])
    pod = ClaimingPod(POD, PodKind.GITLAB, [RepositoryName(prefix)])
    with Kinds(Settings(gitlab_databases=str(directory)), MemoryObjectStore()) as kinds:
        claims = kinds.make_claims(lambda: [ClaimingPod(PodName("other"), PodKind.LINK, ["other"]), pod])
        assert claims.find_claims([listed, UNKNOWN]) == {listed: POD}
        stranger = kinds.make_claims(lambda: [pod._replace(prefixes=["nobodys"])])
        with pytest.raises(UnavailableError, match="another registry's"):
            stranger.find_claims([UNKNOWN])
