"""`baleen audit`: compare the table with the storage, and on demand read every byte.

It uses the database and the store directly, not the API. Exit code 1 if a needed blob is missing, masked or damaged;
leftovers are printed, and the exit code stays 0.
Not here: the comparison (audit/audit.py), reading (audit/scrub.py).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import progress as bars

from coordinator import settings
from coordinator.commands.output import (
    Json,
    format_bytes,
    format_count,
    format_value,
    make_progress_bar,
    print_json,
    print_table,
    stderr_console,
)
from coordinator.domain.names import Digest, format_digest, parse_digest
from coordinator.errors import UsageError
from coordinator.settings import DAY, Duration, TimeRange

if TYPE_CHECKING:
    from coordinator.audit.audit import FoundObjects, OnProgress, Progress, Report
    from coordinator.audit.scrub import ScrubReport
    from coordinator.compose.scheduler import AuditParts
    from coordinator.gc.mark_table import PendingClaim
    from coordinator.kinds.kinds import KindClaims

#: Examples of one kind that are printed; --json has more.
EXAMPLES_SHOWN = 10
#: The blobs of a sample are chosen before the first is read, and kept in memory.
SAMPLE_LIMIT = 1_000_000
#: An age is subtracted from the present time; the result must be a valid time.
AGE_RANGE = TimeRange(0, 3650 * DAY)

_PRINTABLE = (str, int, datetime)

_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)B?(?:/s)?")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

#: Name in the report, description, and what to do.
_KINDS = (
    ("missing", "missing: needed, and not stored", "push them again, or restore a version that --json names"),
    ("masked", "masked: missing, and below a delete marker", "`baleen audit --repair` removes the marker"),
    ("repaired", "repaired: marker removed, or copied back from quarantine", ""),
    ("unserved", "neither needed nor stored, now purged in the table", ""),
    ("found_again", "were missing, and are stored again", ""),
    (
        "wrong_size",
        "stored with another size than recorded",
        "`baleen audit --verify-content` finds out which is right",
    ),
    (
        "claimed",
        "listed by a registry's database, and not stored",
        "upload them again; where nothing needs them, the row collector removes the rows",
    ),
    (
        "orphans",
        "orphans: stored, and unknown to the table",
        "reconcile the pods; then `baleen audit --take-up-orphans` lets garbage collection take the rest",
    ),
    ("recent", "stored, unknown, and too recent to be an orphan", ""),
    (
        "unowned",
        "repositories of no registered pod, which block garbage collection",
        "register the pod, add the prefix to one, or declare it unmanaged: `baleen pods suggest-prefixes`",
    ),
    ("odd_keys", "keys below blobs/ that are not blobs", ""),
    ("abandoned_uploads", "abandoned upload sessions", ""),
    ("unfinished_uploads", "unfinished multipart uploads", "a lifecycle rule of the bucket can abort them"),
)


def register(app: typer.Typer) -> None:
    app.command()(audit)


def audit(
    *,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Restore needed blobs from delete markers and quarantine; verify a claim."),
    ] = False,
    take_up_orphans: Annotated[
        bool,
        typer.Option(
            "--take-up-orphans", help="Enter orphans into the table; GC collects them after the usual graces."
        ),
    ] = False,
    verify_content: Annotated[
        bool, typer.Option("--verify-content", help="Also read the stored bytes, and compare them with their digests.")
    ] = False,
    rate: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Limit reading to this many bytes a second, such as 50MB.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, max=SAMPLE_LIMIT, help="Read only this many blobs, chosen at random.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DIGEST", help="Continue an interrupted reading; compare nothing.")
    ] = None,
    orphans_older_than: Annotated[str, typer.Option(help="Unknown objects count as orphans after this time.")] = "24h",
    uploads_older_than: Annotated[str, typer.Option(help="Uploads count as abandoned after this time.")] = "7d",
    json: Json = False,
) -> None:
    """Compare the table with the storage, and record what is missing. Only --repair changes bytes."""
    if not verify_content and (rate is not None or sample is not None or start is not None):
        raise UsageError("--rate, --sample and --from require --verify-content.")
    if sample is not None and start is not None:
        raise UsageError("A sample cannot be continued: leave out --sample or --from.")
    if repair and start is not None:
        raise UsageError("With --from nothing is compared or repaired: leave out --repair or --from.")
    if take_up_orphans and start is not None:
        raise UsageError("With --from nothing is compared: leave out --take-up-orphans or --from.")
    first = None if start is None else parse_digest(start)
    speed = None if rate is None else _parse_rate(rate)
    ages = [
        _parse_age("--orphans-older-than", orphans_older_than),
        _parse_age("--uploads-older-than", uploads_older_than),
    ]

    from coordinator.compose import kinds as compose_kinds  # noqa: PLC0415 - its drivers take a second
    from coordinator.compose import scheduler as compose_scheduler  # noqa: PLC0415

    loaded = settings.load()
    with (
        compose_scheduler.open_audit(loaded) as parts,
        compose_kinds.open_claims(loaded, parts.connections, parts.store) as claims,
        _show_progress() as on_progress,
    ):
        report = (
            None
            if first is not None
            else _run_comparison(parts, claims, ages, on_progress, repair=repair, take_up=take_up_orphans)
        )
        content = _run_scrub(parts, first, sample, speed, on_progress) if verify_content else None
    if json:
        print_json(as_json(report, content))
    else:
        _print_results(report, content)
    if not all(each.is_healthy for each in (report, content) if each is not None):
        raise typer.Exit(1)


def _run_comparison(
    parts: "AuditParts",
    claims: "KindClaims",
    ages: list[timedelta],
    on_progress: "OnProgress",
    *,
    repair: bool,
    take_up: bool,
) -> "Report":
    from coordinator.audit.audit import Ages, Audit  # noqa: PLC0415

    store, presence = parts.store, parts.presence
    auditing = Audit(
        parts.connections, store, presence, Ages(*ages), claims.read_claims, repair=repair, take_up=take_up
    )
    return auditing.run(on_progress)


def _run_scrub(
    parts: "AuditParts", start: Digest | None, sample: int | None, rate: float | None, on_progress: "OnProgress"
) -> "ScrubReport":
    from coordinator.audit.scrub import Scrub  # noqa: PLC0415

    scrub = Scrub(parts.connections, parts.store, rate=rate)
    try:
        return scrub.run(start, sample=sample, on_progress=on_progress)
    except KeyboardInterrupt:
        at = scrub.content.resume_from
        if at is not None and sample is None:
            stderr_console().print(f"To continue: --from {format_digest(at)}", soft_wrap=True)
        raise


def as_json(report: "Report | None", content: "ScrubReport | None") -> dict[str, Any]:
    """Build the JSON document, whose names are stable; `comparison` or `content` is null if it did not run."""
    compared = report and {
        "blobs": report.blobs,
        "needed": report.needed,
        "objects": report.objects,
        "bytes": report.bytes,
        "taken_up": report.taken_up,
        "claim": report.claim and report.claim._asdict(),
        "unread_claims": report.unread_claims,
    } | {name: _find_kind(report, name).as_dict() for name, _, _ in _KINDS}
    read = content and {
        "blobs": content.blobs,
        "bytes": content.bytes,
        "other_bytes": content.other_bytes.as_dict(),
        "unreadable": content.unreadable.as_dict(),
    }
    healthy = all(each.is_healthy for each in (report, content) if each is not None)
    return {"healthy": healthy, "comparison": compared, "content": read}


def _print_results(report: "Report | None", content: "ScrubReport | None") -> None:
    if report is not None:
        typer.echo(
            f"{format_count(report.blobs, 'blob')} in the table, {report.needed:,} of them needed; "
            f"{report.objects:,} stored, {format_bytes(report.bytes)}."
        )
        found = [(name, meaning, todo, _find_kind(report, name)) for name, meaning, todo in _KINDS]
        _print_kinds([(meaning, todo, kind) for _, meaning, todo, kind in found if kind.count], report.masked)
        if report.taken_up:
            typer.echo(
                f"{format_count(report.taken_up, 'orphan')} taken up: garbage collection handles them from now on."
            )
        for pod, why in report.unread_claims.items():
            typer.echo(f"What the registry database of {pod} lists was not compared: {why}")
        if report.is_healthy:
            typer.echo("Everything that is needed is stored.")
        if report.claim is not None:
            typer.echo(_describe_pending(report.claim))
    if content is not None:
        typer.echo(f"{format_count(content.blobs, 'blob')} read, {format_bytes(content.bytes)}.")
        kinds = [
            (
                "damaged: the bytes do not have the digest",
                "restore `whole version`; if there is none, push again",
                content.other_bytes,
            ),
            ("not readable, while others are", "see the store's own logs", content.unreadable),
        ]
        _print_kinds([kind for kind in kinds if kind[2].count])
        if content.is_healthy:
            typer.echo("All of them match their digest.")


def _describe_pending(claim: "PendingClaim") -> str:
    """Say what is still needed to verify the last claim."""
    waits = "at any time"
    if claim.pods:
        named = ", ".join(claim.pods[:EXAMPLES_SHOWN]) + (", …" if len(claim.pods) > EXAMPLES_SHOWN else "")
        waits = f"once these pods are reconciled: {named}"
    return (
        f"The claim of {format_value(claim.claimed_at)} is not verified, and GC stays blocked: run "
        f"`baleen audit --repair` after {format_value(claim.verify_from)}, {waits}."
    )


def _print_kinds(kinds: "list[tuple[str, str, FoundObjects]]", already_printed: "FoundObjects | None" = None) -> None:
    if not kinds:
        return
    print_table(
        ("found", "number", "bytes", "what to do"),
        [(meaning, f"{kind.count:,}", format_bytes(kind.bytes), todo or None) for meaning, todo, kind in kinds],
    )
    for meaning, _, kind in kinds:
        if kind is already_printed:
            continue
        typer.echo(f"\n{meaning}:")
        for example in kind.examples[:EXAMPLES_SHOWN]:
            subject, *others = example.items()
            # Lists are in --json only.
            details = [
                f"{name.replace('_', ' ')} {format_value(value, name)}"
                for name, value in others
                if isinstance(value, _PRINTABLE)
            ]
            typer.echo(f"  {subject[1]}{'  ' if details else ''}{', '.join(details)}")
        if kind.count > EXAMPLES_SHOWN:
            typer.echo(f"  and {kind.count - EXAMPLES_SHOWN:,} more")


def _find_kind(report: "Report", name: str) -> "FoundObjects":
    kind: FoundObjects = getattr(report, name)
    return kind


@contextmanager
def _show_progress() -> Iterator["OnProgress"]:
    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}"),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
    )
    with make_progress_bar(*columns) as shown:
        task = shown.add_task("connecting", total=None)

        def on_progress(progress: "Progress") -> None:
            counts = f": {format_count(progress.blobs, 'blob')}" if progress.blobs else ""
            size = f", {format_bytes(progress.bytes)}" if progress.bytes else ""
            total = None if progress.done is None else 1.0
            shown.update(task, description=progress.doing + counts + size, total=total, completed=progress.done or 0.0)

        yield on_progress


def _parse_rate(text: str) -> float:
    match = _BYTES.fullmatch(text.strip())
    speed = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if speed <= 0:
        raise UsageError(f"{text[:100]!r} is not a rate: write bytes a second, such as 50MB.")
    return speed


def _parse_age(name: str, text: str) -> timedelta:
    try:
        return timedelta(seconds=AGE_RANGE.parse(Duration.parse(text)))
    except ValueError as error:
        raise UsageError(f"{name} {text[:100]!r} is no duration: write {AGE_RANGE}, such as 24h.") from error
