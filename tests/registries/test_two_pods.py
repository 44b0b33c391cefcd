"""Two registries on one bucket through the real path, on the model and on the real program."""

from typing import Any

import pytest

from coordinator.domain.names import RepositoryName, parse_digest
from coordinator.registry.client import RegistryClient, RegistryNotFoundError
from coordinator.registry.images import DOCKER, OCI, Layer, make_image, make_index, make_layer
from coordinator.stack.distribution import DistributionRegistry
from coordinator.stack.model_registry import ModelRegistry
from coordinator.storage.layout import layer_link_key, repository_prefix, revision_link_key
from tests.registries.harness import Baleen
from tests.support.artifacts import make_artifact


def test_what_registries_do_is_what_the_table_says(baleen: Baleen, kind: Any, request: pytest.FixtureRequest) -> None:
    """After each push, moved tag, delete and mount the table equals the bucket."""
    here = request.node.callspec.id
    pods = [baleen.add_pod(f"{here}-{character}") for character in "ab"]
    first, second = (RegistryClient(baleen.registry(kind, pod).url, timeout=20) for pod in pods)
    a, b = (pod.name for pod in pods)
    base = make_layer(f"{here}/base", 20_000)
    images = [make_image(f"{here}/{n}", [base, make_layer(f"{here}/{n}")]) for n in range(3)]
    with first, second:
        for number, image in enumerate(images):
            first.push_image(f"{a}/app{number}", image, "v1")
            second.push_image(f"{b}/app{number}", image, "v1")
        baleen.agree()
        shown = baleen.blob(base.digest)
        assert (shown["reference_count"], shown["pods"], shown["size"]) == (6, [a, b], len(base.content))

        # An index, a docker image, an artifact, a tag that moves.
        index = make_index([make_image(f"{here}/arch/{arch}", architecture=arch) for arch in ("amd64", "arm64")])
        docker = make_image(f"{here}/docker", [base], kind=DOCKER)
        signature = make_artifact(f"{here}/signature", subject=docker.descriptor)
        first.push_image(f"{a}/multi", index, "v1")
        second.push_image(f"{b}/docker", docker, "v1")
        second.push_image(f"{b}/docker", signature, "sig")
        first.push_image(f"{a}/app0", images[1], "v1")
        baleen.agree()
        assert baleen.holds(f"{a}/app0", images[0].digest)
        assert baleen.blob(index.manifests[0].digest)["reference_count"] == 2
        # A subject is no reference: only its own holding counts for the image that was signed.
        assert baleen.blob(docker.digest)["reference_count"] == 1

        # Deletes: of manifests, of a child that its index still names, of a blob.
        first.delete_manifest(f"{a}/app2", images[2].digest)
        first.delete_manifest(f"{a}/multi", index.manifests[1].digest)
        second.delete_blob(f"{b}/app1", images[1].layers[1].digest)
        baleen.agree()
        assert baleen.blob(images[2].digest)["pods"] == [b]
        # The index lists it and is held, and so the child is held, too, without a link of its own.
        assert baleen.blob(index.manifests[1].digest)["reference_count"] == 2
        assert (f"{b}/app1", images[1].layers[1].digest) not in baleen.links()

        # What was deleted comes again, and goes again.
        for _ in range(3):
            first.push_image(f"{a}/app2", images[2], "v1")
            first.delete_manifest(f"{a}/app2", images[2].digest)
        second.push_image(f"{b}/app1", images[1], "v2")
        first.push_image(f"{a}/app2", images[2], "v2")
        baleen.agree()
        assert baleen.holds(f"{a}/app2", images[2].digest)

        # Mounts within a pod, and from the other pod's repository below the same root.
        assert first.mount_blob(f"{a}/mounted", base.digest, f"{a}/app0")
        assert second.mount_blob(f"{b}/mounted", images[0].config.digest, f"{a}/app0")
        with pytest.raises(RegistryNotFoundError):
            second.get_blob(f"{b}/mounted", base.digest)
        second.push_image(f"{b}/mounted", images[0], "v1", mount_from=f"{a}/app0")
        baleen.agree()
        assert second.pull_image(f"{b}/mounted", "v1").digest == images[0].digest

        # Everything of one repository.
        for tag in ("v1", "sig"):
            second.delete_manifest(f"{b}/docker", second.get_manifest(f"{b}/docker", tag).digest)
        baleen.agree()
        assert baleen.blob(docker.digest)["reference_count"] == 0


