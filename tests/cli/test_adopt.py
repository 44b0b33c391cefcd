"""`baleen adopt`: a dry run has the figures of the real run, which ends with a reconcile."""

import secrets
import signal
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator.registry.images import Image, make_image
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.api.harness import READ
from tests.cli.conftest import Command, Done
from tests.cli.test_commands import errs
from tests.registries.s3_proxy import Call, S3Proxy
from tests.services.s3 import s3_settings
from tests.storage.file_store import WritableFiles
from tests.survey.trees import BASE, content_key, push


class Adopting(NamedTuple):
    """A pod without repositories, the store that it had until now, and an empty root of the shared layer."""

    baleen: Command
    pod: str
    image: Image
    source: WritableFiles
    shared: S3ObjectStore
    settings: dict[str, str]

    def __call__(self, *options: str, pod: str | None = None, **settings: str) -> Done:
        source = f"file://{self.source.root}"
        return self.baleen("adopt", pod or self.pod, "--from", source, *options, **(self.settings | settings))

    def links(self) -> set[str]:
        return {entry.key for entry in self.shared.walk(f"{BASE}/repositories/")}


@pytest.fixture
def adopting(baleen: Command, embedded_stack: StackEndpoints, tmp_path: Path) -> Adopting:
    mark = f"adopt-{secrets.token_hex(4)}"
    baleen("pods", "add", mark, "--prefix", mark, "--json").ok()
    settings = s3_settings(embedded_stack)
    (tmp_path / "own").mkdir()
    source = WritableFiles(tmp_path / "own")
    image = make_image(f"cli/{mark}")
    push(source, f"{mark}/app", image, "v1")
    names = {name.removeprefix("s3_"): value for name, value in settings.items()}
    return Adopting(baleen, mark, image, source, S3ObjectStore(root=mark, **names), settings | {"s3_root": mark})


COUNTED = ("repositories", "blobs", "bytes")
CHANGED = ("copied_blobs", "copied_bytes", "layer_links", "revision_links", "tag_links")


def figures(done: Done) -> list[int]:
    return [done.json[name] for name in (*COUNTED, *CHANGED)]


def test_adopt(adopting: Adopting) -> None:
    """A dry run changes nothing and has the real run's figures; a second run does nothing; a reconcile is requested."""
    dry = adopting("--dry-run", "--json")
    assert adopting.links() == set()
    size = sum(len(blob.content) for blob in adopting.image.blobs) + len(adopting.image.content)
    assert figures(dry) == [1, 4, size, 4, size, 3, 1, 2]
    assert dry.json["reconcile"] is None
    real = adopting("--json")
    assert figures(real) == figures(dry)
    assert adopting.links() == {entry.key for entry in adopting.source.walk(f"{BASE}/repositories/")}
    assert adopting.shared.get(content_key(adopting.image.digest)) == adopting.image.content
    job = real.json["reconcile"]
    assert (job["kind"], job["pod"], job["state"]) == ("reconcile", adopting.pod, "waiting")
    assert job["why"] == f"adopted from file://{adopting.source.root}"
    assert figures(adopting("--json")) == [1, 4, size, 0, 0, 0, 0, 0]
    printed = adopting().out
    assert "copied        0 blobs, 0 B (0 bytes)" in printed
    assert (
        f"Reconcile, job {job['id']}: waiting. Keep the source until `baleen jobs show {job['id']}` prints" in printed
    )


def test_something_is_refused(adopting: Adopting) -> None:
    """A refused blob makes it exit 1 and is reported with its reason; the rest is adopted."""
    layer = adopting.image.layers[0]
    adopting.source.put(content_key(layer.digest), bytes(len(layer.content)))
    for done in (adopting(), adopting("--json")):
        assert done.code == 1
        assert "1 blob is refused, and so is everything that needs one; the rest is adopted" in done.err
        document = done.err if done.out.startswith("repositories") else done.out
        assert layer.digest in document
        assert "its bytes in the source have the digest" in document
        assert len(adopting.links()) == len(adopting.image.blobs) - 1


def test_a_reconcile_that_cannot_be_asked_for(adopting: Adopting) -> None:
    """If the reconcile is refused, adopt exits 1 and prints what was done and the command to run."""
    done = adopting(token=READ)
    assert done.code == 1
    assert "copied        4 blobs" in done.out
    assert f"Run `baleen pods reconcile {adopting.pod}` today" in done.err
    assert len(adopting.links()) == 6


def test_interrupted(adopting: Adopting) -> None:
    """Ctrl-C says that the next run continues where this one stopped."""
    command, pressed = threading.get_ident(), threading.Event()

    def press(call: Call) -> None:
        if call.method == "PUT" and not pressed.is_set():
            pressed.set()
            signal.pthread_kill(command, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with S3Proxy(adopting.settings["s3_endpoint_url"]) as storage:
            storage.answer = press
            done = adopting(s3_endpoint_url=storage.url)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.code, done.out) == (130, "")
    assert done.err == "What was adopted stays. Run the same command again to continue.\nInterrupted.\n"


def test_refusals(adopting: Adopting) -> None:
    """A malformed request is refused before anything is written."""
    push(adopting.source, "elsewhere/app", adopting.image)
    assert "elsewhere/app" in errs(adopting(), 1)
    assert "no pod" in errs(adopting(pod="nobody"), 1)
    shared = f"s3://{adopting.shared.bucket}/{adopting.shared.root}"
    missing = f"There is no bucket 'not-there' at {adopting.settings['s3_endpoint_url']}: check the bucket's name"
    for source, code, message in (
        (shared, 2, "the shared layer itself"),
        (f"{shared}empty", 1, "has no registry"),
        ("s3://not-there/x", 1, missing),
    ):
        done = adopting.baleen("adopt", adopting.pod, "--from", source, **adopting.settings)
        assert message in errs(done, code)
    assert adopting.links() == set()
    assert adopting("--only-owned").code == 0
    assert all(f"/{adopting.pod}/" in key for key in adopting.links())
