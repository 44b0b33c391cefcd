"""Classify the host of a URL by its text alone. Not here: looking names up (pods/addresses.py)."""

from ipaddress import ip_address


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether the host is this machine: then no proxy is used for it."""
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)
