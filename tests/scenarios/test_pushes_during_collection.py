"""Pushes that are under way during a collection: a request saw the blob, and the collection saw no reference.

On a real registry, which checks for a blob, links it later, and sends the event later still.
Not here: what was old and is needed again (test_old_blobs_needed_again.py).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.registry.client import RegistryError
from coordinator.registry.images import Image, make_image
from tests.registries.s3_proxy import Call, held
from tests.scenarios.harness import HOUR, Once, Stage
from tests.support.store import SEND
from tests.support.wait import DEADLINE_S, eventually

pytestmark = pytest.mark.registry


def linking(folder: str, digest: str) -> Callable[[Call], bool]:
    """The write of a link to a digest."""
    return lambda call: call.method == "PUT" and f"/{folder}/sha256/{digest.partition(':')[2]}/link" in call.target


def manifest_is_refused(stage: Stage, repository: str, image: Image) -> None:
    """Push a manifest that the registry refuses, naming a blob that the client has to upload."""
    with pytest.raises(RegistryError) as refused:
        stage.a.client.put_manifest(repository, "v1", image.media_type, image.content)
    assert refused.value.code == "MANIFEST_BLOB_UNKNOWN"


def test_scenario_01_collection_while_only_the_layers_are_there(stage: Stage, here: str) -> None:
    """A collection between the layers of a push and its manifest took the layers; here the links of uploads count, and
    whenever it runs, the manifest is accepted and whole.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}"
    image = make_image(here)
    for blob in image.blobs:
        client.push_blob(app, blob.content)
        eventually(lambda blob=blob: (app, blob.digest) in stage.links())
        stage.report()
        stage.collect()
    stage.report()
    stage.collect()
    assert all(stage.served(blob.digest) for blob in image.blobs)
    assert [stage.ledger(blob.digest) for blob in image.blobs] == [[]] * len(image.blobs)
    client.put_manifest(app, "v1", image.media_type, image.content)
    assert client.pull_image(app, "v1").digest == image.digest


@pytest.mark.parametrize("moment", ["head", "delete_many", SEND])
def test_scenario_02_referenced_again_while_a_collection_decides(stage: Stage, here: str, moment: str) -> None:
    """What was marked as garbage was referenced again before it was swept; here the permit of the delete checks again,
    and a reference between permit and delete restores the blob.
    """
    layer, old, new = stage.abandoned_layer(stage.a, here)
    stage.report()
    # The link that is looked for is that of who needed it.
    named = old.digest if moment == "head" else layer.digest
    push = Once(moment, named, lambda: stage.push(stage.b, here, new))
    stage.collect_at(push)
    # What was not sent was never hidden; what was may land for as long as a delete can.
    assert "hidden" not in stage.ledger(layer.digest)
    eventually(lambda: stage.served(layer.digest))
    stage.land()
    stage.await_live(layer.digest)
    stage.purge(old.digest)
    assert stage.b.client.pull_image(f"{stage.b.name}/{here}", "v1").digest == new.digest


def test_scenario_03_hidden_between_the_check_of_an_upload_and_its_link(stage: Stage, here: str) -> None:
    """A registry saw the blob, collection deleted it, and the registry linked nothing; here the request has to have
    ended and been reported before the bytes are purged, and that report restores them.
    """
    layer, _, new = stage.abandoned_layer(stage.a, here, 20_000)
    app = f"{stage.b.name}/{here}"
    with held(stage.b.storage, linking("_layers", layer.digest)) as link, ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(stage.b.client.push_blob, app, layer.content)
        assert link.reached.wait(DEADLINE_S)
        stage.hide(layer.digest)
        # Probes overtake the request, and everything is compared: nothing shows that it is under way, but time.
        stage.report()
        assert stage.collect(request_bound=HOUR, dry=True).kept.keys() & {"not-reported", "not-reconciled"}
        stage.collect(request_bound=HOUR)
        assert stage.state(layer.digest) is BlobState.HIDDEN
        link.over.set()
        assert pushing.result(DEADLINE_S) == layer.digest
    stage.await_live(layer.digest)
    assert stage.b.client.get_blob(app, layer.digest) == layer.content
    stage.push(stage.b, here, new)
    assert stage.b.client.pull_image(app, "v1").digest == new.digest


