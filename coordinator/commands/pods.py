"""`baleen pods`: register, configure, examine and remove pods."""

import getpass
import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TextIO
from urllib.parse import quote, urlsplit

import typer

from coordinator import settings
from coordinator.client import Api, connect_api
from coordinator.commands import jobs
from coordinator.commands.blobs import Cursor, Limit
from coordinator.commands.doctor import doctor
from coordinator.commands.findings import print_findings
from coordinator.commands.output import (
    Json,
    format_count,
    format_value,
    print_json,
    print_page,
    stderr_console,
    wrap_text,
)
from coordinator.commands.suggest_prefixes import suggest_prefixes
from coordinator.domain.findings import Finding, Result
from coordinator.domain.hosts import is_address, is_loopback
from coordinator.domain.names import parse_pod, parse_repository
from coordinator.domain.pods import PodKind, PodMode, ProbeMethod, RegistryUrl, parse_registry, parse_token_url
from coordinator.errors import BaleenError, UnconfiguredError, UsageError
from coordinator.pods import configuration, policy
from coordinator.pods.configuration import Store
from coordinator.settings import Settings

app = typer.Typer(help="The registries that Baleen serves.", no_args_is_help=True)
app.command()(jobs.reconcile)
app.command()(doctor)
app.command(name="suggest-prefixes")(suggest_prefixes)

CHECK_TIMEOUT_S = 5.0
#: Characters that are read of a token file.
TOKEN_FILE_LIMIT = 10_000
#: More than there are.
ALL_PODS = 100_000
FORBIDDEN = 403
SKIP_CHECK = "Pass --no-check to register it anyway."
#: Stands for a pod's name in a principal.
POD_FIELD = "{pod}"
TOKEN_OPTIONS = ("--token-url", "--token-issuer", "--token-service", "--token-keys")
#: What `show` prints below the fields: lists of sentences, and objects that are too wide for a table, with the fields
#: of their first lines.
SENTENCES = {"waits_for": "waits for", "blocked_by": "GC blocked by"}
BLOCKS = {"processes": ("instance_id", "state"), "endpoints": ("url", "address")}

PROBE_HELP = "How Baleen probes the registry; `pull` where it may not push."

Name = Annotated[str, typer.Argument(metavar="NAME", help="The pod: lower-case letters, digits and hyphens.")]

TokenUrl = Annotated[str | None, typer.Option(help="The registry's token issuer: `auth.token.realm` until now.")]
IssuerName = Annotated[str | None, typer.Option("--token-issuer", help="`iss` of the issuer's tokens.")]
Service = Annotated[str | None, typer.Option("--token-service", help="`aud` of the issuer's tokens.")]
KeysFile = Annotated[
    Path | None,
    typer.Option("--token-keys", help="The issuer's public keys: a file of PEM (keys or certificates) or a JWKS."),
]
OfRepository = Annotated[str | None, typer.Option(help="Only of this repository.")]
By = Annotated[str | None, typer.Option(help="Who declares the pod unmanaged. Default: your user name.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Accept a registry that does not run yet.")]


