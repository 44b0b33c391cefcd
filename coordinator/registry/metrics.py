"""Read the metrics of a registry process at its debug address, in the text format of Prometheus.

Invariants: the answer has a limit of bytes and of time; one that is cut off is an error, since a series that it lacks
may exist.
Not here: what the series mean (doctor/gitlab.py).
"""

import re
import time
from datetime import UTC, datetime
from typing import Final, NamedTuple

import httpx

from coordinator.registry.errors import RegistryContentError, RegistryError, RegistryUnreachableError
from coordinator.registry.transport import AddressTransport, describe_error, tls_context

LIMIT_BYTES: Final = 8 << 20
#: The name of a series, also in the comments that describe it.
_NAME: Final = re.compile(rb"^(?:# (?:HELP|TYPE) )?([A-Za-z_:][A-Za-z0-9_:]*)", re.MULTILINE)
_STARTED: Final = re.compile(rb"^process_start_time_seconds ([0-9.eE+]{1,32})$", re.MULTILINE)


class Metrics(NamedTuple):
    names: frozenset[str]
    #: When the process began, by the clock of its machine; None if it does not say so.
    started_at: datetime | None


def read_metrics(base_url: str, path: str, address: str, *, ca_file: str | None, timeout: float) -> Metrics:
    """Return the metrics that one address of `base_url` gives; raises RegistryError."""
    tls, limits = tls_context(ca_file), httpx.Limits(max_keepalive_connections=0)
    transport = AddressTransport(base_url, address, tls, limits)
    deadline, body = time.monotonic() + timeout, bytearray()
    try:
        with (
            httpx.Client(transport=transport, timeout=timeout, trust_env=False) as http,
            http.stream("GET", f"{base_url}{path}") as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise RegistryError(f"{base_url} answered {response.status_code} to GET {path}.")
            for piece in response.iter_bytes():
                body += piece
                if len(body) > LIMIT_BYTES or time.monotonic() > deadline:
                    raise RegistryContentError(
                        f"The metrics of {base_url} did not end within {LIMIT_BYTES} bytes and {timeout:.0f} s."
                    )
    except httpx.HTTPError as error:
        raise RegistryUnreachableError(
            f"{base_url} did not answer to GET {path} ({describe_error(error)}): check the address and that the "
            "process runs."
        ) from error
    return _parse_metrics(bytes(body))


def _parse_metrics(body: bytes) -> Metrics:
    names = frozenset(name.decode() for name in _NAME.findall(body))
    found = _STARTED.search(body)
    try:
        started = None if found is None else datetime.fromtimestamp(float(found[1]), UTC)
    except (ValueError, OverflowError, OSError):
        started = None
    return Metrics(names, started)
