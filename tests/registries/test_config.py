"""A registry with the file that `baleen pods config` prints is a pod."""

import shutil
from pathlib import Path

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.stack import distribution
from coordinator.stack.children import Children
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from tests.cli.conftest import program_environment, python
from tests.registries.harness import HOST, Baleen
from tests.support.wait import eventually


@pytest.mark.registry
def test_a_registry_with_the_printed_configuration(baleen: Baleen, tmp_path: Path) -> None:
    """With the printed file alone a registry stores in the shared layer, reports pushes, and has a watermark."""
    pod = baleen.add_pod("printed")
    port = Ports(tmp_path / "ports.json", HOST).take("registry")
    url = f"http://{HOST}:{port}"
    assert baleen.api.put(f"/v1/pods/{pod.name}/registries", json={"registries": [url]}).is_success
    file = tmp_path / "registry.yml"
    arguments = ("-m", "coordinator.cli", "pods", "config", pod.name, "--with-secrets", "--token-file", "-")
    environment = program_environment({"data_dir": baleen.settings.data_dir})
    printed = python(tmp_path, *arguments, input=f"{pod.token}\n", env=environment)
    assert printed.code == 0, printed.err
    file.write_text(printed.out)
    found = distribution.find_program()
    assert found is not None
    process = ManagedProcess(
        name="The registry",
        argv=[found, "serve", file],
        log_file=tmp_path / "registry.log",
        env={"PATH": str(Path(shutil.which("env") or "/usr/bin/env").parent)},
    )
    image = make_image("printed")
    with Children() as children, RegistryClient(url, timeout=20) as client:
        children.start(process)

        def answers() -> bool:
            try:
                client.ping()
            except Exception:  # noqa: BLE001 - it is not there yet
                return False
            return True

        eventually(answers, why=process.log_tail)
        client.push_image(f"{pod.name}/app", image, "v1")
        eventually(lambda: baleen.holds(f"{pod.name}/app", image.digest), why=process.log_tail)
        eventually(lambda: baleen.pod(pod)["watermark"] is not None, why=lambda: baleen.pod(pod)["waits_for"])
        # Or it would be probed until the end.
        baleen.list_registries(pod)
    baleen.agree()
