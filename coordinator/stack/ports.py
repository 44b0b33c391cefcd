"""Choose free ports on a host, and the same ones at the next start.

Chosen ports are stored in `ports.json` of the data directory, so that a registry that was configured for the embedded
store works after a restart. A stored port that is in use by another process is replaced.

Ports are below the range of outgoing connections (32768 and up on Linux), so that no connection takes one between the
choice and its use; weed needs a second port at +10000 for each, which is below that range too. Another stack on this
machine that is choosing right now does not take it either: a new port is claimed (on Linux, by a name that ends with
the process), and a claimed one is not chosen.
Not here: real listening; a child that loses the race says so in its log.
"""

from __future__ import annotations

import errno
import json
import random
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from coordinator.errors import StackError

LOWEST, HIGHEST = 10_240, 22_240
TRIES = 200
#: More than a process needs, because other processes may use some of its earlier ports.
CLAIMS_LIMIT = 200

#: The claims of this process, the oldest first.
_claims: dict[int, socket.socket] = {}


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        _try_to_listen(host, port)
    except (OSError, OverflowError):  # of a number that is no port
        return False
    return True


def describe_obstacle(host: str, port: int) -> str | None:
    """Return why no server can listen there now, and what to do about it; None if one can."""
    try:
        _try_to_listen(host, port)
    except socket.gaierror:
        return f"{host} cannot be listened on, since that name is not known here: choose an address with --host."
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"Port {port} of {host} is in use: stop what listens there, or choose another with --port."
        if error.errno == errno.EACCES:
            return f"Port {port} may not be listened on by this user: choose one above 1023 with --port."
        return (
            f"{host} cannot be listened on, since it is no address of this machine ({error.strerror}): choose another "
            "with --host, such as 127.0.0.1 or 0.0.0.0."
        )
    return None


def _try_to_listen(host: str, port: int) -> None:
    """Listen there and stop at once; raises OSError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Closing connections of an earlier server do not prevent a new one.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except UnicodeError as error:  # for what cannot be a name
            raise socket.gaierror(str(error)) from error
        probe.listen(1)


def _claim_port(port: int, offset: int | None) -> bool:
    """Claim the port, and the one `offset` higher; False if another process has claimed one of them."""
    wanted = [port] if offset is None else [port, port + offset]
    made: dict[int, socket.socket] = {}
    for each in wanted if sys.platform == "linux" else ():
        if each in _claims:
            break
        made[each] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # An abstract name: no file, and gone with the process.
            made[each].bind(f"\0baleen-port-{each}")
        except OSError:
            break
    else:
        _claims.update(made)
        while len(_claims) > CLAIMS_LIMIT:
            _claims.pop(next(iter(_claims))).close()
        return True
    for claim in made.values():
        claim.close()
    return False


class Ports:
    """The ports of one data directory."""

    def __init__(self, file: Path, host: str, *, among: Sequence[int] = range(LOWEST, HIGHEST)) -> None:
        self._file = file
        self._host = host
        self._among = among
        self._chosen = self._load()
        self._taken: set[int] = set()

    def take(self, name: str, *, asked: int | None = None, offset: int | None = None) -> int:
        """Return a free port for `name`; with `offset`, the port that much higher is free as well."""
        if asked is not None:
            if not self._is_usable(asked, offset):
                raise StackError(
                    f"Port {asked} for {name} is in use on {self._host}: "
                    "stop what listens there, or ask for another port."
                )
            return self._remember(name, asked, offset)
        remembered = self._chosen.get(name)
        if remembered is not None and self._is_usable(remembered, offset):
            return self._remember(name, remembered, offset)
        for _ in range(TRIES):
            port = random.choice(self._among)  # noqa: S311 - a port is no secret
            if port not in self._chosen.values() and self._is_usable(port, offset) and _claim_port(port, offset):
                return self._remember(name, port, offset)
        raise StackError(f"No free port was found for {name} on {self._host}: stop some of the servers there.")

    def save(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._chosen, indent=1, sort_keys=True) + "\n")
        new.replace(self._file)

    def _is_usable(self, port: int, offset: int | None) -> bool:
        wanted = {port} if offset is None else {port, port + offset}
        return not wanted & self._taken and all(is_free(self._host, each) for each in wanted)

    def _remember(self, name: str, port: int, offset: int | None) -> int:
        self._chosen[name] = port
        self._taken |= {port} if offset is None else {port, port + offset}
        return port

    def _load(self) -> dict[str, int]:
        try:
            known = json.loads(self._file.read_text())
            return {str(name): int(port) for name, port in known.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError, OverflowError):
            return {}  # an incomplete file is useless, and new ports are as good
