"""The registry client verifies bytes, distinguishes errors, and does not leak its token."""

from collections.abc import Iterator
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
from tests.services.http import Handler, HTTPServer
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


class _Router(HTTPServer):
    """Answers an upload's start with a Location on another host, as a registry behind a router does."""

    def __init__(self) -> None:
        requests = self.requests = list[tuple[str, str, str | None]]()

        class Answering(Handler):
            def _answer(self) -> None:
                self.body()
                requests.append((self.command, self.path, self.headers["Authorization"]))
                location = "http://registry.invalid/v2/a/blobs/uploads/7?_state=x%3D"
                self.reply({"POST": 202, "PUT": 201}.get(self.command, 500), headers={"Location": location})

            do_POST = do_PUT = do_GET = _answer

        super().__init__(Answering)


@pytest.fixture
def router() -> Iterator[_Router]:
    with _Router() as server:
        yield server


def test_upload_stays_at_the_known_address(router: _Router) -> None:
    """An upload goes on at the registry's own address, whatever host its Location names."""
    digest = sha256_digest(b"content")
    with RegistryClient(router.address, token="secret") as client:
        client.push_blob("a", b"content")
    assert [(method, authorization) for method, _, authorization in router.requests] == [
        ("POST", "Bearer secret"),
        ("PUT", "Bearer secret"),
    ]
    assert router.requests[1][1] == f"/v2/a/blobs/uploads/7?_state=x%3D&digest={digest.replace(':', '%3A')}"


def test_token_is_never_shown(router: _Router) -> None:
    """Neither the client nor its errors show the token."""
    with RegistryClient(router.address, token="secret") as client:
        with pytest.raises(BaleenError) as refused:
            client.ping()
        assert "secret" not in repr(client) + str(refused.value) + repr(vars(refused.value))


def overwrite(model: RunningModel, digest: str, content: bytes) -> None:
    encoded = digest.removeprefix("sha256:")
    (key,) = [key for key in model.objects() if key.endswith(f"{encoded}/data")]
    model.overwrite(key, content)


def test_tampered_blob(model: RunningModel, model_client: RegistryClient) -> None:
    """Bytes with another digest raise an error."""
    layer = make_image("app").layers[0]
    model_client.push_blob("app", layer.content)
    overwrite(model, layer.digest, b"x" + layer.content[1:])
    with pytest.raises(RegistryContentError):
        model_client.get_blob("app", layer.digest)


def test_tampered_layer_of_an_image(model: RunningModel, model_client: RegistryClient) -> None:
    """Pulling an image fails if any of its layers has other bytes."""
    image = make_image("app")
    model_client.push_image("app", image, "v1")
    overwrite(model, image.layers[1].digest, b"other")
    with pytest.raises(RegistryContentError):
        model_client.pull_image("app", "v1")


def test_tampered_manifest(model: RunningModel, model_client: RegistryClient) -> None:
    """A manifest that is requested by digest is compared with it."""
    image = make_image("app")
    model_client.push_image("app", image)
    overwrite(model, image.digest, make_image("other").content)
    with pytest.raises(RegistryContentError):
        model_client.get_manifest("app", image.digest)


def test_push_of_a_file(model_client: RegistryClient) -> None:
    """A file is pushed from its position to its end, with the digest of what was pushed."""
    file = BytesIO(b"head" + b"body" * 1_000_000)
    file.seek(4)
    digest = model_client.push_blob("app", file)
    assert digest == sha256_digest(b"body" * 1_000_000)
    assert model_client.get_blob("app", digest) == b"body" * 1_000_000


def test_push_unless_present(model: RunningModel, model_client: RegistryClient) -> None:
    """With `unless_present` a blob that the repository has is not uploaded again."""
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
    """The upload that a registry opens instead of a mount is cancelled."""
    assert not model_client.mount_blob("app", sha256_digest(b"content"), "nowhere")
    assert model.objects() == {}


def test_manifest_is_returned_as_stored(model_client: RegistryClient) -> None:
    """A manifest comes back with its bytes, its media type and its digest."""
    image = make_image("app")
    model_client.push_image("app", image, "v1")
    assert model_client.get_manifest("app", "v1") == Manifest(image.content, OCI.manifest, image.digest)


def test_not_found(model_client: RegistryClient) -> None:
    """A missing blob is an error of its own, with the status and the OCI code."""
    with pytest.raises(RegistryNotFoundError) as missing:
        model_client.get_blob("app", sha256_digest(b"content"))
    assert isinstance(missing.value, NotFoundError)
    assert (missing.value.registry_status, missing.value.code) == (404, "BLOB_UNKNOWN")


def test_unreachable() -> None:
    """A registry that does not answer is unavailable, not missing."""
    with HTTPServer(Handler) as gone:
        pass
    with RegistryClient(gone.address, timeout=5) as client:
        with pytest.raises(RegistryUnreachableError) as unreachable:
            client.has_blob("app", sha256_digest(b"content"))
        assert isinstance(unreachable.value, UnavailableError)
        assert unreachable.value.status == 503
