"""A model of CNCF distribution, for machines where the real program is not installed.

Route: ModelRegistry (parent) -> `python -m coordinator.stack.model_registry CONFIG.json` -> ModelServer
It keeps the real key layout, so that everything that reads a pod's storage can be tried on it, and emits the
real notifications. Like the real program it loses its queue of notifications when it ends, however it ends.
For tests and the demonstration: a request is held in memory whole, and every caller may do everything.
Not here: HTTP (model_server.py), storage (model_storage.py), notifications (model_notifications.py).
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self

from coordinator.errors import BaleenError, SettingsError, StackError
from coordinator.stack.model_notifications import Webhook
from coordinator.stack.model_server import ModelServer
from coordinator.stack.model_storage import ModelStorage
from coordinator.stack.process import ManagedProcess
from coordinator.storage.s3 import S3ObjectStore

PROBE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the child is told, by a file that only its owner may read."""

    port: int
    address: str = "127.0.0.1"
    s3_endpoint_url: str
    s3_bucket: str
    s3_region: str = "us-east-1"
    s3_access_key: str = field(repr=False)
    s3_secret_key: str = field(repr=False)
    root: str = ""
    notification_url: str | None = None
    notification_token: str | None = field(default=None, repr=False)
    notification_timeout_seconds: float = 5.0
    notification_backoff_seconds: float = 1.0

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(
                f"{path} is no configuration of the model registry ({error}): write it with save()."
            ) from error

    def save(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self), indent=1))

    def store(self) -> S3ObjectStore:
        return S3ObjectStore(
            self.s3_bucket,
            self.root,
            endpoint_url=self.s3_endpoint_url,
            region=self.s3_region,
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
        )

    def webhook(self) -> Webhook | None:
        if self.notification_url is None:
            return None
        return Webhook(
            self.notification_url,
            self.notification_token,
            self.notification_timeout_seconds,
            self.notification_backoff_seconds,
        )


class ModelRegistry:
    """The model as a child process; each start is a new process with a new `instanceID`."""

    def __init__(self, name: str, directory: Path, config: ModelConfig) -> None:
        self.name = name
        self._directory = directory
        self._config = config
        self._process: ManagedProcess | None = None

    @staticmethod
    def available() -> bool:
        return True

    @property
    def url(self) -> str:
        return f"http://{self._config.address}:{self._config.port}"

    @property
    def pid(self) -> int:
        return self._started.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        file = (self._directory / f"{self.name}.json").resolve()
        self._config.save(file)
        self._process = ManagedProcess(
            name=f"model registry {self.name}",
            argv=[sys.executable, "-m", "coordinator.stack.model_registry", file],
            log_file=self._directory / f"{self.name}.log",
            cwd=Path(__file__).parents[2],  # where `coordinator` is, installed or not
            probe=self._answers,
            advice="see that its port is free and the object store runs",
        ).start()

    def stop(self) -> None:
        """End it; as with the real program, what it did not yet announce is lost."""
        self._started.stop()

    def kill(self) -> None:
        self._started.kill()

    @property
    def _started(self) -> ManagedProcess:
        if self._process is None:
            raise StackError(f"The model registry {self.name} was not started yet: call start().")
        return self._process

    def _answers(self) -> bool:
        connection = HTTPConnection(self._config.address, self._config.port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except HTTPException:
            return False
        finally:
            connection.close()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m coordinator.stack.model_registry CONFIG.json", file=sys.stderr)  # noqa: T201
        return 2
    try:
        config = ModelConfig.load(Path(arguments[0]))
        store = config.store()
        store.check()
        server = ModelServer(config.address, config.port, ModelStorage(store), config.webhook())
    except (BaleenError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent shows the end of this log
        return 1
    with server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
