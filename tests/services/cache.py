"""Programs of tests that are fetched or built once, and kept in the user's cache."""

import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coordinator.errors import StackError

HOME = Path.home() / ".cache" / "baleen-tests"


def cached_directory(name: str, make: Callable[[Path], None]) -> Path:
    """The directory of that name, which `make` fills the first time; it is complete or absent."""
    cache = HOME / name
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


def run_build(argv: Sequence[str | Path], failed: str, seconds: float, **options: Any) -> None:
    """Run a program; if it fails, raise StackError with `failed` and the end of its output."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False, **options)
    if done.returncode != 0:
        raise StackError(f"{failed}: {(done.stdout + done.stderr)[-2000:]}")