def test_scenario_05_collected_right_after_an_upload_was_answered(stage: Stage, here: str) -> None:
    """A blob was reaped milliseconds after its upload was answered, and the manifest failed; here a blob that is new is
    linked from the first, and one that was garbage before is restored as soon as the upload is reported.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}"
    layer, old, new = stage.abandoned_layer(stage.b, here)
    stage.report()
    stage.a.webhook.away = True
    try:
        for blob in new.blobs:
            client.push_blob(app, blob.content)
        stage.collect()
        assert stage.state(layer.digest) is BlobState.HIDDEN
        assert stage.served(new.config.digest)
        manifest_is_refused(stage, app, new)
    finally:
        stage.a.webhook.away = False
    stage.await_live(*(blob.digest for blob in new.blobs))
    client.put_manifest(app, "v1", new.media_type, new.content)
    stage.await_held(stage.a, here, new)
    stage.purge(old.digest)
    assert client.pull_image(app, "v1").digest == new.digest


def test_scenario_08_hidden_between_a_head_and_the_manifest(stage: Stage, here: str) -> None:
    """A registry answered that all blobs exist, collection deleted them, and the manifest was accepted; here the
    registry refuses the manifest of blobs that it does not see, and the client brings them anew.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}"
    image = make_image(here)
    stage.push(stage.a, here, image)
    stage.abandon(stage.a, here, image)
    assert all(client.has_blob(app, blob.digest) for blob in image.blobs)
    stage.hide(*(blob.digest for blob in image.blobs))
    manifest_is_refused(stage, app, image)
    stage.push(stage.a, here, image)
    stage.await_live(image.digest, *(blob.digest for blob in image.blobs))
    stage.report()
    assert stage.collect().state == "done"
    assert client.pull_image(app, "v1").digest == image.digest


def test_scenario_08_hidden_while_a_manifest_is_accepted(stage: Stage, here: str) -> None:
    """The same within one request: the registry saw every blob of a manifest, and links it when they are hidden; here
    the event of that manifest brings back all that it lists, and itself.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}"
    image = make_image(here)
    stage.push(stage.a, here, image)
    stage.abandon(stage.a, here, image)
    with held(stage.a.storage, linking("_manifests/revisions", image.digest)) as link, ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(client.put_manifest, app, "v1", image.media_type, image.content)
        assert link.reached.wait(DEADLINE_S)
        stage.hide(image.digest, *(blob.digest for blob in image.blobs))
        stage.report()
        stage.collect(request_bound=HOUR)
        assert stage.states(image) == {BlobState.HIDDEN}
        link.over.set()
        assert pushing.result(DEADLINE_S) == image.digest
    stage.await_live(image.digest, *(blob.digest for blob in image.blobs))
    assert client.pull_image(app, "v1").digest == image.digest


def test_scenario_24_a_publish_that_takes_longer_than_the_grace(stage: Stage, here: str) -> None:
    """Layers that waited longer for their manifest than the grace were collected, and the manifest accepted; here it is
    refused once they are hidden, and what the client brings anew is no part of what is purged.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}"
    image = make_image(here)
    blobs = [blob.digest for blob in image.blobs]
    for blob in image.blobs:
        client.push_blob(app, blob.content)
        eventually(lambda blob=blob: (app, blob.digest) in stage.links())
    stage.expire_links()
    stage.report()
    stage.collect(grace=timedelta(days=1))
    assert all(client.has_blob(app, digest) for digest in blobs)
    stage.hide(*blobs)
    manifest_is_refused(stage, app, image)
    stage.push(stage.a, here, image)
    stage.await_live(*blobs)
    stage.report()
    stage.collect()
    assert client.pull_image(app, "v1").digest == image.digest
