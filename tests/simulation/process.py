"""One process that runs histories: what in Baleen makes threads or looks at clocks is made serial and virtual first.

Route: run.py -> `python -m tests.simulation.process`, told by its input what to run -> a line of JSON for each thing
that is to be known. Strings are hashed alike in all of them, so that a seed gives the same history everywhere.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

from coordinator.domain import watermarks
from coordinator.gc import collect
from coordinator.jobs import work as jobs
from coordinator.table import processes
from tests.simulation.database import Server
from tests.simulation.history import Base, Current, History, SavedBase, describe_history, make_bases, open_base
from tests.simulation.mutants import MUTANTS, QUIET, Loss, Mutant
from tests.simulation.rules import Rule, always, without
from tests.simulation.scheduler import Serial, Violation

#: Histories of one base after which its tables are cleaned.
VACUUM_EVERY = 100
PROGRESS_EVERY_S = 1.0

#: Nonces where no history is under way, of bases.
_numbers = itertools.count(1)


def install() -> None:
    """Make this process one for histories. There is no way back."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    for name, module in list(sys.modules.items()):
        if name.startswith("coordinator.") and hasattr(module, "ThreadPoolExecutor"):
            module.ThreadPoolExecutor = Serial  # type: ignore[attr-defined]
    # The pulse of a job: in a history nobody says that he is alive, and is taken over after a while.
    jobs._beat_until_over = lambda work, over, pulse: None
    # Nobody suspends a process here, and time passes in steps longer than a pause: purges would wait for ever.
    without(Rule(watermarks, "was_paused", always(value=False)))
    collect.time = SimpleNamespace(monotonic=_seconds)  # type: ignore[assignment]
    processes.uuid = SimpleNamespace(uuid4=_nonce)  # type: ignore[assignment]


def _nonce() -> uuid.UUID:
    history = Current.history
    return uuid.UUID(int=next(_numbers) if history is None else history.chance.getrandbits(128))


def _seconds() -> float:
    return time.monotonic() if Current.history is None else Current.history.scheduler.now / 1e6


def run_one(base: Base, seed: int, mutant: Mutant | None = None) -> tuple[History, str | None]:
    """Run a history; return it with what it violates, if anything."""
    Current.history = None
    history = History(base, seed) if mutant is None else History(base, seed, mutant.plots, **QUIET | mutant.odds)
    history.bytes_only = mutant is not None and Loss.SERVED not in mutant.lost
    Current.history = history
    try:
        history.run()
    except Violation as violation:
        return history, str(violation)
    except Exception:  # noqa: BLE001 - whatever Baleen does not know how to deal with is what is looked for, too
        return history, traceback.format_exc()
    else:
        return history, None
    finally:
        history.scheduler.abandon()
        base.session.forget()


def run(asked_for: dict[str, Any]) -> None:
    install()
    server = Server(asked_for["url"])
    file = Path(asked_for["places"])
    if not file.exists():
        file.write_bytes(pickle.dumps(make_bases(server)))
        send({"ended": True})
        return
    kinds = {bool(asked_for.get("mixed"))} | {MUTANTS[name].mixed for name in asked_for.get("mutants", ())}
    made = [
        place.copied(server, asked_for["number"]) for place in pickle.loads(file.read_bytes()) if place.mixed in kinds
    ]
    if "mutants" not in asked_for:
        _run(made, asked_for, None)
    for name in asked_for.get("mutants", ()):
        # What a mutant changes goes with its process.
        if not (child := os.fork()):
            _run(made, asked_for, name)
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert not status, name
    send({"ended": True})


def _run(made: Sequence[SavedBase], asked_for: dict[str, Any], name: str | None) -> None:
    """Run histories of consecutive seeds; with a mutant until it is caught."""
    mutant = None
    if name is None:
        seeds = range(asked_for["first"], asked_for["first"] + asked_for["histories"], asked_for["stride"])
    else:
        mutant = MUTANTS[name]
        for rule in mutant.without:
            without(rule)
        made = [place for place in made if mutant.begins_at(place)]
        seeds = range(mutant.seed, mutant.seed + mutant.within)
    bases = [open_base(place) for place in made]
    fingerprint = 0
    done, steps, last = 0, 0, time.monotonic()
    for seed in seeds:
        begun = bases[seed % len(bases)]
        history, violation = run_one(begun, seed, mutant)
        done, steps = done + 1, steps + history.steps
        fingerprint ^= int.from_bytes(hashlib.sha256(repr((seed, history.scheduler.trace)).encode()).digest()[:8])
        if done % (VACUUM_EVERY * len(bases)) == 0:
            for each in bases:
                each.session.vacuum()
        if violation is not None:
            where = f"{begun.name}, {'with' if begun.bucket.versioned else 'without'} versions"
            where += ", with a pod of kind gitlab" * begun.mixed
            send(
                {
                    "seed": seed,
                    "where": where,
                    "violation": violation,
                    "history": describe_history(history),
                    "mixed": begun.mixed,
                    "mutant": name,
                }
            )
            if mutant is not None and mutant.is_noticed(violation):
                break
        if time.monotonic() - last > PROGRESS_EVERY_S:
            last = time.monotonic()
            send({"done": done, "steps": steps, "mutant": name})
    send({"done": done, "steps": steps, "mutant": name, "fingerprint": fingerprint})


def send(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    run(json.load(sys.stdin))
