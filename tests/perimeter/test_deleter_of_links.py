"""The garbage collection of one pod's registry removes links of another pod's: nothing that an index needs is lost.

Attempt 3 on real programs: before, the layers of a tagged index were purged, without an alarm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import RepositoryName, parse_digest
from coordinator.registry.images import Image, make_image, make_index
from coordinator.stack.seaweedfs import BUCKET
from coordinator.storage.layout import REPOSITORIES, revision_link_key
from tests.conftest import temporary_directory
from tests.doctor.store import ROOT
from tests.scenarios.harness import KEYS, Stage
from tests.support.registries import collect_as_registry
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Of its own: links of all pods vanish in it."""
    with temporary_directory() as directory, Stage.opened(directory) as stage:
        yield stage


def deny_deletes_of_blobs_alone(stage: Stage) -> None:
    """Give pods' keys what a policy that protects bytes alone does: every link, of all pods."""
    statement = {
        "Sid": "PodsMayNotDeleteBlobs",
        "Effect": "Deny",
        "Principal": {"AWS": [f"arn:aws:iam::000000000000:user/{key.user}" for key in KEYS.values()]},
        "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
        "Resource": [f"arn:aws:s3:::{BUCKET}/{ROOT}/docker/registry/v2/blobs/*"],
    }
    allowed = statement | {
        "Sid": "PodsMayDoAllElse",
        "Effect": "Allow",
        "Action": ["s3:*"],
        "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/{ROOT}/*"],
    }
    document = {"Version": "2012-10-17", "Statement": [statement, allowed]}
    stage.objects.client().put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(document))
    # The server may take a moment until the policy is in force.
    eventually(lambda: stage.objects._may_list(KEYS[stage.a.name], f"{ROOT}/{REPOSITORIES}"))


def is_linked(stage: Stage, repository: str, digest: str) -> bool:
    return stage.store.head(revision_link_key(RepositoryName(repository), parse_digest(digest))) is not None


def needed(*images: Image) -> list[str]:
    return [digest for image in images for digest in (image.digest, *(blob.digest for blob in image.blobs))]


def test_what_an_index_lists_outlives_its_links(stage: Stage) -> None:
    """Attempt 3: links of an index's children vanish; collection is blocked and names them. An operator accepts that
    without having pushed anything: a whole collection purges what nothing needs, and keeps what the index lists, so
    that putting the children's manifests again makes the index whole.
    """
    children = [make_image(f"child-{arch}", architecture=arch) for arch in ("amd64", "arm64")]
    index = make_index(children)
    app = f"{stage.b.name}/app"
    stage.push(stage.b, "app", index)
    stage.expire_links()
    stage.report()
    deny_deletes_of_blobs_alone(stage)
    done = collect_as_registry(stage.a.registry._made, "-m")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "manifest eligible for deletion" in out, out
    assert not any(is_linked(stage, app, child.digest) for child in children), out
    assert is_linked(stage, app, index.digest)

    stage.report()
    found = stage.api.get(f"/v1/pods/{stage.b.name}/vanished").json()["items"]
    assert {(each["repository"], each["digest"]) for each in found} == {(app, child.digest) for child in children}
    held = [reason for reason in stage.status()["gc"]["blocked_by"] if "vanished" in reason]
    assert len(held) == 1
    assert f"pod {stage.b.name}" in held[0]
    assert f"baleen pods accept-vanished {stage.b.name}" in held[0]
    assert stage.status()["vanished_links"] == 2
    stage.collect()
    assert all(stage.served(digest) for digest in needed(*children))

    accepted = stage.api.post(f"/v1/pods/{stage.b.name}/vanished/accept", json={"why": "a test", "by": "ann"})
    assert accepted.json()["accepted"] == 2
    assert not [reason for reason in stage.status()["gc"]["blocked_by"] if "vanished" in reason]
    garbage = make_image("garbage")
    stage.push(stage.b, "garbage", garbage)
    stage.abandon(stage.b, "garbage", garbage)
    stage.hide(*needed(garbage))
    stage.purge(*needed(garbage))
    assert all(stage.served(digest) for digest in needed(*children))
    assert {stage.state(digest) for digest in needed(*children)} == {BlobState.LIVE}

    # Their links are gone, so that their registry answers 404, and needs nothing but the manifests again.
    for child in children:
        stage.b.client.put_manifest(app, child.digest, child.media_type, child.content)
    eventually(lambda: all(is_linked(stage, app, child.digest) for child in children))
    pulled = stage.b.client.get_manifest(app, "v1")
    assert pulled.content == index.content
    for child in children:
        assert stage.b.client.get_manifest(app, child.digest).content == child.content
        assert all(stage.b.client.get_blob(app, blob.digest) == blob.content for blob in child.blobs)

    # When the index goes, what it kept goes with it, but for what is pushed by itself.
    stage.b.client.delete_manifest(app, index.digest)
    eventually(lambda: not stage.holds(app, index.digest))
    assert all(stage.holds(app, child.digest) for child in children)
