"""Blobs that nothing has needed for long, and that are needed again just before they would be purged.

On a real registry. Stored bytes show nothing of their use: a registry that finds them writes a link and changes neither
their time nor anything else of them.
"""

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import parse_digest
from coordinator.registry.images import Index, make_image, make_index
from coordinator.storage.layout import blob_key
from tests.scenarios.harness import HOUR, Once, Stage
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


def long_ago(stage: Stage, *digests: str) -> None:
    """Let nothing have referenced these for a month."""
    stage.rows(
        "UPDATE blobs SET unreferenced_since = unreferenced_since - interval '30 days'"
        " WHERE digest = ANY(%s) RETURNING id",
        [parse_digest(digest) for digest in digests],
    )


@pytest.mark.parametrize("by", ["mount", "upload"])
def test_scenario_06_an_old_blob_in_a_new_repository(stage: Stage, here: str, by: str) -> None:
    """An old blob was given to a new project, kept its age, and was collected before the manifest came; here age counts
    from the last need, and the mount or upload is one.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}/new"
    layer, _, new = stage.abandoned_layer(stage.a, here)
    long_ago(stage, layer.digest)
    before = stage.store.head(blob_key(parse_digest(layer.digest)))
    if by == "mount":
        assert client.mount_blob(app, layer.digest, f"{stage.a.name}/{here}")
    else:
        client.push_blob(app, layer.content)
    assert stage.store.head(blob_key(parse_digest(layer.digest))) == before
    eventually(lambda: (app, layer.digest) in stage.links())
    stage.report()
    stage.collect(grace=HOUR)
    assert stage.ledger(layer.digest) == []
    # Once more unneeded, it is as young as that.
    stage.expire_links()
    stage.report()
    stage.collect(grace=HOUR)
    assert stage.served(layer.digest)
    client.push_image(app, new, "v1")
    assert client.pull_image(app, "v1").digest == new.digest


def test_scenario_07_needed_again_when_its_purge_is_due(stage: Stage, here: str) -> None:
    """A mount or an upload came while a blob was due to be deleted, and was answered from what then went; here what is
    due is hidden, so that the mount is an upload, and nothing of that upload is deleted.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}/new"
    layer, old, new = stage.abandoned_layer(stage.a, here)
    stage.hide(layer.digest, old.digest)
    stage.report()  # due from now on
    assert not client.mount_blob(app, layer.digest, f"{stage.a.name}/{here}")
    client.push_blob(app, layer.content)
    eventually(lambda: (app, layer.digest) in stage.links())
    run = stage.collect()
    assert run.state == "done", run.error
    assert stage.state(old.digest) is BlobState.PURGED
    stage.await_live(layer.digest)
    assert "purge" not in stage.ledger(layer.digest)
    client.push_image(app, new, "v1")
    assert client.pull_image(app, "v1").digest == new.digest


@pytest.mark.parametrize("when", ["unreferenced", "hidden", "purged"])
def test_scenario_09_a_push_without_any_head(stage: Stage, here: str, when: str) -> None:
    """A protocol that renewed a blob on a HEAD missed clients that send none; here nothing depends on a HEAD, and an
    upload is accepted whatever state the blob is in.
    """
    client, app = stage.b.client, f"{stage.b.name}/{here}"
    image = make_image(here)
    blobs = [blob.digest for blob in image.blobs]
    stage.push(stage.a, here, image)
    stage.abandon(stage.a, here, image)
    if when != "unreferenced":
        stage.hide(*blobs)
    if when == "purged":
        stage.purge(*blobs)
    for blob in image.blobs:
        client.push_blob(app, blob.content)
    client.put_manifest(app, "v1", image.media_type, image.content)
    stage.await_held(stage.b, here, image)
    stage.await_live(image.digest, *blobs)
    stage.report()
    stage.collect()
    assert client.pull_image(app, "v1").digest == image.digest


def index_of_deleted_children(stage: Stage, here: str) -> Index:
    """Push an index, and delete the manifests that it lists, which it alone keeps then."""
    app = f"{stage.a.name}/{here}"
    index = make_index([make_image(f"{here}/{arch}", architecture=arch) for arch in ("amd64", "arm64")])
    stage.push(stage.a, here, index)
    for child in index.manifests:
        stage.a.client.delete_manifest(app, child.digest)
        eventually(lambda child=child: stage.is_implied(app, child.digest))
    return index


