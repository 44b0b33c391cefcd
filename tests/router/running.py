"""A running Baleen that mounts, two pods on its store, and the router that `baleen router-config` makes for them."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from coordinator.domain.pods import parse_registry
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Image
from coordinator.router.nginx import RoutedPod
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import StackEndpoints
from tests.registries.harness import Baleen, Pod, Registry
from tests.router import harness
from tests.router.harness import HOST, Router
from tests.router.proxies import Proxy
from tests.services.s3 import s3_settings

COMMAND_S = 60.0
#: Nothing here waits for a watermark, and probes cost as much as the tests beside them.
PROBE_EVERY = "10s"
#: A mount may wait for a Baleen that says nothing.
CLIENT_S = 60.0


class Running(NamedTuple):
    baleen: Baleen
    pods: tuple[Pod, Pod]
    registries: tuple[Registry, Registry]
    router: Router

    @classmethod
    @contextmanager
    def started(
        cls,
        directory: Path,
        proxy: Proxy,
        store: StackEndpoints | None = None,
        *,
        s3_url: str | None = None,
        **options: int,
    ) -> Iterator[Running]:
        """Start all; `store` is one that does not end with Baleen, which reaches it by `s3_url`.

        `options` are those of a router that is not made by the command, which does not have them.
        """
        with Children() as children:
            # The registries here ask nobody who they are.
            settings = {"BALEEN_MOUNTS": "open", "BALEEN_PROBE_EVERY": PROBE_EVERY}
            baleen = Baleen(directory, children, settings | store_settings(store, s3_url))
            with baleen.api:
                pods = add_pods(baleen)
                registries = start_registries(baleen, pods, s3_url=None if store is None else store.s3_endpoint_url)
                if options:
                    ports = Ports(directory / "router.json", HOST)
                    routed = [
                        RoutedPod(pod.name, [pod.name], [parse_registry(registry.url)])
                        for pod, registry in zip(pods, registries, strict=True)
                    ]
                    router = harness.start_router(proxy, directory, children, ports, routed, baleen.url, **options)
                else:
                    router = start_router(proxy, directory, children, router_address(directory))
                yield cls(baleen, pods, registries, router)

    def push(self, pod: int, repository: str, image: Image, **options: str) -> str:
        """Push an image to a pod through the router, and return the repository's whole name."""
        name = f"{self.pods[pod].name}/{repository}"
        with RegistryClient(self.router.url, timeout=CLIENT_S) as client:
            client.push_image(name, image, "v1", **options)
            assert client.pull_image(name, "v1").digest == image.digest
        return name


def store_settings(store: StackEndpoints | None, s3_url: str | None) -> dict[str, str]:
    if store is None:
        return {}
    known = s3_settings(store) | ({} if s3_url is None else {"s3_endpoint_url": s3_url})
    return {f"BALEEN_{name.upper()}": value for name, value in known.items()}


def add_pods(baleen: Baleen) -> tuple[Pod, Pod]:
    mark = secrets.token_hex(3)
    return baleen.add_pod(f"a-{mark}"), baleen.add_pod(f"b-{mark}")


def start_registries(
    baleen: Baleen,
    pods: tuple[Pod, Pod],
    kind: type[DistributionRegistry] = DistributionRegistry,
    *,
    s3_url: str | None = None,
) -> tuple[Registry, Registry]:
    registries = baleen.registry(kind, pods[0], s3_url=s3_url), baleen.registry(kind, pods[1], s3_url=s3_url)
    for pod, registry in zip(pods, registries, strict=True):
        baleen.list_registries(pod, registry)
    return registries


def router_address(directory: Path) -> str:
    return f"{HOST}:{Ports(directory / 'router.json', HOST).take('router')}"


def start_router(proxy: Proxy, directory: Path, children: Children, address: str, *options: str) -> Router:
    """Make a router's configuration for the pods that are registered, by the command, and start it."""
    state, file = directory / f"router-{proxy.name}", directory / f"router-{proxy.name}.conf"
    state.mkdir()
    places = ["--state-dir", str(state), "--log-file", str(state / "access.log"), "--out", str(file)]
    command = ["router-config", "--for", proxy.name, "--whole", "--listen", address, *places, *options]
    subprocess.run(
        [sys.executable, "-m", "coordinator.cli", *command],
        cwd=Path(__file__).parents[2],
        env={"BALEEN_DATA_DIR": str(directory / "data"), "PATH": ""},
        check=True,
        capture_output=True,
        timeout=COMMAND_S,
    )
    process = children.start(proxy.process(state, file, address))
    return Router(f"http://{address}", address, state, process, file)
