"""Mounts of blobs that are hidden, purged or missing: they become uploads.

Through the router, on real registries, in each state in which a real job leaves a blob.
Not here: the table alone (tests/mounts/test_reserve.py), Baleen frozen or away (tests/router/test_outages.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import httpx
import pytest

from coordinator.compose import scheduler as compose_scheduler
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.mounts import Reason
from coordinator.domain.names import parse_digest
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Image, make_image, make_layer
from coordinator.storage.layout import blob_key
from tests.scenarios.harness import CLIENT_S, Once, Stage
from tests.support.store import SEND

pytestmark = pytest.mark.registry


class Pushed(NamedTuple):
    """What a push through the router found: the state of its layer, and what became of the mount."""

    state: BlobState
    status: int
    outcome: str
    reason: Reason | None


class Push:
    """A client that requests a mount of the layer from pod-a, and pushes its image to pod-b whatever the answer."""

    def __init__(self, stage: Stage, here: str) -> None:
        self._stage = stage
        self.layer = make_layer(here, 20_000)
        self.old, self.new = (make_image(f"{here}/{name}", [self.layer]) for name in ("old", "new"))
        self.repository = f"{stage.b.name}/{here}"
        self._source = f"{stage.a.name}/{here}"
        self.found: Pushed | None = None

    def __call__(self) -> None:
        stage, digest = self._stage, self.layer.digest
        state, before = stage.state(digest), {reason: stage.not_mounted(reason) for reason in Reason}
        url = f"{stage.router.url}/v2/{self.repository}/blobs/uploads/?mount={digest}&from={self._source}"
        answer = httpx.post(url, timeout=CLIENT_S, trust_env=False)
        reason = next((each for each in Reason if stage.not_mounted(each) > before[each]), None)
        self.found = Pushed(state, answer.status_code, answer.headers["X-Baleen-Mount"], reason)
        with RegistryClient(stage.router.url, timeout=CLIENT_S) as client:
            client.push_image(self.repository, self.new, "v1", mount_from=self._source)
        stage.await_held(stage.b, self.repository.partition("/")[2], self.new)

    def pulls_back(self) -> bool:
        with RegistryClient(self._stage.router.url, timeout=CLIENT_S) as client:
            return client.pull_image(self.repository, "v1").digest == self.new.digest


def hiding(stage: Stage, push: Push) -> None:
    stage.collect_at(Once(SEND, push.layer.digest, push))
    # The hide may land for as long as a delete can.
    stage.land()


def hidden(stage: Stage, push: Push) -> None:
    stage.hide(push.layer.digest)
    push()


def purging(stage: Stage, push: Push) -> None:
    stage.hide(push.layer.digest)
    stage.collect_at(Once(SEND, push.layer.digest, push))
    stage.land()


def purged(stage: Stage, push: Push) -> None:
    stage.hide(push.layer.digest)
    stage.purge(push.layer.digest)
    push()


@pytest.mark.parametrize(
    ("take_away", "state"),
    [
        (hiding, BlobState.HIDING),
        (hidden, BlobState.HIDDEN),
        (purging, BlobState.PURGING),
        (purged, BlobState.PURGED),
    ],
    ids=["hiding", "hidden", "purging", "purged"],
)
def test_a_mount_of_what_is_collected(
    stage: Stage, here: str, take_away: Callable[[Stage, Push], None], state: BlobState
) -> None:
    """The client has to upload, and what it uploads stays, whatever collections do before and after."""
    push = Push(stage, here)
    stage.push(stage.a, here, push.old)
    stage.abandon(stage.a, here, push.old)
    stage.report()
    take_away(stage, push)
    assert push.found == (state, 202, "forwarded", Reason.NOT_SERVED)
    stage.await_live(*digests(push.new))
    stage.report()
    stage.collect()
    assert push.pulls_back()


def test_a_mount_of_what_is_missing(stage: Stage, here: str) -> None:
    """The client has to upload, and its bytes restore the other images that need them."""
    push = Push(stage, here)
    stage.push(stage.a, here, push.old)
    stage.store.delete(blob_key(parse_digest(push.layer.digest)))
    assert [each["digest"] for each in stage.audit().missing.examples] == [push.layer.digest]
    push()
    assert push.found == (BlobState.MISSING, 202, "forwarded", Reason.NOT_SERVED)
    with compose_scheduler.open_audit(stage.settings) as parts:
        parts.presence.round()
    stage.await_live(*digests(push.new), *digests(push.old))
    assert push.pulls_back()
    assert stage.a.client.pull_image(f"{stage.a.name}/{here}", "v1").digest == push.old.digest


def digests(image: Image) -> list[str]:
    return [image.digest, *(blob.digest for blob in image.blobs)]
