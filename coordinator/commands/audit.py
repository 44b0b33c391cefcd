"""`baleen audit`: compare the table with the storage, and on demand read every byte.

It asks the database and the store themselves, as `baleen check` does, and not the API. Exit code 1 if anything that is
needed is missing, masked or not what it should be; what is only left over is told, and exits 0.
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
    as_bytes,
    as_text,
    counted,
    notes,
    print_json,
    print_table,
    progress_bar,
)
from coordinator.domain.names import Digest, format_digest, parse_digest
from coordinator.errors import UsageError
from coordinator.settings import DAY, Duration, Time

if TYPE_CHECKING:
    from coordinator.audit.audit import Kind, Progress, Report, Tell
    from coordinator.audit.scrub import Content
    from coordinator.bootstrap import AuditParts
    from coordinator.gc.mark_table import Claim

#: Examples of a kind that are printed for people; --json has more.
SHOWN = 10
#: Blobs of a sample are chosen before any is read, and kept in memory.
SAMPLE_LIMIT = 1_000_000
#: An age is taken from the time of now, and that must be a time.
AGES = Time(0, 3650 * DAY)

_SHOWABLE = (str, int, datetime)

_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)B?(?:/s)?")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

#: Name in the report, what it is for a person, and what to do about it.
_KINDS = (
    ("missing", "needed, and not stored", "push them again, or restore a version: --json names those that there are"),
    ("masked", "of these below a delete marker", "`baleen audit --repair` takes the marker off"),
    ("mended", "delete markers taken off, or copied back from quarantine", ""),
    ("unserved", "served by the table, needed by nobody, and not stored", ""),
    ("found_again", "were missing, and are stored", ""),
    ("wrong_size", "stored with another size than is known", "`baleen audit --verify-content` tells which is right"),
    (
        "orphans",
        "stored, and nobody in the table knows them",
        "a reconcile of the pods may find out whose they are; `baleen audit --take-up-orphans` has the rest collected",
    ),
    ("recent", "stored, not known, and too young to tell", ""),
    (
        "unowned",
        "repositories of no registered pod, which block garbage collection",
        "register the pod, add the prefix to one, or declare it unmanaged: `baleen pods suggest-prefixes`",
    ),
    ("odd_keys", "keys below blobs/ that are no blob's", ""),
    ("abandoned_uploads", "upload sessions that nobody ended", ""),
    ("unfinished_uploads", "uploads in parts that nobody ended", "a lifecycle rule of the bucket can end them"),
)


def register(app: typer.Typer) -> None:
    app.command()(audit)


def audit(
    *,
    mend: Annotated[
        bool,
        typer.Option("--repair", help="Serve needed blobs again that a marker or quarantine conceals; verify a claim."),
    ] = False,
    take_up_orphans: Annotated[
        bool,
        typer.Option("--take-up-orphans", help="Have garbage collection deal with what nobody knows, graces and all."),
    ] = False,
    verify_content: Annotated[
        bool, typer.Option("--verify-content", help="Also read what is stored, and compare it with its digests.")
    ] = False,
    rate: Annotated[str | None, typer.Option(metavar="BYTES", help="Read no more a second, such as 50MB.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, max=SAMPLE_LIMIT, help="Read only so many blobs, chosen at random.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DIGEST", help="Go on with an interrupted reading; compare nothing.")
    ] = None,
    orphans_older_than: Annotated[
        str, typer.Option(help="What is stored and not known counts as left over after this.")
    ] = "24h",
    uploads_older_than: Annotated[str, typer.Option(help="Uploads count as left over after this.")] = "7d",
    json: Json = False,
) -> None:
    """Compare the table with the storage, and record what is missing. Bytes are changed by --repair alone."""
    if not verify_content and (rate is not None or sample is not None or start is not None):
        raise UsageError("--rate, --sample and --from are for reading: add --verify-content.")
    if sample is not None and start is not None:
        raise UsageError("A sample has no order to go on in: leave out --sample or --from.")
    if mend and start is not None:
        raise UsageError("With --from nothing is compared, so nothing can be mended: leave out --repair or --from.")
    if take_up_orphans and start is not None:
        raise UsageError("With --from nothing is compared: leave out --take-up-orphans or --from.")
    first = None if start is None else parse_digest(start)
    speed = None if rate is None else _parse_rate(rate)
    ages = [
        _parse_age("--orphans-older-than", orphans_older_than),
        _parse_age("--uploads-older-than", uploads_older_than),
    ]

    from coordinator import bootstrap  # noqa: PLC0415 - its drivers take a second

    with bootstrap.audit(settings.load()) as parts, _progress() as tell:
        report = None if first is not None else _compare(parts, ages, tell, mend=mend, take_up=take_up_orphans)
        content = _read(parts, first, sample, speed, tell) if verify_content else None
    if json:
        print_json(as_json(report, content))
    else:
        _print(report, content)
    if not all(each.healthy for each in (report, content) if each is not None):
        raise typer.Exit(1)


def _compare(parts: "AuditParts", ages: list[timedelta], tell: "Tell", *, mend: bool, take_up: bool) -> "Report":
    from coordinator.audit.audit import Ages, Audit  # noqa: PLC0415

    return Audit(parts.connections, parts.store, parts.presence, Ages(*ages), mend=mend, take_up=take_up).run(tell)


def _read(parts: "AuditParts", start: Digest | None, sample: int | None, rate: float | None, tell: "Tell") -> "Content":
    from coordinator.audit.scrub import Scrub  # noqa: PLC0415

    scrub = Scrub(parts.connections, parts.store, rate=rate)
    try:
        return scrub.run(start, sample=sample, tell=tell)
    except KeyboardInterrupt:
        at = scrub.content.resume_from
        if at is not None and sample is None:
            notes().print(f"To go on: --from {format_digest(at)}", soft_wrap=True)
        raise


def as_json(report: "Report | None", content: "Content | None") -> dict[str, Any]:
    """The report by names that stay; `comparison` or `content` is null where it was not asked for."""
    compared = report and {
        "blobs": report.blobs,
        "needed": report.needed,
        "objects": report.objects,
        "bytes": report.bytes,
        "taken_up": report.taken_up,
        "claim": report.claim and report.claim._asdict(),
    } | {name: _kind(report, name).as_dict() for name, _, _ in _KINDS}
    read = content and {
        "blobs": content.blobs,
        "bytes": content.bytes,
        "other_bytes": content.other_bytes.as_dict(),
        "unreadable": content.unreadable.as_dict(),
    }
    healthy = all(each.healthy for each in (report, content) if each is not None)
    return {"healthy": healthy, "comparison": compared, "content": read}


def _print(report: "Report | None", content: "Content | None") -> None:
    if report is not None:
        typer.echo(
            f"{counted(report.blobs, 'blob')} in the table, {report.needed:,} of them needed; "
            f"{report.objects:,} stored, {as_bytes(report.bytes)}."
        )
        found = [(name, meaning, todo, _kind(report, name)) for name, meaning, todo in _KINDS]
        _print_kinds([(meaning, todo, kind) for _, meaning, todo, kind in found if kind.count], report.masked)
        if report.taken_up:
            typer.echo(f"{counted(report.taken_up, 'orphan')} taken up: garbage collection has them from now on.")
        if report.healthy:
            typer.echo("Everything that is needed is stored.")
        if report.claim is not None:
            typer.echo(_pending(report.claim))
    if content is not None:
        typer.echo(f"{counted(content.blobs, 'blob')} read, {as_bytes(content.bytes)}.")
        kinds = [
            (
                "stored with other bytes than the digest's",
                "restore `whole version`; without one push again",
                content.other_bytes,
            ),
            ("not readable, while others are", "look at the store's own logs", content.unreadable),
        ]
        _print_kinds([kind for kind in kinds if kind[2].count])
        if content.healthy:
            typer.echo("All of them have the bytes of their digest.")


def _pending(claim: "Claim") -> str:
    """Say what the last claim still needs."""
    waits = "as soon as you like"
    if claim.pods:
        named = ", ".join(claim.pods[:SHOWN]) + (", …" if len(claim.pods) > SHOWN else "")
        waits = f"once these pods are reconciled: {named}"
    return (
        f"The claim of {as_text(claim.claimed_at)} is not verified, and GC stays blocked: run `baleen audit --repair` "
        f"after {as_text(claim.verify_from)}, {waits}."
    )


def _print_kinds(kinds: "list[tuple[str, str, Kind]]", told_already: "Kind | None" = None) -> None:
    if not kinds:
        return
    print_table(
        ("found", "number", "bytes", "what to do"),
        [(meaning, f"{kind.count:,}", as_bytes(kind.bytes), todo or None) for meaning, todo, kind in kinds],
    )
    for meaning, _, kind in kinds:
        if kind is told_already:
            continue
        typer.echo(f"\n{meaning}:")
        for example in kind.examples[:SHOWN]:
            subject, *others = example.items()
            # Lists are for programs.
            told = [
                f"{name.replace('_', ' ')} {as_text(value, name)}"
                for name, value in others
                if isinstance(value, _SHOWABLE)
            ]
            typer.echo(f"  {subject[1]}{'  ' if told else ''}{', '.join(told)}")
        if kind.count > SHOWN:
            typer.echo(f"  and {kind.count - SHOWN:,} more")


def _kind(report: "Report", name: str) -> "Kind":
    kind: Kind = getattr(report, name)
    return kind


@contextmanager
def _progress() -> Iterator["Tell"]:
    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}"),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
    )
    with progress_bar(*columns) as shown:
        task = shown.add_task("connecting", total=None)

        def tell(progress: "Progress") -> None:
            counts = f": {counted(progress.blobs, 'blob')}" if progress.blobs else ""
            size = f", {as_bytes(progress.bytes)}" if progress.bytes else ""
            total = None if progress.done is None else 1.0
            shown.update(task, description=progress.doing + counts + size, total=total, completed=progress.done or 0.0)

        yield tell


def _parse_rate(text: str) -> float:
    match = _BYTES.fullmatch(text.strip())
    speed = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if speed <= 0:
        raise UsageError(f"{text[:100]!r} is not a rate: write bytes a second, such as 50MB.")
    return speed


def _parse_age(name: str, text: str) -> timedelta:
    try:
        return timedelta(seconds=AGES.taken(Duration.parse(text)))
    except ValueError as error:
        raise UsageError(f"{name} {text[:100]!r} is no duration: write {AGES}, such as 24h.") from error
