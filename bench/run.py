"""The context of every measurement. Not here: which measurements there are, and their order (__main__.py)."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from bench.events import Record, make_records
from bench.services import BrokerKind, Services, describe_no_apache

SEED = 7


@dataclass
class Context:
    """One run of the bench."""

    services: Services
    quick: bool
    #: Multiplies the amounts of the full run.
    scale: float = 1.0
    seed: int = SEED
    #: Results so far, by the measurement's name: some are compared with others of the same run.
    results: dict[str, Any] = field(default_factory=dict)
    _records: list[Record] = field(default_factory=list)

    def count(self, full: int, *, quick: int) -> int:
        return quick if self.quick else max(quick, int(full * self.scale))

    def seconds(self, full: float, *, quick: float) -> float:
        return quick if self.quick else full

    def brokers(self) -> list[BrokerKind]:
        """The brokers to measure: both, but only the embedded one with `--quick` or without Java."""
        return ["embedded"] if self.quick or describe_no_apache() is not None else ["embedded", "apache"]

    def records(self, count: int) -> list[Record]:
        """The first `count` records, made once for all measurements."""
        if len(self._records) < count:
            print_progress(f"making {count} records")
            self._records = list(make_records(self.seed, count))
        return self._records[:count]

    def forget_records(self) -> None:
        """Free the memory of the records."""
        self._records = []


_began_at = time.monotonic()


def print_progress(text: str) -> None:
    """Print progress to stderr, because stdout is for the table."""
    sys.stderr.write(f"[{time.monotonic() - _began_at:6.1f} s] {text}\n")
    sys.stderr.flush()
