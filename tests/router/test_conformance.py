"""The specification's conformance suite: everything that passes straight at a pod passes through the router."""

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import temporary_directory
from tests.router.harness import World
from tests.router.proxies import BOTH_AT_LENGTH, Proxy
from tests.router.running import Running
from tests.services import go_programs

pytestmark = [
    pytest.mark.registry,
    pytest.mark.skipif(go_programs.why_not() is not None, reason=str(go_programs.why_not())),
]

TIMEOUT_S = 300.0
#: What passed straight at a registry, by the repository's pod: that is the same for all routers.
_straight: dict[str, set[str]] = {}


def passed(address: str, repositories: tuple[str, str], results: Path) -> set[str]:
    """Run the suite; the names of the tests that passed."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "TMPDIR"}}
    done = subprocess.run(
        [go_programs.program("conformance")],
        cwd=results.parent,
        env=kept
        | {
            "HOME": str(results.parent),
            "OCI_RESULTS_DIR": str(results),
            "OCI_REGISTRY": address,
            "OCI_TLS": "disabled",
            "OCI_REPO1": repositories[0],
            "OCI_REPO2": repositories[1],
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    report = results / "junit.xml"
    assert report.exists(), done.stderr[-2000:]
    tests = ElementTree.parse(report).getroot().iter("testcase")
    return {
        f"{test.get('classname')}: {test.get('name')}"
        for test in tests
        if not any(child.tag in {"failure", "error", "skipped"} for child in test)
    }


def passed_straight(kind: str, address: str, repositories: tuple[str, str], results: Path) -> set[str]:
    if kind not in _straight:
        _straight[kind] = passed(address, repositories, results)
    return _straight[kind]


@pytest.mark.parametrize("started", BOTH_AT_LENGTH, indirect=True)
@pytest.mark.parametrize("pod", ["pod-a", "pod-c"])
def test_without_baleen_all_passes(world: World, tmp_path: Path, pod: str) -> None:
    """While Baleen is away what passes straight passes through the router, also where the store sends the bytes."""
    address = world.another_router(baleen=world.nowhere()).address
    straight = world.pods[pod].url.removeprefix("http://")
    direct = passed_straight(pod, straight, (world.repository(pod), world.repository(pod)), tmp_path / "direct")
    through = passed(address, (world.repository(pod), world.repository(pod)), tmp_path / "through")
    assert len(direct) > 100
    assert direct - through == set()


@pytest.mark.parametrize("proxy", BOTH_AT_LENGTH)
def test_with_baleen_all_passes(tmp_path: Path, proxy: Proxy) -> None:
    """The same with a Baleen that mounts; with one of its own, as what it pushes by sha512 is left aside there."""
    with temporary_directory() as directory, Running.started(directory, proxy) as running:
        pod = running.pods[0].name
        straight = running.registries[0].address
        direct = passed_straight("mounted", straight, (f"{pod}/direct1", f"{pod}/direct2"), tmp_path / "direct")
        through = passed(running.router.address, (f"{pod}/through1", f"{pod}/through2"), tmp_path / "through")
    assert len(direct) > 100
    assert direct - through == set()
