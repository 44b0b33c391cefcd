"""`baleen`: the entry point, the commands' names, and how a command ends.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage. An error is one sentence on stderr that says what to do.
Not here: what the commands do (coordinator/commands), which ask the API or, where there may be none, the database.
"""

import sys
import traceback
from collections.abc import Sequence

import typer
from typer._click.exceptions import ClickException

from coordinator.commands import blobs, dead_letters, pods, serve, setup, tokens
from coordinator.errors import BaleenError

app = typer.Typer(
    name="baleen",
    help="Event-driven cross-pod blob dedup coordinator for container registries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve.register(app)
setup.register(app)
app.add_typer(blobs.app, name="blob")
app.add_typer(pods.app, name="pods")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(tokens.app, name="tokens")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    try:
        done = app(list(arguments), prog_name="baleen", standalone_mode=False)
    except BaleenError as error:
        return _fail(str(error), error.exit_code)
    except ClickException as error:
        # An empty message is that of a group without a command, whose help is printed.
        return _fail(
            f"{error.format_message()} See `baleen --help`." if error.format_message() else "", error.exit_code
        )
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted.", 1)
    except BrokenPipeError:
        # Whoever read has enough, as `head` does; nothing may be written at exit either.
        sys.stdout = None
        return 0
    except Exception:  # noqa: BLE001 - the last resort: told below, with its trace
        # Plain, since a trace that shows values would show secrets.
        traceback.print_exc()
        return _fail("Baleen failed at something that it does not know: the trace above says where.", 1)
    return done if isinstance(done, int) else 0


def _fail(message: str, code: int) -> int:
    if message:
        sys.stderr.write(f"{message}\n")
    return code


if __name__ == "__main__":
    main()
