"""Programs of tests that are fetched or built once, and kept in the user's cache."""

import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from coordinator.errors import StackError


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The directory of that name, which `make` has filled the first time: it is complete or absent."""
    cache = Path.home() / ".cache" / "baleen-tests" / name
    if cache.exists():
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    new = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}")
    new.mkdir()
    try:
        make(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    try:
        new.rename(cache)
    except OSError:  # another run was first
        shutil.rmtree(new, ignore_errors=True)
    return cache


def run(argv: Sequence[str | Path], failed: str, seconds: float, *, cwd: Path | None = None) -> None:
    """Run what makes a program; raises StackError that begins with `failed`, and ends with what it said."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode != 0:
        raise StackError(f"{failed}: {done.stderr[-2000:]}")
