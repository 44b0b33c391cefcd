"""`baleen`: the entry point, the commands' names, and how a command ends.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage. An error is one sentence on stderr that says what to do.
Almost everything is imported within, since that takes long enough for a Ctrl-C, which is told as at any other time.
Not here: what the commands do (coordinator/commands), which ask the API or, where there may be none, the database.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coordinator.errors import BaleenError

if TYPE_CHECKING:
    import typer
    from typer._click.exceptions import ClickException

#: What pydantic, which reads the arguments for typer, calls a value that does not fit; in our words.
_MISFITS = {
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _fail("Interrupted.", 1)


def _application() -> "typer.Typer":
    import typer  # noqa: PLC0415

    from coordinator.commands import (  # noqa: PLC0415
        adopt,
        audit,
        blobs,
        dead_letters,
        pods,
        serve,
        setup,
        status,
        survey,
        tokens,
    )

    app = typer.Typer(
        name="baleen",
        help="Event-driven cross-pod blob dedup coordinator for container registries.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    serve.register(app)
    setup.register(app)
    status.register(app)
    survey.register(app)
    adopt.register(app)
    audit.register(app)
    app.add_typer(blobs.app, name="blob")
    app.add_typer(pods.app, name="pods")
    app.add_typer(dead_letters.app, name="dead-letters")
    app.add_typer(tokens.app, name="tokens")
    return app


def _run(arguments: Sequence[str]) -> int:
    from typer import Abort  # noqa: PLC0415
    from typer._click.exceptions import ClickException  # noqa: PLC0415

    try:
        done = _application()(list(arguments), prog_name="baleen", standalone_mode=False)
    except BaleenError as error:
        return _fail(str(error), error.exit_code)
    except ClickException as error:
        # An empty message is that of a group without a command, whose help is printed.
        return _fail(_told(error) if error.format_message() else "", error.exit_code)
    except Abort:
        # What typer makes of Ctrl-C.
        return _fail("Interrupted.", 1)
    except BrokenPipeError:
        # Whoever read has enough, as `head` does; nothing may be written at exit either.
        sys.stdout = None
        return 0
    except Exception:  # noqa: BLE001 - the last resort: told below, with its trace
        import traceback  # noqa: PLC0415

        # Plain, since a trace that shows values would show secrets.
        traceback.print_exc()
        return _fail("Baleen failed at something that it does not know: the trace above says where.", 1)
    return done if isinstance(done, int) else 0


def _told(error: "ClickException") -> str:
    """What is wrong with the arguments, and where one reads what they may be."""
    context: Any = getattr(error, "ctx", None)
    return f"{_wrong(error).rstrip('.')} (see `{context.command_path if context else 'baleen'} --help`)."


def _wrong(error: "ClickException") -> str:
    reader, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is not None and reader is not None and hasattr(reader, "errors"):
        misfit = reader.errors()[0]
        if (words := _MISFITS.get(misfit["type"])) is not None:
            return f"{parameter.get_error_hint()} {words.format(**misfit.get('ctx', {}))}"
    return error.format_message().replace("Value error, ", "")


def _fail(message: str, code: int) -> int:
    if message:
        sys.stderr.write(f"{message}\n")
    return code


if __name__ == "__main__":
    main()
