"""Which addresses a registry's host has now. A name with several addresses stands for several processes."""

import ipaddress
import socket
from collections.abc import Callable, Sequence

from coordinator.errors import UnavailableError

#: Host and port to addresses; none if the host has none. Raises UnavailableError if that cannot be said now.
Resolve = Callable[[str, int], Sequence[str]]

_NONE = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system, as clients do. Blocks for as long as the system's resolver is configured to."""
    try:
        # An address of version 6 is of no use on a machine that has none itself.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        if error.errno in _NONE:
            return ()
        raise UnavailableError(f"The name {host} cannot be looked up now ({error.strerror}): try again.") from error
    except UnicodeError:
        return ()
    return sorted({str(address[0]) for *_, address in found})
