"""Look up the addresses of a registry's host. A name with several addresses stands for several processes."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from coordinator.domain.hosts import is_address
from coordinator.domain.pods import RegistryUrl
from coordinator.errors import UnavailableError

#: Host and port to addresses; none if the host has none. Raises UnavailableError if the look-up fails now.
Resolve = Callable[[str, int], Sequence[str]]

#: Names that are looked up in parallel.
LOOK_UPS_AT_ONCE = 32

_NO_ADDRESS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def resolve(host: str, port: int) -> Sequence[str]:
    """Look a name up with the system's resolver, as clients do. Blocks for as long as the resolver does."""
    try:
        # On a machine without an IPv6 address, IPv6 addresses are useless.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        if error.errno in _NO_ADDRESS:
            return ()
        raise UnavailableError(f"The name {host} cannot be looked up now ({error.strerror}): try again.") from error
    except UnicodeError:
        return ()
    return sorted({str(address[0]) for *_, address in found})


def look_up_all(
    registries: Iterable[RegistryUrl], *, within: float, resolve: Resolve = resolve
) -> Mapping[RegistryUrl, frozenset[str]]:
    """Return the addresses of registries that could be looked up within `within` seconds. Does not raise."""
    waiting = list(dict.fromkeys(registries))
    found: dict[RegistryUrl, frozenset[str]] = {}

    def look_up_waiting() -> None:
        while True:
            try:
                registry = waiting.pop()
            except IndexError:
                return
            try:
                at = [registry.host] if is_address(registry.host) else resolve(registry.host, registry.port)
            except UnavailableError:
                continue
            found[registry] = frozenset(str(ipaddress.ip_address(address)) for address in at if is_address(address))

    # Daemon threads: a hanging resolver delays neither the caller nor the end of the process.
    threads = [threading.Thread(target=look_up_waiting, daemon=True) for _ in waiting[:LOOK_UPS_AT_ONCE]]
    deadline = time.monotonic() + within
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)
