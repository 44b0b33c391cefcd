"""Run CNCF distribution as a pod on the shared store, for the demo and the tests.

The program is not part of the stack: `docker-registry` (Debian's name) or `registry` must be on PATH.
Its configuration is what safety needs (see the doctor): no blob descriptor cache, deletes enabled, references
included in events, one `http.secret` for all pods so that an upload may move between them. It sends blobs itself
unless configured to redirect, because not every client reaches the store.
The file holds secrets, is readable only by its owner and is written again at every start.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.errors import StackError
from coordinator.pods.configuration import NO_MEDIA_TYPE
from coordinator.stack.files import write_secret
from coordinator.stack.probes import get_url
from coordinator.stack.process import ManagedProcess

PROGRAMS = ("docker-registry", "registry")
STOP_SECONDS = 10.0
REGION = "us-east-1"


def find_program() -> Path | None:
    """Return the path of the program, if it is installed."""
    return next((Path(found) for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass(frozen=True, kw_only=True)
class Notifications:
    """Where a pod sends its events. Short timeout and backoff, because its queue is sent one by one."""

    url: str
    token: str = field(repr=False)
    timeout: str = "2s"
    threshold: int = 5  # failures in a row until it pauses for `backoff`
    backoff: str = "1s"
    #: Whether pull events are sent: only for a pod that is probed by pulls.
    pulls: bool = False


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The bucket and root that the pods share, and the key of this pod."""

    endpoint_url: str
    bucket: str
    root: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = REGION


@dataclass(frozen=True, kw_only=True)
class DistributionRegistry:
    """One registry process of a pod."""

    name: str
    directory: Path
    port: int
    storage: Storage
    http_secret: str = field(repr=False)
    notifications: Notifications | None = None
    host: str = "127.0.0.1"
    log_level: str = "info"
    #: A pull of a blob is redirected to the store.
    redirect: bool = False

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def process(self) -> ManagedProcess:
        """The registry, ready when /v2/ answers; writes its configuration."""
        found = find_program()
        if found is None:
            raise StackError(
                "No registry program is installed: install the package docker-registry, "
                "or put distribution's `registry` on PATH."
            )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self.directory / f"{self.name}.yml"
        write_secret(file, json.dumps(self.configuration(), indent=1))  # JSON is YAML
        return ManagedProcess(
            name=f"Registry {self.name}",
            argv=[found, "serve", file],
            env=_make_environment(),
            cwd=self.directory,
            log_file=self.directory / f"{self.name}.log",
            stop_timeout=STOP_SECONDS,
            probe=lambda: get_url(f"{self.url}/v2/")[0] in {200, 401},  # 401 demands a token, so it serves
        )

    def configuration(self) -> dict[str, object]:
        """Return distribution's configuration."""
        known: dict[str, object] = {
            "version": 0.1,
            "log": {"level": self.log_level, "fields": {"service": "registry", "pod": self.name}},
            "storage": {
                "s3": {
                    "accesskey": self.storage.access_key,
                    "secretkey": self.storage.secret_key,
                    "region": self.storage.region,
                    "regionendpoint": self.storage.endpoint_url,
                    "bucket": self.storage.bucket,
                    "rootdirectory": "/" + self.storage.root.strip("/"),
                    "secure": self.storage.endpoint_url.startswith("https:"),
                    "v4auth": True,
                    # Without it version 3 answers everything with 500 if the endpoint is an IP address.
                    "forcepathstyle": True,
                },
                "delete": {"enabled": True},
                "redirect": {"disable": not self.redirect},
                # A purge of uploads would walk all pods' repositories; Baleen deletes old uploads.
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {
                "addr": f"{self.host}:{self.port}",
                "secret": self.http_secret,
                "relativeurls": True,
            },
            "health": {"storagedriver": {"enabled": False}},
        }
        if self.notifications is not None:
            known["notifications"] = {
                "events": {"includereferences": True},
                "endpoints": [
                    {
                        "name": "baleen",
                        "url": self.notifications.url,
                        "headers": {"Authorization": [f"Bearer {self.notifications.token}"]},
                        "timeout": self.notifications.timeout,
                        "threshold": self.notifications.threshold,
                        "backoff": self.notifications.backoff,
                    }
                    # Both: version 2.8 ignores no action while no media type is listed.
                    | (
                        {}
                        if self.notifications.pulls
                        else {"ignore": {"mediatypes": [NO_MEDIA_TYPE], "actions": ["pull"]}}
                    )
                ],
            }
        return known


def _make_environment() -> dict[str, str]:
    """The environment without AWS_CA_BUNDLE, which makes the program panic, and REGISTRY_…, which override its file."""
    kept = ("PATH", "HOME", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return {name: value for name, value in os.environ.items() if name in kept}
