"""Push, copy, inspect and delete with skopeo, as people do; images come from layouts on disk.

Not here: making images (coordinator/registry/images.py).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from coordinator.registry.images import Image, Index, sha256_digest

TIMEOUT_S = 180.0


class Skopeo:
    """skopeo with a home of its own, so that it remembers nothing of other runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "TMPDIR"}}
        self._environment = kept | {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}

    def login(self, address: str, user: str, password: str) -> None:
        """Have the registry's password remembered, if it is right."""
        self._run("login", "--tls-verify=false", "--password-stdin", "--username", user, address, text=password)

    def push(self, layout: str, address: str, name: str, *options: str) -> None:
        """Copy `oci:…` or `dir:…` to a registry; an index needs `--all`."""
        self._run("copy", "--dest-tls-verify=false", *options, layout, f"docker://{address}/{name}")

    def copy(self, source: str, destination: str, *options: str) -> None:
        """Copy from registry to registry; both are written `address/name:tag`."""
        tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
        self._run("copy", *tls, *options, f"docker://{source}", f"docker://{destination}")

    def delete(self, address: str, name: str) -> None:
        self._run("delete", "--tls-verify=false", f"docker://{address}/{name}")

    def pull(self, address: str, name: str, directory: Path) -> None:
        """Copy what the registry has by this name to a directory, with all platforms, checking each digest."""
        self._run("copy", "--all", "--src-tls-verify=false", f"docker://{address}/{name}", f"dir:{directory}")

    def digest(self, address: str, name: str) -> str:
        """The digest of what the registry has by this name, as skopeo computes it."""
        return sha256_digest(self._run("inspect", "--raw", "--tls-verify=false", f"docker://{address}/{name}"))

    def tags(self, address: str, repository: str) -> list[str]:
        answer = self._run("list-tags", "--tls-verify=false", f"docker://{address}/{repository}")
        found: list[str] = json.loads(answer)["Tags"]
        return found

    def _run(self, *arguments: str, text: str = "") -> bytes:
        done = subprocess.run(
            ["skopeo", "--insecure-policy", "--tmpdir", str(self._directory), *arguments],
            input=text.encode(),
            capture_output=True,
            env=self._environment,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout


def oci_layout(directory: Path, image: Image | Index) -> str:
    """Write an OCI image layout, and give it in skopeo's words."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    for digest, content in _contents(image).items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    top: dict[str, Any] = {name: image.descriptor[name] for name in ("mediaType", "size", "digest")}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return f"oci:{directory}"


def docker_layout(directory: Path, image: Image) -> str:
    """Write a docker image as skopeo's `dir:`, which keeps a manifest's bytes as they are."""
    directory.mkdir(parents=True)
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    (directory / "manifest.json").write_bytes(image.content)
    for blob in image.blobs:
        (directory / blob.digest.removeprefix("sha256:")).write_bytes(blob.content)
    return f"dir:{directory}"


def _contents(image: Image | Index) -> dict[str, bytes]:
    found = {image.digest: image.content}
    if isinstance(image, Index):
        for child in image.manifests:
            found |= _contents(child)
    else:
        found |= {blob.digest: blob.content for blob in image.blobs}
    return found
