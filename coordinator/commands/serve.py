"""`baleen up`, `api`, `worker`, `scheduler` and `demo`: run processes."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from coordinator import settings
from coordinator.errors import BaleenError

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The port of the API.")]

LOOPBACK = "127.0.0.1"
PORT = 8640


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(api)
    app.command()(worker)
    app.command()(scheduler)
    app.command()(demo)


def up(
    *,
    data_dir: Annotated[
        Path | None, typer.Option(help="The directory of the state; default BALEEN_DATA_DIR, or .baleen.")
    ] = None,
    host: Host = LOOPBACK,
    port: Port = PORT,
    claim: Annotated[
        str | None,
        typer.Option(
            metavar="WHY",
            help="Claim the bucket first, as `baleen gc claim` does. State why.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation of the claim.")] = False,
) -> None:
    """Run everything on this machine until Ctrl-C. Services that settings name are not started."""
    from coordinator.commands.gc import require_terminal  # noqa: PLC0415
    from coordinator.commands.up import run  # noqa: PLC0415 - the embedded stack is optional

    if claim is not None:
        require_terminal(yes=yes)
    run(
        data_dir,
        host=host,
        port=port,
        claim=None if claim is None else lambda merged: _claim_bucket(merged, claim, yes=yes),
    )


def _claim_bucket(merged: settings.Settings, why: str, *, yes: bool) -> None:
    from coordinator.commands.gc import claim_bucket, describe_claim  # noqa: PLC0415
    from coordinator.commands.output import stderr_console  # noqa: PLC0415

    claimed = claim_bucket(merged, why, yes=yes)
    stderr_console().print(describe_claim(claimed), soft_wrap=True, markup=False, highlight=False)


def api(*, host: Host = LOOPBACK, port: Port = PORT) -> None:
    """Run one API replica."""
    # Imported here: only this command needs the web framework.
    from coordinator import telemetry  # noqa: PLC0415
    from coordinator.api.server import serve  # noqa: PLC0415
    from coordinator.compose import api as compose_api  # noqa: PLC0415
    from coordinator.stack.ports import describe_obstacle  # noqa: PLC0415

    loaded = settings.load()
    if (why := describe_obstacle(host, port)) is not None:
        raise BaleenError(why)
    telemetry.configure_logging(loaded)
    serve(compose_api.make_api(loaded), host=host, port=port, log_level=loaded.log_level)


def worker() -> None:
    """Run one stream worker."""
    # `coordinator` must not import `workers`; and `exec` keeps this process, so that signals reach it.
    os.execv(sys.executable, [sys.executable, "-m", "workers"])  # noqa: S606 - no shell


def scheduler() -> None:
    """Run one scheduler: it probes registries and does jobs such as reconciles. Any number may run."""
    # As for the worker.
    os.execv(sys.executable, [sys.executable, "-m", "workers.scheduler"])  # noqa: S606 - no shell


def demo(
    *, keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False
) -> None:
    """Run two registries on one bucket, and check every step; exit 0 only if all checks pass."""
    from coordinator.demo.run import run_demo  # noqa: PLC0415 - the embedded stack is optional

    run_demo(keep=keep)
