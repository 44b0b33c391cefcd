"""`baleen pods`: the registries that Baleen serves."""

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
from coordinator.client import Api, connected
from coordinator.commands import jobs
from coordinator.commands.blobs import Cursor, Limit
from coordinator.commands.doctor import doctor
from coordinator.commands.findings import print_findings
from coordinator.commands.output import Json, as_text, counted, notes, paragraph, print_json, print_page
from coordinator.commands.suggest_prefixes import suggest_prefixes
from coordinator.domain.findings import Finding, Verdict
from coordinator.domain.hosts import is_address, is_loopback
from coordinator.domain.names import parse_pod, parse_repository
from coordinator.domain.pods import Linker, PodMode, ProbeMethod, RegistryUrl, parse_registry, parse_token_url
from coordinator.errors import BaleenError, UnconfiguredError, UsageError
from coordinator.pods import configuration, policy
from coordinator.pods.configuration import Store
from coordinator.settings import Settings

app = typer.Typer(help="The registries that Baleen serves.", no_args_is_help=True)
app.command()(jobs.reconcile)
app.command()(doctor)
app.command(name="suggest-prefixes")(suggest_prefixes)

CHECK_TIMEOUT_S = 5.0
#: Characters of a file that holds a token, and no more.
TOKEN_FILE_LIMIT = 10_000
#: More than there are.
ALL_PODS = 100_000
FORBIDDEN = 403
ALL_THE_SAME = "--no-check registers it all the same."
#: Stands for a pod's name in a principal.
POD_FIELD = "{pod}"
TOKEN_OPTIONS = ("--token-url", "--token-issuer", "--token-service", "--token-keys")
#: What `show` prints below the fields: lists of sentences, and things that are too wide for a table, of which these two
#: fields stand first.
SENTENCES = ("waits_for", "held_by")
BLOCKS = {"sources": ("instance_id", "state"), "endpoints": ("url", "address")}

PROBE_HELP = "How Baleen asks the registry how far it has reported; `pull` where it may not push."

Name = Annotated[str, typer.Argument(metavar="NAME", help="The pod: lower-case letters, digits and hyphens.")]

TokenUrl = Annotated[str | None, typer.Option(help="Where the registry's tokens are made: `auth.token.realm` so far.")]
IssuerName = Annotated[str | None, typer.Option("--token-issuer", help="`iss` of its tokens.")]
Service = Annotated[str | None, typer.Option("--token-service", help="`aud` of its tokens.")]
KeysFile = Annotated[
    Path | None, typer.Option("--token-keys", help="Its public keys: a file of PEM (keys or certificates) or a JWKS.")
]
OfRepository = Annotated[str | None, typer.Option(help="Only of this repository.")]
By = Annotated[str | None, typer.Option(help="Who declares the pod unmanaged; by default your user name.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Also a registry that does not run yet.")]


@app.command()
def add(
    name: Name,
    *,
    prefix: Annotated[list[str], typer.Option(help="Owns this repository and those below it. May be given again.")],
    registry: Annotated[list[str] | None, typer.Option(help="A registry's URL. May be given again.")] = None,
    linker: Annotated[Linker, typer.Option(help="How the pod learns of a mounted blob.")] = Linker.LINK,
    mode: Annotated[PodMode, typer.Option(help="What keeps a blob alive in the pod.")] = PodMode.MANIFEST,
    probe: Annotated[ProbeMethod, typer.Option(help=PROBE_HELP)] = ProbeMethod.PUSH,
    token_url: TokenUrl = None,
    token_issuer: IssuerName = None,
    token_service: Service = None,
    token_keys: KeysFile = None,
    unmanaged: Annotated[
        bool, typer.Option("--unmanaged", help="Its registry sends no events: only reconciles show what it holds.")
    ] = False,
    why: Annotated[str | None, typer.Option(help="Of --unmanaged: why it sends none. Kept with the pod.")] = None,
    by: By = None,
    no_check: NoCheck = False,
    json: Json = False,
) -> None:
    """Register a pod, and print its token and its registry's configuration: now, and never again.

    Give a URL for every process of the registry; a name with several addresses stands for all of them. Where Baleen
    makes tokens, the four `--token-…` say how the pod's own issuer is asked; see docs/TOKENS.md.
    """
    loaded = settings.load()
    registries = [str(parse_registry(each)) for each in registry or []]
    issuer = _issuer(token_url, token_issuer, token_service, token_keys)
    body = {
        "name": parse_pod(name),
        "prefixes": [parse_repository(each) for each in prefix],
        "registries": registries,
        "linker": linker,
        "mode": mode,
        "probe": probe,
        "token_issuer": issuer,
    }
    if unmanaged != (why is not None):
        raise UsageError("--unmanaged and --why belong together: give both, or neither.")
    if why is not None:
        body["unmanaged"] = {"why": why, "by": by or _user()}
    with connected(loaded) as api:
        if not no_check:
            check_registries(loaded, api, name, registries)
        answer = api.post("/v1/pods", body)
    if unmanaged:
        print_json(answer) if json else typer.echo(_UNMANAGED.format(name=name))
    else:
        _print_token(answer, json=json)
    _warn(issuer)
    if unmanaged and not registries:
        notes().print(
            "No registry is listed, so that nothing can prove that it has no descriptor cache, and GC stays blocked: "
            f"list the address of each process with `baleen pods set-registries {name}`.",
            soft_wrap=True,
        )
    elif not registries:
        notes().print(
            "No registry is listed, so that nobody can be asked how far the pod has reported, and garbage collection "
            f"is held: list the address of each process with `baleen pods set-registries {name}`.",
            soft_wrap=True,
        )


