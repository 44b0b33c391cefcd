"""The text of the configuration: the same for the same pods, and safe against every value."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.pods import RegistryUrl, parse_registry
from coordinator.errors import BaleenError, UsageError
from coordinator.router import envoy as router_envoy
from coordinator.router.nginx import (
    Certificate,
    Options,
    RoutedPod,
    make_configuration,
    parse_file,
    parse_issuer,
    parse_listen,
)
from tests.router.proxies import BOTH, Proxy

API = parse_registry("http://127.0.0.1:8640")
USUAL = Options(coordinator=[API], request_bound_s=3600)


def servers(*urls: str) -> list[RegistryUrl]:
    return [parse_registry(url) for url in urls]


PODS = [
    RoutedPod("pod-b", ["teams", "b.c"], servers("http://10.0.0.2:5000", "http://10.0.0.3:5000")),
    RoutedPod("pod-a", ["team"], servers("https://registry-a.example")),
]


both = pytest.mark.parametrize("proxy", BOTH)


def envoy(options: Options = USUAL) -> dict[str, Any]:
    """The one listener's manager of requests."""
    (listener,) = json.loads(router_envoy.make_configuration(PODS, options))["static_resources"]["listeners"]
    manager: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def envoy_routes(options: Options = USUAL) -> list[dict[str, Any]]:
    routes: list[dict[str, Any]] = envoy(options)["route_config"]["virtual_hosts"][0]["routes"]
    return routes


@both
@given(order=st.randoms(use_true_random=False))
def test_the_same_pods_give_the_same_text(proxy: Proxy, order: random.Random) -> None:
    """The order of pods, prefixes and registries does not change the text."""
    shuffled = [
        RoutedPod(pod.name, order.sample(pod.prefixes, len(pod.prefixes)), list(pod.registries)) for pod in PODS
    ]
    for pod in shuffled:
        order.shuffle(pod.registries)  # type: ignore[arg-type]
    order.shuffle(shuffled)
    assert proxy.configuration(shuffled, USUAL) == proxy.configuration(PODS, USUAL)


def test_every_wait_is_bounded_by_what_collection_expects() -> None:
    """All waits of the router are bounded by the longest request that GC expects."""
    text = make_configuration(PODS, replace(USUAL, request_bound_s=1234, whole=True))
    for wait in ("proxy_read_timeout", "proxy_send_timeout", "send_timeout", "client_body_timeout"):
        assert f"        {wait} 1234s;" in text
    assert "worker_shutdown_timeout 1234s;" in text
    options = replace(USUAL, request_bound_s=1234)
    to_pods = [each["route"] for each in envoy_routes(options) if "cluster_header" in each.get("route", {})]
    assert {each["idle_timeout"] for each in to_pods} == {envoy(options)["stream_idle_timeout"]} == {"1234s"}


def test_envoy_asks_no_pod_that_its_script_has_not_named() -> None:
    """If Envoy's script fails, no route leads to a pod or skips Baleen."""
    for route in envoy_routes(replace(USUAL, issuer="baleen")):
        if "cluster_header" in route.get("route", {}):
            assert {"x-router-pod", "x-router-way"} & {each["name"] for each in route["match"]["headers"]}
        if "ask" in route.get("typed_per_filter_config", {}):
            assert route["direct_response"]["status"] == 500


def test_a_dot_of_a_prefix_is_a_dot() -> None:
    """A prefix is compared as it is written."""
    assert '"~^b[.]c(?:/|\\z)" "http://pod_pod-b";' in make_configuration(PODS, USUAL)
    (read,) = [each["typed_config"] for each in envoy()["http_filters"] if each["name"] == "read"]
    assert read["filter_context"] == {"b.c": "pod_pod-b", "team": "pod_pod-a", "teams": "pod_pod-b"}


def test_it_listens_on_loopback_unless_set() -> None:
    """The router listens on loopback unless an address is set."""
    assert "    listen 127.0.0.1:5000;" in make_configuration(PODS, USUAL)
    secured = replace(USUAL, listen="[::]:443", tls=Certificate("/etc/ssl/router.pem", "/etc/ssl/router.key"))
    assert "    listen [::]:443 ssl;" in make_configuration(PODS, secured)
    found = []
    for options in (USUAL, secured):
        (listener,) = json.loads(router_envoy.make_configuration(PODS, options))["static_resources"]["listeners"]
        found.append((listener["address"]["socket_address"], "transport_socket" in listener["filter_chains"][0]))
    assert found == [
        ({"address": "127.0.0.1", "port_value": 5000}, False),
        ({"address": "::", "port_value": 443}, True),
    ]


@both
def test_a_pod_without_a_registry_is_left_out(proxy: Proxy) -> None:
    """A pod without a registry is left out."""
    assert proxy.configuration([*PODS, RoutedPod("pod-c", ["c"], [])], USUAL) == proxy.configuration(PODS, USUAL)
    with pytest.raises(UsageError, match="No pod has a registry"):
        proxy.configuration([RoutedPod("pod-c", ["c"], [])], USUAL)


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        (["http://a:5000", "https://a:5001"], "use one of them for all"),
        (["https://a:5000", "https://b:5000"], "several names"),
        (["https://10.0.0.1:5000"], "without a name"),
        (["https://[::1]:5000"], "without a name"),
    ],
)
@both
def test_what_could_not_be_verified_is_refused(proxy: Proxy, urls: list[str], reason: str) -> None:
    """Registries that could not be verified are refused, with the pod and what to do."""
    with pytest.raises(UsageError, match=reason) as refused:
        proxy.configuration([RoutedPod("pod-a", ["team"], servers(*urls))], USUAL)
    assert "pod-a" in str(refused.value).lower()


@pytest.mark.parametrize("prefix", ['a"b', "a;b", "a$b", "a b", "a\nb", "A", "a/", "a{b", "(a)", ""])
@both
def test_a_prefix_that_is_no_name_is_refused(proxy: Proxy, prefix: str) -> None:
    """A prefix that is no name is refused, even if the API would accept it."""
    with pytest.raises(BaleenError):
        proxy.configuration([RoutedPod("pod-a", [prefix], servers("http://a:5000"))], USUAL)


@pytest.mark.parametrize("text", ["relative", "/a;b", '/a"b', "/a$b", "/a\nb", "/a\\b", "/a/../b", "/a{b", ""])
def test_a_file_that_nginx_would_misread_is_refused(text: str) -> None:
    """A file's name that nginx would misread is refused."""
    with pytest.raises(UsageError, match="--tls-key"):
        parse_file(text, "--tls-key")


@pytest.mark.parametrize(
    "text", ["5000", ":5000", "host", "host:0", "host:70000", "host:5000;", "a b:1", "[::1]", "*:5"]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    """The address to listen on must be complete."""
    with pytest.raises(UsageError, match="--listen"):
        parse_listen(text)


@pytest.mark.parametrize("text", ["issuer.example", "https://u:p@issuer.example/", "https://a/b?c", "https://a/$b", ""])
def test_an_issuer_that_is_none_is_refused(text: str) -> None:
    """An issuer must be a scheme, a host and a path."""
    with pytest.raises(UsageError):
        parse_issuer(text, "--issuer")
