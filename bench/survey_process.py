"""`python -m bench.survey_process KEYS`: survey a listing that is made up as it is listed, repositories in any order.

Prints a line of JSON: keys, seconds, bytes of disk, and the process's peak memory.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from coordinator.domain.names import Digest
from coordinator.storage.layout import BASE, blob_key
from coordinator.storage.port import ObjectInfo
from coordinator.survey.survey import Root, survey_roots
from tests.storage.memory import MemoryObjectStore

#: Of ten keys one is a blob; of its nine links one is a manifest's.
KEYS_OF_BLOB = 10
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def make_objects(count: int, subtree: str) -> Iterator[ObjectInfo]:
    """Yield the keys of one subtree of about `count`."""
    blobs = max(1, count // KEYS_OF_BLOB)
    if "/blobs/" in subtree:
        for number in range(blobs):
            yield ObjectInfo(blob_key(_digest_of(number)), 1000 + number, LONG_AGO)
        return
    repositories = max(1, blobs // 10)
    for number in range(blobs * (KEYS_OF_BLOB - 1)):
        # A prime step visits all of them, and never two neighbours in a row.
        repository, blob = number * 7919 % repositories, (number * 104_729 + number // blobs) % blobs
        kind = "_layers" if number % (KEYS_OF_BLOB - 1) else "_manifests/revisions"
        yield ObjectInfo(
            f"{BASE}/repositories/team/app-{repository}/{kind}/sha256/{_digest_of(blob).hex()}/link", 71, LONG_AGO
        )


def _digest_of(number: int) -> Digest:
    return Digest(hashlib.sha256(number.to_bytes(8, "big")).digest())


class MadeUpStore(MemoryObjectStore):
    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def list(self, prefix: str, start_after: str | None = None, limit: int = 1000) -> list[ObjectInfo]:  # noqa: ARG002
        return [next(self.walk(f"{BASE}/blobs/"))]

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        return make_objects(self._count, prefix)


def _read_peak_kib() -> int:
    """Return the peak memory since this program began; getrusage includes the process that started it."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith("VmHWM:"):
            return int(row.split()[1])
    raise OSError("This system does not report the peak memory of a process: measure on Linux.")


def main() -> int:
    store = MadeUpStore(int(sys.argv[1]))
    begun = time.perf_counter()
    found = survey_roots([Root("made up", store)])
    seconds = time.perf_counter() - begun
    print(
        json.dumps(
            {
                "keys": found.keys,
                "seconds": round(seconds, 2),
                "disk_bytes": found.disk_bytes,
                "peak_mib": round(_read_peak_kib() / 1024, 1),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
