"""A registry process that is paused for longer than a request may take, in the middle of one (not tried before)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.registry.images import make_image
from tests.registries.s3_proxy import DEADLINE_S, Call, held
from tests.scenarios.harness import HOUR, Member, Stage
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


def linking(digest: str) -> Callable[[Call], bool]:
    """The write of a manifest's link."""
    part = f"/_manifests/revisions/sha256/{digest.partition(':')[2]}/link"
    return lambda call: call.method == "PUT" and part in call.target


def two_hours_pass(stage: Stage, member: Member) -> None:
    """Let all hides, and all that is known of a pod's process, be two hours older."""
    stage.rows("UPDATE hides SET hidden_at = hidden_at - interval '2 hours' RETURNING id")
    for table, columns in (("watermarks", ("at",)), ("processes", ("first_seen", "echoed_at"))):
        older = ", ".join(f"{column} = {column} - interval '2 hours'" for column in columns)
        which = "process_id" if table == "watermarks" else "id"
        stage.rows(
            f"UPDATE {table} SET {older} WHERE {which} IN"
            " (SELECT s.id FROM processes s JOIN pods p ON p.id = s.pod_id WHERE p.name = %s) RETURNING 1",
            member.name,
        )


def test_paused_in_the_middle_of_a_manifest(stage: Stage, here: str) -> None:
    """While a process is stopped nothing that it saw is purged; nor is it when its probes come back, before what it
    was doing had the time that any request has.
    """
    client, app = stage.a.client, f"{stage.a.name}/{here}"
    image = make_image(here)
    everything = (image.digest, *(blob.digest for blob in image.blobs))
    stage.push(stage.a, here, image)
    stage.abandon(stage.a, here, image)
    with held(stage.a.storage, linking(image.digest)) as link, ThreadPoolExecutor(1) as pool:
        # It has seen every blob, and is about to link them.
        pushing = pool.submit(client.put_manifest, app, "v1", image.media_type, image.content)
        assert link.reached.wait(DEADLINE_S)
        stage.hide(*everything)
        stage.a.registry.pause()
        try:
            two_hours_pass(stage, stage.a)
            stage.collect(request_bound=HOUR)
            assert stage.states(image) == {BlobState.HIDDEN}
        finally:
            stage.a.registry.resume()
        # Its probes overtake the request, and everything is compared: two hours after the hide.
        stage.report()
        plan = stage.collect(request_bound=HOUR, dry=True)
        assert plan.kept.keys() & {"not-reported", "not-reconciled"}
        stage.collect(request_bound=HOUR)
        assert stage.states(image) == {BlobState.HIDDEN}
        link.over.set()
        assert pushing.result(DEADLINE_S) == image.digest
    stage.await_live(*everything)
    assert client.pull_image(app, "v1").digest == image.digest
    assert stage.pod(stage.a.pod)["watermark"] is not None
    eventually(lambda: stage.holds(app, image.digest))
