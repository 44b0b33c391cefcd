"""Find the programs that wheels of the extra `embedded` install."""

from importlib.util import find_spec
from pathlib import Path

from coordinator.errors import StackError


def find_file(package: str, path: str) -> Path | None:
    """Return a file of an installed package, without importing the package; None if there is none."""
    spec = find_spec(package)
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent / path
    return found if found is not None and found.exists() else None


def make_missing_error(service: str, setting: str, own: str) -> StackError:
    """Return the error for a service without a wheel; `own` is what the user can have instead."""
    return StackError(
        f"The embedded {service} is not installed or has no wheel for this platform: run `pip install '.[embedded]'` "
        f"in a checkout of Baleen, or set {setting} to {own} of your own."
    )
