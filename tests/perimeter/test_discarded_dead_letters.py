"""Dead letters that clients cause or operators discard lose no blob, and are resolved in the end."""

import secrets
from collections.abc import Iterator

import pytest

from coordinator.pods.prober import AGENT
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry
from tests.conftest import temporary_directory
from tests.registries.harness import Baleen, Pod
from tests.registries.watermarks import moves_on
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

LIMIT = 10


@pytest.fixture(scope="module")
def baleen() -> Iterator[Baleen]:
    """A Baleen that keeps few dead letters of a pod."""
    with temporary_directory() as directory, Children() as children:
        running = Baleen(directory, children, {"BALEEN_DEAD_LETTERS_LIMIT": str(LIMIT)})
        with running.api:
            yield running


def discard(baleen: Baleen, number: int) -> int:
    return baleen.api.post(f"/v1/dead-letters/{number}/discard", json={"why": "as the message says"}).status_code


def dead_letters_of(baleen: Baleen, pod: Pod) -> list[dict[str, object]]:
    return [dead_letter for dead_letter in baleen.dead_letters() if dead_letter["pod"] == pod.name]


def test_a_dead_letter_about_what_no_pod_owns(baleen: Baleen) -> None:
    """Attempt 2: no dead letter about an image below a name of no pod can be discarded, so that GC stays blocked. Once
    a pod owns the name, the events are applied and the dead letters are resolved.
    """
    pod = baleen.add_pod("forgetful")
    image = make_image("forgetful/shared")
    with baleen.at_rest_after():
        registry = baleen.registry(DistributionRegistry, pod)
        with RegistryClient(registry.url, timeout=20) as client:
            client.push_image("forgotten/app", image, "v1")
            eventually(lambda: len(dead_letters_of(baleen, pod)) >= len(image.blobs) + 1)
            for dead_letter in dead_letters_of(baleen, pod):
                assert dead_letter["repositories"] == ["forgotten/app"]
                assert discard(baleen, int(str(dead_letter["id"]))) == 409
            baleen.reconcile(pod)
            assert any("open dead letter" in reason for reason in baleen.status()["gc"]["blocked_by"])
            assert not baleen.holds("forgotten/app", image.digest)
            added = baleen.api.post(f"/v1/pods/{pod.name}/prefixes", json={"prefixes": ["forgotten"]})
            assert added.is_success, added.text
            for dead_letter in dead_letters_of(baleen, pod):
                baleen.api.post(f"/v1/dead-letters/{dead_letter['id']}/retry")
            # By the retries, or by the reconcile that the prefix asks for.
            eventually(lambda: baleen.holds("forgotten/app", image.digest))
            eventually(lambda: not dead_letters_of(baleen, pod), why=lambda: dead_letters_of(baleen, pod))
            assert client.pull_image("forgotten/app", "v1").digest == image.digest


def test_many_dead_letters_of_one_client(baleen: Baleen) -> None:
    """Attempt 20: of a client's many dead letters about another pod's repositories only the limit is kept, and one
    reconcile of that pod after the last resolves all of them.
    """
    pod, other = baleen.add_pod("flooding"), baleen.add_pod("flooded")
    image = make_image("flooding/1")
    with baleen.at_rest_after():
        registry = baleen.registry(DistributionRegistry, pod)
        with RegistryClient(registry.url, timeout=20) as client:
            for number in range(2 * LIMIT):
                client.push_image(f"flooded/{number}", image, "v1")
            # Once its watermark has passed now, all that its registry reported is applied or kept.
            baleen.list_registries(pod, registry)
            moves_on(baleen, pod)
            assert len(dead_letters_of(baleen, pod)) <= LIMIT
            job = baleen.reconcile(other)
            eventually(lambda: not dead_letters_of(baleen, pod), why=lambda: dead_letters_of(baleen, pod))
            held = {repository for repository, digest in baleen.holdings() if digest == image.digest}
            assert {f"flooded/{number}" for number in range(2 * LIMIT)} <= held, (held, job)
            assert baleen.status()["dead_letters_not_kept"] == 0
            # Other pods of this Baleen may have gaps: their processes end, and are reconciled, in their own time.
            assert [baleen.pod(each)["gaps"]["open"] for each in (pod, other)] == [0, 0]


def test_made_up_probes(baleen: Baleen) -> None:
    """Attempt 19: HEADs with nonces that no probe has, through a real registry, leave no record in Kafka."""
    pod = baleen.add_pod("probed")
    image, last = make_image("probed/1"), make_image("probed/2")
    with baleen.at_rest_after():
        registry = baleen.registry(DistributionRegistry, pod)
        with RegistryClient(registry.url, timeout=20) as client:
            client.push_image("probed/app", image, "v1")
            baleen.agree()
            before = records(baleen)
            for _ in range(50):
                assert client.has_manifest("probed/app", image.digest, user_agent=f"{AGENT}{secrets.token_hex(16)}")
            client.push_image("probed/app", last, "v2")
            baleen.agree()
            assert records(baleen) - before == len(last.blobs) + 1


def records(baleen: Baleen) -> int:
    """How many records of Kafka are applied."""
    return int(baleen.rows("SELECT sum(next_offset) FROM partition_progress")[0][0])
