"""`baleen router-config`: write the configuration of nginx or Envoy for the registered pods.

Not here: the configuration itself (router/nginx.py, router/envoy.py).
"""

import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coordinator import settings
from coordinator.client import connect_api
from coordinator.commands.output import Json, print_json, stderr_console
from coordinator.domain.pods import PodKind, RegistryUrl, parse_registry
from coordinator.errors import BaleenError, UnconfiguredError, UsageError
from coordinator.router import envoy as router_envoy
from coordinator.router import nginx as router
from coordinator.settings import Settings

#: More than there are; a list needs a limit.
PODS_LIMIT = 100_000

Program = Literal["nginx", "envoy"]

Baleen = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Baleen's API as the router reaches it, if not BALEEN_URL. May be repeated."),
]
Timeout = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=660,
        metavar="SECONDS",
        help="Seconds to wait for Baleen before the pod gets the request. "
        f"Default: {router.COORDINATOR_TIMEOUT_S}; with pods of kind relay BALEEN_MOUNT_TIMEOUT more.",
    ),
]
IssuerText = Annotated[
    str | None,
    typer.Option(metavar="baleen|URL", help="What answers /jwt/auth: Baleen, or the URL of the issuer of all pods."),
]


def register(app: typer.Typer) -> None:
    app.command(name="router-config")(router_config)


