"""The servers of the router on Envoy: the registries of each pod, Baleen, an issuer.

Not here: which request goes where (envoy.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from coordinator.domain.pods import RegistryUrl
from coordinator.router.nginx import (
    BASE_PODS,
    BASE_TIMEOUT_S,
    BLOB_CHUNK_BYTES,
    COORDINATOR_TRIES,
    Options,
    RoutedPod,
    tls_name,
    unique_servers,
)

EnvoyConfig = dict[str, Any]

BASE, COORDINATOR, TOKENS, ISSUER = "router_base", "router_coordinator", "router_tokens", "router_issuer"

#: Beyond its own default limits (1024) Envoy would refuse pushes that registries accept.
UNLIMITED = 1_000_000
#: Less than registries and Baleen (5 s) keep an idle connection.
POD_IDLE_S, COORDINATOR_IDLE_S = 15, 3

_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def typed_config(kind: str, **fields: Any) -> EnvoyConfig:
    """A part of a configuration with its type."""
    return {"@type": f"type.googleapis.com/envoy.{kind}", **fields}


def extension_config(kind: str, **fields: Any) -> EnvoyConfig:
    """The same, with the name that Envoy requires."""
    return {"name": kind, "typed_config": typed_config(kind, **fields)}


def socket_address(host: str, port: int) -> EnvoyConfig:
    return {"socket_address": {"address": host, "port_value": port}}


def format_seconds(number: int) -> str:
    return f"{number}s"


def cluster_name(pod: RoutedPod) -> str:
    return f"pod_{pod.name}"


def make_clusters(pods: Sequence[RoutedPod], options: Options) -> Iterator[EnvoyConfig]:
    """Yield all clusters; raises UsageError for a server that cannot be verified."""
    for pod in pods:
        # One attempt more than there are processes: a kept connection may be dead.
        policy = retry_policy(len(unique_servers(pod.registries)))
        yield _make_cluster(
            cluster_name(pod), pod.registries, f"Pod {pod.name}", options, POD_IDLE_S, retry_policy=policy
        )
    yield {
        "name": BASE,
        "connect_timeout": format_seconds(BASE_TIMEOUT_S),
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": _UNLIMITED,
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": typed_config(
                "extensions.clusters.aggregate.v3.ClusterConfig",
                clusters=[cluster_name(pod) for pod in pods[:BASE_PODS]],
            ),
        },
    }
    yield _make_coordinator_cluster(COORDINATOR, options, spared=True)
    if options.issuer == "baleen":
        # Separate for tokens: slow mounts (a store, a database) must not affect tokens, which need neither. Without
        # another issuer, a single Baleen is asked each time: it is the only one that can issue a token.
        yield _make_coordinator_cluster(TOKENS, options, spared=options.fallback_issuer is not None)
    if (issuer := options.external_issuer) is not None:
        yield _make_cluster(ISSUER, [issuer.server], "The issuer", options, POD_IDLE_S)


def _make_coordinator_cluster(name: str, options: Options, *, spared: bool) -> EnvoyConfig:
    """Baleen's replicas. One that fails is not asked for a while; `spared`: even if it is the only one."""
    replicas = unique_servers(options.coordinator)
    made = _make_cluster(
        name,
        replicas,
        "Baleen",
        options,
        COORDINATOR_IDLE_S,
        retry_policy=retry_policy(len(replicas) - 1),
        # Only silence and refused connections count: any answer is an answer.
        outlier_detection={"error_matcher": {"not_match": {"any_match": True}}},
    )
    if spared or len(replicas) > 1:
        made["outlier_detection"] = {
            "consecutive_5xx": COORDINATOR_TRIES,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": format_seconds(options.coordinator_pause_s),
            "max_ejection_time": format_seconds(options.coordinator_pause_s),
            "max_ejection_percent": 100,
        }
    return made


def retry_policy(tries: int) -> EnvoyConfig:
    """Try another process, or the same again, if one does not accept the connection: it has received nothing."""
    return {
        "retry_on": "connect-failure,reset-before-request",
        "num_retries": tries,
        # Without a pause, because the body that comes meanwhile has to be buffered.
        "retry_back_off": {"base_interval": "0.001s"},
        "retry_host_predicate": [extension_config("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")],
        "host_selection_retry_max_attempts": 5,
    }


_UNLIMITED: EnvoyConfig = {
    "thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), UNLIMITED)]
}


def _make_cluster(
    name: str, servers: Iterable[RegistryUrl], whose: str, options: Options, idle_s: int, **protocol: EnvoyConfig
) -> EnvoyConfig:
    known = unique_servers(servers)
    return {
        "name": name,
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": format_seconds(BASE_TIMEOUT_S),
        "per_connection_buffer_limit_bytes": BLOB_CHUNK_BYTES,
        # A failed replica is not asked, even if there is no other.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": _UNLIMITED,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": socket_address(each.host, each.port)}} for each in known]}
            ],
        },
        "typed_extension_protocol_options": {
            _PROTOCOL: typed_config(
                _PROTOCOL.removeprefix("envoy."),
                common_http_protocol_options={"idle_timeout": format_seconds(idle_s)},
                explicit_http_config={"http_protocol_options": {}},
                **protocol,
            )
        },
        **_tls_socket(tls_name(known, whose), options),
    }


def _tls_socket(name: str, options: Options) -> EnvoyConfig:
    if not name:
        return {}
    return {
        "transport_socket": extension_config(
            "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=name,
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "validation_context": {
                    "trusted_ca": {"filename": options.ca_file},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}],
                },
            },
        )
    }
