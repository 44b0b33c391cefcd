"""Write the nginx configuration of the router: which server answers which request of the distribution protocol.

Route: pods and options -> `configuration` -> the text that nginx reads. Pure: the same pods give the same text.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

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
#: How much of an answer nginx buffers; more for a blob, because with 128 KiB a pull took a quarter longer.
HEAD_BYTES, BLOB_CHUNK_BYTES = 64 * 1024, 512 * 1024
#: `/v2/` is tried at one pod after another, for this long at each.
BASE_PODS, BASE_TIMEOUT_S = 3, 5
#: After this many failures in a row, each after its timeout, Baleen is not asked for some seconds.
COORDINATOR_TRIES, COORDINATOR_PAUSE_S = 2, 10
#: Baleen waits this long for an issuer that does not answer, and then issues a token without its part: for tokens
#: the router's timeout is longer by this.
ISSUERS_S = 5

#: Connections of one worker of a whole configuration; a request takes two.
CONNECTIONS = 4096

#: Statuses that are not an answer, whichever side failed: also those of a load balancer before Baleen.
_FAILURES = " ".join(map(str, range(500, 600)))

#: Characters that a path may contain unencoded (RFC 3986, `pchar`), without those that no endpoint needs.
_SEGMENT = "[A-Za-z0-9._~:@+,;=!-]+"
_REPOSITORY = f"(?<router_repository>{_SEGMENT}(?:/{_SEGMENT})*)"
#: Every way to write `mount` in a query. It matches more than that; Baleen forwards what is no mount.
_MOUNT = "".join(f"(?:{letter}|%{ord(letter):02x})" for letter in "mount")

_FILE = re.compile(r"/[A-Za-z0-9._/@+=,:~ -]*")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_ISSUER = re.compile(r"(https?://[^/?#]+)(/[A-Za-z0-9._~/-]*)?")


class Pod(NamedTuple):
    """What the router needs to know of a pod."""

    name: str
    prefixes: Sequence[str]
    registries: Sequence[RegistryUrl]


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


def configuration(pods: Iterable[Pod], options: Options) -> str:
    """Return the configuration; raises UsageError that names the pod which cannot be served."""
    served = servable(pods)
    http = [*_maps(served, options), *_upstreams(served, options), *_server(served, options)]
    text = "\n".join([*_whole(http, options)] if options.whole else http)
    return f"{_HEAD}\n{text}\n"


def servable(pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods that have a registry, by name; raises UsageError for one that no router can serve."""
    served = sorted((pod for pod in pods if pod.registries), key=lambda pod: pod.name)
    if not served:
        raise UsageError("No pod has a registry, so nothing can be routed: set one with `baleen pods set-registries`.")
    for pod in served:
        _check(pod)
    return served


def _check(pod: Pod) -> None:
    """Raise UsageError for a pod that the configuration cannot express."""
    parse_pod(pod.name)
    for prefix in pod.prefixes:
        parse_repository(prefix)
    if len({registry.scheme for registry in pod.registries}) > 1:
        raise UsageError(f"Pod {pod.name} has registries with http:// and with https://: use one of them for all.")
    tls_name(pod.registries, f"Pod {pod.name}")


_HEAD = """\
# The router of Baleen, made by `baleen router-config`: make it again rather than edit it.
# Needs nginx 1.21.1 or newer, which refuses control characters in requests."""


# What decides


