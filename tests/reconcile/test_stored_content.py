"""Whether a pod that is to be removed has anything in storage that counts."""

from typing import Any

import pytest

from coordinator.doctor.scratch import Scratch
from coordinator.doctor.table import ExaminedPod
from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, PodName, RepositoryName, parse_digest
from coordinator.domain.pods import PodKind, PodMode
from coordinator.errors import ConflictError, UnavailableError
from coordinator.pods.prober import make_probe_image, probe_image_digests
from coordinator.reconcile.stored_content import has_any_link
from coordinator.storage.layout import link_key, repository_prefix
from tests.reconcile.harness import Bucket

TEAM, OTHER = RepositoryName("team"), RepositoryName("other")
REVISION = link_key(RepositoryName("team/app"), LinkKind.REVISION, Digest(bytes(32)))
LAYER = link_key(RepositoryName("team"), LinkKind.LAYER, Digest(bytes(32)))


def test_only_links_that_count_are_anything() -> None:
    """Manifests count in every pod, layer links only where links do; tags, uploads and other pods' links never."""
    bucket = Bucket()
    for key in (f"{repository_prefix(TEAM)}_uploads/1/startedat", f"{repository_prefix(RepositoryName('teams'))}x"):
        bucket.put(key, b"")
    bucket.put(link_key(RepositoryName("teams/app"), LinkKind.REVISION, Digest(bytes(32))), b"")
    for mode in PodMode:
        assert not has_any_link(bucket, [OTHER, TEAM], mode)
    bucket.put(LAYER, b"")
    assert not has_any_link(bucket, [OTHER, TEAM], PodMode.MANIFEST)
    assert has_any_link(bucket, [OTHER, TEAM], PodMode.LINK)
    bucket.put(REVISION, b"")
    assert has_any_link(bucket, [OTHER, TEAM], PodMode.MANIFEST)
    assert not has_any_link(bucket, [OTHER], PodMode.MANIFEST)


def test_what_baleen_made_is_nothing() -> None:
    """The probes' image and what doctors left count for nothing; other images in such repositories count."""
    bucket, image = Bucket(), probe_image_digests()
    probes = RepositoryName("team/baleen-probe")
    for kind in LinkKind:
        for digest in image:
            bucket.put(link_key(probes, kind, digest), b"")
    manifest = parse_digest(make_probe_image().digest)
    bucket.put(f"{repository_prefix(probes)}_manifests/tags/known/current/link", b"")
    bucket.put(f"{repository_prefix(probes)}_manifests/tags/known/index/sha256/{manifest.hex()}/link", b"")
    nowhere: Any = None
    pod = ExaminedPod(1, PodName("team"), PodMode.LINK, PodKind.LINK, TEAM, (TEAM,), (), (), frozenset(), {})
    for scratch in Scratch(pod, nowhere, nowhere).repositories:
        bucket.put(link_key(scratch, LinkKind.REVISION, Digest(bytes(32))), b"")
    assert not has_any_link(bucket, [OTHER, TEAM], PodMode.LINK, image=image)
    assert has_any_link(bucket, [OTHER, TEAM], PodMode.MANIFEST)
    assert has_any_link(bucket, [OTHER, RepositoryName("team/baleen-probe")], PodMode.MANIFEST, image=image)
    bucket.put(link_key(probes, LinkKind.REVISION, Digest(bytes(32))), b"")
    assert has_any_link(bucket, [OTHER, TEAM], PodMode.MANIFEST, image=image)


@pytest.mark.parametrize("failing", ["check", "walk"])
def test_what_cannot_be_listed_is_not_nothing(failing: str) -> None:
    """A failed listing, or more keys than the limit, is an error and not an empty pod."""
    bucket = Bucket()
    for number in range(4):
        bucket.put(f"{repository_prefix(TEAM)}_uploads/{number}/data", b"")
    assert not has_any_link(bucket, [TEAM], PodMode.MANIFEST, limit=4)
    with pytest.raises(ConflictError, match="reconcile it first"):
        has_any_link(bucket, [TEAM], PodMode.MANIFEST, limit=3)

    def away(call: str, _: str) -> None:
        if call == failing:
            raise UnavailableError("away")

    bucket.interrupt = away
    with pytest.raises(UnavailableError):
        has_any_link(bucket, [TEAM], PodMode.MANIFEST)
