"""Baleen: one global reference table for the blobs of many container registries."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version that is installed; `0` where the code runs without being."""
    try:
        return version("baleen-registry")
    except PackageNotFoundError:
        return "0"
