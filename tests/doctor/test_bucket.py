"""A visit's effect on buckets of each kind: hidden bytes come back, and nothing that it made is left."""

import itertools
from collections.abc import Iterator

import pytest

from coordinator.compose import command as compose_command
from coordinator.compose import store as compose_store
from coordinator.doctor import table as findings
from coordinator.doctor.storage import check_versioned
from coordinator.doctor.visit import Visit
from coordinator.domain.findings import Result
from coordinator.domain.names import parse_digest, parse_pod
from coordinator.errors import UsageError
from coordinator.storage.layout import blob_key, repository_prefix
from tests.doctor.harness import Clinic
from tests.doctor.store import POD

pytestmark = pytest.mark.lengthy
_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=[None, "Enabled", "Suspended"])
def bucket(request: pytest.FixtureRequest, clinic: Clinic) -> str:
    """A bucket by its versioning; one whose versions are suspended has an old one."""
    name = f"kind-{request.param or 'plain'}".lower()
    client = clinic.store.client()
    client.create_bucket(Bucket=name)
    for status in [] if request.param is None else ["Enabled", request.param]:
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
    return name


@pytest.fixture
def visit(clinic: Clinic, bucket: str) -> Iterator[Visit]:
    pod = clinic.admit(f"{bucket}-{next(_numbers)}")
    settings = clinic.settings(s3_bucket=bucket)
    with compose_command.open_instruments(settings, parse_pod(pod.name)) as instruments:
        with instruments.connections.use() as connection:
            examined = findings.read_pod(connection, parse_pod(pod.name))
        yield Visit(instruments, examined)


def test_what_vanishes_comes_back(clinic: Clinic, bucket: str, visit: Visit) -> None:
    """A blob is absent while it is hidden, comes back after it, and then leaves no version."""
    blob = visit.scratch.make_layer()
    store = visit.instruments.store
    key = visit.scratch.store_blob(blob)
    visit.scratch.store_blob(blob)
    with visit.scratch.remove_for_block(blob):
        assert store.head(key) is None
    assert store.get(key) == blob.content
    with pytest.raises(ZeroDivisionError), visit.scratch.remove_for_block(blob):
        raise ZeroDivisionError
    assert store.get(key) == blob.content
    upload = f"{repository_prefix(visit.scratch.repository)}_uploads/1/data"
    store.put(upload, b"left by an upload")
    if bucket != "kind-suspended":
        # There SeaweedFS would keep the marker for ever.
        store.delete(upload)
    clinic.store.client().create_multipart_upload(Bucket=bucket, Key=f"{store.root}{upload}")
    assert visit.scratch.clean([], lambda: True) == []
    assert clinic.store.everything(bucket) == set()


def test_what_is_shown_of_it(bucket: str, visit: Visit) -> None:
    """Either kind of bucket is proved, and the finding says how blobs will be hidden in it."""
    found = check_versioned(visit)
    assert found.result is Result.PROVED
    assert ("moving its bytes to quarantine/" in found.meaning) == (bucket != "kind-enabled")
    assert visit.scratch.clean([], lambda: True) == []


def test_neighbours_stay(clinic: Clinic) -> None:
    """Only the named object and folder are deleted, and none whose name merely begins so."""
    store = compose_store.make_trial_store(clinic.settings())
    digest = parse_digest(f"sha256:{'ab' * 32}")
    kept = ["neighbours/a-b/x", "neighbours/ab", f"{blob_key(digest)}.tombstone"]
    for key in ["neighbours/a/x", "neighbours/a/y/z", blob_key(digest), *kept]:
        store.put(key, b"x")
    with pytest.raises(UsageError):
        store.erase_below("neighbours/a")
    assert store.erase_below("neighbours/a/") == 2
    assert store.erase([blob_key(digest)]) == 1
    assert [store.head(key) is not None for key in kept] == [True, True, True]
    assert store.erase_below("neighbours/") == 2
    assert store.erase(kept[2:]) == 1


def test_what_a_key_may(clinic: Clinic) -> None:
    """A refusal is a result, of single and batch calls; what the key is permitted to do is reported too."""
    settings = clinic.settings()
    ours, key = (
        compose_store.make_trial_store(settings),
        compose_store.make_trial_store(settings, POD.access, settings.pod_secret_key),
    )
    name = blob_key(parse_digest(f"sha256:{'cd' * 32}"))
    assert key.attempt_put(name, b"x").allowed
    tried = [key.attempt_delete(name), key.attempt_delete_many(name), key.attempt_versioning("Enabled")]
    assert [each.is_forbidden for each in tried] == [True, True, True]
    assert ours.attempt_delete_many(name).reply == "done"
    assert ours.erase([name]) == 2
