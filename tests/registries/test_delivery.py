"""How events arrive from real registries: refused, late, repeated, or incomplete."""

from collections import Counter
from typing import Any

import httpx
import psycopg
import pytest

from coordinator.compose import database as compose_database
from coordinator.registry.client import RegistryClient, RegistryError
from coordinator.registry.images import DOCKER, Image, make_image, make_index, sha256_digest
from coordinator.stack.distribution import DistributionRegistry
from coordinator.tokens.table import hash_token
from tests.registries.harness import Baleen, SilentDistribution
from tests.registries.proxy import WebhookProxy
from tests.services.go_programs import RUNS_DISTRIBUTION_3
from tests.support.artifacts import make_artifact
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


def push_whole(client: RegistryClient, repository: str, image: Image, tag: str) -> None:
    """Push every blob again, so that each is announced."""
    for blob in image.blobs:
        client.push_blob(repository, blob.content)
    client.put_manifest(repository, tag, image.media_type, image.content)


def test_a_registry_that_does_not_report_references(baleen: Baleen) -> None:
    """Without includereferences the references of manifests are read from storage, for every kind."""
    pod = baleen.add_pod("silent")
    registry = baleen.registry(SilentDistribution, pod)
    image = make_image("silent/image")
    index = make_index([make_image(f"silent/{arch}", architecture=arch) for arch in ("amd64", "arm64")])
    with RegistryClient(registry.url, timeout=20) as client:
        client.push_image("silent/app", image, "v1")
        client.push_image("silent/multi", index, "v1")
        client.push_image("silent/docker", make_image("silent/docker", kind=DOCKER), "v1")
        client.push_image("silent/app", make_artifact("silent/sbom", subject=image.descriptor), "sbom")
        baleen.agree()
        client.delete_manifest("silent/app", image.digest)
        baleen.agree()
    assert baleen.blob(image.layers[0].digest)["reference_count"] == 0
    assert baleen.blob(index.manifests[0].digest)["reference_count"] == 2


def test_events_with_a_wrong_token_are_lost_with_the_process(baleen: Baleen) -> None:
    """A wrong token blocks a registry's queue, which is lost with its process; a new push brings the image back."""
    pod = baleen.add_pod("mistaken")
    registry = baleen.registry(DistributionRegistry, pod, token="not-the-token")
    before = baleen.refused("unauthorized")
    lost, later = (make_image(f"mistaken/{number}") for number in range(2))
    with RegistryClient(registry.url, timeout=20) as client:
        client.push_image("mistaken/lost", lost, "v1")
        eventually(lambda: baleen.refused("unauthorized") >= before + 3)
        assert not baleen.holds("mistaken/lost", lost.digest)

        registry.kill()
        registry.start(token=pod.token)
        client.push_image("mistaken/later", later, "v1")
        # A process tells things in order: had it kept anything, that would have come before this.
        eventually(lambda: baleen.holds("mistaken/later", later.digest))
        assert not baleen.holds("mistaken/lost", lost.digest)
        assert client.pull_image("mistaken/lost", "v1").digest == lost.digest
        # Nothing that Baleen can see tells of the loss: it holds nothing against this pod.
        assert any("mistaken/lost" in difference for difference in baleen.differences())
        assert (baleen.dead_letters(), baleen.status()["gaps"]) == ([], 0)

        push_whole(client, "mistaken/lost", lost, "v1")
        baleen.agree()
    assert baleen.holds("mistaken/lost", lost.digest)


def test_events_wait_until_their_token_is_right(baleen: Baleen) -> None:
    """While the process lives nothing is lost: once its token is right, all events come, in order."""
    pod = baleen.add_pod("early")
    token = "a-token-that-is-not-known-yet"
    images = [make_image(f"early/{number}", sizes=[300]) for number in range(4)]
    with WebhookProxy(baleen.webhook(pod)) as proxy:
        registry = baleen.registry(DistributionRegistry, pod, token=token, url=proxy.url)
        with RegistryClient(registry.url, timeout=20) as client:
            for image in images:
                client.push_image("early/app", image, "v1")
            client.delete_manifest("early/app", images[0].digest)
        eventually(lambda: proxy.attempts() >= 3)
        assert proxy.accepted() == []
        with psycopg.connect(compose_database.database_url(baleen.settings)) as connection:
            changed = "UPDATE pods SET event_token_sha256 = %s WHERE name = %s"
            connection.execute(changed, (hash_token(token), pod.name))
        baleen.agree()
        assert in_order(proxy.accepted())
    assert [baleen.holds("early/app", image.digest) for image in images] == [False, True, True, True]


