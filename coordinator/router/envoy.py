"""Write the Envoy configuration of the router: the same decisions as on nginx (nginx.py explains them).

Route: pods and options -> `make_configuration` -> the JSON that Envoy reads. Pure: the same pods give the same text.

How Envoy decides:
- A script (templates/envoy-read.lua.j2) reads the path, finds the owner and sets headers with the endpoint and the
  pod; the path is forwarded in the resolved form. Envoy's own normalisation (`normalize_path`) treats a backslash as a
  slash.
- Routes match only these headers. Without them nothing reaches a pod. A script that fails stops, and Envoy continues
  with the request; such headers from a client are removed.
- Where Baleen may have to be asked, another script (envoy-ask.lua.j2) asks it, and chooses another route if it does not
  answer. Envoy's retries cannot do that: they send the same request, and have one timeout for all attempts.
- The scripts see headers, and the bodies of mounts and of requests for tokens; no other bytes.

Not here: the servers (envoy_clusters.py), where pods come from (commands/router.py), Envoy itself.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from coordinator.domain.hosts import is_address
from coordinator.domain.names import REPOSITORY_NAME_LIMIT
from coordinator.errors import UsageError
from coordinator.router.envoy_clusters import (
    BASE,
    COORDINATOR,
    ISSUER,
    TOKENS,
    EnvoyConfig,
    cluster_name,
    extension_config,
    format_seconds,
    make_clusters,
    retry_policy,
    socket_address,
    typed_config,
)
from coordinator.router.nginx import (
    BASE_PODS,
    BASE_TIMEOUT_S,
    BLOB_CHUNK_BYTES,
    FORM_BYTES,
    MANIFEST_BYTES,
    TEMPLATES,
    Issuer,
    Options,
    RoutedPod,
    servable_pods,
    unique_servers,
)

#: The headers that the scripts set for the routes: the endpoint, the pod, and the way to go instead of to Baleen.
ENDPOINT, POD, WAY = "x-router-endpoint", "x-router-pod", "x-router-way"

#: A token for many repositories is long.
HEAD_KIB, HEADERS = 512, 1000

#: How much of a body is kept until a process of the pod has accepted the connection, so that another one can be tried:
#: more than is read before (BLOB_CHUNK_BYTES), and while the next one is tried.
RETRY_BYTES = 4 * BLOB_CHUNK_BYTES

#: Answers of Baleen that do not decide a mount: it is away, serves no mounts, or fails; or it refuses the form.
_MOUNT_AWAY = ("404", "405", "5xx")
_MOUNT_UNREADABLE = ("400", "408", "411", "414", "429", "431")
_TOKEN_AWAY = (*_MOUNT_AWAY, "429")

#: Envoy's response flags for a registry that was away or silent.
_AWAY_FLAGS = ("UF", "UH", "UC", "LR", "UR", "UT", "UO", "UPE", "URX", "NC", "DF")


def make_configuration(pods: Iterable[RoutedPod], options: Options) -> str:
    """Return the configuration; raises UsageError that names the pod which cannot be served."""
    served = servable_pods(pods)
    if not is_address(options.listen.rpartition(":")[0].strip("[]")):
        raise UsageError(
            "--listen is malformed: use an address, such as 127.0.0.1:5000. Envoy does not listen at a name."
        )
    plan: EnvoyConfig = {
        "node": {"id": "baleen-router", "metadata": {"made_by": "baleen router-config: make it again, do not edit it"}},
        # A fragment is not part of a request: it is cut off.
        "layered_runtime": {
            "layers": [
                {"name": "router", "static_layer": {"envoy.reloadable_features.http_reject_path_with_fragment": False}}
            ]
        },
        "static_resources": {
            "listeners": [_make_listener(served, options)],
            "clusters": [*make_clusters(served, options)],
        },
    }
    return json.dumps(plan, indent=2) + "\n"


def _make_listener(pods: Sequence[RoutedPod], options: Options) -> EnvoyConfig:
    host, _, port = options.listen.rpartition(":")
    manager = extension_config(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="router",
        codec_type="HTTP1",
        http_protocol_options={
            "accept_http_10": True,
            "default_host_for_http_10": options.listen,
            # A client's offer of another protocol must not be refused: registries ignore it.
            "ignore_http_11_upgrade": [{"safe_regex": {"regex": ".*"}}],
        },
        common_http_protocol_options={
            "max_headers_count": HEADERS,
            # A server that reads headers as CGI would take them for the same names with hyphens, which are replaced.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        max_request_headers_kb=HEAD_KIB,
        use_remote_address=True,
        generate_request_id=False,
        server_header_transformation="PASS_THROUGH",
        request_headers_timeout=format_seconds(60),
        stream_idle_timeout=format_seconds(options.request_bound_s),
        local_reply_config=_ANSWERS,
        access_log=[_make_access_log(options)],
        route_config=_make_routes(pods, options),
        http_filters=[*_make_filters(pods, options)],
    )
    return {
        "name": "router",
        "address": socket_address(host.strip("[]"), int(port)),
        "per_connection_buffer_limit_bytes": BLOB_CHUNK_BYTES,
        "filter_chains": [{"filters": [manager], **_tls_socket(options)}],
    }


def _tls_socket(options: Options) -> EnvoyConfig:
    if options.tls is None:
        return {}
    files = {"certificate_chain": {"filename": options.tls.chain}, "private_key": {"filename": options.tls.key}}
    return {
        "transport_socket": extension_config(
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "alpn_protocols": ["http/1.1"],
                "tls_certificates": [files],
            },
        )
    }


# What a request passes


def _make_filters(pods: Sequence[RoutedPod], options: Options) -> Iterator[EnvoyConfig]:
    yield _make_filter(
        "who", "header_mutation.v3.HeaderMutation", mutations={"request_mutations": _client_headers(options)}
    )
    owners = {prefix: cluster_name(pod) for pod in pods for prefix in pod.prefixes}
    yield _make_filter(
        "read",
        "lua.v3.Lua",
        default_source_code=_render_script(
            "envoy-read.lua.j2", form_bytes=FORM_BYTES, name_limit=REPOSITORY_NAME_LIMIT
        ),
        filter_context={prefix: owners[prefix] for prefix in sorted(owners)},
    )
    # Both only on routes that enable them.
    yield _make_filter("whole", "buffer.v3.Buffer", max_request_bytes=FORM_BYTES)
    yield _make_filter("ask", "lua.v3.Lua")
    yield _make_filter("router", "router.v3.Router", suppress_envoy_headers=True)


def _render_script(template: str, **values: int) -> EnvoyConfig:
    return {"inline_string": TEMPLATES.get_template(template).render(values)}


def _make_filter(name: str, kind: str, **fields: Any) -> EnvoyConfig:
    return {"name": name, "typed_config": typed_config(f"extensions.filters.http.{kind}", **fields)}


def _client_headers(options: Options) -> list[EnvoyConfig]:
    """Replace a client's claims about its address and scheme: registries use them in URLs and events."""
    client = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"
    added = {"x-real-ip": client, "x-forwarded-for": client, "x-forwarded-host": "%REQ(:AUTHORITY)%"}
    if options.public_scheme is not None:
        added["x-forwarded-proto"] = options.public_scheme
    return [
        *({"append": _set_header(name, value)} for name, value in added.items()),
        *({"remove": name} for name in ("x-forwarded-port", "forwarded")),
        # With these a client could control Envoy's timeouts and retries.
        {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
    ]


def _set_header(name: str, value: str) -> EnvoyConfig:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _make_access_log(options: Options) -> EnvoyConfig:
    """The access log: what answered, and how. Queries are not logged."""
    fields = {
        "time": "%START_TIME%",
        "client": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "status": "%RESPONSE_CODE%",
        "route": "%ROUTE_NAME%",
        "baleen": "%DYNAMIC_METADATA(router:baleen)%",
        "upstream": "%UPSTREAM_HOSTS_ATTEMPTED%",
        "failure": "%RESPONSE_FLAGS%",
        "bytes": "%BYTES_SENT%",
        "milliseconds": "%DURATION%",
    }
    return extension_config(
        "extensions.access_loggers.file.v3.FileAccessLog", path=options.log_file, log_format={"json_format": fields}
    )


# What answers


def _make_routes(pods: Sequence[RoutedPod], options: Options) -> EnvoyConfig:
    host = {
        "name": "router",
        "domains": ["*"],
        "routes": [*_base_routes(pods), *_repository_routes(options), *_token_routes(options), *_refusal_routes()],
        "request_headers_to_remove": [ENDPOINT, POD, WAY],
        "typed_per_filter_config": {
            "whole": typed_config("extensions.filters.http.buffer.v3.BufferPerRoute", disabled=True)
        },
    }
    return {"name": "router", "virtual_hosts": [host]}


def _base_routes(pods: Sequence[RoutedPod]) -> Iterator[EnvoyConfig]:
    # If one pod fails, another one answers: without this answer clients could push to no pod.
    # The pods are tried in turn, until all processes of each pod have been tried.
    asked = pods[:BASE_PODS]
    tries = len(asked) * max(len(unique_servers(pod.registries)) for pod in asked)
    action = {
        "cluster": BASE,
        "timeout": format_seconds(BASE_TIMEOUT_S * (tries + 1)),
        "retry_policy": {
            **retry_policy(tries),
            "retry_on": "5xx,connect-failure,reset,retriable-status-codes",
            "retriable_status_codes": [429],
            "per_try_timeout": format_seconds(BASE_TIMEOUT_S),
            "retry_priority": extension_config(
                "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=1
            ),
        },
    }
    yield _route_path("/v2/", "pod", route=action)
    yield _route_path("/v2", "pod", route=action | {"prefix_rewrite": "/v2/"})
    # On shared storage each pod would list the repositories of all. Baleen lists them: /v1/repositories.
    no_catalog = _error_body("UNSUPPORTED", "The router has no catalog: ask Baleen for repositories, or one pod.")
    yield _route_path("/v2/_catalog", "refused", **_answer_directly(404, no_catalog))


def _repository_routes(options: Options) -> Iterator[EnvoyConfig]:
    to_pod: EnvoyConfig = {
        "route": _forward(options.request_bound_s, cluster_header=POD),
        "request_body_buffer_limit": RETRY_BYTES,
    }
    # So that no registry reads a form in the body.
    no_form = {"request_headers_to_add": [_set_header("content-type", "application/octet-stream")]}
    ways = dict.fromkeys(_MOUNT_AWAY, "mount-at-pod") | dict.fromkeys(_MOUNT_UNREADABLE, "upload-at-pod")
    yield _route_headers("mount-at-pod", {WAY: "mount-at-pod"}, **to_pod)
    yield _route_headers("upload-at-pod", {WAY: "upload-at-pod"}, **to_pod, **no_form)
    mount = {ENDPOINT: "mount", POD: None}
    yield _route_headers("mount", mount, **_ask_baleen(COORDINATOR, options.coordinator_timeout_s, ways))
    yield _route_headers("pod", {ENDPOINT: "begin", POD: None}, **to_pod, **no_form)
    # The specification has no POST here; distribution would start an upload, or mount.
    going_on = _error_body("UNSUPPORTED", "An upload that has begun takes PATCH, PUT, GET and DELETE.")
    post = {ENDPOINT: "upload", POD: None, ":method": "POST"}
    yield _route_headers("refused", post, **_answer_directly(405, going_on))
    # Read completely first, so that a slow client does not prolong the registry's own request.
    manifest = {ENDPOINT: "manifest", POD: None}
    kept = {"request_body_buffer_limit": 2 * MANIFEST_BYTES, "typed_per_filter_config": _buffer_body(MANIFEST_BYTES)}
    yield _route_headers("pod", manifest, **(to_pod | kept))
    yield _route_headers("pod", {POD: None}, **to_pod)


def _token_routes(options: Options) -> Iterator[EnvoyConfig]:
    if options.issuer is None:
        return
    path = "/jwt/auth"
    if isinstance(options.issuer, Issuer):
        yield _route_path(
            path, "issuer", route=_forward_to_issuer(options.issuer), typed_per_filter_config=_buffer_body(FORM_BYTES)
        )
        return
    if options.fallback_issuer is None:
        way = "token-away"
        none = _error_body("UNAVAILABLE", "No token can be issued now: try again.")
        yield _route_path(path, way, {WAY: way}, **_answer_directly(503, none, {"retry-after": "1"}))
    else:
        way = "token-at-issuer"
        yield _route_path(path, way, {WAY: way}, route=_forward_to_issuer(options.fallback_issuer))
    wait = options.coordinator_timeout_s + options.issuers_s
    yield _route_path(path, "token", **_ask_baleen(TOKENS, wait, dict.fromkeys(_TOKEN_AWAY, way)))


def _refusal_routes() -> Iterator[EnvoyConfig]:
    """Requests that are not forwarded, with the specification's errors."""
    unowned = _error_body("NAME_UNKNOWN", "No pod owns this repository.")
    yield _route_headers("unowned", {ENDPOINT: None}, **_answer_directly(404, unowned))
    nothing = _error_body("UNSUPPORTED", "This is no endpoint of the distribution specification.")
    yield _route_headers("refused", {}, **_answer_directly(404, nothing))


def _forward(silence_s: int, **action: Any) -> EnvoyConfig:
    """Forward the request, however long it takes as long as bytes come."""
    return {"timeout": "0s", "idle_timeout": format_seconds(silence_s), **action}


def _forward_to_issuer(issuer: Issuer) -> EnvoyConfig:
    return _forward(
        BASE_TIMEOUT_S * 6,
        cluster=ISSUER,
        host_rewrite_literal=str(issuer.server).partition("://")[2],
        regex_rewrite={"pattern": {"regex": "^.*$"}, "substitution": issuer.path},
    )


def _ask_baleen(whom: str, wait_s: int, ways: Mapping[str, str]) -> EnvoyConfig:
    """Ask Baleen. If the script fails, the request is not forwarded: a mount would bypass Baleen."""
    asking = typed_config(
        "extensions.filters.http.lua.v3.LuaPerRoute",
        source_code=_render_script("envoy-ask.lua.j2"),
        filter_context={"cluster": whom, "timeout_ms": wait_s * 1000, "ways": dict(ways)},
    )
    return {
        **_answer_directly(500, _error_body("UNKNOWN", "The router has failed.")),
        "typed_per_filter_config": {**_buffer_body(FORM_BYTES), "ask": asking},
    }


def _buffer_body(limit: int) -> EnvoyConfig:
    """Buffer a body in memory until it is complete."""
    kind = "extensions.filters.http.buffer.v3.BufferPerRoute"
    return {"whole": typed_config(kind, buffer={"max_request_bytes": limit})}


# How it is written


def _route_path(path: str, name: str, headers: Mapping[str, str | None] | None = None, **rest: Any) -> EnvoyConfig:
    return {"name": name, "match": {"path": path, "headers": _match_headers(headers or {})}, **rest}


def _route_headers(name: str, headers: Mapping[str, str | None], **rest: Any) -> EnvoyConfig:
    return {"name": name, "match": {"prefix": "/", "headers": _match_headers(headers)}, **rest}


def _match_headers(wanted: Mapping[str, str | None]) -> list[EnvoyConfig]:
    """Match headers with these values; None matches any value."""
    return [
        {"name": name, "present_match": True} if value is None else {"name": name, "string_match": {"exact": value}}
        for name, value in wanted.items()
    ]


def _answer_directly(status: int, body: str, headers: Mapping[str, str] | None = None) -> EnvoyConfig:
    added = {"content-type": "application/json", **(headers or {})}
    return {
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [_set_header(name, value) for name, value in added.items()],
    }


def _error_body(code: str, message: str) -> str:
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}, separators=(",", ":"))


def _json_body(body: str) -> EnvoyConfig:
    return {"text_format_source": {"inline_string": body}, "content_type": "application/json"}


def _match_status(status: int) -> EnvoyConfig:
    value = {"default_value": status, "runtime_key": "router.status"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _match_flags(*flags: str) -> EnvoyConfig:
    return {"response_flag_filter": {"flags": list(flags)}}


#: Envoy's own answers, with the specification's errors.
_ANSWERS: EnvoyConfig = {
    "mappers": [
        {
            "filter": {
                "or_filter": {
                    "filters": [
                        _match_flags(*_AWAY_FLAGS),
                        # A silence that is not the client's, which is 408.
                        {"and_filter": {"filters": [_match_status(504), _match_flags("SI")]}},
                    ]
                }
            },
            "status_code": 502,
            "headers_to_add": [_set_header("retry-after", "1")],
            "body_format_override": _json_body(
                _error_body("UNAVAILABLE", "The registry of this repository does not answer: try again.")
            ),
        },
        {
            "filter": _match_status(413),
            "body_format_override": _json_body(_error_body("SIZE_INVALID", "The body of this request is too large.")),
        },
    ]
}
