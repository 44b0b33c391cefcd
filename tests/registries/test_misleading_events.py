"""Events that say something else than what storage has, because storage refused a registry in the middle of a request.

What CNCF distribution 2.8.3 does: the event of a manifest is sent before its tag is written, that of a blob after its
upload was tidied up, and that of a delete before the tags go. A batch of deletes counts as done whatever S3 says of
its keys, and where the listing before it is refused there is nothing to delete.
Version 3.1.2 does the same, but for deletes: that of a manifest is answered with 202 whatever becomes of its tags, and
one whose link stays is answered with 500, without an event.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest

from coordinator.registry.client import RegistryClient, RegistryError
from coordinator.registry.images import make_image, make_layer
from coordinator.stack.distribution import DistributionRegistry
from coordinator.storage.layout import REPOSITORIES
from tests.registries.harness import Baleen, Pod
from tests.registries.proxy import WebhookProxy
from tests.registries.s3_proxy import DENIED, Answer, Call, S3Proxy, denied_each
from tests.services.go_programs import RUNS_DISTRIBUTION_3
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


# What storage refuses


def writing_a_tag(call: Call) -> Answer | None:
    return DENIED if call.method == "PUT" and "/tags/v1/current/" in call.target else None


def deleting_tags(call: Call) -> Answer | None:
    return DENIED if any("/tags/" in key for key in call.deletes) else None


def tidying_up(call: Call) -> Answer | None:
    """The rest of an upload whose bytes have been moved and linked."""
    return DENIED if any(key.endswith("/startedat") for key in call.deletes) else None


def deleting_any_key(call: Call) -> Answer | None:
    return denied_each(call) if call.deletes else None


def listing_links(call: Call) -> Answer | None:
    return DENIED if call.lists("/_manifests/revisions/") or call.lists("/_layers/") else None


class Misled(NamedTuple):
    """A pod whose registry reaches storage by a proxy, and ingest too."""

    baleen: Baleen
    pod: Pod
    client: RegistryClient
    storage: S3Proxy
    webhook: WebhookProxy

    @contextmanager
    def refused(self, what: Callable[[Call], Answer | None]) -> Iterator[None]:
        """Let storage refuse these calls, at least one of them."""
        self.storage.answer = what
        try:
            yield
        finally:
            self.storage.answer = None
        assert self.storage.answered

    def events(self, action: str, digest: str) -> list[dict[str, Any]]:
        """The targets of the accepted events about a digest."""
        targets = [event["target"] for event in self.webhook.accepted() if event["action"] == action]
        return [target for target in targets if target.get("digest") == digest]

    def reconciled(self) -> dict[str, Any]:
        """Reconcile the pod, by which the table equals the bucket; return what changed."""
        progress: dict[str, Any] = self.baleen.reconcile(self.pod)["progress"]
        self.baleen.agree()
        return progress


@pytest.fixture
def misled(baleen: Baleen, request: pytest.FixtureRequest) -> Iterator[Misled]:
    name = request.node.name.removeprefix("test_").translate(str.maketrans("_[", "--", "]"))
    pod = baleen.add_pod(name)
    assert baleen.settings.s3_endpoint_url is not None
    with WebhookProxy(baleen.webhook(pod)) as webhook, S3Proxy(baleen.settings.s3_endpoint_url) as storage:
        registry = baleen.registry(DistributionRegistry, pod, url=webhook.url, s3_url=storage.url)
        with RegistryClient(registry.url, timeout=20) as client:
            yield Misled(baleen, pod, client, storage, webhook)


def test_a_tag_that_was_reported_and_never_written(misled: Misled) -> None:
    """A manifest whose push failed at its tag is linked, and so it is held."""
    app, image = f"{misled.pod.name}/app", make_image(f"{misled.pod.name}/image")
    with misled.refused(writing_a_tag), pytest.raises(RegistryError, match="answered 500"):
        misled.client.push_image(app, image, "v1")
    eventually(lambda: [target["tag"] for target in misled.events("push", image.digest)] == ["v1"])
    assert not misled.client.has_manifest(app, "v1")
    # What is told is not applied yet, and a reconcile would add it.
    eventually(lambda: misled.baleen.holds(app, image.digest))
    progress = misled.reconciled()
    assert (progress["holdings_added"], progress["holdings_removed"]) == (0, 0)
    assert misled.baleen.holds(app, image.digest)


def test_a_blob_that_was_stored_and_not_reported(misled: Misled) -> None:
    """A blob whose upload failed without an event is linked, and a reconcile finds the link."""
    app, later = f"{misled.pod.name}/app", make_image(f"{misled.pod.name}/later")
    layer = make_layer(f"{misled.pod.name}/layer")
    with misled.refused(tidying_up), pytest.raises(RegistryError, match="answered 500"):
        misled.client.push_blob(app, layer.content)
    assert misled.client.has_blob(app, layer.digest)
    # A process tells things in order: had it told of the blob, that would have come before this.
    misled.client.push_image(app, later, "v1")
    eventually(lambda: misled.baleen.holds(app, later.digest))
    assert misled.events("push", layer.digest) == []
    assert (app, layer.digest) not in misled.baleen.links()
    assert misled.reconciled()["links_added"] == 1
    assert (app, layer.digest) in misled.baleen.links()


def test_a_delete_that_left_the_tags(misled: Misled) -> None:
    """A manifest whose link is gone is not held or served, though its delete failed and a tag is left."""
    app, image = f"{misled.pod.name}/app", make_image(f"{misled.pod.name}/image")
    misled.client.push_image(app, image, "v1")
    misled.baleen.agree()
    answer = nullcontext() if RUNS_DISTRIBUTION_3 else pytest.raises(RegistryError, match="answered 500")
    with misled.refused(deleting_tags), answer:
        misled.client.delete_manifest(app, image.digest)
    eventually(lambda: misled.events("delete", image.digest) != [])
    assert list(misled.baleen.store.walk(f"{REPOSITORIES}{app}/_manifests/tags/v1/current/"))
    assert not misled.client.has_manifest(app, "v1")
    misled.reconciled()
    assert not misled.baleen.holds(app, image.digest)
    # Pushed again it is whole.
    misled.client.push_image(app, image, "v1")
    misled.baleen.agree()
    assert misled.baleen.holds(app, image.digest)


@pytest.mark.parametrize("what", [deleting_any_key, listing_links])
def test_a_delete_that_storage_refused(misled: Misled, what: Callable[[Call], Answer | None]) -> None:
    """A manifest and a blob whose links still exist are held, though their deletes were reported (by version 2)."""
    app, image = f"{misled.pod.name}/app", make_image(f"{misled.pod.name}/image")
    layer = image.layers[0].digest
    misled.client.push_image(app, image, "v1")
    misled.baleen.agree()
    with misled.refused(what):
        for delete, digest in ((misled.client.delete_manifest, image.digest), (misled.client.delete_blob, layer)):
            with pytest.raises(RegistryError, match="answered 500") if RUNS_DISTRIBUTION_3 else nullcontext():
                delete(app, digest)
    if not RUNS_DISTRIBUTION_3:
        eventually(lambda: misled.events("delete", image.digest) != [] and misled.events("delete", layer) != [])
    progress = misled.reconciled()
    assert (progress["holdings_added"], progress["holdings_removed"]) == (0, 0)
    assert misled.baleen.holds(app, image.digest)
    assert (app, layer) in misled.baleen.links()
    assert misled.client.pull_image(app, image.digest).digest == image.digest
