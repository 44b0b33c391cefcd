"""The model registry as a process of its own, on a real S3 server."""

import json
import socket
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import SettingsError, StackError
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.stack.distribution import Notifications
from coordinator.stack.model_registry import ModelConfig, ModelRegistry
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.stack.supervisor import StackEndpoints
from tests.services.s3 import s3_storage
from tests.support.registries import REQUEST_S, TOKEN, RunningRegistry
from tests.support.sink import NotificationSink


class RunningOnS3(RunningRegistry):
    def __init__(self, model: ModelRegistry, sink: NotificationSink) -> None:
        super().__init__(model.url, sink)
        self._store = _config(model).store()

    def objects(self) -> dict[str, bytes]:
        return {entry.key: self._store.get(entry.key) for entry in self._store.list("docker/registry/v2/")}


def _config(model: ModelRegistry) -> ModelConfig:
    return ModelConfig(host=model.host, port=model.port, storage=model.storage, notifications=model.notifications)


@pytest.fixture
def model(embedded_stack: StackEndpoints, sink: NotificationSink, tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(
        name="pod-a",
        directory=tmp_path,
        port=Ports(tmp_path / "ports.json", "127.0.0.1").take("registry"),
        storage=s3_storage(embedded_stack, f"model-{tmp_path.name}"),
        notifications=Notifications(url=sink.url, token=TOKEN, timeout=f"{REQUEST_S}s", backoff="20ms", pulls=True),
    )


@pytest.fixture
def process(model: ModelRegistry) -> Iterator[ManagedProcess]:
    process = model.process().start()
    yield process
    process.kill()


@pytest.fixture
def successor(model: ModelRegistry) -> Iterator[ManagedProcess]:
    """The same registry once more, not started yet."""
    process = model.process()
    yield process
    process.kill()


def test_serves_from_the_bucket(
    model: ModelRegistry, process: ManagedProcess, successor: ManagedProcess, sink: NotificationSink
) -> None:
    """The process serves images from the bucket, also those that an earlier process of it stored."""
    image = make_image("app")
    running = RunningOnS3(model, sink)
    with RegistryClient(model.url) as client:
        client.push_image("team/app", image, "v1")
        stored = running.stored()
        process.kill()
        successor.start()
        assert client.pull_image("team/app", "v1").digest == image.digest
        client.delete_manifest("team/app", image.digest)
    assert any(key.endswith("/tags/v1/current/link") for key in stored)
    assert not any("/tags/" in key or "/revisions/" in key for key in running.stored())


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_queue_is_lost(
    model: ModelRegistry, process: ManagedProcess, successor: ManagedProcess, sink: NotificationSink, end: str
) -> None:
    """Events that a process has not sent when it ends are never sent, though their images are stored."""
    running = RunningOnS3(model, sink)
    running.events()
    sink.answer = 503
    with RegistryClient(model.url) as client:
        client.push_image("team/app", make_image("app"), "v1")
        sink.wait(lambda sink: sink.deliveries[-1].status == 503)
        getattr(process, end)()
        successor.start()
        assert client.has_manifest("team/app", "v1", user_agent="after")
        # What the first one was sending when it ended may be read only now: it is refused, too.
        sink.wait(lambda sink: len(instances(event for each in sink.deliveries for event in each.events)) == 2)
        sink.answer = 200
    assert [event["request"]["useragent"] for event in running.events()] == ["after"]
    assert len(instances(sink.accepted)) == 2


def instances(events: Iterable[dict[str, Any]]) -> set[str]:
    """The processes that sent these events."""
    return {event["source"]["instanceID"] for event in events}


def test_port_in_use(model: ModelRegistry) -> None:
    """A port that somebody else listens on is an error that shows why the process ended."""
    with (
        socket.create_server((model.host, model.port)),
        pytest.raises(StackError, match="Address already in use"),
    ):
        model.process().start()


def test_missing_bucket(model: ModelRegistry) -> None:
    """A bucket that is not there is found at the start, not at the first push."""
    lost = replace(model, storage=replace(model.storage, bucket="absent"))
    with pytest.raises(StackError, match="absent"):
        lost.process().start()


def test_configuration_is_kept_private(model: ModelRegistry) -> None:
    """The file with the keys is for its owner alone, and no secret is in what is printed."""
    shown = repr(model) + repr(model.process()) + repr(_config(model)) + repr(_config(model).webhook())
    assert not any(secret in shown for secret in (model.storage.secret_key, TOKEN))
    file = model.directory / "pod-a.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ModelConfig.load(file) == _config(model)


@pytest.mark.parametrize("text", ["junk", "[]", json.dumps({"unknown": 1}), "{}"])
def test_malformed_configuration(tmp_path: Path, text: str) -> None:
    """A malformed configuration is refused in a sentence."""
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(SettingsError):
        ModelConfig.load(file)


def test_malformed_duration(model: ModelRegistry) -> None:
    """A duration that distribution would not read is refused."""
    assert model.notifications is not None
    shown = replace(model.notifications, timeout="soon")
    with pytest.raises(SettingsError, match="soon"):
        _config(replace(model, notifications=shown)).webhook()
