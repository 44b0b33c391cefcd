"""Programs of the field that are built from Go modules: crane, oras, and the specification's conformance suite.

Their versions, and the checksums of all that they need, are in `go/go.mod` and `go/go.sum`; what was built is kept in
the user's cache until these change.
"""

import hashlib
import shutil
from pathlib import Path

from coordinator.errors import StackError
from tests.services.cache import cached_directory, run_build

MODULE = Path(__file__).with_name("go")
PACKAGES = {
    "crane": "github.com/google/go-containerregistry/cmd/crane",
    "oras": "oras.land/oras/cmd/oras",
    "conformance": "github.com/opencontainers/distribution-spec/conformance",
}
BUILD_SECONDS = 900.0


def describe_missing() -> str | None:
    """Why they cannot be built here; None where they can."""
    if shutil.which("go") is None:
        return "crane, oras and the conformance suite need Go, of the version that tests/services/go/go.mod names"
    return None


def build_program(name: str) -> Path:
    """One of the programs; all are built on first use, and complete or absent."""
    return _built_directory() / name


def _built_directory() -> Path:
    if (reason := describe_missing()) is not None:
        raise StackError(f"{reason}: install it.")
    files = [MODULE / "go.mod", MODULE / "go.sum"]
    version = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return cached_directory(f"go-{version}", _build_all)


def _build_all(directory: Path) -> None:
    build = ["go", "build", "-mod=readonly", "-trimpath", "-o", f"{directory}/", *PACKAGES.values()]
    run_build(build, "Go could not build crane, oras and the conformance suite", BUILD_SECONDS, cwd=MODULE)


if __name__ == "__main__":
    print(_built_directory())
