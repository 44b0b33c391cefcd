"""crane and oras as people run them.

Not here: how they are built (tests/services/go_programs.py).
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.services import go_programs

needs_go = pytest.mark.skipif(go_programs.describe_missing() is not None, reason=str(go_programs.describe_missing()))
TIMEOUT_S = 120.0


def run(program: str, directory: Path, *arguments: str, text: str | None = None) -> str:
    """Run crane or oras with a home of its own; `text` is its input."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "TMPDIR"}}
    done = subprocess.run(
        [go_programs.build_program(program), *arguments],
        cwd=directory,
        env=kept | {"HOME": str(directory)},
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