@app.command(name="list")
def list_pods(*, limit: Limit = 1000, cursor: Cursor = None, json: Json = False) -> None:
    """List pods, and how much is open for each."""
    with connected(settings.load()) as api:
        page = api.pages("/v1/pods", limit, cursor)
    if not json:
        # Each is a sentence or two: `show` has them.
        page["items"] = [pod | {"held_by": _reasons(len(pod["held_by"]))} for pod in page["items"]]
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
    below = {*SENTENCES, *BLOCKS, "findings", "wrong_token"}
    fields = {each: value for each, value in pod.items() if each not in below}
    width = max(map(len, fields))
    for each, value in fields.items():
        told = f"{each.replace('_', ' '):<{width}}  {as_text(value, each)}"
        sys.stdout.write(f"{paragraph(told, width + 2)}\n")
    for what in SENTENCES:
        sys.stdout.write(f"\n{what.replace('_', ' ')}{'' if pod[what] else ' nothing'}\n")
        sys.stdout.writelines(f"  {paragraph(sentence, 4)}\n" for sentence in pod[what])
    if pod["wrong_token"] is not None:
        sys.stdout.write(f"\nwrong token\n  {paragraph(pod['wrong_token']['sentence'], 4)}\n")
    for what, first in BLOCKS.items():
        sys.stdout.write(f"\n{what}{'' if pod[what] else ' none'}\n")
        for each in pod[what]:
            sys.stdout.write(_as_block(each, first))
    _print_findings(pod)


def _as_block(thing: dict[str, Any], first: tuple[str, ...]) -> str:
    """Its first fields in a line, and below it what else there is."""
    rest = "; ".join(
        f"{name.replace('_', ' ')} {as_text(_cell(value), name)}"
        for name, value in thing.items()
        if name not in first and value not in (None, {}, [])
    )
    return f"  {'  '.join(thing[name] for name in first)}\n" + (f"    {paragraph(rest, 4)}\n" if rest else "")


def _print_findings(pod: dict[str, Any]) -> None:
    found = [
        Finding(each["check"], Verdict(each["verdict"]), each["meaning"], each["proof"], each["mend"])
        for each in pod["findings"]
    ]
    if not found:
        sys.stdout.write(f"\nfindings none: `baleen pods doctor {pod['name']}` examines it\n")
        return
    sys.stdout.write(f"\nfindings of {as_text(pod['findings'][0]['found_at'])}\n")
    print_findings(found, with_proofs=False)


def _reasons(number: int) -> str:
    return "nothing" if not number else f"{number} reason{'' if number == 1 else 's'}"


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
        token = configuration.TOKEN if token_file is None else _token(api, pod["name"], token_file)
    registries = [parse_registry(url) for url in pod["registries"]]
    told = configuration.whole(
        _store(loaded, with_secrets=with_secrets),
        configuration.listening(registries[0] if registries else None),
        f"{(loaded.url or '').rstrip('/')}/v1/events/{pod['name']}",
        token,
        ProbeMethod(pod["probe"]),
    )
    sys.stdout.write(told)
    if not registries:
        notes().print(
            f"No registry of pod {pod['name']} is listed: the port in `http.addr` is a placeholder.", soft_wrap=True
        )


