"""`baleen db`, `topics`, `config` and `check`: set up the services, and verify the table.

Drivers are imported by the commands that need them: they take a second, and most commands need none.
"""

from typing import TYPE_CHECKING

import msgspec
import typer
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator import settings
from coordinator.commands.output import Json, format_count, make_progress_bar, print_json, print_table, stderr_console

if TYPE_CHECKING:
    from coordinator.audit.check import CheckReport

db = typer.Typer(help="The database's schema.", no_args_is_help=True)
topics = typer.Typer(help="The Kafka topics.", no_args_is_help=True)
config = typer.Typer(help="The settings.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(db, name="db")
    app.add_typer(topics, name="topics")
    app.add_typer(config, name="config")
    app.command()(check)


@db.command(name="migrate")
def migrate_database(*, json: Json = False) -> None:
    """Migrate the database to the schema of this release; does nothing if it has it."""
    from coordinator.compose import database as compose_database  # noqa: PLC0415
    from coordinator.db import migrate  # noqa: PLC0415
    from coordinator.db.session import translate_errors  # noqa: PLC0415

    with translate_errors():
        migrate.upgrade(compose_database.database_url(settings.load()))
    revision = migrate.wanted_revision()
    print_json({"revision": revision}) if json else typer.echo(f"The database has schema {revision}.")


@topics.command(name="create")
def create_topics(*, json: Json = False) -> None:
    """Create missing topics and verify the others; exit 1 if one has a wrong configuration."""
    from coordinator.kafka.topics import ensure_topics  # noqa: PLC0415

    reports = ensure_topics(settings.load())
    if json:
        print_json({"items": [report._asdict() for report in reports]})
    else:
        print_table(
            ("topic", "created", "partitions", "replication", "to fix"),
            [
                (
                    report.name,
                    report.created,
                    report.partitions,
                    report.replication,
                    [f"{finding.problem} {finding.fix}" for finding in report.findings],
                )
                for report in reports
            ],
        )
    if any(report.replication == 1 for report in reports):
        stderr_console().print(
            "Each event has one copy, on one broker: use this for evaluation only, since events are lost with the "
            "broker's disk.",
            soft_wrap=True,
        )
    if any(report.findings for report in reports):
        raise typer.Exit(1)


@config.command(name="show")
def show_config(*, json: Json = False) -> None:
    """Show the settings in force; of secrets only whether they are set."""
    shown = settings.describe_settings(settings.load())
    print_json(shown) if json else print_table(
        ("setting", "value"), [(f"BALEEN_{name.upper()}", shown[name]) for name in shown]
    )


def check(*, json: Json = False) -> None:
    """Recompute every count from the facts, and compare; exit 1 on a difference."""
    from coordinator.audit.check import check_counts  # noqa: PLC0415
    from coordinator.compose import database as compose_database  # noqa: PLC0415
    from coordinator.db.session import translate_errors  # noqa: PLC0415

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        compose_database.open_database(settings.load(), name="baleen-check", timeout_ms=0) as database,
        translate_errors(),
        make_progress_bar(*columns) as progress,
    ):
        task = progress.add_task("connecting")
        report = check_counts(
            database, lambda what, number, total: progress.update(task, description=f"{number}/{total} {what}")
        )
    print_json(_as_json(report)) if json else _print_report(report)
    if not report.is_healthy:
        raise typer.Exit(1)


def _as_json(report: "CheckReport") -> dict[str, object]:
    return {
        "agrees": report.is_healthy,
        "blobs": report.blobs,
        "references": report.references,
        "differences_count": report.differences_count,
        "differences": [msgspec.to_builtins(difference._asdict()) for difference in report.differences],
    }


def _print_report(report: "CheckReport") -> None:
    if report.is_healthy:
        totals = f"{format_count(report.blobs, 'blob')}, {format_count(report.references, 'reference')}"
        typer.echo(f"All counts agree with the facts: {totals}.")
        return
    print_table(("what", "subject", "stored", "recomputed"), report.differences)
    stderr_console().print(f"{format_count(report.differences_count, 'difference')} between the counts and the facts.")