def test_scenario_12_the_last_index_goes_after_the_plan(stage: Stage, here: str) -> None:
    """What lost its last index between check and delete stayed for ever; here the next collection finds it."""
    index = index_of_deleted_children(stage, here)
    children, other = [child.digest for child in index.manifests], make_image(f"{here}/other")
    stage.push(stage.a, here, other, "other")
    stage.abandon(stage.a, here, other)
    stage.report()
    delete = Once("delete_many", other.digest, lambda: stage.abandon(stage.a, here, index))
    stage.collect_at(delete)
    assert stage.state(other.digest) is BlobState.HIDDEN
    assert [stage.state(digest) for digest in children] == [BlobState.UNREFERENCED] * len(children)
    stage.hide(index.digest, *children)
    stage.purge(index.digest, *children)


def test_scenario_12_an_index_comes_between_the_plan_and_the_delete(stage: Stage, here: str) -> None:
    """What got a new index between check and delete was deleted; here the new index voids the hide of the children and
    of all that they list.
    """
    index = index_of_deleted_children(stage, here)
    stage.abandon(stage.a, here, index)
    stage.report()
    push = Once("delete_many", index.digest, lambda: stage.push(stage.a, here, index))
    stage.collect_at(push)
    whole = [index.digest]
    for child in index.manifests:
        whole += [child.digest, *(blob.digest for blob in child.blobs)]  # type: ignore[union-attr]
    assert all("hidden" not in stage.ledger(digest) for digest in whole)
    stage.await_live(*whole)
    stage.report()
    stage.collect()
    assert stage.a.client.pull_image(f"{stage.a.name}/{here}", "v1").digest == index.digest


def test_scenario_28_the_source_goes_after_a_mount(stage: Stage, here: str) -> None:
    """The repository from which a blob was mounted was deleted before the manifest came, and the blob with it; here the
    mount itself keeps it.
    """
    client = stage.a.client
    source, target = f"{stage.a.name}/{here}/source", f"{stage.a.name}/{here}/target"
    image = make_image(here)
    stage.push(stage.a, f"{here}/source", image)
    stage.expire_links()
    for blob in image.blobs:
        assert client.mount_blob(target, blob.digest, source)
    client.delete_manifest(source, image.digest)
    for blob in image.blobs:
        client.delete_blob(source, blob.digest)
    eventually(lambda: not stage.holds(source, image.digest))
    eventually(lambda: {(target, blob.digest) for blob in image.blobs} <= stage.links())
    stage.hide(image.digest, links_count=True)
    assert all(stage.served(blob.digest) for blob in image.blobs)
    client.put_manifest(target, "v1", image.media_type, image.content)
    stage.await_held(stage.a, f"{here}/target", image)
    stage.await_live(image.digest)
    assert client.pull_image(target, "v1").digest == image.digest


def test_scenario_28_the_source_goes_after_a_mount_from_another_pod(stage: Stage, here: str) -> None:
    """A mount across pods keeps the blob, too: nothing in the source's pod needs it any more, and no manifest of the
    target's pod does yet.
    """
    source, target = f"{stage.a.name}/{here}", f"{stage.b.name}/{here}"
    image = make_image(here)
    stage.push(stage.a, here, image)
    stage.expire_links()
    for blob in image.blobs:
        assert stage.mount(target, blob.digest, source).status_code == 201
    stage.a.client.delete_manifest(source, image.digest)
    for blob in image.blobs:
        stage.a.client.delete_blob(source, blob.digest)
    eventually(lambda: not stage.holds(source, image.digest))
    stage.hide(image.digest, links_count=True)
    assert all(stage.served(blob.digest) for blob in image.blobs)
    stage.b.client.put_manifest(target, "v1", image.media_type, image.content)
    stage.await_held(stage.b, here, image)
    stage.await_live(image.digest)
    assert stage.b.client.pull_image(target, "v1").digest == image.digest