@app.command()
def add(
    name: Name,
    *,
    prefix: Annotated[
        list[str], typer.Option(help="The pod owns this repository and those below it. May be repeated.")
    ],
    registry: Annotated[list[str] | None, typer.Option(help="A registry's URL. May be repeated.")] = None,
    kind: Annotated[
        PodKind,
        typer.Option(
            help="Where it keeps its links: link (in the bucket), gitlab (in GitLab's database), relay (elsewhere)."
        ),
    ] = PodKind.LINK,
    mode: Annotated[PodMode, typer.Option(help="What keeps a blob alive in the pod.")] = PodMode.MANIFEST,
    probe: Annotated[ProbeMethod, typer.Option(help=PROBE_HELP)] = ProbeMethod.PUSH,
    token_url: TokenUrl = None,
    token_issuer: IssuerName = None,
    token_service: Service = None,
    token_keys: KeysFile = None,
    unmanaged: Annotated[
        bool, typer.Option("--unmanaged", help="Its registry sends no events; Baleen relies on reconciles.")
    ] = False,
    why: Annotated[str | None, typer.Option(help="With --unmanaged: why it sends none. Kept with the pod.")] = None,
    by: By = None,
    no_check: NoCheck = False,
    json: Json = False,
) -> None:
    """Register a pod, and print its event token, which is never shown again, and its registry's configuration.

    Give a URL for every process of the registry; a name with several addresses stands for all of them. Where Baleen
    issues tokens, the four options `--token-…` describe the pod's own issuer; see docs/TOKENS.md.
    """
    loaded = settings.load()
    registries = [str(parse_registry(each)) for each in registry or []]
    issuer = _make_issuer(token_url, token_issuer, token_service, token_keys)
    body = {
        "name": parse_pod(name),
        "prefixes": [parse_repository(each) for each in prefix],
        "registries": registries,
        "kind": kind,
        "mode": mode,
        "probe": probe,
        "token_issuer": issuer,
    }
    if unmanaged != (why is not None):
        raise UsageError("--unmanaged and --why belong together: give both, or neither.")
    if why is not None:
        body["unmanaged"] = {"why": why, "by": by or _user_name()}
    with connect_api(loaded) as api:
        if not no_check:
            check_registries(loaded, api, name, registries)
        answer = api.post("/v1/pods", body)
    if unmanaged:
        print_json(answer) if json else typer.echo(_UNMANAGED.format(name=name))
    else:
        _print_token(answer, json=json)
    _warn_of_no_tls(issuer)
    if unmanaged and not registries:
        stderr_console().print(
            "No registry is listed, so Baleen cannot verify that it has no descriptor cache, and GC stays blocked. "
            f"List the address of each process with `baleen pods set-registries {name}`.",
            soft_wrap=True,
        )
    elif not registries:
        stderr_console().print(
            "No registry is listed, so Baleen cannot probe how far the pod has reported, and GC is blocked. "
            f"List the address of each process with `baleen pods set-registries {name}`.",
            soft_wrap=True,
        )