def _maps(pods: Sequence[Pod], options: Options) -> Iterator[str]:
    owners = sorted((prefix, pod) for pod in pods for prefix in pod.prefixes)
    yield "# Which pod owns the repository; no two prefixes overlap."
    yield from _block(
        "map $router_repository $router_pod",
        'default "";',
        *(f'"~^{_literal(prefix)}(?:/|\\z)" "{_origin(pod)}";' for prefix, pod in owners),
    )
    yield "# The name in the certificates of a pod."
    yield from _block(
        "map $router_pod $router_tls_name",
        'default "";',
        # Not as plain text: nginx has a bound on that (map_hash_bucket_size) which long names of pods go beyond.
        *(f'"~^{_origin(pod)}\\z" "{tls_name(pod.registries, pod.name)}";' for pod in pods if _scheme(pod) == "https"),
    )
    yield from _block("map $http_host $router_host", "default $http_host;", '"" "$server_addr:$server_port";')
    if options.public_scheme is None:
        yield from _block("map $scheme $router_scheme", "default $scheme;")
    else:
        yield from _block("map $scheme $router_scheme", f"default {options.public_scheme};")
    yield "# Is this upload request a mount, as a registry would read it?"
    yield from _block("map $args $router_args_mount", "default 0;", f'"~*{_MOUNT}" 1;')
    yield from _block("map $args $router_args_digest", "default 0;", '"~*(?:^|&)digest=" 1;')
    yield from _block(
        "map $http_content_type $router_form", "default 0;", '"~*^\\s*application/x-www-form-urlencoded" 1;'
    )
    yield from _block("map $http_content_length $router_short", "default 0;", '"~^(?:[0-9]{1,4}|[1-5][0-9]{4})\\z" 1;')
    yield from _block(
        'map "$request_method $router_args_mount $router_form$router_short $router_args_digest" $router_mount',
        "default 0;",
        '"~^POST 1 " 1;',
        '"POST 0 11 0" 1;',
    )
    yield "# Where a mount goes that Baleen has not answered; if its pod had failed already, as a plain upload."
    yield from _block(
        "map $upstream_http_x_baleen_mount $router_fallback",
        "default @router_mount_at_pod;",
        '"~." @router_upload_at_pod;',
    )
    yield "# The log: what answered, and how. Queries are not logged."
    yield (
        'log_format baleen_router escape=json \'{"time":"$time_iso8601","client":"$remote_addr",'
        '"method":"$request_method","path":"$router_path","status":"$status","route":"$router_route",'
        '"upstream":"$upstream_addr","upstream_status":"$upstream_status","bytes":"$body_bytes_sent",'
        '"seconds":"$request_time"}\';'
    )


def _upstreams(pods: Sequence[Pod], options: Options) -> Iterator[str]:
    for pod in pods:
        yield from _block(
            f"upstream {_upstream(pod)}",
            # Always tried: a push must not fail because of an earlier failure.
            *(f"server {_address(registry)} max_fails=0;" for registry in unique(pod.registries)),
            "keepalive 32;",
            "keepalive_timeout 15s;",
        )
    yield from _coordinator("router_coordinator", options, spared=True)
    if options.issuer == "baleen":
        # Separate for tokens: slow mounts (a store, a database) must not affect tokens, which need neither. Without
        # another issuer, a single Baleen is asked each time: it is the only one that can issue a token.
        yield from _coordinator("router_tokens", options, spared=options.fallback_issuer is not None)
    for name, issuer in _issuers(options):
        yield from _block(f"upstream {name}", f"server {_address(issuer.server)} max_fails=0;")


def _coordinator(name: str, options: Options, *, spared: bool) -> Iterator[str]:
    """Baleen's replicas. One that fails is not asked for a while; `spared`: even if it is the only one."""
    replicas = [_address(each) for each in unique(options.coordinator)]
    if spared and len(replicas) == 1:
        # nginx counts no failures of a server that is the only one.
        replicas *= COORDINATOR_TRIES
    # A failed replica is skipped in favour of another; if all have failed, all are asked.
    last = [] if spared or len(replicas) == 1 else replicas
    yield from _block(
        f"upstream {name}",
        # nginx's worker processes share what failed.
        f"zone {name} 64k;",
        *(f"server {each} max_fails=1 fail_timeout={options.coordinator_pause_s}s;" for each in replicas),
        *(f"server {each} max_fails=0 backup;" for each in last),
        "keepalive 32;",
        # Less than Baleen's own, which is 5 s.
        "keepalive_timeout 3s;",
    )


# What answers


