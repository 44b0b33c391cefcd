"""The registry client's promises: bytes are verified, errors are told apart, the token stays at home."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest

from coordinator.errors import BaleenError, NotFoundError, UnavailableError
from coordinator.registry.client import (
    Manifest,
    RegistryClient,
    RegistryContentError,
    RegistryNotFoundError,
    RegistryUnreachableError,
)
from coordinator.registry.images import OCI, make_image, sha256_digest
from tests.support.registries import REQUEST_S, RunningModel, running_model
from tests.support.sink import NotificationSink


@pytest.fixture
def model(sink: NotificationSink) -> Iterator[RunningModel]:
    with running_model(sink) as model:
        yield model


@pytest.fixture
def model_client(model: RunningModel) -> Iterator[RegistryClient]:
    with RegistryClient(model.url, timeout=REQUEST_S) as client:
        yield client


class _Router(ThreadingHTTPServer):
    """Answers an upload's start with a Location on another host, as a registry behind a router does."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        router = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                router.requests.append((self.command, self.path, self.headers["Authorization"]))
                self.send_response({"POST": 202, "PUT": 201}.get(self.command, 500))
                self.send_header("Location", "http://registry.invalid/v2/a/blobs/uploads/7?_state=x%3D")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_PUT = do_GET = _answer

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def router() -> Iterator[_Router]:
    server = _Router()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_upload_stays_at_the_known_address(router: _Router) -> None:
    """An upload goes on at the registry's own address, whatever host its Location names."""
    digest = sha256_digest(b"content")
    with RegistryClient(f"http://127.0.0.1:{router.server_port}", token="secret") as client:
        client.push_blob("a", b"content")
    assert [(method, authorization) for method, _, authorization in router.requests] == [
        ("POST", "Bearer secret"),
        ("PUT", "Bearer secret"),
    ]
    assert router.requests[1][1] == f"/v2/a/blobs/uploads/7?_state=x%3D&digest={digest.replace(':', '%3A')}"


def test_token_is_never_shown(router: _Router) -> None:
    """Neither the client nor its errors show the token."""
    with RegistryClient(f"http://127.0.0.1:{router.server_port}", token="secret") as client:
        with pytest.raises(BaleenError) as refused:
            client.ping()
        assert "secret" not in repr(client) + str(refused.value) + repr(vars(refused.value))


def test_tampered_blob(model: RunningModel, model_client: RegistryClient) -> None:
    """Bytes that are not those of the digest raise an error instead of being handed out."""
    layer = make_image("app").layers[0]
    model_client.push_blob("app", layer.content)
    (key,) = [key for key in model.objects() if key.endswith("/data")]
    model.overwrite(key, b"x" + layer.content[1:])
    with pytest.raises(RegistryContentError):
        model_client.get_blob("app", layer.digest)


def test_tampered_layer_of_an_image(model: RunningModel, model_client: RegistryClient) -> None:
    """Pulling an image fails if any of its layers has other bytes."""
    image = make_image("app")
    model_client.push_image("app", image, "v1")
    encoded = image.layers[1].digest.removeprefix("sha256:")
    (key,) = [key for key in model.objects() if key.endswith(f"{encoded}/data")]
    model.overwrite(key, b"other")
    with pytest.raises(RegistryContentError):
        model_client.pull_image("app", "v1")


def test_tampered_manifest(model: RunningModel, model_client: RegistryClient) -> None:
    """A manifest that was asked for by digest is compared with it."""
    image = make_image("app")
    model_client.push_image("app", image)
    encoded = image.digest.removeprefix("sha256:")
    (key,) = [key for key in model.objects() if key.endswith(f"{encoded}/data")]
    model.overwrite(key, make_image("other").content)
    with pytest.raises(RegistryContentError):
        model_client.get_manifest("app", image.digest)


def test_push_of_a_file(model_client: RegistryClient) -> None:
    """A file is pushed from where it stands to its end, and its digest is that of what was pushed."""
    file = BytesIO(b"head" + b"body" * 1_000_000)
    file.seek(4)
    digest = model_client.push_blob("app", file)
    assert digest == sha256_digest(b"body" * 1_000_000)
    assert model_client.get_blob("app", digest) == b"body" * 1_000_000


def test_push_unless_present(model: RunningModel, model_client: RegistryClient) -> None:
    """A blob that the repository has is not uploaded again when the client is told to ask."""
    model_client.push_blob("app", b"content")
    model_client.push_blob("app", b"content", unless_present=True)
    assert [event["request"]["method"] for event in model.events()] == ["PUT", "HEAD"]


def test_image_is_pushed_by_mounting(model: RunningModel, model_client: RegistryClient) -> None:
    """With a source to mount from, a second push moves no bytes."""
    image = make_image("app")
    model_client.push_image("source", image)
    before = len(model.events())
    model_client.push_image("target", image, "v1", mount_from="source")
    assert [event["action"] for event in model.events()[before:]] == ["mount", "mount", "mount", "push"]
    assert model_client.pull_image("target", "v1").blobs == (
        image.config.digest,
        *(layer.digest for layer in image.layers),
    )


def test_failed_mount_leaves_nothing(model: RunningModel, model_client: RegistryClient) -> None:
    """The upload that a registry opens instead of a mount is cancelled, so that it does not stay for ever."""
    assert not model_client.mount_blob("app", sha256_digest(b"content"), "nowhere")
    assert model.objects() == {}


def test_manifest_is_returned_as_stored(model_client: RegistryClient) -> None:
    """A manifest comes back with its bytes, its media type and its digest."""
    image = make_image("app")
    model_client.push_image("app", image, "v1")
    assert model_client.get_manifest("app", "v1") == Manifest(image.content, OCI.manifest, image.digest)


def test_not_found(model_client: RegistryClient) -> None:
    """What the registry does not have is an error of its own, with the status and the OCI code."""
    with pytest.raises(RegistryNotFoundError) as missing:
        model_client.get_blob("app", sha256_digest(b"content"))
    assert isinstance(missing.value, NotFoundError)
    assert (missing.value.registry_status, missing.value.code) == (404, "BLOB_UNKNOWN")


def test_unreachable() -> None:
    """A registry that does not answer is unavailable, which is not the same as not found."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = server.server_port
    server.server_close()
    with RegistryClient(f"http://127.0.0.1:{port}", timeout=5) as client:
        with pytest.raises(RegistryUnreachableError) as unreachable:
            client.has_blob("app", sha256_digest(b"content"))
        assert isinstance(unreachable.value, UnavailableError)
        assert unreachable.value.status == 503