@app.command(name="list")
def list_pods(*, limit: Limit = 1000, cursor: Cursor = None, json: Json = False) -> None:
    """List pods, with the number of reasons for which each blocks garbage collection."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/pods", limit, cursor)
    if not json:
        # `show` prints the sentences.
        page["items"] = [pod | {"blocked_by": _format_reasons(len(pod["blocked_by"]))} for pod in page["items"]]
    columns = ("name", "prefixes", "mode", "kind", "repositories", "dead_letters", "blocked_by")
    print_page(page, columns, json=json)


@app.command()
def show(name: Name, *, json: Json = False) -> None:
    """Show one pod: its registry processes, how far each has reported, and why it blocks garbage collection."""
    with connect_api(settings.load()) as api:
        pod = api.get(f"/v1/pods/{parse_pod(name)}")
    if json:
        print_json(pod)
        return
    below = {*SENTENCES, *BLOCKS, "findings", "wrong_token"}
    fields = {each: value for each, value in pod.items() if each not in below}
    width = max(map(len, fields))
    for each, value in fields.items():
        line = f"{each.replace('_', ' '):<{width}}  {format_value(value, each)}"
        sys.stdout.write(f"{wrap_text(line, width + 2)}\n")
    for what, title in SENTENCES.items():
        sys.stdout.write(f"\n{title}{'' if pod[what] else ' nothing'}\n")
        sys.stdout.writelines(f"  {wrap_text(sentence, 4)}\n" for sentence in pod[what])
    if pod["wrong_token"] is not None:
        sys.stdout.write(f"\nwrong token\n  {wrap_text(pod['wrong_token']['sentence'], 4)}\n")
    for what, first in BLOCKS.items():
        sys.stdout.write(f"\n{what}{'' if pod[what] else ' none'}\n")
        for each in pod[what]:
            sys.stdout.write(_format_block(each, first))
    _print_findings(pod)


def _format_block(thing: dict[str, Any], first: tuple[str, ...]) -> str:
    """Print the first fields in one line, and the others below it."""
    rest = "; ".join(
        f"{name.replace('_', ' ')} {format_value(_shorten_times(value), name)}"
        for name, value in thing.items()
        if name not in first and value not in (None, {}, [])
    )
    return f"  {'  '.join(thing[name] for name in first)}\n" + (f"    {wrap_text(rest, 4)}\n" if rest else "")


def _print_findings(pod: dict[str, Any]) -> None:
    found = [
        Finding(each["check"], Result(each["result"]), each["meaning"], each["proof"], each["fix"])
        for each in pod["findings"]
    ]
    if not found:
        sys.stdout.write(f"\nfindings none: run `baleen pods doctor {pod['name']}`\n")
        return
    sys.stdout.write(f"\nfindings of {format_value(pod['findings'][0]['found_at'])}\n")
    print_findings(found, with_proofs=False)


def _format_reasons(number: int) -> str:
    return "nothing" if not number else f"{number} reason{'' if number == 1 else 's'}"


@app.command(name="config")
def print_config(
    name: Name,
    *,
    with_secrets: Annotated[
        bool, typer.Option("--with-secrets", help="Print the store's keys and a secret for uploads, too.")
    ] = False,
    token_file: Annotated[
        typer.FileText | None, typer.Option(help="A file with the pod's token, as `add` printed it; - is stdin.")
    ] = None,
    row_collector: Annotated[
        bool,
        typer.Option(
            "--row-collector", help="Kind gitlab: print that of the extra process that deletes rows, and no bytes."
        ),
    ] = False,
) -> None:
    """Print a whole configuration for the pod's registry, with the store that is set here and Baleen's address.

    Words in capitals stand for secrets that were not requested or are not known.
    """
    loaded = settings.load()
    with connect_api(loaded) as api:
        pod = api.get(f"/v1/pods/{parse_pod(name)}")
        has_database = PodKind(pod["kind"]).has_registry_database
        if row_collector:
            if not has_database:
                raise UsageError(f"Pod {name} is of kind {pod['kind']}: only registries with a database have rows.")
            sys.stdout.write(configuration.row_collector_configuration())
            return
        token = configuration.TOKEN if token_file is None else _read_token(api, pod["name"], token_file)
    registries = [parse_registry(url) for url in pod["registries"]]
    text = configuration.whole_configuration(
        _make_store(loaded, with_secrets=with_secrets),
        configuration.listen_address(registries[0] if registries else None),
        f"{(loaded.url or '').rstrip('/')}/v1/events/{pod['name']}",
        token,
        ProbeMethod(pod["probe"]),
        database=has_database,
    )
    sys.stdout.write(text)
    if not registries:
        stderr_console().print(
            f"No registry of pod {pod['name']} is listed: the port in `http.addr` is a placeholder.", soft_wrap=True
        )


@app.command(name="policy")
def print_policy(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="The pod; with --principal several.")],
    *,
    principal: Annotated[
        str | None,
        typer.Option(help="Print a bucket policy for this principal; {pod} stands for each pod's name."),
    ] = None,
) -> None:
    """Print the S3 policy for the key of a pod's registry: `blobs/` without deletes, and the pod's own prefixes.

    Without --principal it is a policy of one user. With it, it is the bucket's only policy: name all pods of that
    bucket. Print it again when prefixes change.
    """
    pods = list(dict.fromkeys(str(parse_pod(name)) for name in names))
    if len(pods) > 1 and (principal is None or POD_FIELD not in principal):
        raise UsageError(f"Several pods need --principal with {POD_FIELD} in it.")
    loaded = settings.load()
    bucket = _require_bucket(loaded)
    with connect_api(loaded) as api:
        found = {name: api.get(f"/v1/pods/{name}") for name in pods}
    keys = {
        name: policy.KeyOwner(pod["prefixes"], has_lock_files=PodKind(pod["kind"]).has_registry_database)
        for name, pod in found.items()
    }
    if principal is None:
        print_json(policy.pod_policy(bucket, loaded.s3_root, keys[pods[0]]))
        return
    of_each = {principal.replace(POD_FIELD, name): owner for name, owner in keys.items()}
    print_json(policy.bucket_policy(bucket, loaded.s3_root, of_each))


def _require_bucket(loaded: Settings) -> str:
    if loaded.s3_bucket is None:
        raise UnconfiguredError("No bucket is known: start `baleen up` in this directory, or set BALEEN_S3_BUCKET.")
    return loaded.s3_bucket


def _make_store(loaded: Settings, *, with_secrets: bool) -> Store:
    """Return the store for a pod's registry: with the pod's key if that is set, else with Baleen's."""
    store = Store(_require_bucket(loaded), loaded.s3_root, loaded.s3_region, loaded.s3_endpoint_url)
    access_key, secret_key = loaded.s3_access_key, loaded.s3_secret_key
    if loaded.pod_access_key is not None:
        access_key, secret_key = loaded.pod_access_key, loaded.pod_secret_key
    if access_key is not None:
        store = store._replace(access_key=access_key)
    if with_secrets and secret_key is not None:
        store = store._replace(secret_key=secret_key.reveal())
    if with_secrets and loaded.s3_secret_key is not None:
        # Derived from Baleen's own key, so that it is the same for every pod.
        made = hashlib.sha256(f"http.secret {loaded.s3_secret_key.reveal()}".encode())
        store = store._replace(http_secret=made.hexdigest())
    return store


