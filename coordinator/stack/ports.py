"""Choose ports on a host, and choose the same ones next time.

Chosen ports are kept in `ports.json` of the data directory: a registry that was configured against the
embedded store keeps working after a restart. A remembered port that somebody else took is replaced.

Ports are drawn from below the range from which systems give ports to outgoing connections (32768 on Linux),
so that nothing takes one between the choice and its use; weed wants a second port at +10000 for each, which
stays below that limit too.
Not here: real listening; a child that loses the race says so in its log.
"""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

from coordinator.errors import StackError

LOWEST, HIGHEST = 10_240, 22_240
TRIES = 200


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Connections of an earlier server that still wait for their end do not hinder a new one.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


class Ports:
    """The ports of one data directory."""

    def __init__(self, file: Path, host: str) -> None:
        self._file = file
        self._host = host
        self._chosen = self._load()
        self._taken: set[int] = set()

    def take(self, name: str, *, asked: int | None = None, offset: int | None = None) -> int:
        """A free port for `name`; with `offset`, the port that much higher is free as well."""
        if asked is not None:
            if not self._usable(asked, offset):
                raise StackError(
                    f"Port {asked} for {name} is in use on {self._host}: "
                    "stop what listens there, or ask for another port."
                )
            return self._keep(name, asked, offset)
        remembered = self._chosen.get(name)
        if remembered is not None and self._usable(remembered, offset):
            return self._keep(name, remembered, offset)
        for _ in range(TRIES):
            port = random.randrange(LOWEST, HIGHEST)  # noqa: S311 - a port is no secret
            if port not in self._chosen.values() and self._usable(port, offset):
                return self._keep(name, port, offset)
        raise StackError(f"No free port was found for {name} on {self._host}: stop some of the servers there.")

    def save(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._chosen, indent=1, sort_keys=True) + "\n")
        new.replace(self._file)

    def _usable(self, port: int, offset: int | None) -> bool:
        wanted = {port} if offset is None else {port, port + offset}
        return not wanted & self._taken and all(is_free(self._host, each) for each in wanted)

    def _keep(self, name: str, port: int, offset: int | None) -> int:
        self._chosen[name] = port
        self._taken |= {port} if offset is None else {port, port + offset}
        return port

    def _load(self) -> dict[str, int]:
        try:
            known = json.loads(self._file.read_text())
            return {str(name): int(port) for name, port in known.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError):
            return {}  # half a file tells nothing, and new ports are as good
