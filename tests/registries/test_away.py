"""A pod's watermark while ingest is away from its registry never covers what was not applied."""

import datetime as dt

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.harness import Baleen
from tests.registries.proxy import WebhookProxy
from tests.registries.watermarks import moves_on, now, states, watermark
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

PUSHES = 30


def test_a_watermark_never_passes_what_was_not_applied(baleen: Baleen) -> None:
    """A push that the watermark has passed is in the table, while ingest is away and catches up."""
    pod = baleen.add_pod("unheard")
    images = [make_image(f"{pod.name}/{number}", sizes=[300]) for number in range(PUSHES)]
    pushed: dict[tuple[str, str], dt.datetime] = {}

    def passed() -> int:
        """Count the pushes that the watermark has passed; each of them was applied."""
        # The table last: what it lacks now it lacked when the watermark was read.
        at, held = watermark(baleen, pod), baleen.holdings()
        known = {holding for holding, moment in pushed.items() if at is not None and at > moment}
        assert known <= held, (at, {holding: pushed[holding] for holding in known - held})
        return len(known)

    with WebhookProxy(baleen.webhook(pod)) as proxy:
        registry = baleen.registry(DistributionRegistry, pod, url=proxy.url)
        baleen.list_registries(pod, registry)
        moves_on(baleen, pod)
        proxy.away = True
        with RegistryClient(registry.url, timeout=20) as client:
            for number, image in enumerate(images):
                # Of several partitions.
                repository = f"{pod.name}/app-{number % 7}"
                client.push_image(repository, image, f"v{number}")
                pushed[repository, image.digest] = now(baleen)
                assert passed() == 0
        eventually(lambda: passed() == 0 and states(baleen, pod) == ["silent"], why=lambda: baleen.pod(pod))
        # It answers, and lives: only what it tells does not arrive. One probe may have been answered too late.
        eventually(lambda: baleen.pod(pod)["endpoints"][0]["error"] is None, why=lambda: baleen.pod(pod))
        assert not pushed.keys() & baleen.holdings()
        proxy.away = False
        eventually(lambda: passed() == PUSHES, why=lambda: baleen.pod(pod))
        eventually(lambda: states(baleen, pod) == ["live"], why=lambda: baleen.pod(pod))
        baleen.agree()
