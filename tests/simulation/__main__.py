"""`python -m tests.simulation`: random histories of garbage collection, as many as there is time for.

A violation is printed with its seed and its history; the same seed is the same history again.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.run import simulate, start_ground


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the others follow (1)")
    parser.add_argument("--processes", type=int, default=2, help="that run them (2)")
    parser.add_argument("--show", type=int, default=3, help="how many violations are printed whole (3)")
    parser.add_argument("--mixed", action="store_true", help="with a pod of kind gitlab beside those of kind link")
    asked = parser.parse_args()
    processes = max(1, min(asked.processes, asked.histories))
    began = time.monotonic()

    def progress(done: int) -> None:
        speed = done / (time.monotonic() - began)
        print(f"\r{done} of {asked.histories} histories, {speed:.0f} a second ", end="", file=sys.stderr, flush=True)

    with start_ground() as on:
        total = simulate(
            on,
            histories=asked.histories,
            seed=asked.seed,
            processes=processes,
            mixed=asked.mixed,
            progress=progress,
        )
    print(file=sys.stderr)
    for found in total.found[: asked.show]:
        print(found)
    seeds = ", ".join(str(found.seed) for found in total.found[:50])
    print(
        f"{total.histories} histories, {total.steps} steps, {time.monotonic() - began:.0f} s: "
        + (f"{len(total.found)} violations, of seeds {seeds}" if total.found else "no violation")
    )
    return 1 if total.found else 0


if __name__ == "__main__":
    sys.exit(main())
