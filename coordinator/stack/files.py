"""Files of a data directory."""

import os
from pathlib import Path


def write_secret(file: Path, text: str) -> None:
    """Replace a file, as a whole, by one that only its owner may read."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    new.replace(file)