def _server(pods: Sequence[Pod], options: Options) -> Iterator[str]:
    bound = f"{options.request_bound_s}s"
    tls = []
    if options.tls is not None:
        tls = [
            f'ssl_certificate "{options.tls.chain}";',
            f'ssl_certificate_key "{options.tls.key}";',
            "ssl_protocols TLSv1.2 TLSv1.3;",
        ]
    yield from _block(
        "server",
        f"listen {options.listen}{' ssl' if tls else ''};",
        *tls,
        f'access_log "{options.log_file}" baleen_router;',
        "# Requests that are not HTTP are logged too, without details.",
        "uninitialized_variable_warn off;",
        "merge_slashes on;",
        "# Otherwise the router's own answers would get a type from the end of the path, such as a tag v1.html.",
        "types {}",
        "default_type application/json;",
        "gzip off;",
        "# A token for many repositories is long.",
        "large_client_header_buffers 8 64k;",
        "",
        "# Bytes are forwarded as they come, both ways; nothing is stored in a file.",
        "client_max_body_size 0;",
        "client_body_buffer_size 128k;",
        "proxy_http_version 1.1;",
        "proxy_request_buffering off;",
        "proxy_buffering off;",
        *_passing(HEAD_BYTES),
        "proxy_max_temp_file_size 0;",
        "proxy_redirect off;",
        "# A pod's headers must not control nginx: they could send a client's request and token to another pod.",
        "proxy_ignore_headers X-Accel-Redirect X-Accel-Buffering X-Accel-Charset X-Accel-Expires X-Accel-Limit-Rate;",
        "proxy_socket_keepalive on;",
        "# No wait is longer than garbage collection assumes for a request.",
        f"client_body_timeout {bound};",
        f"send_timeout {bound};",
        f"proxy_send_timeout {bound};",
        f"proxy_read_timeout {bound};",
        f"proxy_connect_timeout {BASE_TIMEOUT_S}s;",
        "proxy_ssl_verify on;",
        "proxy_ssl_verify_depth 5;",
        f'proxy_ssl_trusted_certificate "{options.ca_file}";',
        "proxy_ssl_protocols TLSv1.2 TLSv1.3;",
        "proxy_ssl_server_name on;",
        "proxy_ssl_name $router_tls_name;",
        *_headers("$router_host"),
        "",
        "recursive_error_pages on;",
        "error_page 502 503 504 = @router_away;",
        "error_page 413 = @router_large;",
        "set $router_path $uri;",
        "set $router_content_type $http_content_type;",
        "set $router_route pod;",
        "",
        *_base(pods),
        *_uploads(options),
        *_contents(),
        *_tokens(options),
        *_refusals(),
    )


def _headers(host: str) -> list[str]:
    # A client's claims about its address and scheme are replaced: registries use them in URLs and events.
    return [
        f"proxy_set_header Host {host};",
        'proxy_set_header Connection "";',
        "proxy_set_header Content-Type $router_content_type;",
        "proxy_set_header X-Real-IP $remote_addr;",
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_set_header X-Forwarded-Proto $router_scheme;",
        "proxy_set_header X-Forwarded-Host $router_host;",
        'proxy_set_header X-Forwarded-Port "";',
        'proxy_set_header Forwarded "";',
    ]


_TO_POD = "proxy_pass $router_pod$router_path$is_args$args;"
_OWNED = 'if ($router_pod = "") { rewrite ^ /.router/unknown last; }'


def _base(pods: Sequence[Pod]) -> Iterator[str]:
    yield "# Is the client authenticated? All pods agree on that, so one answer is enough."
    yield from _block("location = /v2", "rewrite ^ /v2/ last;")
    asked = pods[:BASE_PODS]
    for number, pod in enumerate(asked):
        there = "location = /v2/" if number == 0 else f"location @router_base_{number}"
        following = f"@router_base_{number + 1}" if number + 1 < len(asked) else "@router_away"
        yield from _block(
            there,
            "set $router_path /v2/;",
            # If one pod fails, another one answers: without this answer clients could push to no pod.
            *(["proxy_intercept_errors on;"] if number + 1 < len(asked) else []),
            f"error_page 429 {_FAILURES} = {following};",
            f"proxy_connect_timeout {BASE_TIMEOUT_S}s;",
            f"proxy_read_timeout {BASE_TIMEOUT_S}s;",
            *([f'proxy_ssl_name "{tls_name(pod.registries, pod.name)}";'] if _scheme(pod) == "https" else []),
            f"proxy_pass {_origin(pod)}$router_path;",
        )
    yield "# On shared storage each pod would list the repositories of all. Baleen lists them: /v1/repositories."
    yield from _block(
        "location = /v2/_catalog",
        "set $router_route refused;",
        _error(404, "UNSUPPORTED", "The router has no catalog: ask Baleen for repositories, or one pod."),
    )