def test_ingest_away_for_a_while(baleen: Baleen) -> None:
    """While ingest is away pushes go on; when it is back every event comes once, in order, and none is missing."""
    pod = baleen.add_pod("patient")
    images = [make_image(f"patient/{number}", sizes=[300, 400]) for number in range(6)]
    with WebhookProxy(baleen.webhook(pod)) as proxy:
        registry = baleen.registry(DistributionRegistry, pod, url=proxy.url)
        with RegistryClient(registry.url, timeout=20) as client:
            client.push_image("patient/app", images[0], "v1")
            baleen.agree()
            proxy.away = True
            for image in images:
                client.push_image("patient/app", image, "v1")
            client.delete_manifest("patient/app", images[1].digest)
            eventually(lambda: proxy.attempts() > len(proxy.accepted()) + 2)
            assert not baleen.holds("patient/app", images[5].digest)
            proxy.away = False
            baleen.agree()
        accepted = [event for event in proxy.accepted() if event["action"] != "pull"]
    assert in_order(accepted)
    assert len({event["id"] for event in accepted}) == len(accepted)
    # Two layers, a configuration and a manifest of each; the first manifest again; a delete with its tag's.
    pushed = [event["target"]["digest"] for event in accepted if event["action"] == "push"]
    assert len(pushed) == 4 * len(images) + 1
    assert set(pushed) == {digest for image in images for digest in (image.digest, *(b.digest for b in image.blobs))}
    assert [baleen.holds("patient/app", image.digest) for image in images] == [True, False, True, True, True, True]


def test_a_slow_ingest_gets_events_again(baleen: Baleen) -> None:
    """An event that is repeated because of a late answer is counted once."""
    pod = baleen.add_pod("slow")
    with WebhookProxy(baleen.webhook(pod)) as proxy:
        proxy.repeats = 3
        registry = baleen.registry(DistributionRegistry, pod, url=proxy.url, timeout="200ms")
        image = make_image("slow/image", sizes=[300])
        with RegistryClient(registry.url, timeout=20) as client:
            client.push_image("slow/app", image, "v1")
            client.push_image("slow/other", image, "v1")
            client.delete_manifest("slow/other", image.digest)
            baleen.agree()
        eventually(lambda: min(Counter(event["id"] for event in proxy.accepted()).values()) >= proxy.repeats)
        baleen.agree()
    assert baleen.blob(image.layers[0].digest)["reference_count"] == 1


def test_a_manifest_that_was_uploaded_as_a_blob(baleen: Baleen) -> None:
    """If a digest is there as manifest and as blob, the bucket decides after a delete of either.

    Version 2 of distribution removes the blob's link together with the manifest's. Version 3 leaves it, and serves no
    manifest by it; Baleen does not know that, and holds the manifest as long as the blob's link is there.
    """
    pod = baleen.add_pod("twice")
    image = make_image("twice/image")
    with RegistryClient(baleen.registry(DistributionRegistry, pod).url, timeout=20) as client:
        for repository in ("twice/blob-goes", "twice/manifest-goes"):
            client.push_image(repository, image, "v1")
            client.push_blob(repository, image.content)
        baleen.agree()
        client.delete_blob("twice/blob-goes", image.digest)
        client.delete_manifest("twice/manifest-goes", image.digest)
        if RUNS_DISTRIBUTION_3:
            eventually(lambda: ("twice/blob-goes", image.digest) not in baleen.links())
            baleen.await_applied()
            assert baleen.holds("twice/manifest-goes", image.digest)
            client.delete_blob("twice/manifest-goes", image.digest)
        baleen.agree()
    pairs = {("twice/blob-goes", image.digest), ("twice/manifest-goes", image.digest)}
    assert pairs & baleen.holdings() == {("twice/blob-goes", image.digest)}
    assert pairs & baleen.links() == set()


def test_uploads_that_distribution_does_not_take(baleen: Baleen) -> None:
    """A refused upload of no bytes, and one in a single POST, are not announced. (Version 3 takes that of no bytes.)"""
    pod = baleen.add_pod("refused")
    registry = baleen.registry(DistributionRegistry, pod)
    taken = {blob.digest for blob in make_image("refused/image").blobs}
    with RegistryClient(registry.url, timeout=20) as client:
        if RUNS_DISTRIBUTION_3:
            taken.add(client.push_blob("refused/app", b""))
        else:
            with pytest.raises(RegistryError) as refused:
                client.push_blob("refused/app", b"")
            assert refused.value.registry_status == 500
        single = httpx.post(
            f"{registry.url}/v2/refused/app/blobs/uploads/",
            params={"digest": sha256_digest(b"single")},
            content=b"single",
            timeout=20,
            trust_env=False,
        )
        assert single.status_code == 202
        client.push_image("refused/app", make_image("refused/image"), "v1")
        baleen.agree()
    linked = {digest for repository, digest in baleen.links() if repository == "refused/app"}
    assert linked == taken


def in_order(events: list[dict[str, Any]]) -> bool:
    """Whether the events' times rise. They are written with nanoseconds, without trailing zeros."""
    parts = [event["timestamp"].removesuffix("Z").partition(".") for event in events]
    times = [(seconds, fraction.ljust(9, "0")) for seconds, _, fraction in parts]
    return bool(times) and times == sorted(times)