def router_config(
    *,
    program: Annotated[Program, typer.Option("--for", help="The program to configure.")] = "nginx",
    out: Annotated[Path | None, typer.Option(help="Replace this file instead of printing.")] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The address that the router listens on.")
    ] = router.LISTEN,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="The router's certificate, as PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key.")] = None,
    public_scheme: Annotated[
        Literal["http", "https"] | None,
        typer.Option(help="The scheme that clients use, where TLS ends before the router."),
    ] = None,
    baleen: Baleen = None,
    baleen_timeout: Timeout = None,
    issuer: IssuerText = None,
    fallback_issuer: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The issuer for /jwt/auth while Baleen does not answer."),
    ] = None,
    ca_file: Annotated[
        str, typer.Option(metavar="FILE", help="Certificates to trust at https registries, as PEM.")
    ] = router.SYSTEM_CA,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole/--server-only", help="A whole nginx.conf, or a file for its http section. Envoy's is always whole."
        ),
    ] = False,
    state_dir: Annotated[
        str, typer.Option(metavar="DIR", help="With --whole: nginx's directory for its state.")
    ] = router.STATE_DIR,
    log_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=f"The access log. Default: {router.LOG_FILE} (or envoy/…)."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a configuration of nginx or Envoy that routes repositories to their pods, and mounts to Baleen.

    File names are those on the router's machine. Run this again and reload the router when pods change. See
    docs/ROUTER.md.
    """
    loaded = settings.load()
    options = router.Options(
        coordinator=_parse_coordinator(loaded, baleen),
        request_bound_s=math.ceil(loaded.safety_request_bound),
        listen=router.parse_listen(listen),
        tls=_parse_certificate(tls_cert, tls_key),
        public_scheme=public_scheme,
        issuer="baleen" if issuer == "baleen" else _parse_issuer(issuer, "--issuer"),
        fallback_issuer=_parse_issuer(fallback_issuer, "--fallback-issuer"),
        ca_file=router.parse_file(ca_file, "--ca-file"),
        whole=whole,
        state_dir=router.parse_file(state_dir, "--state-dir"),
        log_file=router.parse_file(log_file or _LOG_FILES[program], "--log-file"),
    )
    if options.fallback_issuer is not None and options.issuer != "baleen":
        raise UsageError("--fallback-issuer is for where Baleen issues tokens: give --issuer baleen, or leave it out.")
    with connect_api(loaded) as api:
        found = api.get_pages("/v1/pods", PODS_LIMIT)["items"]
    options = replace(options, coordinator_timeout_s=baleen_timeout or _mount_wait_s(loaded, found))
    pods = [
        router.RoutedPod(pod["name"], pod["prefixes"], [parse_registry(each) for each in pod["registries"]])
        for pod in found
    ]
    text = _CONFIGURATIONS[program](pods, options)
    left = sorted(pod.name for pod in pods if not pod.registries)
    changed = out is not None and _replace_file(out, text)
    if json:
        print_json(
            {
                "file": None if out is None else str(out),
                "changed": changed,
                "pods": sorted(pod.name for pod in pods if pod.registries),
                "without_registry": left,
                "configuration": text if out is None else None,
            }
        )
    elif out is None:
        sys.stdout.write(text)
    for name in left:
        _print_note(f"Pod {name} has no registry and is not routed: add one with `baleen pods set-registries {name}`.")
    if out is not None:
        _print_note(
            f"{out} is unchanged: no reload is needed." if not changed else _describe_change(program, out, whole=whole)
        )


_CONFIGURATIONS = {"nginx": router.make_configuration, "envoy": router_envoy.make_configuration}
_LOG_FILES = {"nginx": router.LOG_FILE, "envoy": router.LOG_FILE.replace("nginx", "envoy")}


def _describe_change(program: Program, out: Path, *, whole: bool) -> str:
    if program == "envoy":
        file = f"-c {out.absolute()}"
        return (
            f"{out} is written: check it with `envoy --mode validate {file}`, then start Envoy with `envoy {file}`, "
            f"or, if it runs, `envoy {file} --restart-epoch N`, where N is the number of its restarts, 1 for the first."
        )
    file = f" -c {out.absolute()}" if whole else ""
    start = f"start nginx with `nginx{file}`, or, if it runs, " if whole else ""
    return f"{out} is written: check it with `nginx -t{file}`, then {start}`nginx -s reload{file}`."


def _print_note(text: str) -> None:
    stderr_console().print(text, soft_wrap=True)


def _parse_coordinator(loaded: Settings, given: list[str] | None) -> list[RegistryUrl]:
    urls = given or ([] if loaded.url is None else [loaded.url])
    if not urls:
        raise UnconfiguredError("No API is known: start `baleen up` in this directory, or set BALEEN_URL.")
    try:
        servers = [parse_registry(url) for url in urls]
    except UsageError:
        raise UsageError(
            "Baleen's address is malformed: give --baleen (or BALEEN_URL) as http://host:port, without a path."
        ) from None
    if len({server.scheme for server in servers}) > 1:
        raise UsageError("--baleen has http:// and https://: use one of them for all.")
    return servers


def _mount_wait_s(loaded: Settings, pods: list[dict[str, Any]]) -> int:
    """Seconds to wait for a mount: a link is written at once, but a relay copies bytes."""
    relayed = any(PodKind(pod["kind"]).is_uploaded_to for pod in pods)
    return router.COORDINATOR_TIMEOUT_S + (math.ceil(loaded.mount_timeout) if relayed else 0)


def _parse_certificate(chain: str | None, key: str | None) -> router.Certificate | None:
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise UsageError("--tls-cert and --tls-key belong together: give both, or neither.")
    return router.Certificate(router.parse_file(chain, "--tls-cert"), router.parse_file(key, "--tls-key"))


def _parse_issuer(text: str | None, option: str) -> router.Issuer | None:
    return None if text is None else router.parse_issuer(text, option)


def _replace_file(file: Path, text: str) -> bool:
    """Replace a file atomically, so that a reload never reads half of it; return whether it changed."""
    try:
        # Follow a symbolic link, as those of nginx's enabled sites.
        target = file.resolve()
        if target.exists() and target.read_text() == text:
            return False
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f".{target.name}.", delete=False) as new:
            try:
                new.write(text)
                new.flush()
                os.fsync(new.fileno())
                # It has no secret, and nginx may be another user's.
                os.fchmod(new.fileno(), 0o644)
                Path(new.name).replace(target)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise BaleenError(f"{file} cannot be written ({why}): choose another file with --out.") from error
    return True