def _uploads(options: Options) -> Iterator[str]:
    wait = f"{options.coordinator_timeout_s}s"
    yield "# The start of an upload, or a mount."
    yield from _block(
        f'location ~ "^/v2/{_REPOSITORY}/blobs/uploads/?\\z"',
        _OWNED,
        "set $router_path /v2/$router_repository/blobs/uploads/;",
        "if ($router_mount) { rewrite ^ /.router/mount last; }",
        "# So that no registry reads a form in the body.",
        "set $router_content_type application/octet-stream;",
        _TO_POD,
    )
    yield from _block(
        "location = /.router/mount",
        "internal;",
        "set $router_route mount;",
        *_buffered(FORM_BYTES),
        *_limited(wait),
        "proxy_intercept_errors on;",
        "# Baleen is away, serves no mounts, or fails: the pod gets what the client sent.",
        f"error_page 404 405 {_FAILURES} = $router_fallback;",
        "# Baleen refuses its form: the pod must not make a mount of it.",
        "error_page 400 408 411 414 429 431 = @router_upload_at_pod;",
        *_tls_name(options.coordinator, "Baleen"),
        f"proxy_pass {options.coordinator[0].scheme}://router_coordinator$router_path$is_args$args;",
    )
    # Also if a client requests the location above by its name.
    yield from _block("location @router_mount_at_pod", _OWNED, "set $router_route mount-at-pod;", _TO_POD)
    yield from _block(
        "location @router_upload_at_pod",
        "set $router_route upload-at-pod;",
        "set $router_content_type application/octet-stream;",
        *_headers("$router_host"),
        "proxy_pass_request_body off;",
        "proxy_set_header Content-Length 0;",
        "proxy_pass $router_pod$router_path;",
    )
    yield "# An upload continues. The specification has no POST here; distribution would start an upload, or mount."
    yield from _block(
        f'location ~ "^/v2/{_REPOSITORY}/blobs/uploads/{_SEGMENT}\\z"',
        _OWNED,
        "if ($request_method = POST) { rewrite ^ /.router/refused last; }",
        _TO_POD,
    )


def _contents() -> Iterator[str]:
    yield "# Read completely first, so that a slow client does not prolong the registry's own request."
    yield from _block(
        f'location ~ "^/v2/{_REPOSITORY}/manifests/{_SEGMENT}\\z"',
        _OWNED,
        "proxy_request_buffering on;",
        f"client_body_buffer_size {MANIFEST_BYTES};",
        _TO_POD,
    )
    yield from _block(
        f'location ~ "^/v2/{_REPOSITORY}/blobs/{_SEGMENT}/?\\z"', _OWNED, *_passing(BLOB_CHUNK_BYTES), _TO_POD
    )
    yield from _block(f'location ~ "^/v2/{_REPOSITORY}/(?:referrers/{_SEGMENT}|tags/list)/?\\z"', _OWNED, _TO_POD)


def _tokens(options: Options) -> Iterator[str]:
    if options.issuer is None:
        return
    yield "# Tokens."
    wait = f"{options.coordinator_timeout_s + options.issuers_s}s"
    if isinstance(options.issuer, Issuer):
        yield from _block(
            "location = /jwt/auth", "set $router_route issuer;", *_issuer("router_issuer", options.issuer)
        )
        return
    yield from _block(
        "location = /jwt/auth",
        "set $router_route token;",
        *_buffered(FORM_BYTES),
        *_limited(wait),
        "proxy_intercept_errors on;",
        f"error_page 404 405 429 {_FAILURES} = @router_issuer;",
        *_tls_name(options.coordinator, "Baleen"),
        f"proxy_pass {options.coordinator[0].scheme}://router_tokens/jwt/auth$is_args$args;",
    )
    if options.fallback_issuer is None:
        yield from _block(
            "location @router_issuer",
            "set $router_route token-away;",
            'add_header Retry-After "1" always;',
            _error(503, "UNAVAILABLE", "No token can be issued now: try again."),
        )
    else:
        yield from _block(
            "location @router_issuer",
            "set $router_route token-at-issuer;",
            *_issuer("router_issuer", options.fallback_issuer),
        )


def _issuer(upstream: str, issuer: Issuer) -> list[str]:
    host = str(issuer.server).partition("://")[2]
    return [
        *_buffered(FORM_BYTES),
        f"proxy_read_timeout {BASE_TIMEOUT_S * 6}s;",
        *_headers(host),
        *_tls_name([issuer.server], "The issuer"),
        f"proxy_pass {issuer.server.scheme}://{upstream}{issuer.path}$is_args$args;",
    ]


