"""The whole of it: pods as they are registered, the router that the command makes, and a Baleen that mounts."""

from pathlib import Path

import httpx
import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.errors import RegistryError
from coordinator.registry.images import make_image, make_layer, sha256_digest
from tests.router.running import CLIENT_S, Running
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


@pytest.mark.parametrize("form", [False, True])
def test_a_layer_of_another_pod_is_mounted(running: Running, tmp_path: Path, form: bool) -> None:
    """A client that requests a layer of another pod gets it mounted by Baleen, and its image is whole."""
    source, target = (f"{pod.name}/app-{tmp_path.name[-1]}-{form}".lower() for pod in running.pods)
    layer = make_layer(str(tmp_path), 20_000)
    image = make_image(str(tmp_path), [layer])
    with RegistryClient(running.router.url) as client:
        client.push_image(source, image, "v1")
        fields = {"mount": layer.digest, "from": source}
        asked = {"data": fields} if form else {"params": fields}

        def mounted() -> bool:
            answer = running.router.ask("POST", f"/v2/{target}/blobs/uploads/", **asked)
            assert answer.status_code == 201
            return answer.headers.get("X-Baleen-Mount") == "mounted"

        # A Baleen that is slow for a moment is not waited for: then the pod makes the mount.
        eventually(mounted)
        client.push_image(target, image, "v1", mount_from=source)
        assert client.pull_image(target, "v1").digest == image.digest
    running.baleen.agree()
    assert running.baleen.blob(layer.digest)["pods"] == sorted(pod.name for pod in running.pods)


def test_what_is_no_mount_is_the_pods_upload(running: Running) -> None:
    """A mount that Baleen does not make becomes an upload at the pod, which goes on through the router."""
    target = f"{running.pods[1].name}/none"
    with RegistryClient(running.router.url) as client:
        nothing = f"sha256:{'0' * 64}"
        assert not client.mount_blob(target, nothing, f"{running.pods[0].name}/none")
        assert client.get_blob(target, client.push_blob(target, b"uploaded")) == b"uploaded"


WRONG = [
    "sha256:" + "0" * 64,
    "sha256:" + "0" * 63,
    "sha256:" + "g" * 64,
    "sha512:" + "0" * 128,
    "md5:" + "0" * 32,
    "0" * 64,
    "sha256:",
    "",
    "../" * 20,
    "\0",
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mount_of_a_wrong_digest_fails_no_push(running: Running, wrong: str) -> None:
    """The router answers a malformed mount as the pod would, and the push succeeds."""
    source, target = (f"{pod.name}/wrong" for pod in running.pods)

    def asked(url: str) -> httpx.Response:
        fields = {"mount": wrong, "from": source}
        return httpx.post(f"{url}/v2/{target}/blobs/uploads/", params=fields, timeout=20, trust_env=False)

    alone, answer = asked(running.registries[1].url), asked(running.router.url)
    assert (answer.status_code, "Location" in answer.headers) == (alone.status_code, "Location" in alone.headers)
    content = f"in spite of {wrong!r}".encode()
    with RegistryClient(running.router.url) as client:
        if answer.status_code == 202:
            session = httpx.URL(answer.headers["Location"]).raw_path.decode()
            client.finish_upload(session, sha256_digest(content), iter([content]), len(content))
        else:
            client.push_blob(target, content)
        assert client.get_blob(target, sha256_digest(content)) == content
    running.baleen.agree()


def test_an_upload_of_a_wrong_digest_is_refused(running: Running) -> None:
    """Bytes with another digest are refused as by the pod, and nothing is held of them."""
    target, content = f"{running.pods[1].name}/wrong", b"other bytes"
    wanted = sha256_digest(b"these bytes")
    with RegistryClient(running.router.url) as client:
        session = client.begin_upload(target)
        with pytest.raises(RegistryError) as refused:
            client.finish_upload(session, wanted, iter([content]), len(content))
        assert (refused.value.registry_status, refused.value.code) == (400, "DIGEST_INVALID")
        assert not client.has_blob(target, wanted)
    running.baleen.agree()


def test_a_mount_while_the_target_pod_is_down(running: Running, tmp_path: Path) -> None:
    """While the target's registry is down a push fails, and the same push succeeds later."""
    source, target = (f"{pod.name}/down" for pod in running.pods)
    layer = make_layer(str(tmp_path), 20_000)
    first, second = make_image(f"{tmp_path} first", [layer]), make_image(f"{tmp_path} second", [layer])
    with RegistryClient(running.router.url, timeout=CLIENT_S) as client:
        client.push_image(source, first, "v1")
        eventually(lambda: running.baleen.counts().get(layer.digest) == 1)
        running.registries[1].kill()
        try:
            with pytest.raises(RegistryError) as failed:
                client.push_image(target, second, "v1", mount_from=source)
            assert failed.value.registry_status in {502, 504}
            # The other pod is not disturbed.
            assert client.pull_image(source, "v1").digest == first.digest
        finally:
            running.registries[1].start()
        client.push_image(target, second, "v1", mount_from=source)
        assert client.pull_image(target, "v1").digest == second.digest
    running.baleen.agree()
    assert running.baleen.counts()[layer.digest] == 2
