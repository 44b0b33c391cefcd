"""`baleen`: the entry point, the commands' names, and how a command ends.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted. An error is one sentence on stderr that says
what to do.
Imports are inside functions: they take so long that Ctrl-C may come during them, and it must be handled then too.
Not here: what the commands do (coordinator/commands).
"""

import errno
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coordinator import installed_version
from coordinator.errors import BaleenError, UsageError

if TYPE_CHECKING:
    import typer
    from typer._click.exceptions import ClickException

#: Error types of pydantic, which parses the arguments for typer, and our words for them.
_VALUE_ERRORS = {
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
}

#: Exit code of a program that Ctrl-C ended, by the convention of shells.
INTERRUPTED_CODE = 130
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _print_error("Interrupted.", INTERRUPTED_CODE)


def _make_application() -> "typer.Typer":
    import typer  # noqa: PLC0415

    from coordinator.commands import (  # noqa: PLC0415
        adopt,
        audit,
        blobs,
        controls,
        dead_letters,
        gc,
        jobs,
        pods,
        repositories,
        router,
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
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def print_version(asked: bool) -> None:
        if asked:
            sys.stdout.write(f"baleen {installed_version()}\n")
            raise typer.Exit

    @app.callback()
    def _baleen(
        *,
        version: bool = typer.Option(
            False, "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None: ...

    serve.register(app)
    setup.register(app)
    status.register(app)
    survey.register(app)
    adopt.register(app)
    audit.register(app)
    controls.register(app)
    router.register(app)
    app.add_typer(gc.app, name="gc")
    app.add_typer(blobs.app, name="blob")
    app.add_typer(repositories.app, name="repositories")
    app.add_typer(pods.app, name="pods")
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(dead_letters.app, name="dead-letters")
    app.add_typer(tokens.app, name="tokens")
    return app


def _run(arguments: Sequence[str]) -> int:
    try:
        done = _make_application()(list(arguments), prog_name="baleen", standalone_mode=False)
        # Flush here: an error of writing is still reported.
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - each is reported
        return _report_error(error)
    if done == INTERRUPTED_CODE:
        # Typer turns Ctrl-C into this return value.
        return _print_error("Interrupted.", INTERRUPTED_CODE)
    return done if isinstance(done, int) else 0


def _report_error(error: Exception) -> int:
    """Print why a command failed; return its exit code."""
    from typer._click.exceptions import ClickException  # noqa: PLC0415

    message, code = "", 1
    match error:
        case BaleenError():
            message, code = str(error), error.exit_code
        case ClickException():
            # The message is empty for a group without a command: its help is printed.
            message, code = _describe_usage_error(error) if error.format_message() else "", error.exit_code
        case BrokenPipeError():
            # The reader closed the pipe, as `head` does; nothing may be written at exit either.
            sys.stdout = None
            code = 0
        case OSError() if error.errno in _DISK_FULL:
            sys.stdout = None
            message = f"The output cannot be written ({error.strerror}): make room, or write it elsewhere."
        case UnicodeEncodeError():
            message, code = _describe_encoding_error(error)
        case _:
            import traceback  # noqa: PLC0415

            # A plain trace: one that shows values would show secrets.
            traceback.print_exception(error)
            message = "Internal error: report it with the trace above."
    return _print_error(message, code)


def _describe_encoding_error(error: UnicodeEncodeError) -> tuple[str, int]:
    """Say what to do about text that cannot be encoded; return that and the exit code."""
    if error.encoding == "utf-8":
        # Python keeps such bytes of arguments and the environment as surrogates.
        return "An argument or a setting is not valid UTF-8: write it again.", UsageError.exit_code
    return f"The output cannot be written in {error.encoding}: set PYTHONIOENCODING=utf-8.", 1


def _describe_usage_error(error: "ClickException") -> str:
    """Say what is wrong with the arguments, and which `--help` describes them."""
    context: Any = getattr(error, "ctx", None)
    return f"{_describe_value_error(error).rstrip('.')} (see `{context.command_path if context else 'baleen'} --help`)."


def _describe_value_error(error: "ClickException") -> str:
    reader, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is not None and reader is not None and hasattr(reader, "errors"):
        misfit = reader.errors()[0]
        if (words := _VALUE_ERRORS.get(misfit["type"])) is not None:
            return f"{parameter.get_error_hint()} {words.format(**misfit.get('ctx', {}))}"
    return error.format_message().replace("Value error, ", "")


def _print_error(message: str, code: int) -> int:
    if message:
        sys.stderr.write(f"{message}\n")
    return code


if __name__ == "__main__":
    main()