@app.command(name="policy")
def print_policy(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="The pod; with --principal also several.")],
    *,
    principal: Annotated[
        str | None,
        typer.Option(help="Print a policy of the bucket, for this principal; {pod} stands for each pod's name."),
    ] = None,
) -> None:
    """Print the S3 policy for the key of a pod's registry: `blobs/` without deletes, and the pod's own prefixes.

    It is the policy of one user; with --principal, that of the bucket, which has only one: name all of its pods.
    Print it again when prefixes change.
    """
    pods = list(dict.fromkeys(str(parse_pod(name)) for name in names))
    if len(pods) > 1 and (principal is None or POD_FIELD not in principal):
        raise UsageError(f"Several pods have a policy together only with --principal, in which {POD_FIELD} stands.")
    loaded = settings.load()
    bucket = _bucket(loaded)
    with connected(loaded) as api:
        prefixes = {name: api.get(f"/v1/pods/{name}")["prefixes"] for name in pods}
    if principal is None:
        print_json(policy.document(bucket, loaded.s3_root, prefixes[pods[0]]))
        return
    of_each = {principal.replace(POD_FIELD, name): owned for name, owned in prefixes.items()}
    print_json(policy.bucket_document(bucket, loaded.s3_root, of_each))


def _bucket(loaded: Settings) -> str:
    if loaded.s3_bucket is None:
        raise UnconfiguredError("No bucket is known: start `baleen up` in this directory, or set BALEEN_S3_BUCKET.")
    return loaded.s3_bucket


def _store(loaded: Settings, *, with_secrets: bool) -> Store:
    """The store as a pod's registry is to find it: with the pod's key where that is set, else with Baleen's."""
    store = Store(_bucket(loaded), loaded.s3_root, loaded.s3_region, loaded.s3_endpoint_url)
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


def _token(api: Api, pod: str, file: TextIO) -> str:
    """The token in this file; raises UsageError, and BaleenError if it is not the pod's."""
    try:
        token = str(settings.TOKEN.taken(file.read(TOKEN_FILE_LIMIT).strip()))
    except ValueError as error:
        raise UsageError(f"--token-file is malformed: it must hold {settings.TOKEN}.") from error
    if not api.post(f"/v1/pods/{pod}/token/check", {"token": token})["is_of_pod"]:
        raise BaleenError(
            f"--token-file does not hold the token of pod {pod}, so that its events would be refused: give the one "
            f"that `baleen pods add` showed, or make another with `baleen pods rotate-token {pod}`."
        )
    return token


@app.command(name="add-prefix")
def add_prefix(
    name: Name,
    prefix: Annotated[list[str], typer.Argument(metavar="PREFIX…", help="Owns this repository and those below it.")],
    *,
    json: Json = False,
) -> None:
    """Let a pod own further prefixes. It is reconciled then, by itself: what it has there is not known before.

    The policy of its registry's key changes with it: `baleen pods policy NAME` prints the new one.
    """
    prefixes = [parse_repository(each) for each in prefix]
    with connected(settings.load()) as api:
        pod = api.post(f"/v1/pods/{parse_pod(name)}/prefixes", {"prefixes": prefixes})
    print_json(pod) if json else typer.echo(f"Pod {name} owns {', '.join(pod['prefixes'])}.")
    notes().print(
        f"Give the key of its registry the policy that `baleen pods policy {name}` prints now: the one before does not "
        "allow what is new.",
        soft_wrap=True,
    )


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
    """Probe a pod's registry by pushes or by pulls, and print what its notifications must ignore then.

    GC is blocked until `baleen pods doctor` has examined the pod again.
    """
    with connected(settings.load()) as api:
        pod = api.put(f"/v1/pods/{parse_pod(name)}/probe", {"probe": probe})
    if json:
        print_json(pod)
        return
    if probe is ProbeMethod.PUSH:
        typer.echo(
            f"Pod {name} is probed by pushes. Let its registry ignore pulls, in `notifications.endpoints`, and restart "
            f"it:\n{configuration.IGNORE_PULLS.rstrip()}"
        )
    else:
        typer.echo(
            f"Pod {name} is probed by pulls. Take `ignore` out of `notifications.endpoints` of its registry, and "
            "restart it."
        )
    typer.echo(f"Then run `baleen pods doctor {name}`: GC is blocked until the pod has been examined.")