def _refusals() -> Iterator[str]:
    yield "# Requests that are not forwarded, with the specification's errors."
    yield from _block(
        "location = /.router/unknown",
        "internal;",
        "set $router_route unowned;",
        _error(404, "NAME_UNKNOWN", "No pod owns this repository."),
    )
    yield from _block(
        "location = /.router/refused",
        "internal;",
        "set $router_route refused;",
        _error(405, "UNSUPPORTED", "An upload that has begun takes PATCH, PUT, GET and DELETE."),
    )
    yield from _block(
        "location @router_away",
        "set $router_route away;",
        'add_header Retry-After "1" always;',
        _error(502, "UNAVAILABLE", "The registry of this repository does not answer: try again."),
    )
    yield from _block(
        "location @router_large",
        "set $router_route refused;",
        _error(413, "SIZE_INVALID", "The body of this request is too large."),
    )
    yield from _block(
        "location /",
        "set $router_route refused;",
        _error(404, "UNSUPPORTED", "This is no endpoint of the distribution specification."),
    )


def _whole(http: Sequence[str], options: Options) -> Iterator[str]:
    state = options.state_dir.rstrip("/")
    yield "worker_processes auto;"
    yield f'pid "{state}/nginx.pid";'
    yield f'error_log "{state}/error.log" warn;'
    yield "pcre_jit on;"
    yield f"worker_rlimit_nofile {4 * CONNECTIONS};"
    yield "# How long requests from before a reload may still run."
    yield f"worker_shutdown_timeout {options.request_bound_s}s;"
    yield from _block("events", f"worker_connections {CONNECTIONS};")
    kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    yield from _block("http", *(f'{each}_temp_path "{state}/{each}";' for each in kept), "server_tokens off;", *http)


# How it is written


def _block(head: str, *lines: str) -> Iterator[str]:
    yield f"{head} {{"
    yield from (f"    {line}" if line else "" for line in lines)
    yield "}"


def _error(status: int, code: str, message: str) -> str:
    return f'return {status} \'{{"errors":[{{"code":"{code}","message":"{message}","detail":null}}]}}\';'


def _buffered(limit: int) -> list[str]:
    """Buffer a body in memory, so that it can be sent to a second server."""
    return [
        "proxy_request_buffering on;",
        f"client_max_body_size {limit};",
        f"client_body_buffer_size {limit};",
        "error_page 413 = @router_large;",
    ]


def _passing(size: int) -> list[str]:
    """Set how much of an answer is read at once; its headers must fit."""
    # The second is not used without buffering, but must not be less than the first.
    return [f"proxy_buffer_size {size};", f"proxy_buffers 4 {size};"]


def _limited(wait: str) -> list[str]:
    """Limit the time to one attempt at one server; after it the pod is asked."""
    return [
        f"proxy_connect_timeout {wait};",
        f"proxy_send_timeout {wait};",
        f"proxy_read_timeout {wait};",
        "proxy_next_upstream error timeout;",
        f"proxy_next_upstream_timeout {wait};",
    ]


def _issuers(options: Options) -> Iterator[tuple[str, Issuer]]:
    used = options.issuer if isinstance(options.issuer, Issuer) else None
    if options.issuer == "baleen":
        used = options.fallback_issuer
    if used is not None:
        yield "router_issuer", used


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


def _tls_name(servers: Sequence[RegistryUrl], whose: str) -> list[str]:
    name = tls_name(servers, whose)
    return [f'proxy_ssl_name "{name}";'] if name else []


def _literal(prefix: str) -> str:
    # The dot is the only character of a prefix with a meaning in a regular expression.
    return prefix.replace(".", "[.]")


def _upstream(pod: Pod) -> str:
    return f"pod_{pod.name}"


def _scheme(pod: Pod) -> str:
    return pod.registries[0].scheme


def _origin(pod: Pod) -> str:
    return f"{_scheme(pod)}://{_upstream(pod)}"


def unique(servers: Iterable[RegistryUrl]) -> list[RegistryUrl]:
    return sorted(set(servers))


def _address(server: RegistryUrl) -> str:
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{host}:{server.port}"
