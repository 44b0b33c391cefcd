"""A scheduler counts collections by their outcome, and what they did to blobs."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from coordinator.errors import UnavailableError
from coordinator.gc.collect import TooMuchError
from coordinator.gc.table import StoppedCollectingError
from coordinator.jobs.table import TakenOverError
from coordinator.jobs.work import StoppedError, Work
from workers.scheduler import count_outcomes

DID = {"hidden": {"blobs": 3, "bytes": 30}, "purged": {"blobs": 2, "bytes": 20}, "restored": 1, "blocked_by": []}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def figures() -> list[float]:
    return [
        *(value("baleen_gc_blobs_total", change=change) for change in ("hidden", "purged", "restored")),
        *(value("baleen_gc_bytes_total", change=change) for change in ("hidden", "purged")),
    ]


def run(progress: Mapping[str, Any], error: Exception | None = None, **options: Any) -> None:

    def runner(_: Work) -> Any:
        if error is not None:
            raise error
        return lambda _: progress

    work = SimpleNamespace(progress=lambda: progress, job=SimpleNamespace(options=options))
    count_outcomes(runner)(cast("Work", work))


@pytest.mark.parametrize(
    ("error", "progress", "outcome", "counts"),
    [
        (None, DID, "done", [3, 2, 1, 30, 20]),
        (None, DID | {"blocked_by": ["x"]}, "held", [3, 2, 1, 30, 20]),
        (TooMuchError("x"), {}, "refused", [0] * 5),
        (StoppedCollectingError("x"), DID, "stopped", [3, 2, 1, 30, 20]),
        (StoppedError("x"), DID, "left", [3, 2, 1, 30, 20]),
        (TakenOverError("x"), DID, "left", [3, 2, 1, 30, 20]),
        (UnavailableError("x"), DID, "failed", [3, 2, 1, 30, 20]),
        (RuntimeError("x"), DID, "failed", [3, 2, 1, 30, 20]),
    ],
)
def test_outcomes(error: Exception | None, progress: Mapping[str, Any], outcome: str, counts: list[float]) -> None:
    """A run is counted once, with what it had done, however it ends, and its error is passed on."""
    runs, before = value("baleen_gc_runs_total", outcome=outcome), figures()
    if error is None:
        run(progress)
    else:
        with pytest.raises(type(error)):
            run(progress, error)
    assert value("baleen_gc_runs_total", outcome=outcome) == runs + 1
    assert [now - then for now, then in zip(figures(), before, strict=True)] == counts


def test_a_dry_run_did_nothing() -> None:
    """What a dry run would have done is not counted."""
    runs, before = value("baleen_gc_runs_total", outcome="dry"), figures()
    run(DID, dry=True)
    assert value("baleen_gc_runs_total", outcome="dry") == runs + 1
    assert figures() == before
