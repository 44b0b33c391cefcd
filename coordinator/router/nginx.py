"""Write the nginx configuration of the router: which server answers which request of the distribution protocol.

Route: pods and options -> `make_configuration` -> templates/nginx.conf.j2, whose server and maps are in
nginx-http.conf.j2 -> the text that nginx reads. The same pods give the same text.

Principles of the configuration:
- *One reading of a path.* nginx decodes and resolves a path once (`$uri`: `%2F`, `%2e%2e`, `//`, `/./`). It forwards
  only a path that then is one of the specification's endpoints, in characters that need no encoding, and in the
  resolved form, never as it came. So no registry can read another repository than the one that chose its pod.
- *The repository decides, not the path's beginning.* `team/manifests/v1` is the tag v1 of `team`, even if some pod
  owns `team/manifests`.
- *A mount goes to Baleen.* nginx does not decode a query, so every query that may contain `mount`, in any encoding,
  counts as a mount, and so does a short form in the body. A request that goes straight to a pod gets another content
  type than a form, because distribution reads mounts from forms of both kinds.
- *Pushes and pulls do not need Baleen.* If Baleen is away, slow, or fails, the pod gets the request as the client sent
  it. If Baleen answers that it cannot read the request, the pod gets a plain upload: otherwise the pod would make a
  mount that is malformed on purpose.

Not here: where pods come from (commands/router.py), the answer to a mount (api), nginx itself.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import jinja2

from coordinator.domain.hosts import is_address
from coordinator.domain.names import parse_pod, parse_repository
from coordinator.domain.pods import RegistryUrl, parse_registry
from coordinator.errors import UsageError

#: Where most distributions keep the certificates that a system trusts.
SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"
LISTEN = "127.0.0.1:5000"
COORDINATOR_TIMEOUT_S = 5
LOG_FILE = "/var/log/nginx/baleen-router.log"
STATE_DIR = "/var/lib/baleen-router"

#: A longer body is neither a form with a mount (Baleen accepts 64 KiB) nor a request for a token. nginx keeps this
#: much of a body in memory.
FORM_BYTES = 59_999
#: Manifests are read completely before a registry gets them; distribution accepts no larger ones (4 MiB).
MANIFEST_BYTES = 4 * 1024 * 1024
#: How much of a blob nginx buffers: with 128 KiB a pull took a quarter longer.
BLOB_CHUNK_BYTES = 512 * 1024
#: `/v2/` is tried at one pod after another, for this long at each.
BASE_PODS, BASE_TIMEOUT_S = 3, 5
#: After this many failures in a row, each after its timeout, Baleen is not asked for some seconds.
COORDINATOR_TRIES, COORDINATOR_PAUSE_S = 2, 10
#: Baleen waits this long for an issuer that does not answer, and then issues a token without its part: for tokens
#: the router's timeout is longer by this.
ISSUERS_S = 5

_FILE = re.compile(r"/[A-Za-z0-9._/@+=,:~ -]*")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_ISSUER = re.compile(r"(https?://[^/?#]+)(/[A-Za-z0-9._~/-]*)?")


class RoutedPod(NamedTuple):
    """What the router needs to know of a pod."""

    name: str
    prefixes: Sequence[str]
    registries: Sequence[RegistryUrl]

    @property
    def scheme(self) -> str:
        return self.registries[0].scheme

    @property
    def origin(self) -> str:
        return f"{self.scheme}://pod_{self.name}"

    @property
    def tls_name(self) -> str:
        return tls_name(self.registries, f"Pod {self.name}")


class Certificate(NamedTuple):
    """Files on the router's machine: the certificate chain for clients, and its key."""

    chain: str
    key: str


class Issuer(NamedTuple):
    """An issuer of tokens that Baleen does not issue."""

    server: RegistryUrl
    path: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """The inputs of the configuration besides the pods."""

    #: The replicas of Baleen's API.
    coordinator: Sequence[RegistryUrl]
    #: The longest wait for a registry, and the longest silence of a client (BALEEN_SAFETY_REQUEST_BOUND).
    request_bound_s: int
    listen: str = LISTEN
    tls: Certificate | None = None
    #: The scheme by which clients reach the router, if a proxy before it terminates TLS.
    public_scheme: Literal["http", "https"] | None = None
    #: How long the router waits for Baleen before it asks the pod.
    coordinator_timeout_s: int = COORDINATOR_TIMEOUT_S
    #: How much longer it waits for a token.
    issuers_s: int = ISSUERS_S
    #: How long a replica that failed is not asked.
    coordinator_pause_s: int = COORDINATOR_PAUSE_S
    #: What answers `/jwt/auth`: Baleen, one issuer for all pods, or nothing.
    issuer: Literal["baleen"] | Issuer | None = None
    #: Asked for tokens if Baleen should issue them and does not answer.
    fallback_issuer: Issuer | None = None
    #: Certificates of all https servers, as PEM, on the router's machine.
    ca_file: str = SYSTEM_CA
    #: A whole nginx.conf, or a part to include in the section `http` of one.
    whole: bool = False
    #: For a whole configuration: the directory of nginx's process id and temporary files.
    state_dir: str = STATE_DIR
    log_file: str = LOG_FILE

    @property
    def external_issuer(self) -> Issuer | None:
        """The issuer besides Baleen that requests for tokens may go to."""
        return self.fallback_issuer if self.issuer == "baleen" else self.issuer


