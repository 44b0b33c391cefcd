"""`baleen dead-letters`: events that could not be applied."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from coordinator import settings
from coordinator.client import PAGE_LIMIT, Api, connect_api
from coordinator.commands.blobs import Cursor, Limit, PodFilter
from coordinator.commands.output import Json, format_count, print_fields, print_json, print_page, stderr_console
from coordinator.errors import BaleenError, UnavailableError, UsageError

app = typer.Typer(help="Events that could not be applied. They block garbage collection.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="As `list` shows it.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[ID…]", min=1, max=2**63 - 1, help="As `list` shows them.")
]
OpenOfPod = Annotated[str | None, typer.Option("--pod", help="All open ones of this pod.")]
OfReason = Annotated[str | None, typer.Option("--reason", help="All open ones with this reason, as `list` shows it.")]

#: Refusals that are printed one by one.
REFUSALS_SHOWN = 20
#: The reason of letters whose retry may become a dead letter again (workers/contents.py).
UNREADABLE = "unreadable-manifest"


@app.command(name="list")
def list_dead_letters(
    *,
    pod: PodFilter = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Also resolved ones.")] = False,
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """List dead letters, the oldest first."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/dead-letters", limit, cursor, pod=pod, resolved=str(resolved).lower())
    columns = ("id", "pod", "reason", "received_at", "repositories", "resolution", "detail")
    print_page(page, columns, json=json)


@app.command()
def show(number: Number, *, json: Json = False) -> None:
    """Show one dead letter, with what was sent."""
    with connect_api(settings.load()) as api:
        dead_letter = api.get(f"/v1/dead-letters/{number}")
    print_json(dead_letter) if json else print_fields(dead_letter)


@app.command()
def retry(numbers: Numbers = None, *, pod: OpenOfPod = None, reason: OfReason = None, json: Json = False) -> None:
    """Read dead letters again, and publish their events; for example after a prefix was added."""

    def resolve(api: Api, number: int) -> tuple[Any, str]:
        # Only needed where a sentence is printed for each.
        kind = api.get(f"/v1/dead-letters/{number}")["reason"] if numbers and not json else None
        answer = api.post(f"/v1/dead-letters/{number}/retry")
        published = format_count(answer["events"], "event is", "events are")
        again = " If its manifest still cannot be read, that is a new dead letter." if kind == UNREADABLE else ""
        return answer, f"Dead letter {number} is resolved: {published} published.{again}"

    _resolve_all(numbers, pod, reason, resolve, json=json)


@app.command()
def discard(
    numbers: Numbers = None,
    *,
    why: Annotated[str, typer.Option(help="The reason, kept with each of them.")],
    pod: OpenOfPod = None,
    reason: OfReason = None,
    json: Json = False,
) -> None:
    """Discard dead letters. A gap takes their place until the pods concerned are reconciled.

    Refused while storage has a repository that a letter names and that no registered pod lists.
    """

    def resolve(api: Api, number: int) -> tuple[Any, str]:
        dead_letter = api.post(f"/v1/dead-letters/{number}/discard", {"why": why})
        return dead_letter, f"Dead letter {number} is discarded."

    _resolve_all(numbers, pod, reason, resolve, json=json)


def _resolve_all(
    numbers: list[int] | None,
    pod: str | None,
    reason: str | None,
    resolve: Callable[[Api, int], tuple[Any, str]],
    *,
    json: bool,
) -> None:
    """Resolve these, or all open ones that match, one by one. A refusal is printed and does not stop the rest."""
    chosen = pod is not None or reason is not None
    if bool(numbers) == chosen:
        raise UsageError("Name dead letters by their IDs, or select open ones with --pod, --reason or both.")
    with connect_api(settings.load()) as api:
        if numbers is not None and len(numbers) == 1:
            answer, sentence = resolve(api, numbers[0])
            print_json(answer) if json else typer.echo(sentence)
            return
        # List all before resolving the first: a retry may make a new dead letter.
        wanted = list(dict.fromkeys(numbers or _find_open_numbers(api, pod, reason)))
        answers: list[Any] = []
        refused = 0
        try:
            for number in wanted:
                try:
                    answer, sentence = resolve(api, number)
                except UnavailableError:
                    raise
                except BaleenError as error:
                    refused += 1
                    if refused <= REFUSALS_SHOWN:
                        stderr_console().print(f"Dead letter {number}: {error}", soft_wrap=True)
                    continue
                answers.append({"id": number, **answer})
                if numbers and not json:
                    typer.echo(sentence)
        finally:
            if json:
                print_json({"items": answers})
            else:
                typer.echo(f"{len(answers):,} of {format_count(len(wanted), 'dead letter')} resolved.")
    if refused:
        raise typer.Exit(1)


def _find_open_numbers(api: Api, pod: str | None, reason: str | None) -> list[int]:
    found: list[int] = []
    cursor: str | None = None
    while True:
        page = api.get_pages("/v1/dead-letters", PAGE_LIMIT, cursor, pod=pod)
        found += [each["id"] for each in page["items"] if reason in {None, each["reason"]}]
        cursor = page["next"]
        if cursor is None:
            return found
