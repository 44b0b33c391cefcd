"""`baleen pods doctor`: examine a pod, and print the findings.

It uses Baleen's own settings (database, Kafka, store) and connects to the pod's registry itself. The first Ctrl-C or
SIGTERM ends the visit, which then removes its scratch images; further signals are ignored until that is done.
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
from coordinator.commands.output import Json, format_count, make_progress_bar, print_json, stderr_console
from coordinator.domain.findings import Result
from coordinator.domain.names import parse_pod
from coordinator.errors import UsageError
from coordinator.settings import Duration

if TYPE_CHECKING:
    from coordinator.doctor.examine import VisitReport


def doctor(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pod.")],
    *,
    wait: Annotated[str, typer.Option(help="How long one event may take to be sent and applied.")] = "30s",
    json: Json = False,
) -> None:
    """Prove by experiment that garbage collection is safe for a pod; exit 1 unless every check is proved.

    Scratch images are pushed to PREFIX/baleen-doctor-…, deleted, and removed. Set BALEEN_POD_ACCESS_KEY and
    BALEEN_POD_SECRET_KEY, the key of the pod's registry, to have each line of its policy tried.
    """
    from coordinator.compose import command as compose_command  # noqa: PLC0415
    from coordinator.doctor.examine import examine  # noqa: PLC0415

    pod, loaded, patience = parse_pod(name), settings.load(), _parse_seconds(wait)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        compose_command.open_instruments(loaded, pod, patience=patience) as instruments,
        make_progress_bar(*columns) as progress,
        _interrupt_once(),
    ):
        task = progress.add_task("connecting")
        report = examine(instruments, pod, lambda what: progress.update(task, description=what))
    print_json(_as_json(name, report)) if json else _print_report(name, report)
    for sentence in report.problems:
        stderr_console().print(f"Not removed: {sentence}", soft_wrap=True)
    if not report.is_proved:
        raise typer.Exit(1)


def _parse_seconds(text: str) -> float:
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise UsageError(f"--wait is malformed: {error}.") from error


@contextmanager
def _interrupt_once() -> Iterator[None]:
    """End the visit on the first signal, and ignore further ones while it removes what it tried."""

    def end(_: int, __: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stderr_console().print("Ending: removing the scratch images …", soft_wrap=True)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _as_json(pod: str, report: "VisitReport") -> dict[str, Any]:
    return {
        "pod": pod,
        "proved": report.is_proved,
        "items": [
            {name: value for name, value in msgspec.to_builtins(found._asdict()).items() if name != "found_at"}
            for found in report.findings
        ],
        "not_taken_away": report.problems,
    }


def _print_report(pod: str, report: "VisitReport") -> None:
    proved = sum(found.result is Result.PROVED for found in report.findings)
    rest = "" if report.is_proved else " A check that is not proved blocks garbage collection."
    checks = format_count(len(report.findings), "check")
    sys.stdout.write(f"Pod {pod}: {proved} of {checks} {'is' if proved == 1 else 'are'} proved.{rest}\n")
    print_findings(report.findings, with_proofs=True)
