"""`python -m bench`: measure what the project promises about its speed and size, on this machine.

Prints a table and writes JSON, with the machine's description, to bench/results/ (or `--json FILE`).
`--report FILE` writes docs/PERFORMANCE.md from such a file instead. Everything that a measurement starts ends with it.
A measurement that fails is told at the end, with exit code 1; the others are measured all the same.
"""

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import comparison, growth, latency, lookups, profiling, throughput, webhook
from bench.machine import describe
from bench.run import Context, say
from bench.services import Services

RESULTS = Path(__file__).parent / "results"

MEASUREMENTS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "throughput": throughput.measure,
    "against_metadata_schema": comparison.measure,
    "webhook": webhook.measure,
    "latency": latency.measure,
    "lookups": lookups.measure,
    "profile": profiling.measure,
    "growth": growth.measure,
}


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="baleen-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        with Services(Path(directory)) as services:
            context = Context(services, options.quick, options.scale, options.seed)
            machine = describe(Path(directory), services.server_url)
            failed = []
            for name in options.only or MEASUREMENTS:
                say(name)
                try:
                    context.results[name] = MEASUREMENTS[name](context)
                except Exception:
                    traceback.print_exc()
                    failed.append(name)
    print(json.dumps(context.results, indent=1))
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Baleen on this machine.")
    parser.add_argument("--quick", action="store_true", help="a run of less than a minute, to see that all works")
    parser.add_argument("--only", action="append", choices=list(MEASUREMENTS), help="may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the amounts of a full run")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