def _read_token(api: Api, pod: str, file: TextIO) -> str:
    """Read the token from this file; raises UsageError, and BaleenError if it is not the pod's."""
    try:
        token = str(settings.TOKEN.parse(file.read(TOKEN_FILE_LIMIT).strip()))
    except ValueError as error:
        raise UsageError(f"--token-file is malformed: it must hold {settings.TOKEN}.") from error
    if not api.post(f"/v1/pods/{pod}/token/check", {"token": token})["is_of_pod"]:
        raise BaleenError(
            f"--token-file does not have the token of pod {pod}, so its events would be refused: give the one that "
            f"`baleen pods add` printed, or create another with `baleen pods rotate-token {pod}`."
        )
    return token


@app.command(name="add-prefix")
def add_prefix(
    name: Name,
    prefix: Annotated[
        list[str], typer.Argument(metavar="PREFIX…", help="The pod owns this repository and those below it.")
    ],
    *,
    json: Json = False,
) -> None:
    """Add prefixes to a pod. A reconcile then finds what the pod already has there.

    The policy of its registry's key changes, too: print it with `baleen pods policy NAME`.
    """
    prefixes = [parse_repository(each) for each in prefix]
    with connect_api(settings.load()) as api:
        pod = api.post(f"/v1/pods/{parse_pod(name)}/prefixes", {"prefixes": prefixes})
    print_json(pod) if json else typer.echo(f"Pod {name} owns {', '.join(pod['prefixes'])}.")
    stderr_console().print(
        f"Give the key of its registry the policy that `baleen pods policy {name}` prints now: the previous one does "
        "not permit the new prefixes.",
        soft_wrap=True,
    )


@app.command(name="set-registries")
def set_registries(
    name: Name,
    *,
    registry: Annotated[list[str], typer.Option(help="A registry's URL. May be repeated.")],
    no_check: NoCheck = False,
    json: Json = False,
) -> None:
    """Replace the list of a pod's registry URLs."""
    loaded = settings.load()
    registries = [str(parse_registry(each)) for each in registry]
    with connect_api(loaded) as api:
        if not no_check:
            check_registries(loaded, api, name, registries)
        pod = api.put(f"/v1/pods/{parse_pod(name)}/registries", {"registries": registries})
    print_json(pod) if json else typer.echo(f"Pod {name} has the registries {', '.join(registries)}.")


