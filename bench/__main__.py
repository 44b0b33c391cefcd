"""`python -m bench`: measure what the project promises about its speed and size, on this machine.

Prints a table and writes JSON, with the machine's description, to bench/results/ (or `--json FILE`).
`--report FILE…` makes docs/PERFORMANCE.md from such files instead. Everything that a run starts ends with it.
A failed measurement is reported at the end, with exit code 1; the others still run.
"""

import argparse
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from bench import (
    comparison,
    gc,
    growth,
    latency,
    lists,
    lookups,
    mounts,
    probing,
    profiling,
    pulls,
    reconcile,
    report,
    router,
    survey,
    throughput,
    webhook,
)
from bench.machine import format_line, read_machine
from bench.run import SEED, Context, print_progress
from bench.services import ROOT, Services

RESULTS = Path(__file__).parent / "results"
DOCUMENT = ROOT / "docs" / "PERFORMANCE.md"

# The order matters: some measurements compare themselves with earlier ones.
MEASUREMENTS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "throughput": throughput.measure,
    "against_metadata_schema": comparison.measure,
    "webhook": webhook.measure,
    "latency": latency.measure,
    "lookups": lookups.measure,
    "profile": profiling.measure,
    "growth": growth.measure,
    "lists": lists.measure,
    "probing": probing.measure,
    "pulls": pulls.measure,
    "reconcile": reconcile.measure,
    "gc": gc.measure,
    "survey": survey.measure,
    "router": router.measure,
    "mounts": mounts.measure,
}


def main() -> int:
    options = _options()
    if options.report is not None:
        report.write_document(DOCUMENT, [json.loads(file.read_text()) for file in options.report])
        return 0
    # So that SIGTERM also ends the started services.
    signal.signal(signal.SIGTERM, _end)
    at = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="baleen-bench-", ignore_cleanup_errors=True) as directory:
        run, failed = _run(options, Path(directory))
    run["at"] = at.isoformat(timespec="seconds")
    print(f"{format_line(run['machine'])}\n\n{report.format_results(run['results'])}")
    file = options.json or RESULTS / f"{at:%Y-%m-%dT%H%M%S}{'-quick' if options.quick else ''}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    print_progress(f"written to {file}")
    if failed:
        print_progress(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _run(options: argparse.Namespace, directory: Path) -> tuple[dict[str, Any], list[str]]:
    with Services(directory) as services:
        machine = read_machine(directory, services.server_url)
        context = Context(services, options.quick, options.scale, options.seed)
        failed = []
        wanted = options.only or MEASUREMENTS
        for name in (name for name in MEASUREMENTS if name in wanted):
            print_progress(name)
            try:
                context.results[name] = MEASUREMENTS[name](context)
            except Exception:  # noqa: BLE001 - the others can still be measured
                traceback.print_exc()
                failed.append(name)
    run = {"machine": machine, "quick": options.quick, "scale": options.scale, "seed": options.seed}
    return {**run, "results": context.results}, failed


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Baleen on this machine.")
    parser.add_argument("--quick", action="store_true", help="run for a minute, to check that everything works")
    parser.add_argument("--only", action="append", choices=list(MEASUREMENTS), help="only this one; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the amounts of a full run")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", nargs="+", help="make docs/PERFORMANCE.md from these results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
