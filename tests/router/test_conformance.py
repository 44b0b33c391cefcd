"""The specification's conformance suite: everything that passes straight at a pod passes through the router."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import temporary_directory
from tests.router.harness import REDIRECTS, World
from tests.router.proxies import BOTH_AT_LENGTH, Proxy
from tests.router.running import Running
from tests.services import go_programs

pytestmark = [
    pytest.mark.registry,
    pytest.mark.skipif(go_programs.describe_missing() is not None, reason=str(go_programs.describe_missing())),
]

TIMEOUT_S = 300.0
#: What passed straight at a registry, by whether the store sends the bytes: that is the same for all routers.
_straight: dict[bool, set[str]] = {}


def passed(address: str, repositories: tuple[str, str], results: Path) -> set[str]:
    """Run the suite; the names of the tests that passed."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "TMPDIR"}}
    done = subprocess.run(
        [go_programs.build_program("conformance")],
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


def compare(
    straight: str, router: str, direct: tuple[str, str], through: tuple[str, str], results: Path, *, redirects: bool
) -> None:
    """Both at once: each run mostly waits for its own answers."""
    with ThreadPoolExecutor() as threads:
        at_router = threads.submit(passed, router, through, results / "through")
        if redirects not in _straight:
            _straight[redirects] = passed(straight, direct, results / "direct")
    assert len(_straight[redirects]) > 100
    assert _straight[redirects] - at_router.result() == set()


@pytest.mark.parametrize("started", BOTH_AT_LENGTH, indirect=True)
@pytest.mark.parametrize("pod", ["pod-a", "pod-c"])
def test_without_baleen_all_passes(world: World, tmp_path: Path, pod: str) -> None:
    """While Baleen is away what passes straight passes through the router, also where the store sends the bytes."""
    address = world.another_router(baleen=world.nowhere()).address
    direct, through = ((world.repository(pod), world.repository(pod)) for _ in range(2))
    straight = world.pods[pod].url.removeprefix("http://")
    compare(straight, address, direct, through, tmp_path, redirects=pod == REDIRECTS)


@pytest.mark.parametrize("proxy", BOTH_AT_LENGTH)
def test_with_baleen_all_passes(tmp_path: Path, proxy: Proxy) -> None:
    """The same with a Baleen that mounts; with one of its own, as what it pushes by sha512 is left aside there."""
    with temporary_directory() as directory, Running.started(directory, proxy) as running:
        pod = running.pods[0].name
        direct, through = ((f"{pod}/{way}1", f"{pod}/{way}2") for way in ("direct", "through"))
        compare(running.registries[0].address, running.router.address, direct, through, tmp_path, redirects=False)
