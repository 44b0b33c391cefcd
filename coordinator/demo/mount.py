"""The demo's mount: push an image to pod-b, through the router, whose base layer only pod-a has.

Route: `start_router` runs nginx with the configuration of `baleen router-config` -> `mount_layer`. If nginx is not
installed, the demo sends the mount to Baleen directly, as the router would.
Not here: what a mount is (coordinator/mounts), the configuration (router/nginx.py).
"""

from pathlib import Path

from coordinator.demo.world import Demo, DemoFailedError
from coordinator.domain.pods import parse_registry
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Layer, make_image, make_layer
from coordinator.router import nginx as router
from coordinator.stack import nginx

#: Bytes of the layer that is mounted.
BASE_BYTES = 3_000_000
#: Longer than any request of the demo.
REQUEST_BOUND_S = 60


def start_router(demo: Demo, directory: Path, port: int, api: str) -> str | None:
    """Start the router, and return where clients reach it; None where there is no nginx."""
    if nginx.find_program() is None:
        demo.console.print("  nginx is not installed here: mounts are sent to Baleen directly")
        return None
    state = directory / "router"
    state.mkdir()
    address = f"127.0.0.1:{port}"
    options = router.Options(
        coordinator=[parse_registry(api)],
        request_bound_s=REQUEST_BOUND_S,
        listen=address,
        whole=True,
        state_dir=str(state),
        log_file=f"{state}/access.log",
    )
    pods = [router.RoutedPod(name, [name], [parse_registry(pod.registry.url)]) for name, pod in demo.pods.items()]
    file = state / "nginx.conf"
    file.write_text(router.make_configuration(pods, options))
    demo.children.start(nginx.make_nginx(state, file, address))
    demo.console.print("  the router is nginx, with the configuration of `baleen router-config`")
    return f"http://{address}"


def mount_layer(demo: Demo, through: str | None, api: str) -> Layer:
    """Push an image to pod-b through the router; return the layer that was mounted."""
    demo.show_step(f"push app5 to pod-b{' through the router' if through else ''}: only pod-a has its base layer")
    base = make_layer("demo/elsewhere", BASE_BYTES)
    demo.pods["pod-a"].client.push_image("pod-a/base", make_image("demo/base", [base]), "v1")
    image = make_image("demo/app5", [base, make_layer("demo/app5", 50_000)])
    with RegistryClient(through or api) as asking, RegistryClient(through or demo.pods["pod-b"].registry.url) as client:
        if not asking.mount_blob("pod-b/app5", base.digest, "pod-a/base"):
            raise DemoFailedError("The layer of pod-a was not mounted in pod-b.")
        sent = sum(len(blob.content) for blob in image.blobs if not client.has_blob("pod-b/app5", blob.digest))
        client.push_image("pod-b/app5", image, "v1")
        pulled = client.pull_image("pod-b/app5", "v1")
    if pulled.digest != image.digest:
        raise DemoFailedError(f"app5 was pulled as {pulled.digest}.")
    mounts = demo.api.get(f"/v1/blobs/{base.digest}/explain")["mounts"]
    if [(each["repository"], each["source"]) for each in mounts] != [("pod-b/app5", "pod-a/base")]:
        raise DemoFailedError(f"`explain` shows the mounts {mounts}.")
    demo.show_ok(
        f"{len(base.content):,} bytes were mounted, {sent:,} were uploaded; the image can be pulled from pod-b"
    )
    return base