@app.command(name="set-managed")
def set_managed(name: Name, *, json: Json = False) -> None:
    """Say that a pod's registry sends events from now on. `rotate-token` prints its token and configuration then."""
    with connected(settings.load()) as api:
        pod = api.put(f"/v1/pods/{parse_pod(name)}/managed", {"unmanaged": None})
    print_json(pod) if json else typer.echo(
        f"Pod {name} is managed: give its registry the notifications that `baleen pods rotate-token {name}` prints. "
        f"Then have it examined with `baleen pods doctor {name}`."
    )


@app.command(name="set-unmanaged")
def set_unmanaged(
    name: Name,
    *,
    why: Annotated[str, typer.Option(help="Why its registry sends no events. Kept with the pod.")],
    by: By = None,
    json: Json = False,
) -> None:
    """Say that a pod's registry sends no events: what it holds is known by reconciles alone."""
    with connected(settings.load()) as api:
        pod = api.put(f"/v1/pods/{parse_pod(name)}/managed", {"unmanaged": {"why": why, "by": by or _user()}})
    print_json(pod) if json else typer.echo(_UNMANAGED.format(name=name))


_UNMANAGED = (
    "Pod {name} is not managed: it needs no token, and each collection waits for a reconcile of it. Have it examined "
    "with `baleen pods doctor {name}`: GC is blocked until it is proved that its registry has no descriptor cache."
)


def _user() -> str:
    """Who runs this command, by the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("The operating system does not know your name: say it with --by.") from error


@app.command(name="set-issuer")
def set_issuer(
    name: Name,
    *,
    token_url: TokenUrl = None,
    token_issuer: IssuerName = None,
    token_service: Service = None,
    token_keys: KeysFile = None,
    none: Annotated[bool, typer.Option("--none", help="Make no tokens for this pod any more.")] = False,
    json: Json = False,
) -> None:
    """Say who makes the tokens of a pod's registry now, in place of what was said before."""
    issuer = _issuer(token_url, token_issuer, token_service, token_keys)
    if (issuer is None) != none:
        raise UsageError(f"Give {', '.join(TOKEN_OPTIONS)}, or --none alone.")
    path = f"/v1/pods/{parse_pod(name)}/token-issuer"
    with connected(settings.load()) as api:
        if issuer is None:
            api.delete(path)
            print_json({"pod": name, "token_issuer": None}) if json else typer.echo(
                f"No tokens are made for pod {name}."
            )
            return
        pod = api.put(path, issuer)
    _warn(issuer)
    if json:
        print_json(pod)
        return
    typer.echo(f"Pod {name} has the token issuer {pod['token_issuer']['url']} with the keys:")
    for key in pod["token_issuer"]["key_ids"]:
        typer.echo(f"  {key}")


def _issuer(url: str | None, issuer: str | None, service: str | None, keys: Path | None) -> dict[str, str] | None:
    """What the four options say: all of them, or None for none of them; raises UsageError."""
    if url is None and issuer is None and service is None and keys is None:
        return None
    if url is None or issuer is None or service is None or keys is None:
        raise UsageError(f"{', '.join(TOKEN_OPTIONS)} belong together: give all of them, or none.")
    try:
        content = keys.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"--token-keys cannot be read: {why} ({keys}).") from error
    return {"url": parse_token_url(url), "issuer": issuer, "service": service, "keys": content}


def _warn(issuer: dict[str, str] | None) -> None:
    if issuer is None or urlsplit(issuer["url"]).scheme == "https":
        return
    if urlsplit(issuer["url"]).hostname not in configuration.LOOPBACK:
        notes().print("The token issuer has no TLS: clients' passwords go there for all to read.", soft_wrap=True)


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


@app.command(name="resolve-gaps")
def settle_gaps(
    name: Name,
    *,
    why: Annotated[str, typer.Option(help="How you know that the table has all that the pod holds. Kept with them.")],
    json: Json = False,
) -> None:
    """Settle the gaps of a pod whose links are not in shared storage. Of any other a reconcile settles them."""
    with connected(settings.load()) as api:
        pod = api.post(f"/v1/pods/{parse_pod(name)}/gaps/settle", {"why": why})
    print_json(pod) if json else typer.echo(f"Pod {name} has no open gap any more.")


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
    with connected(settings.load()) as api:
        page = api.pages(f"/v1/pods/{parse_pod(name)}/vanished", limit, cursor, repository=repository)
    print_page(page, ("repository", "digest", "kind", "noticed_at", "added_at"), json=json)


