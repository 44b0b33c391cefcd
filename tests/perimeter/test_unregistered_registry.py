"""A third, real registry on the bucket and root of two pods: its images stay whole, though it is not registered.

Attempt 1 on real programs: before, the shared layer was hidden and purged, and the pull answered 404.
"""

from collections.abc import Iterator

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image, make_layer
from tests.conftest import temporary_directory
from tests.registries.harness import Registry
from tests.scenarios.harness import CLIENT_S, Stage
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Of its own: what no pod owns holds everything."""
    with temporary_directory() as directory, Stage.opened(directory) as stage:
        yield stage


@pytest.fixture
def third(stage: Stage) -> Registry:
    return stage.unregistered("third")


def test_what_an_unregistered_registry_shares_is_kept(stage: Stage, third: Registry) -> None:
    """Attempt 1: while a registry of no pod has repositories in the root, nothing is hidden, status and audit name
    them, and its image is pulled whole; the rest is collected once they are gone.
    """
    layer = make_layer("shared")
    theirs, ours = make_image("theirs", [layer]), make_image("ours", [layer, make_layer("ours")])
    with RegistryClient(third.url, timeout=CLIENT_S) as client:
        stage.push(stage.a, "app", ours)
        client.push_image("third/app", theirs, "v1")
        stage.abandon(stage.a, "app", ours)
        stage.report()
        for _ in range(2):
            run = stage.collect()
            assert run.state == "done", run.error
            assert (run.hidden, run.purged) == (0, 0)
            assert "no pod owns third, which is stored in the root" in run.progress["blocked_by"][0]
            stage.report()
        assert client.pull_image("third/app", "v1").digest == theirs.digest
        # The scheduler has seen it, too.
        eventually(lambda: stage.status()["unowned_repositories"]["names"] == ["third"], why=stage.status)
        assert any("no pod owns third" in reason for reason in stage.status()["gc"]["blocked_by"])
        assert "baleen_unowned_repositories 1.0" in stage.api.get("/metrics").text
        report = stage.audit()
        assert [each["repository"] for each in report.unowned.examples] == ["third"]
    assert stage.state(layer.digest) is BlobState.UNREFERENCED