def parse_listen(text: str) -> str:
    """Return an address to listen at, `HOST:PORT`; raises UsageError."""
    match = _LISTEN.fullmatch(text)
    bracketed = match is not None and match[1].startswith("[")
    if match is None or not 0 < int(match[2]) < 2**16 or (bracketed and not is_address(match[1].strip("[]"))):
        raise UsageError("--listen is malformed: write HOST:PORT, such as 127.0.0.1:5000 or [::]:5000.")
    return text


def parse_file(text: str, option: str) -> str:
    """Return the path of a file on the router's machine that nginx reads without quoting; raises UsageError."""
    if _FILE.fullmatch(text) is None or ".." in PurePosixPath(text).parts:
        raise UsageError(
            f"{option} is malformed: write the whole path of the file on the router's machine, "
            "in letters, digits and the characters . _ / @ + = , : ~ -"
        )
    return text


def parse_issuer(text: str, option: str) -> Issuer:
    """Read an issuer's URL, `https://host/path`; raises UsageError."""
    match = _ISSUER.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} is malformed: write a URL such as https://host/jwt/auth, without a query.")
    return Issuer(parse_registry(match[1]), match[2] or "/")


def make_configuration(pods: Iterable[RoutedPod], options: Options) -> str:
    """Return the configuration; raises UsageError that names the pod which cannot be served."""
    served = servable_pods(pods)
    issuer = options.external_issuer
    return TEMPLATES.get_template("nginx.conf.j2").render(
        options=options,
        pods=served,
        owners=sorted((prefix, pod) for pod in served for prefix in pod.prefixes),
        issuer=issuer,
        issuer_tls_name="" if issuer is None else tls_name([issuer.server], "The issuer"),
        coordinator_tls_name=tls_name(options.coordinator, "Baleen"),
        form_bytes=FORM_BYTES,
        manifest_bytes=MANIFEST_BYTES,
        blob_chunk_bytes=BLOB_CHUNK_BYTES,
        base_pods=BASE_PODS,
        base_timeout_s=BASE_TIMEOUT_S,
        coordinator_tries=COORDINATOR_TRIES,
        coordinator_pause_s=options.coordinator_pause_s,
        issuers_s=options.issuers_s,
    )


def servable_pods(pods: Iterable[RoutedPod]) -> list[RoutedPod]:
    """Return the pods that have a registry, by name; raises UsageError for one that no router can serve."""
    served = sorted((pod for pod in pods if pod.registries), key=lambda pod: pod.name)
    if not served:
        raise UsageError("No pod has a registry, so nothing can be routed: set one with `baleen pods set-registries`.")
    for pod in served:
        _check_pod(pod)
    return served


def _check_pod(pod: RoutedPod) -> None:
    """Raise UsageError for a pod that the configuration cannot express."""
    parse_pod(pod.name)
    for prefix in pod.prefixes:
        parse_repository(prefix)
    if len({registry.scheme for registry in pod.registries}) > 1:
        raise UsageError(f"Pod {pod.name} has registries with http:// and with https://: use one of them for all.")
    tls_name(pod.registries, f"Pod {pod.name}")


def tls_name(servers: Sequence[RegistryUrl], whose: str) -> str:
    """Return the one name in the certificates of https servers; raises UsageError.

    nginx verifies all servers of an upstream against one name, and (through OpenSSL) only names, not addresses.
    """
    hosts = {server.host for server in servers if server.scheme == "https"}
    if len(hosts) > 1:
        raise UsageError(
            f"{whose} has https servers with several names, and the router can verify only one: give all of them one "
            "name, which may have several addresses."
        )
    for host in hosts:
        if is_address(host):
            raise UsageError(
                f"{whose} has an https server without a name, and the router verifies names: give it a name."
            )
    return next(iter(hosts), "")


def unique_servers(servers: Iterable[RegistryUrl]) -> list[RegistryUrl]:
    return sorted(set(servers))


def _unique_addresses(servers: Iterable[RegistryUrl]) -> list[str]:
    return [f"{f'[{each.host}]' if ':' in each.host else each.host}:{each.port}" for each in unique_servers(servers)]


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("coordinator.router"),
    # A value that is missing is an error. No escaping: every value is checked to need none.
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701 - no HTML
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals["addresses"] = _unique_addresses
