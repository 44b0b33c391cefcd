"""`baleen pods`: the registries that Baleen serves."""

import hashlib
import re
import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from coordinator import settings
from coordinator.commands import jobs
from coordinator.commands.blobs import Cursor, Limit
from coordinator.commands.client import connected
from coordinator.commands.doctor import doctor
from coordinator.commands.output import Json, notes, print_fields, print_json, print_page, print_table
from coordinator.domain.names import parse_pod, parse_repository
from coordinator.domain.pods import Linker, PodMode, parse_registry
from coordinator.errors import BaleenError, UnconfiguredError, UsageError
from coordinator.pods import configuration
from coordinator.pods.configuration import Store
from coordinator.settings import Settings

app = typer.Typer(help="The registries that Baleen serves.", no_args_is_help=True)
app.command()(jobs.reconcile)
app.command()(doctor)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
CHECK_TIMEOUT_S = 5.0
SOURCE_COLUMNS = (
    "instance_id",
    "state",
    "watermark",
    "heard_at",
    "dead_since",
    "dead_why",
    "retired_why",
    "partitions",
)
ENDPOINT_COLUMNS = ("url", "address", "source", "echoed_at", "answered_at", "shared", "failing_since", "error")
SENTENCES = ("waits_for", "held_by")
FINDING_COLUMNS = ("check", "verdict", "meaning", "found_at")
#: What `show` prints below the fields.
TABLES = {"sources": SOURCE_COLUMNS, "endpoints": ENDPOINT_COLUMNS, "findings": FINDING_COLUMNS}

Name = Annotated[str, typer.Argument(metavar="NAME", help="The pod: lower-case letters, digits and hyphens.")]

NoCheck = Annotated[bool, typer.Option("--no-check", help="Also a registry that does not run yet.")]


@app.command()
def add(
    name: Name,
    *,
    prefix: Annotated[list[str], typer.Option(help="Owns this repository and those below it. May be given again.")],
    registry: Annotated[list[str] | None, typer.Option(help="A registry's URL. May be given again.")] = None,
    linker: Annotated[Linker, typer.Option(help="How the pod learns of a mounted blob.")] = Linker.LINK,
    mode: Annotated[PodMode, typer.Option(help="What keeps a blob alive in the pod.")] = PodMode.MANIFEST,
    no_check: NoCheck = False,
    json: Json = False,
) -> None:
    """Register a pod, and print its token and its registry's configuration: now, and never again.

    Give a URL for every process of the registry; a name with several addresses stands for all of them.
    """
    loaded = settings.load()
    registries = [str(parse_registry(each)) for each in registry or []]
    body = {
        "name": parse_pod(name),
        "prefixes": [parse_repository(each) for each in prefix],
        "registries": registries,
        "linker": linker,
        "mode": mode,
    }
    with connected(loaded) as api:
        if not no_check:
            check_registries(loaded, registries)
        answer = api.post("/v1/pods", body)
    _print_token(answer, json=json)


@app.command(name="list")
def list_pods(*, limit: Limit = 1000, cursor: Cursor = None, json: Json = False) -> None:
    """List pods, and how much is open for each."""
    with connected(settings.load()) as api:
        page = api.pages("/v1/pods", limit, cursor)
    columns = ("name", "prefixes", "mode", "linker", "repositories", "dead_letters", "held_by")
    print_page(page, columns, json=json)


@app.command()
def show(name: Name, *, json: Json = False) -> None:
    """Show one pod: its processes and how far each has reported, and what holds garbage collection for it."""
    with connected(settings.load()) as api:
        pod = api.get(f"/v1/pods/{parse_pod(name)}")
    if json:
        print_json(pod)
        return
    print_fields({name: value for name, value in pod.items() if name not in {*SENTENCES, *TABLES}})
    for what in SENTENCES:
        sys.stdout.write(f"\n{what.replace('_', ' ')}{'' if pod[what] else ' nothing'}\n")
        sys.stdout.writelines(f"  {sentence}\n" for sentence in pod[what])
    for what, columns in TABLES.items():
        sys.stdout.write(f"\n{what}\n")
        print_table(
            [name.replace("_", " ") for name in columns],
            [[_cell(each[name]) for name in columns] for each in pod[what]],
        )


@app.command(name="config")
def print_config(
    name: Name,
    *,
    with_secrets: Annotated[
        bool, typer.Option("--with-secrets", help="Also the store's keys, and a secret for uploads.")
    ] = False,
    token_file: Annotated[
        typer.FileText | None, typer.Option(help="The pod's token, as `add` showed it; - reads it from stdin.")
    ] = None,
) -> None:
    """Print a whole configuration for the pod's registry: the store as it is set here, and where its events go.

    In place of secrets that are not asked for or not known stand words in capitals.
    """
    loaded = settings.load()
    with connected(loaded) as api:
        pod = api.get(f"/v1/pods/{parse_pod(name)}")
    registries = [parse_registry(url) for url in pod["registries"]]
    told = configuration.whole(
        _store(loaded, with_secrets=with_secrets),
        configuration.listening(registries[0] if registries else None),
        f"{(loaded.url or '').rstrip('/')}/v1/events/{pod['name']}",
        configuration.TOKEN if token_file is None else _token(token_file.read()),
    )
    sys.stdout.write(told)


