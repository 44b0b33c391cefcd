"""A real GitLab registry beside one of distribution: what clients do there is what its rows and Baleen's table say."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.registry.client import RegistryError
from coordinator.registry.images import DOCKER, make_image, make_index, make_layer
from tests.gitlab.registry import GitlabStage, needs_program
from tests.registries.skopeo import Skopeo, docker_layout, oci_layout
from tests.registries.test_restarts import an_hour_later
from tests.registries.watermarks import moves_on, states
from tests.router.programs import needs_go, run
from tests.scenarios.harness import HOUR
from tests.support.artifacts import make_artifact
from tests.support.wait import eventually

pytestmark = [pytest.mark.registry, needs_program]

#: Of an artifact that such a registry takes by default.
KNOWN_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
PLAIN = ("--from-plain-http", "--to-plain-http")


@needs_go
def test_clients_and_rows_agree(gitlab_stage: GitlabStage, here: str, tmp_path: Path) -> None:
    """After pushes, copies and deletes by skopeo, crane and oras the table agrees with the rows: by events alone, after
    a reconcile, and by events again after that. A blob's delete sends no event: its link counts for its grace.
    """
    stage, skopeo = gitlab_stage, Skopeo(tmp_path)
    at, below, client = stage.b.registry.address, f"pod-b/{here}", stage.b.client
    base = make_layer(f"{here}/base", 30_000)
    images = [make_image(f"{here}/{number}", [base, make_layer(f"{here}/{number}")]) for number in range(4)]
    index = make_index([make_image(f"{here}/{arch}", [base], architecture=arch) for arch in ("amd64", "arm64")])
    docker = make_image(f"{here}/docker", [base], kind=DOCKER)
    for number, image in enumerate(images):
        layout = oci_layout(tmp_path / f"image-{number}", image)
        skopeo.push(layout, at, f"{below}/app{number}:v1")
        # The same on the other pod: both count.
        skopeo.push(layout, stage.a.registry.address, f"pod-a/{here}/app{number}:v1")
    skopeo.push(oci_layout(tmp_path / "index", index), at, f"{below}/deep/er/multi:v1", "--all")
    skopeo.push(docker_layout(tmp_path / "docker", docker), at, f"{below}/docker:v1")
    skopeo.copy(f"{at}/{below}/app0:v1", f"{at}/{below}/app1:v2")
    run("crane", tmp_path, "copy", "--insecure", f"{at}/{below}/app2:v1", f"{at}/{below}/other:v1")
    run("crane", tmp_path, "tag", "--insecure", f"{at}/{below}/app2:v1", "v2")
    (tmp_path / "note").write_text(here)
    attach = ("attach", "--plain-http", "--artifact-type", KNOWN_TYPE, f"{at}/{below}/app0:v1", "note:text/plain")
    run("oras", tmp_path, *attach)
    run("oras", tmp_path, "cp", "-r", *PLAIN, f"{at}/{below}/app0:v1", f"{at}/{below}/copied:v1")
    client.push_image(f"{below}/app1", make_artifact(here, subject=images[1].descriptor, artifact_type=KNOWN_TYPE), "s")
    client.push_blob(f"{below}/alone", make_layer(f"{here}/alone").content)
    stage.await_parted(below, [])

    # Deletes: of a tag's manifest, of a child that its index needs, of an index and then its child, of a subject.
    skopeo.delete(at, f"{below}/app1:v2")
    run("crane", tmp_path, "delete", "--insecure", f"{at}/{below}/app3@{images[3].digest}")
    with pytest.raises(RegistryError, match="answered 409"):
        client.delete_manifest(f"{below}/deep/er/multi", index.manifests[0].digest)
    client.delete_manifest(f"{below}/deep/er/multi", index.digest)
    client.delete_manifest(f"{below}/deep/er/multi", index.manifests[0].digest)
    with pytest.raises(RegistryError, match="answered 500"):
        client.delete_manifest(f"{below}/app1", images[1].digest)
    stage.await_parted(below, [])
    gone = images[2].layers[1].digest
    client.delete_blob(f"{below}/app2", gone)
    left = [f"link {(f'{below}/app2', gone)}"]
    stage.await_parted(below, left)

    progress = stage.reconcile(stage.b.pod)["progress"]
    assert (progress["holdings_added"], progress["holdings_removed"]) == (0, 0)
    assert stage.parted(below) == left
    counts, wanted, rows = stage.counts(), stage.wanted_counts(), stage.registry_rows.manifests(below)
    digests = {digest for pair, needs in rows.items() for digest in (pair[1], *needs)}
    digests -= stage.registry_rows.subjects(below)
    assert {digest: counts.get(digest) for digest in digests} == {digest: wanted.get(digest) for digest in digests}

    # What was deleted comes again, and goes again.
    skopeo.push(f"oci:{tmp_path / 'image-3'}", at, f"{below}/app3:v2")
    client.push_image(f"{below}/deep/er/multi", index, "v2")
    client.push_blob(f"{below}/app2", images[2].layers[1].content)
    client.delete_manifest(f"{below}/docker", docker.digest)
    stage.await_parted(below, [])
    again = stage.reconcile(stage.b.pod)["progress"]
    assert [again[name] for name in ("holdings_added", "holdings_removed", "links_added")] == [0, 0, 0]
    assert stage.parted(below) == []
    assert client.pull_image(f"{below}/app3", "v2").digest == images[3].digest


@pytest.mark.parametrize(
    ("source", "target"), [("pod-a", "pod-b"), ("pod-b", "pod-a"), ("pod-b", "pod-b")], ids=["in", "out", "within"]
)
def test_a_mount_that_is_answered_is_pullable(gitlab_stage: GitlabStage, here: str, source: str, target: str) -> None:
    """Into such a pod, out of it and within it: a blob whose mount is answered 201 can be pulled, and needs no push."""
    stage = gitlab_stage
    members = {member.name: member for member in stage.members}
    layer = make_layer(here, 60_000)
    stage.push(members[source], f"{here}/app", make_image(f"{here}/old", [layer]))
    repository, client = f"{target}/{here}/mounted", members[target].client
    answer = stage.mount(repository, layer.digest, f"{source}/{here}/app")
    assert (answer.status_code, answer.headers["X-Baleen-Mount"]) == (201, "mounted")
    assert client.get_blob(repository, layer.digest) == layer.content
    image = make_image(f"{here}/new", [layer])
    stage.push(members[target], f"{here}/mounted", image)
    assert client.pull_image(repository, "v1").digest == image.digest
    stage.await_parted(f"pod-b/{here}", [])


@needs_go
def test_crane_copies_between_the_pods(gitlab_stage: GitlabStage, here: str, tmp_path: Path) -> None:
    """A copy through the router, with mounts, is whole in both directions."""
    stage, at = gitlab_stage, gitlab_stage.router.address
    for source, target in (stage.members, stage.members[::-1]):
        image = make_image(f"{here}/{source.name}")
        stage.push(source, f"{here}/own", image)
        run(
            *("crane", tmp_path, "copy", "--insecure"),
            *(f"{at}/{source.name}/{here}/own:v1", f"{at}/{target.name}/{here}/copied:v1"),
        )
        stage.await_held(target, f"{here}/copied", image)
        assert target.client.pull_image(f"{target.name}/{here}/copied", "v1").digest == image.digest
    stage.await_parted(f"pod-b/{here}", [])


def test_a_registry_that_is_killed_with_events_in_its_queue(gitlab_stage: GitlabStage, here: str) -> None:
    """A reconcile of its database finds what no event reported, and retires the process. Deletes without an event block
    collections until an operator accepts them.
    """
    stage, member, below = gitlab_stage, gitlab_stage.b, f"pod-b/{here}"
    app = f"{below}/app"
    known, lost, again, gone = (make_image(f"{here}/{name}") for name in ("known", "lost", "again", "gone"))
    for image in (known, again, gone):
        stage.push(member, f"{here}/app", image)
    stage.push(member, f"{here}/other", gone)
    member.webhook.away = True
    member.client.push_image(app, lost, "v2")
    member.client.push_image(f"{below}/new/deep", lost, "v1")
    for image in (again, gone):
        member.client.delete_manifest(app, image.digest)
    member.client.delete_manifest(f"{below}/other", gone.digest)
    member.client.push_image(app, again, "v3")
    eventually(lambda: member.webhook.attempts() > len(member.webhook.accepted()) + 2)
    member.registry.kill()
    member.webhook.away = False
    member.registry.start()
    later = make_image(f"{here}/later")
    stage.push(member, f"{here}/app", later, "v4")
    eventually(lambda: "dead" in states(stage, member.pod), why=lambda: stage.pod(member.pod))
    parted = stage.parted(below)
    for name in ("app", "new/deep", "other"):
        assert any(f"{below}/{name}" in difference for difference in parted), parted
    job = stage.reconcile(member.pod)
    assert (job["progress"]["holdings_added"], job["progress"]["holdings_removed"]) == (2, 2)
    stage.await_parted(below, [])
    assert member.client.pull_image(app, "v3").digest == again.digest

    assert "2 links vanished" in " ".join(stage.pod(member.pod)["blocked_by"])
    stage.ask("POST", f"/v1/pods/{member.name}/vanished/accept", {"why": "they were deleted", "by": "a test"})
    an_hour_later(stage, member.pod)
    eventually(lambda: "dead" not in states(stage, member.pod), why=lambda: stage.pod(member.pod))
    moves_on(stage, member.pod)
    stage.await_parted(below, [])
    assert stage.pod(member.pod)["blocked_by"] == []


def test_a_collection_waits_for_the_row_and_ends_in_a_purge(gitlab_stage: GitlabStage, here: str) -> None:
    """A blob that nothing needs is kept as long as the registry's database lists it, since a mount is then answered
    without a look at storage. Its row goes without its bytes; then it is hidden, and purged, and can be pushed again.
    """
    stage, client, below = gitlab_stage, gitlab_stage.b.client, f"pod-b/{here}"
    layer, image, _ = stage.abandoned_layer(stage.b, here)
    other = make_image(f"{here}/other", [layer])
    stage.push(stage.a, here, other)
    stage.abandon(stage.a, here, other)

    def collected() -> bool:
        stage.expire_links()
        stage.report()
        planned, run = stage.collect(dry=True), stage.collect(quarantine=HOUR)
        assert (planned.state, run.state) == ("done", "done"), (planned.error, run.error)
        return bool(stage.ledger(layer.digest))

    # The plan is to hide it, and the run finds the row.
    eventually(collected, why=stage.status)
    assert set(stage.ledger(layer.digest)) == {"kept"}
    assert stage.served(layer.digest)
    assert stage.state(layer.digest) is BlobState.UNREFERENCED
    assert "registry database of pod pod-b lists it" in str(stage.ask("GET", f"/v1/blobs/{layer.digest}/explain"))
    # Which is why it has to be kept.
    assert client.mount_blob(f"{below}/again", layer.digest, below)
    assert client.get_blob(f"{below}/again", layer.digest) == layer.content

    blobs = [layer.digest, image.config.digest]
    with stage.row_collector():
        eventually(lambda: stage.let_review() or not any(map(stage.registry_rows.has_blob, blobs)), why=stage.queue)
    assert stage.served(layer.digest)
    assert not client.has_blob(below, layer.digest)
    stage.hide(*blobs)
    assert not client.mount_blob(f"{below}/again", layer.digest, below)
    stage.purge(*blobs)
    client.push_image(f"{below}/again", image, "v1")
    stage.await_held(stage.b, f"{here}/again", image)
    stage.await_live(*blobs)
    assert client.pull_image(f"{below}/again", "v1").digest == image.digest
    stage.await_parted(f"{below}/again", [])