@app.command(name="set-probe")
def set_probe(
    name: Name,
    probe: Annotated[ProbeMethod, typer.Argument(help=PROBE_HELP)],
    *,
    json: Json = False,
) -> None:
    """Choose whether a pod's registry is probed by pushes or pulls, and print what its notifications must ignore.

    GC is blocked until `baleen pods doctor` has examined the pod again.
    """
    with connect_api(settings.load()) as api:
        pod = api.put(f"/v1/pods/{parse_pod(name)}/probe", {"probe": probe})
    if json:
        print_json(pod)
        return
    if probe is ProbeMethod.PUSH:
        typer.echo(
            f"Pod {name} is probed by pushes. Make its registry ignore pulls in `notifications.endpoints`, and restart "
            f"it:\n{configuration.IGNORE_PULLS.rstrip()}"
        )
    else:
        typer.echo(
            f"Pod {name} is probed by pulls. Remove `ignore` from `notifications.endpoints` of its registry, and "
            "restart it."
        )
    typer.echo(f"Then run `baleen pods doctor {name}`: GC is blocked until the pod has been examined.")


@app.command(name="set-managed")
def set_managed(name: Name, *, json: Json = False) -> None:
    """Declare that a pod's registry sends events from now on. Then run `rotate-token` for its configuration."""
    with connect_api(settings.load()) as api:
        pod = api.put(f"/v1/pods/{parse_pod(name)}/managed", {"unmanaged": None})
    print_json(pod) if json else typer.echo(
        f"Pod {name} is managed: give its registry the notifications that `baleen pods rotate-token {name}` prints. "
        f"Then run `baleen pods doctor {name}`."
    )


@app.command(name="set-unmanaged")
def set_unmanaged(
    name: Name,
    *,
    why: Annotated[str, typer.Option(help="Why its registry sends no events. Kept with the pod.")],
    by: By = None,
    json: Json = False,
) -> None:
    """Declare that a pod's registry sends no events: Baleen then relies on reconciles."""
    with connect_api(settings.load()) as api:
        pod = api.put(f"/v1/pods/{parse_pod(name)}/managed", {"unmanaged": {"why": why, "by": by or _user_name()}})
    print_json(pod) if json else typer.echo(_UNMANAGED.format(name=name))


_UNMANAGED = (
    "Pod {name} is unmanaged: it needs no token, and each collection waits for a reconcile of it. Run `baleen pods "
    "doctor {name}`: GC is blocked until it is proved that its registry has no descriptor cache."
)


def _user_name() -> str:
    """Return the user's name by the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("The operating system does not know your user name: pass --by.") from error


@app.command(name="set-issuer")
def set_issuer(
    name: Name,
    *,
    token_url: TokenUrl = None,
    token_issuer: IssuerName = None,
    token_service: Service = None,
    token_keys: KeysFile = None,
    none: Annotated[bool, typer.Option("--none", help="Issue no more tokens for this pod.")] = False,
    json: Json = False,
) -> None:
    """Set the token issuer of a pod's registry."""
    issuer = _make_issuer(token_url, token_issuer, token_service, token_keys)
    if (issuer is None) != none:
        raise UsageError(f"Give {', '.join(TOKEN_OPTIONS)}, or --none alone.")
    path = f"/v1/pods/{parse_pod(name)}/token-issuer"
    with connect_api(settings.load()) as api:
        if issuer is None:
            api.delete(path)
            print_json({"pod": name, "token_issuer": None}) if json else typer.echo(
                f"No tokens are issued for pod {name}."
            )
            return
        pod = api.put(path, issuer)
    _warn_of_no_tls(issuer)
    if json:
        print_json(pod)
        return
    typer.echo(f"Pod {name} has the token issuer {pod['token_issuer']['url']} with the keys:")
    for key in pod["token_issuer"]["key_ids"]:
        typer.echo(f"  {key}")


