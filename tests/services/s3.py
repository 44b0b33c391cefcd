"""The embedded store as settings of Baleen, and as the storage of a registry."""

from coordinator.stack.distribution import Storage
from coordinator.stack.supervisor import StackEndpoints


def s3_settings(endpoints: StackEndpoints) -> dict[str, str]:
    """By the names of the settings, without their prefix."""
    return {f"s3_{name}": value for name, value in _required_values(endpoints).items()}


def s3_storage(endpoints: StackEndpoints, root: str) -> Storage:
    return Storage(root=root, **_required_values(endpoints))


def _required_values(endpoints: StackEndpoints) -> dict[str, str]:
    known = {name: getattr(endpoints, f"s3_{name}") for name in ("endpoint_url", "bucket", "access_key", "secret_key")}
    assert None not in known.values()
    return known
