"""Programs of the field that are built from Go modules: crane, oras, the specification's conformance suite, and
version 3 of distribution.

Their versions, and the checksums of all that they need, are in `go.mod` and `go.sum` of the module's directory; what
was built is kept in the user's cache until these change. Distribution has a module of its own, so that what it needs
says nothing of the others' versions.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from coordinator.errors import StackError
from tests.services.cache import cached_directory, run_build


class Module(NamedTuple):
    """A directory with `go.mod`, and the programs that are built there: each name with its package."""

    directory: Path
    packages: dict[str, str]


HERE = Path(__file__).parent
CLIENTS = Module(
    HERE / "go",
    {
        "crane": "github.com/google/go-containerregistry/cmd/crane",
        "oras": "oras.land/oras/cmd/oras",
        "conformance": "github.com/opencontainers/distribution-spec/conformance",
    },
)
#: By the name that Debian gives version 2: first on PATH, it is taken in its place.
DISTRIBUTION_3 = Module(
    HERE / "go_distribution", {"docker-registry": "github.com/distribution/distribution/v3/cmd/registry"}
)
#: Whether the tests run it in place of Debian's version 2: BALEEN_TEST_DISTRIBUTION is 3.
RUNS_DISTRIBUTION_3 = os.environ.get("BALEEN_TEST_DISTRIBUTION", "2") == "3"
BUILD_SECONDS = 900.0


def describe_missing() -> str | None:
    """Why they cannot be built here; None where they can."""
    if shutil.which("go") is None:
        return "crane, oras, the conformance suite and distribution 3 need Go, as tests/services/go/go.mod names it"
    return None


def build_program(name: str) -> Path:
    """One of the clients; all are built on first use, and complete or absent."""
    return build_module(CLIENTS) / name


def build_module(module: Module) -> Path:
    """The directory with the module's programs."""
    if (reason := describe_missing()) is not None:
        raise StackError(f"{reason}: install it.")
    files = [module.directory / "go.mod", module.directory / "go.sum"]
    version = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]

    def build(directory: Path) -> None:
        for name, package in module.packages.items():
            argv = ["go", "build", "-mod=readonly", "-trimpath", "-o", directory / name, package]
            run_build(argv, f"Go could not build {name}", BUILD_SECONDS, cwd=module.directory)

    return cached_directory(f"{module.directory.name}-{version}", build)


if __name__ == "__main__":
    for each in (CLIENTS, DISTRIBUTION_3):
        print(build_module(each))
