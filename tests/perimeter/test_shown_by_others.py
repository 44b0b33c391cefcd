"""Another client shows a hidden blob; and a blob with more versions than one listing has.

With a real registry, in a real bucket with versions. Not here: every kind of store, and each result of the check before
a purge (tests/gc/test_check_before_purge.py).
"""

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import parse_digest
from coordinator.gc import table as gc
from coordinator.registry.images import make_image, make_layer
from coordinator.storage.layout import blob_key
from tests.scenarios.harness import Stage
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


def test_a_marker_that_another_client_removes(stage: Stage, here: str) -> None:
    """Attempt 10: a client relies on bytes that another key's owner showed; the purge that is due deletes none of them.

    The client's event is still under way then: its registry cannot deliver.
    """
    layer, _, new = stage.abandoned_layer(stage.a, here, 20_000)
    stage.hide(layer.digest)
    stage.report()
    hide = gc.read_hide_of_blob(stage._connection, parse_digest(layer.digest))
    stage.land()
    assert stage.store.remove_marker(blob_key(hide.digest), hide.marker)
    stage.b.webhook.away = True
    try:
        stage.b.client.push_image(f"{stage.b.name}/{here}", new, "v1")
        versions = stage.store.list_versions(blob_key(hide.digest))
        run = stage.collect()
        assert run.state == "done", run.error
        assert stage.served(layer.digest)
        kept = stage.store.list_versions(blob_key(hide.digest))
        assert [each.version for each in kept] == [each.version for each in versions]
        assert run.progress["shown_by_others"] == 1
        assert "shown-by-others" in stage.ledger(layer.digest)
    finally:
        stage.b.webhook.away = False
    stage.await_live(layer.digest)
    assert stage.b.client.pull_image(f"{stage.b.name}/{here}", "v1").digest == new.digest


def test_a_blob_with_131_versions(stage: Stage, here: str) -> None:
    """Attempt 18: one purge deletes all versions of a blob with 131 of them."""
    layer = make_layer(here, 20_000)
    image = make_image(here, [layer])
    stage.push(stage.a, here, image)
    key = blob_key(parse_digest(layer.digest))
    for _ in range(130):
        stage.store.put(key, layer.content)
    stage.abandon(stage.a, here, image)
    stage.hide(layer.digest)
    assert len(gc.read_hide_of_blob(stage._connection, parse_digest(layer.digest)).versions) == 131
    stage.purge(layer.digest)
    eventually(lambda: not any(not each.is_marker for each in stage.store.list_versions(key)))
    assert stage.state(layer.digest) is BlobState.PURGED
