"""Pushes through the router while parts of a real Baleen are frozen or killed: each succeeds, and is counted later.

The store too, for Baleen alone: without it no registry takes a push.
Not here: a stand-in of Baleen that fails in every way (test_fallbacks.py).
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from coordinator.registry.images import make_image, make_layer
from coordinator.stack.supervisor import Stack
from tests.conftest import temporary_directory
from tests.registries.harness import LAYERS
from tests.registries.s3_proxy import BROKEN, DENIED, Answer, Call, S3Proxy, held
from tests.router.proxies import BOTH_AT_LENGTH, Proxy
from tests.router.running import CLIENT_S, Running
from tests.support.wait import DEADLINE_S, eventually

pytestmark = pytest.mark.registry

SLOW_S = 0.3
#: A router that waits seconds for Baleen instead of many, and soon asks it again.
IMPATIENT = {"coordinator_timeout_s": 2, "coordinator_pause_s": 1}


@pytest.fixture(scope="module", params=BOTH_AT_LENGTH)
def storage(request: pytest.FixtureRequest) -> Iterator[tuple[Running, S3Proxy]]:
    """A Baleen that reaches the store of its pods by a way of its own."""
    with (
        temporary_directory() as directory,
        Stack(directory / "store", services=("s3",)) as stack,
        S3Proxy(stack.endpoints.s3_endpoint_url) as way,
        Running.started(directory, request.param, stack.endpoints, s3_url=way.url, **IMPATIENT) as running,
    ):
        yield running, way


def mounts_again(running: Running) -> None:
    """Wait until the router sends mounts to Baleen again, which it left out while it was slow."""
    target = f"{running.router.url}/v2/{running.pods[1].name}/none/blobs/uploads/"
    nothing = {"mount": f"sha256:{'0' * 64}", "from": f"{running.pods[0].name}/none"}

    def asked() -> bool:
        answer = httpx.post(target, params=nothing, timeout=CLIENT_S, trust_env=False)
        return "X-Baleen-Mount" in answer.headers

    eventually(asked)


def any_call(_: Call) -> bool:
    return True


def links(call: Call) -> bool:
    """Writes a link, with the reference in the table already."""
    return call.method == "PUT" and LAYERS in call.target


def checks(call: Call) -> bool:
    """Asks whether the bytes are there, with the link of the source seen already."""
    return call.method == "HEAD" and call.target.endswith("/data")


@pytest.mark.parametrize("which", [any_call, checks, links])
def test_a_push_while_the_store_hangs(
    storage: tuple[Running, S3Proxy], tmp_path: Path, which: Callable[[Call], bool]
) -> None:
    """A layer that is not mounted in time is uploaded, and a link that is written later does no harm."""
    running, way = storage
    mounts_again(running)
    here, layer = f"nothing-{which.__name__.replace('_', '-')}", make_layer(str(tmp_path), 20_000)
    source = running.push(0, here, make_image(f"{tmp_path} first", [layer]))
    with held(way, which) as hold:
        running.push(1, here, make_image(f"{tmp_path} second", [layer]), mount_from=source)
        # The client may have given up before.
        assert hold.reached.wait(DEADLINE_S)
    running.baleen.agree()


@pytest.mark.parametrize("answer", [BROKEN, DENIED, None], ids=["broken", "denied", "slow"])
def test_a_push_while_the_store_fails(storage: tuple[Running, S3Proxy], tmp_path: Path, answer: Answer | None) -> None:
    """A push succeeds while each of Baleen's calls to the store fails, or takes long."""
    running, way = storage
    mounts_again(running)
    here, layer = f"failing-{answer.status if answer else 'slow'}", make_layer(str(tmp_path), 20_000)
    source = running.push(0, here, make_image(f"{tmp_path} first", [layer]))
    came = threading.Event()

    def fail(_: Call) -> Answer | None:
        came.set()
        if answer is None:
            threading.Event().wait(SLOW_S)
        return answer

    way.answer = fail
    try:
        running.push(1, here, make_image(f"{tmp_path} second", [layer]), mount_from=source)
    finally:
        way.answer = None
    assert came.wait(DEADLINE_S)
    running.baleen.agree()


@pytest.mark.parametrize("service", ["api", "worker", "scheduler", "postgres", "kafka"])
def test_a_push_while_a_part_is_frozen(storage: tuple[Running, S3Proxy], tmp_path: Path, service: str) -> None:
    """An image with a layer of another pod is pushed and pulls back whole while a part of Baleen is frozen."""
    running, here = storage[0], f"frozen-{service}"
    layer = make_layer(str(tmp_path), 20_000)
    source = running.push(0, here, make_image(f"{tmp_path} first", [layer]))
    with running.baleen.frozen(service):
        running.push(1, here, make_image(f"{tmp_path} second", [layer]), mount_from=source)
    running.baleen.agree()


@pytest.mark.parametrize("service", ["api", "worker", "scheduler"])
def test_a_push_while_a_part_begins_again(storage: tuple[Running, S3Proxy], tmp_path: Path, service: str) -> None:
    """The same push succeeds while a part of Baleen is killed and started again."""
    running, here = storage[0], f"killed-{service}"
    layer = make_layer(str(tmp_path), 20_000)
    source = running.push(0, here, make_image(f"{tmp_path} first", [layer]))
    running.baleen.kill(service)
    running.push(1, here, make_image(f"{tmp_path} second", [layer]), mount_from=source)
    running.baleen.agree()


@pytest.mark.parametrize("service", ["postgres", "kafka"])
@pytest.mark.parametrize("proxy", BOTH_AT_LENGTH)
def test_a_push_without_baleen(tmp_path: Path, proxy: Proxy, service: str) -> None:
    """No push fails while Baleen ends for lack of its database or its broker."""
    with (
        temporary_directory() as directory,
        Stack(directory / "store", services=("s3",)) as stack,
        Running.started(directory, proxy, stack.endpoints) as running,
    ):
        layer = make_layer(str(tmp_path), 20_000)
        source = running.push(0, "app", make_image(f"{tmp_path} first", [layer]))
        running.baleen.kill(service)
        for number in range(5):
            running.push(1, f"app-{number}", make_image(f"{tmp_path} {number}", [layer]), mount_from=source)
        eventually(lambda: not running.baleen.is_up())
        running.push(1, "app", make_image(f"{tmp_path} last", [layer]), mount_from=source)