def _make_issuer(url: str | None, issuer: str | None, service: str | None, keys: Path | None) -> dict[str, str] | None:
    """Return the four options as a request, or None if none is given; raises UsageError if some are missing."""
    if url is None and issuer is None and service is None and keys is None:
        return None
    if url is None or issuer is None or service is None or keys is None:
        raise UsageError(f"{', '.join(TOKEN_OPTIONS)} belong together: give all of them, or none.")
    try:
        content = keys.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"--token-keys cannot be read: {why} ({keys}).") from error
    return {"url": parse_token_url(url), "issuer": issuer, "service": service, "keys": content}


def _warn_of_no_tls(issuer: dict[str, str] | None) -> None:
    if issuer is None or urlsplit(issuer["url"]).scheme == "https":
        return
    if urlsplit(issuer["url"]).hostname not in configuration.LOOPBACK:
        stderr_console().print(
            "The token issuer has no TLS: clients' passwords are sent to it unencrypted.", soft_wrap=True
        )


@app.command(name="retire-process")
def retire_process(
    name: Name,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="The process, as `show` lists it.")],
    *,
    why: Annotated[str, typer.Option(help="How you know that it has ended. Kept with the record.")],
    json: Json = False,
) -> None:
    """Retire a registry process that you have seen end."""
    with connect_api(settings.load()) as api:
        pod = api.post(f"/v1/pods/{parse_pod(name)}/processes/{quote(instance, safe='')}/retire", {"why": why})
    print_json(pod) if json else typer.echo(f"Process {instance} of pod {name} is retired.")


@app.command(name="resolve-gaps")
def resolve_gaps(
    name: Name,
    *,
    why: Annotated[str, typer.Option(help="How you know that the table has everything that the pod holds.")],
    json: Json = False,
) -> None:
    """Resolve the gaps of a pod that cannot be reconciled (kind relay)."""
    with connect_api(settings.load()) as api:
        pod = api.post(f"/v1/pods/{parse_pod(name)}/gaps/resolve", {"why": why})
    print_json(pod) if json else typer.echo(f"Pod {name} has no open gap.")