def _store(loaded: Settings, *, with_secrets: bool) -> Store:
    """The store as a pod's registry is to find it: with the pod's key where that is set, else with Baleen's."""
    if loaded.s3_bucket is None:
        raise UnconfiguredError("No bucket is known: start `baleen up` in this directory, or set BALEEN_S3_BUCKET.")
    store = Store(loaded.s3_bucket, loaded.s3_root, loaded.s3_region, loaded.s3_endpoint_url)
    access_key, secret_key = loaded.s3_access_key, loaded.s3_secret_key
    if loaded.pod_access_key is not None:
        access_key, secret_key = loaded.pod_access_key, loaded.pod_secret_key
    if access_key is not None:
        store = store._replace(access_key=access_key)
    if with_secrets and secret_key is not None:
        store = store._replace(secret_key=secret_key.reveal())
    if with_secrets and loaded.s3_secret_key is not None:
        # Of Baleen's own key, so that it comes out the same for every pod.
        made = hashlib.sha256(f"http.secret {loaded.s3_secret_key.reveal()}".encode())
        store = store._replace(http_secret=made.hexdigest())
    return store


def _token(text: str) -> str:
    try:
        return str(settings.TOKEN.taken(text.strip()))
    except ValueError as error:
        raise UsageError(f"--token-file is malformed: it must hold {settings.TOKEN}.") from error


@app.command(name="add-prefix")
def add_prefix(
    name: Name,
    prefix: Annotated[list[str], typer.Argument(metavar="PREFIX…", help="Owns this repository and those below it.")],
    *,
    json: Json = False,
) -> None:
    """Let a pod own further prefixes. It is reconciled then, by itself: what it has there is not known before."""
    prefixes = [parse_repository(each) for each in prefix]
    with connected(settings.load()) as api:
        pod = api.post(f"/v1/pods/{parse_pod(name)}/prefixes", {"prefixes": prefixes})
    print_json(pod) if json else typer.echo(f"Pod {name} owns {', '.join(pod['prefixes'])}.")


@app.command(name="set-registries")
def set_registries(
    name: Name,
    *,
    registry: Annotated[list[str], typer.Option(help="A registry's URL. May be given again.")],
    no_check: NoCheck = False,
    json: Json = False,
) -> None:
    """Say where a pod's registry listens now: all of its URLs, in place of those before."""
    loaded = settings.load()
    registries = [str(parse_registry(each)) for each in registry]
    with connected(loaded) as api:
        if not no_check:
            check_registries(loaded, registries)
        pod = api.put(f"/v1/pods/{parse_pod(name)}/registries", {"registries": registries})
    print_json(pod) if json else typer.echo(f"Pod {name} has the registries {', '.join(registries)}.")


@app.command(name="retire-source")
def retire_source(
    name: Name,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="As `show` lists it.")],
    *,
    why: Annotated[str, typer.Option(help="How you know that it runs no more. Kept with it.")],
    json: Json = False,
) -> None:
    """Let a process of a pod's registry count no more. Only of one that you have seen end."""
    with connected(settings.load()) as api:
        pod = api.post(f"/v1/pods/{parse_pod(name)}/sources/{quote(instance, safe='')}/retire", {"why": why})
    print_json(pod) if json else typer.echo(f"Process {instance} of pod {name} counts no more.")


@app.command()
def remove(name: Name, *, json: Json = False) -> None:
    """Forget a pod that holds nothing and has nothing open."""
    with connected(settings.load()) as api:
        api.delete(f"/v1/pods/{parse_pod(name)}")
    print_json({"pod": name, "removed": True}) if json else typer.echo(f"Pod {name} is removed.")


@app.command(name="rotate-token")
def rotate_token(name: Name, *, json: Json = False) -> None:
    """Give a pod another event token; the old one is refused within seconds."""
    with connected(settings.load()) as api:
        answer = api.post(f"/v1/pods/{parse_pod(name)}/token")
    _print_token(answer, json=json)


def _cell(value: Any) -> Any:
    """A time to the second; of partitions the time of day, since there are many."""
    if isinstance(value, dict):
        return [f"{number}: {time[11:19]}" for number, time in value.items()]
    if isinstance(value, str) and _TIME.match(value):
        return value[:19].replace("T", " ")
    return value


def check_registries(loaded: Settings, urls: list[str]) -> None:
    """Raise BaleenError if one of the registries does not answer as registries do, from here."""
    # Only this command speaks with registries.
    from coordinator import bootstrap  # noqa: PLC0415
    from coordinator.pods.registry_client import RegistryClient, RegistryError  # noqa: PLC0415

    credentials = bootstrap.registry_credentials(loaded)
    for url in urls:
        told = "--no-check registers it all the same."
        with RegistryClient(
            url, credentials=credentials, ca_file=loaded.registry_ca_file, timeout=CHECK_TIMEOUT_S
        ) as client:
            try:
                client.ping()
            except RegistryError as error:
                if credentials is not None or error.registry_status not in {401, 403}:
                    raise BaleenError(f"{error} {told}") from error
                notes().print(
                    f"The registry {url} wants to know who asks: give BALEEN_REGISTRY_USERNAME and "
                    "BALEEN_REGISTRY_PASSWORD to `baleen scheduler`.",
                    soft_wrap=True,
                )


def _print_token(answer: dict[str, str], *, json: bool) -> None:
    if json:
        print_json(answer)
        return
    sys.stdout.write(
        f"Pod {answer['pod']}'s notifications must carry this token. It is shown now and never again:\n\n"
        f"  {answer['event_token']}\n\n"
        f"Paste this into the configuration of the registry, and restart it:\n\n{answer['registry_config']}"
    )
