"""A model of CNCF distribution, for machines where the real program is not installed.

Route: ModelRegistry (parent) -> `python -m coordinator.stack.model_registry CONFIG.json` -> ModelServer
It uses the real key layout, so that everything that reads a pod's storage can be tested on it, and sends the
real notifications. Like the real program it loses its queue of notifications when it ends, for any reason.
For tests and the demo: requests are held in memory completely, and every caller may do everything.
Not here: HTTP (model_server.py), storage (model_storage.py), notifications (model_notifications.py).
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import msgspec

from coordinator.errors import BaleenError, SettingsError
from coordinator.settings import Duration
from coordinator.stack.distribution import Notifications, Storage
from coordinator.stack.files import write_secret
from coordinator.stack.model_notifications import Webhook
from coordinator.stack.model_server import ModelServer
from coordinator.stack.model_storage import ModelStorage
from coordinator.stack.probes import get_url
from coordinator.stack.process import ManagedProcess
from coordinator.storage.s3 import S3ObjectStore


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The child's configuration, in a file that only its owner may read."""

    host: str
    port: int
    storage: Storage
    notifications: Notifications | None

    @classmethod
    def load(cls, file: Path) -> Self:
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise SettingsError(
                f"{file} is not a configuration of the model registry ({error}): let ModelRegistry write it."
            ) from error

    def save(self, file: Path) -> None:
        write_secret(file, msgspec.json.encode(self).decode())

    def store(self) -> S3ObjectStore:
        return S3ObjectStore(**asdict(self.storage))

    def webhook(self) -> Webhook | None:
        notifications = self.notifications
        if notifications is None:
            return None
        return Webhook(
            notifications.url,
            notifications.token,
            _parse_seconds(notifications.timeout),
            _parse_seconds(notifications.backoff),
            notifications.pulls,
        )


@dataclass(frozen=True, kw_only=True)
class ModelRegistry:
    """One registry process of a pod, in place of a DistributionRegistry."""

    name: str
    directory: Path
    port: int
    storage: Storage
    notifications: Notifications | None = None
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def process(self) -> ManagedProcess:
        """The registry, ready when /v2/ answers, with a new instanceID; writes its configuration."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self.directory.absolute() / f"{self.name}.json"
        ModelConfig(host=self.host, port=self.port, storage=self.storage, notifications=self.notifications).save(file)
        return ManagedProcess(
            name=f"Model registry {self.name}",
            argv=[sys.executable, "-m", "coordinator.stack.model_registry", file],
            cwd=Path(__file__).parents[2],  # where `coordinator` is, installed or not
            log_file=self.directory.absolute() / f"{self.name}.log",
            probe=lambda: get_url(f"{self.url}/v2/")[0] == 200,
            advice="check that its port is free and that the object store runs",
        )


def _parse_seconds(duration: str) -> float:
    try:
        return Duration.parse(duration)
    except ValueError as error:
        raise SettingsError(f"{duration!r} is not a duration: {error}.") from error


def main(arguments: list[str]) -> int:
    """Serve until killed. No signal is handled: this process never ends in an orderly way."""
    if len(arguments) != 1:
        print("usage: python -m coordinator.stack.model_registry CONFIG.json", file=sys.stderr)  # noqa: T201
        return 2
    try:
        config = ModelConfig.load(Path(arguments[0]))
        store = config.store()
        store.check()
        server = ModelServer(config.host, config.port, ModelStorage(store), config.webhook())
    except (BaleenError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent shows the end of this log
        return 1
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