@app.command(name="accept-vanished")
def accept_vanished(
    name: Name,
    *,
    why: Annotated[str, typer.Option(help="How you know that nobody misses them. Kept in the ledger.")],
    by: Annotated[str | None, typer.Option(help="Who accepts it, if not the user of this shell.")] = None,
    repository: OfRepository = None,
    json: Json = False,
) -> None:
    """Accept that links of a pod are gone: what only they kept is collected, after its whole grace from now on.

    Push again first what must stay. Only links that were noticed before this command began are accepted.
    """
    values: dict[str, Any] = {"why": why, "by": by or getpass.getuser(), "repository": repository}
    accepted = 0
    with connected(settings.load()) as api:
        while True:
            answer = api.post(f"/v1/pods/{parse_pod(name)}/vanished/accept", values)
            accepted += answer["accepted"]
            values["before"] = answer["before"]
            if not answer["more"]:
                break
    if json:
        print_json({"pod": name, "accepted": accepted})
    else:
        typer.echo(f"{counted(accepted, 'link')} of pod {name} accepted as gone.")


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
    """Of partitions the time of day, since there are many; one time where all have the same."""
    if isinstance(value, dict):
        times = {number: time[11:19] for number, time in value.items()}
        if len(times) > 1 and len(set(times.values())) == 1:
            return f"all {len(times)}: {next(iter(times.values()))}"
        return [f"{number}: {time}" for number, time in times.items()]
    return value


def check_registries(loaded: Settings, api: Api, pod: str, urls: list[str]) -> None:
    """Raise BaleenError if one of the pod's registries does not answer as registries do, or is another pod's."""
    _refuse_shared(api, pod, urls)
    # Only this command speaks with registries.
    from coordinator import bootstrap  # noqa: PLC0415
    from coordinator.registry.client import RegistryClient, RegistryError  # noqa: PLC0415

    credentials = bootstrap.registry_credentials(loaded)
    for url in urls:
        with RegistryClient(
            url, credentials=credentials, ca_file=loaded.registry_ca_file, timeout=CHECK_TIMEOUT_S
        ) as client:
            try:
                client.ping()
            except RegistryError as error:
                if not error.challenged and error.registry_status == FORBIDDEN:
                    told = f"What listens at {url} answers 403, and not as registries do: check the address."
                    raise BaleenError(f"{told} {ALL_THE_SAME}") from error
                if credentials is not None or not error.challenged:
                    raise BaleenError(f"{error} {ALL_THE_SAME}") from error
                notes().print(
                    f"The registry {url} wants to know who asks: give BALEEN_REGISTRY_USERNAME and "
                    "BALEEN_REGISTRY_PASSWORD to `baleen scheduler`.",
                    soft_wrap=True,
                )


def _refuse_shared(api: Api, pod: str, urls: list[str]) -> None:
    """Raise BaleenError where a registry is one of another pod by another name, as far as names are known from here.

    Two names that lead to one place may be two registries behind one proxy: that is told.
    """
    from coordinator.pods.addresses import places  # noqa: PLC0415

    ours = [parse_registry(url) for url in urls]
    ports = {registry.port for registry in ours}
    others = {
        registry: other["name"]
        for other in api.pages("/v1/pods", ALL_PODS)["items"]
        if other["name"] != pod
        for registry in _parsed(other["registries"])
        if registry.port in ports and registry not in ours
    }
    known = places([*ours, *others], within=CHECK_TIMEOUT_S) if others else {}
    for one in ours:
        for other, owner in others.items():
            shared = known.get(one, frozenset()) & known.get(other, frozenset())
            if one.port != other.port or not shared:
                continue
            at = min(shared)
            told = f"The registry {one} is at {at} with port {one.port}, as {other} of pod {owner} is"
            if is_address(one.host) or is_address(other.host) or is_loopback(at):
                raise BaleenError(f"{told}: name that of this pod, or remove that one. {ALL_THE_SAME}")
            notes().print(f"{told}: they must be two, told apart by their names.", soft_wrap=True)


def _parsed(urls: list[str]) -> Iterator[RegistryUrl]:
    """What was taken once and is no registry's URL by what is asked now is left out."""
    for url in urls:
        with suppress(UsageError):
            yield parse_registry(url)


def _print_token(answer: dict[str, str], *, json: bool) -> None:
    if json:
        print_json(answer)
        return
    sys.stdout.write(
        f"Pod {answer['pod']}'s notifications must carry this token. It is shown now and never again:\n\n"
        f"  {answer['event_token']}\n\n"
        f"Paste this into the configuration of the registry, and restart it:\n\n{answer['registry_config']}\n"
        f"`baleen pods policy {answer['pod']}` prints what its key for the bucket is to be permitted, and no more.\n"
    )
