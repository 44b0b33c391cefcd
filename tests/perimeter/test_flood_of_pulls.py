"""What a reader can do to a pod's watermark: nothing, where the registry ignores pulls (attempt 15)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.harness import Baleen
from tests.registries.proxy import WebhookProxy
from tests.registries.watermarks import is_past, now
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

READERS = 4
#: Of these events a webhook that takes 20 ms would deliver a fifth in the time that the readers need for them.
PULLS = 400


class _Readers:
    """Ask for a manifest again and again, and count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulls = 0
        self.over = threading.Event()

    @property
    def pulls(self) -> int:
        with self._lock:
            return self._pulls

    def read(self, url: str, repository: str, digest: str) -> None:
        with RegistryClient(url, timeout=30) as client:
            while not self.over.is_set():
                assert client.has_manifest(repository, digest)
                with self._lock:
                    self._pulls += 1


@contextmanager
def reading(url: str, repository: str, digest: str) -> Iterator[_Readers]:
    readers = _Readers()
    threads = [threading.Thread(target=readers.read, args=(url, repository, digest)) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield readers
    finally:
        readers.over.set()
        for thread in threads:
            thread.join(60)


def test_pulls_delay_no_push(baleen: Baleen) -> None:
    """Attempt 15: no pull reaches ingest, and while readers go on the watermark passes what was pushed meanwhile."""
    pod = baleen.add_pod("flooded")
    app = f"{pod.name}/app"
    first, second = (make_image(f"{pod.name}/{number}", sizes=[300]) for number in range(2))
    with WebhookProxy(baleen.webhook(pod)) as proxy:
        registry = baleen.registry(DistributionRegistry, pod, url=proxy.url)
        baleen.list_registries(pod, registry)
        with RegistryClient(registry.url, timeout=30) as client:
            client.push_image(app, first, "v1")
            with reading(registry.url, app, first.digest) as readers:
                eventually(lambda: readers.pulls >= PULLS)
                client.push_image(app, second, "v2")
                pushed = now(baleen)
                before = readers.pulls
                eventually(lambda: is_past(baleen, pod, pushed), why=lambda: baleen.pod(pod))
                eventually(lambda: readers.pulls > before)
                assert baleen.holds(app, second.digest)
        assert {event["action"] for event in proxy.accepted()} == {"push"}
        shown = [event for event in proxy.accepted() if event["request"]["useragent"].startswith("baleen-probe/")]
        assert {event["request"]["method"] for event in shown} == {"PUT"}
    baleen.agree()