@pytest.mark.registry
def test_a_tag_that_moves_within_a_second(baleen: Baleen) -> None:
    """However fast a tag moves, every manifest that it had is held until it is deleted."""
    pod = baleen.add_pod("fast")
    images = [make_image(f"{pod.name}/{number}", sizes=[300]) for number in range(10)]
    with RegistryClient(baleen.registry(DistributionRegistry, pod).url, timeout=20) as client:
        for image in images:
            client.push_image(f"{pod.name}/app", image, "latest")
        baleen.agree()
        assert all(baleen.holds(f"{pod.name}/app", image.digest) for image in images)
        for image in images[:-1]:
            client.delete_manifest(f"{pod.name}/app", image.digest)
        baleen.agree()
    assert [image for image in images if baleen.holds(f"{pod.name}/app", image.digest)] == images[-1:]


@pytest.mark.registry
def test_two_processes_of_one_pod(baleen: Baleen) -> None:
    """Two processes of a pod push and delete the same images: the bucket decides."""
    pod = baleen.add_pod("double")
    processes = [baleen.registry(DistributionRegistry, pod, process) for process in ("1", "2")]
    left, right = (RegistryClient(process.url, timeout=20) for process in processes)
    images = [make_image(f"{pod.name}/{number}", sizes=[300, 400]) for number in range(4)]
    app = f"{pod.name}/app"
    with left, right:
        for image in images:
            left.push_image(app, image, "v1")
            right.push_image(app, image, "v1")
            right.delete_manifest(app, image.digest)
            left.push_image(app, image, "v1")
        left.delete_manifest(app, images[0].digest)
        right.delete_blob(app, images[1].layers[0].digest)
        left.push_blob(app, images[1].layers[0].content)
        baleen.agree()
    assert [baleen.holds(app, image.digest) for image in images] == [False, True, True, True]


@pytest.mark.registry
def test_a_rename_that_gitlab_reports(baleen: Baleen) -> None:
    """A repository under a new name holds what it held under the old one, as its links in storage do."""
    pod = baleen.add_pod("rename")
    old, new = RepositoryName(f"{pod.name}/old"), RepositoryName(f"{pod.name}/group/new")
    image = make_image(f"{pod.name}/image")
    with RegistryClient(baleen.registry(DistributionRegistry, pod).url, timeout=20) as client:
        client.push_image(old, image, "v1")
        baleen.agree()
        # What GitLab's registry does to its links, and then tells.
        for entry in list(baleen.store.walk(repository_prefix(old))):
            moved = repository_prefix(new) + entry.key.removeprefix(repository_prefix(old))
            baleen.store.put(moved, baleen.store.get(entry.key))
            baleen.store.delete(entry.key)
        # The time is that of the database, whose clock is ours: the newest event of all that was pushed.
        ((now,),) = baleen.rows("SELECT now()")
        rename = {"type": "name", "from": old, "to": new}
        event = {"id": f"rename-{pod.name}", "timestamp": now.isoformat(), "action": "rename"}
        baleen.post(pod, event | {"target": {"repository": old, "rename": rename}})
        baleen.agree()
        assert baleen.holds(new, image.digest)
        assert client.pull_image(new, "v1").digest == image.digest
    digest = parse_digest(image.digest)
    assert baleen.store.head(revision_link_key(new, digest)) is not None
    assert baleen.store.head(layer_link_key(old, parse_digest(image.config.digest))) is None


@pytest.mark.outage
def test_an_empty_layer(baleen: Baleen) -> None:
    """A blob of no bytes counts like any other, without a size. (On S3 only the model accepts one.)"""
    pod = baleen.add_pod("empty")
    image = make_image("empty/image", [Layer(b"", OCI.layer), make_layer("empty/layer")])
    with RegistryClient(baleen.registry(ModelRegistry, pod).url, timeout=20) as client:
        client.push_image("empty/app", image, "v1")
        baleen.agree()
    shown = baleen.blob(image.layers[0].digest)
    assert (shown["reference_count"], shown["size"]) == (1, None)
