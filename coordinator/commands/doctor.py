"""`baleen pods doctor`: examine a pod, and print what was found.

It works with Baleen's own settings (database, Kafka, store), as `baleen check` does, and reaches the pod's registry
itself. The first Ctrl-C or SIGTERM ends the visit, which then takes away what it tried; further ones wait for that.
Not here: the experiments (coordinator/doctor).
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator import settings
from coordinator.commands.findings import print_findings
from coordinator.commands.output import Json, counted, notes, print_json, progress_bar
from coordinator.domain.findings import Verdict
from coordinator.domain.names import parse_pod
from coordinator.errors import UsageError
from coordinator.settings import Duration

if TYPE_CHECKING:
    from coordinator.doctor.examine import Report


def doctor(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pod.")],
    *,
    wait: Annotated[str, typer.Option(help="How long one event may take to be told and applied.")] = "30s",
    json: Json = False,
) -> None:
    """Prove by experiment that a pod is safe to collect for; exit 1 unless all is proved.

    Scratch images are pushed and deleted in PREFIX/baleen-doctor-…, and taken away again. Give BALEEN_POD_ACCESS_KEY
    and BALEEN_POD_SECRET_KEY, the key of the pod's registry, to have each line of its policy tried.
    """
    from coordinator import bootstrap  # noqa: PLC0415
    from coordinator.doctor.examine import examine  # noqa: PLC0415

    pod, loaded, patience = parse_pod(name), settings.load(), _seconds(wait)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        bootstrap.doctor(loaded, pod, patience=patience) as instruments,
        progress_bar(*columns) as progress,
        _interrupted_once(),
    ):
        task = progress.add_task("connecting")
        report = examine(instruments, pod, lambda what: progress.update(task, description=what))
    print_json(_document(name, report)) if json else _print(name, report)
    for sentence in report.left:
        notes().print(f"Not taken away: {sentence}", soft_wrap=True)
    if not report.is_proved:
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise UsageError(f"--wait is malformed: {error}.") from error


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Let the first signal end what is done, and the others wait for what it takes to end."""

    def end(_: int, __: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        notes().print("Ending: what was tried is taken away …", soft_wrap=True)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _document(pod: str, report: "Report") -> dict[str, Any]:
    return {
        "pod": pod,
        "proved": report.is_proved,
        "items": [
            {name: value for name, value in msgspec.to_builtins(found._asdict()).items() if name != "found_at"}
            for found in report.findings
        ],
        "not_taken_away": report.left,
    }


def _print(pod: str, report: "Report") -> None:
    proved = sum(found.verdict is Verdict.PROVED for found in report.findings)
    rest = "" if report.is_proved else " What is not proved holds garbage collection."
    checks = counted(len(report.findings), "check")
    sys.stdout.write(f"Pod {pod}: {proved} of {checks} {'is' if proved == 1 else 'are'} proved.{rest}\n")
    print_findings(report.findings, with_proofs=True)
