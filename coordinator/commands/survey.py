"""`baleen survey`: count what deduplication saves, or would save, in stored registries. Only reads storage.

Not here: the count (survey/survey.py), the picture (commands/plot.py).
"""

import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator import settings
from coordinator.commands import plot as drawing
from coordinator.commands.output import (
    Json,
    format_bytes,
    format_count,
    make_progress_bar,
    print_fields,
    print_json,
    print_table,
    stderr_console,
)
from coordinator.survey.survey import DISK_BYTES_PER_KEY, TOP, Root, RootFigures, Survey, survey_roots

Urls = Annotated[
    list[str], typer.Argument(metavar="URL…", help="s3://bucket/root or file:///dir, which holds docker/registry/v2.")
]
Plot = Annotated[Path | None, typer.Option(help="Draw the figures into this file, .svg or .png.")]
Top = Annotated[int, typer.Option(min=0, max=10_000, help="How many of the largest shared blobs to list.")]
TmpDir = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help=f"Directory for temporary files, about {DISK_BYTES_PER_KEY} MB for a million keys.",
    ),
]
EndpointUrl = Annotated[str | None, typer.Option(help="The S3 endpoint of these buckets.")]


def register(app: typer.Typer) -> None:
    app.command()(survey)


def survey(
    urls: Urls,
    *,
    plot: Plot = None,
    top: Top = TOP,
    tmp_dir: TmpDir = None,
    endpoint_url: EndpointUrl = None,
    json: Json = False,
) -> None:
    """Count what deduplication saves in these buckets or directories. Only reads, and needs no server."""
    from coordinator.compose import store as compose_store  # noqa: PLC0415 - its drivers take a second
    from coordinator.storage.locations import parse_location  # noqa: PLC0415

    draw = None if plot is None else drawing.make_renderer(plot)
    loaded = settings.load()
    locations = [parse_location(url) for url in urls]
    roots = [
        Root(location.url, compose_store.open_location(location, loaded, endpoint_url=endpoint_url))
        for location in locations
    ]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with make_progress_bar(*columns) as progress:
        task = progress.add_task("0 keys")
        lock = threading.Lock()

        def listed(keys: int) -> None:
            with lock:
                elapsed = progress.tasks[task].elapsed or 0
                rate = f", {keys / elapsed:,.0f}/s" if elapsed >= 1 else ""
                progress.update(task, description=f"{keys:,} keys listed{rate}")

        found = survey_roots(roots, top=top, directory=tmp_dir, progress=listed)
    if draw is not None:
        draw(found)
    print_json(as_json(found)) if json else _print_survey(found)
    _print_remarks(found)


def as_json(found: Survey) -> dict[str, Any]:
    """Build the JSON document, whose names are stable."""
    return found._asdict() | {
        "saving_bytes": found.saving_bytes,
        "roots": [asdict(root) for root in found.roots],
        "largest_shared": [blob._asdict() for blob in found.largest_shared],
        "missing_examples": [{"root": url, "digest": digest} for url, digest in found.missing_examples],
        "odd_examples": [{"root": url, "key": key} for url, key in found.odd_examples],
    }


def _print_survey(found: Survey) -> None:
    print_table(
        ("root", "repositories", "blobs", "logical", "stored", "unique", "shared", "in other roots too", "not linked"),
        map(_make_row, found.roots),
    )
    across = format_count(found.cross_root_blobs, "blob")
    typer.echo()
    print_fields(
        {
            "logical": format_bytes(found.logical_bytes),
            "stored": format_bytes(found.stored_bytes),
            "one shared layer": format_bytes(found.shared_layer_bytes),
            "which saves": f"{format_bytes(found.saving_bytes)} ({_percent(found.saving_bytes, found.stored_bytes)})",
            "stored by several roots": f"{format_bytes(found.cross_root_bytes)} in {across}",
            "of one repository only": format_bytes(found.unique_bytes),
        }
    )
    if found.largest_shared:
        typer.echo()
        print_table(
            ("largest shared blobs", "size", "repositories", "roots"),
            [
                (blob.digest, format_bytes(blob.size), f"{blob.repositories:,}", blob.roots)
                for blob in found.largest_shared
            ],
        )


def _make_row(root: RootFigures) -> tuple[str, ...]:
    figures = (
        root.logical_bytes,
        root.stored_bytes,
        root.unique_bytes,
        root.shared_bytes,
        root.cross_root_bytes,
        root.unlinked_bytes,
    )
    return (root.url, f"{root.repositories:,}", f"{root.blobs:,}", *map(format_bytes, figures))


def _print_remarks(found: Survey) -> None:
    """Print on stderr what a registry would not have written; it is no error of the survey."""
    console = stderr_console()
    for root in found.roots:
        if root.missing_blobs:
            console.print(
                f"{root.url}: {format_count(root.missing_blobs, 'blob is', 'blobs are')} linked "
                f"({format_count(root.missing_links, 'link')}) but not stored: not counted.",
                soft_wrap=True,
            )
        if root.odd_keys:
            console.print(
                f"{root.url}: {format_count(root.odd_keys, 'key is', 'keys are')} not a registry's: not counted.",
                soft_wrap=True,
            )
    for url, digest in found.missing_examples:
        console.print(f"  not stored: {digest} in {url}", soft_wrap=True)
    for url, key in found.odd_examples:
        console.print(f"  not a registry's key: {key!r} in {url}", soft_wrap=True)
    if found.conflicting_blobs:
        console.print(
            f"{format_count(found.conflicting_blobs, 'blob is', 'blobs are')} stored with different sizes by several "
            "roots: some copies are damaged, and the largest is counted.",
            soft_wrap=True,
        )


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