@app.command()
def vanished(
    name: Name,
    *,
    repository: OfRepository = None,
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """List a pod's links that are gone without a delete event. They block garbage collection."""
    with connect_api(settings.load()) as api:
        page = api.get_pages(f"/v1/pods/{parse_pod(name)}/vanished", limit, cursor, repository=repository)
    print_page(page, ("repository", "digest", "kind", "noticed_at", "added_at"), json=json)


@app.command(name="accept-vanished")
def accept_vanished(
    name: Name,
    *,
    why: Annotated[str, typer.Option(help="How you know that they are not needed. Kept in the ledger.")],
    by: Annotated[str | None, typer.Option(help="Who accepts it. Default: your user name.")] = None,
    repository: OfRepository = None,
    json: Json = False,
) -> None:
    """Accept that links of a pod are gone. What only they kept is collected after a full grace period from now.

    First push again what must stay. Only links that were noticed before this command began are accepted.
    """
    values: dict[str, Any] = {"why": why, "by": by or getpass.getuser(), "repository": repository}
    accepted = 0
    with connect_api(settings.load()) as api:
        while True:
            answer = api.post(f"/v1/pods/{parse_pod(name)}/vanished/accept", values)
            accepted += answer["accepted"]
            values["before"] = answer["before"]
            if not answer["more"]:
                break
    if json:
        print_json({"pod": name, "accepted": accepted})
    else:
        typer.echo(f"{format_count(accepted, 'link')} of pod {name} accepted as gone.")


@app.command()
def remove(name: Name, *, json: Json = False) -> None:
    """Remove a pod that holds nothing and has nothing open."""
    with connect_api(settings.load()) as api:
        api.delete(f"/v1/pods/{parse_pod(name)}")
    print_json({"pod": name, "removed": True}) if json else typer.echo(f"Pod {name} is removed.")


@app.command(name="rotate-token")
def rotate_token(name: Name, *, json: Json = False) -> None:
    """Replace a pod's event token; the old one is refused within seconds."""
    with connect_api(settings.load()) as api:
        answer = api.post(f"/v1/pods/{parse_pod(name)}/token")
    _print_token(answer, json=json)


def _shorten_times(value: Any) -> Any:
    """Shorten times by partition to the time of day, and to one time if all are the same."""
    if isinstance(value, dict):
        times = {number: time[11:19] for number, time in value.items()}
        if len(times) > 1 and len(set(times.values())) == 1:
            return f"all {len(times)}: {next(iter(times.values()))}"
        return [f"{number}: {time}" for number, time in times.items()]
    return value


def check_registries(loaded: Settings, api: Api, pod: str, urls: list[str]) -> None:
    """Raise BaleenError if one of the pod's registries does not answer as registries do, or is another pod's."""
    _refuse_shared(api, pod, urls)
    # Imported here: only this command connects to registries.
    from coordinator.compose import values as compose_values  # noqa: PLC0415
    from coordinator.registry.client import RegistryClient, RegistryError  # noqa: PLC0415

    credentials = compose_values.registry_credentials(loaded)
    for url in urls:
        with RegistryClient(
            url, credentials=credentials, ca_file=loaded.registry_ca_file, timeout=CHECK_TIMEOUT_S
        ) as client:
            try:
                client.ping()
            except RegistryError as error:
                if not error.challenged and error.registry_status == FORBIDDEN:
                    line = f"{url} answers 403, but not as a registry does: check the address."
                    raise BaleenError(f"{line} {SKIP_CHECK}") from error
                if credentials is not None or not error.challenged:
                    raise BaleenError(f"{error} {SKIP_CHECK}") from error
                stderr_console().print(
                    f"The registry {url} requires a login: set BALEEN_REGISTRY_USERNAME and BALEEN_REGISTRY_PASSWORD "
                    "for `baleen scheduler`.",
                    soft_wrap=True,
                )


def _refuse_shared(api: Api, pod: str, urls: list[str]) -> None:
    """Raise BaleenError if a registry is another pod's by another name, as far as names resolve here.

    Two names with one address may be two registries behind one proxy: a note says so.
    """
    from coordinator.pods.addresses import look_up_all  # noqa: PLC0415

    ours = [parse_registry(url) for url in urls]
    ports = {registry.port for registry in ours}
    others = {
        registry: other["name"]
        for other in api.get_pages("/v1/pods", ALL_PODS)["items"]
        if other["name"] != pod
        for registry in _parse_urls(other["registries"])
        if registry.port in ports and registry not in ours
    }
    known = look_up_all([*ours, *others], within=CHECK_TIMEOUT_S) if others else {}
    for one in ours:
        for other, owner in others.items():
            shared = known.get(one, frozenset()) & known.get(other, frozenset())
            if one.port != other.port or not shared:
                continue
            at = min(shared)
            problem = f"The registry {one} is at {at} with port {one.port}, as {other} of pod {owner} is"
            if is_address(one.host) or is_address(other.host) or is_loopback(at):
                remedy = f"pass a registry of this pod, or remove it from pod {owner}"
                raise BaleenError(f"{problem}: {remedy}. {SKIP_CHECK}")
            stderr_console().print(
                f"{problem}: they must be two registries that a proxy tells apart by name.", soft_wrap=True
            )


def _parse_urls(urls: list[str]) -> Iterator[RegistryUrl]:
    """Parse URLs. Leave out those that an earlier release accepted and this one does not."""
    for url in urls:
        with suppress(UsageError):
            yield parse_registry(url)


def _print_token(answer: dict[str, str], *, json: bool) -> None:
    if json:
        print_json(answer)
        return
    sys.stdout.write(
        f"Pod {answer['pod']}'s notifications must carry this token. It is never shown again:\n\n"
        f"  {answer['event_token']}\n\n"
        f"Paste this into the configuration of the registry, and restart it:\n\n{answer['registry_config']}\n"
        f"`baleen pods policy {answer['pod']}` prints the policy for its key: permit no more than that.\n"
    )
