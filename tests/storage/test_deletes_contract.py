"""What garbage collection relies on: deletes in batches, by permit, of exactly what is named."""

import datetime
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from coordinator.errors import UnavailableError, UsageError
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.port import DELETE_LIMIT, SIGNATURE_S, ObjectStore, Target, UnsafeStoreError
from tests.storage.conftest import KINDS, VERSIONED, ForbiddenError, MakeS3, allowed, forbidden, s3_client


@pytest.mark.parametrize("store", KINDS, indirect=True)
class TestDeletes:
    def test_what_is_served(self, store: ObjectStore) -> None:
        """A delete without a version removes the object; a store with versions returns the id of the new marker."""
        for key in ("d/a", "d/b", "d/c"):
            store.put(key, key.encode())
        answer = store.delete_many([Target("d/b"), Target("d/a")], allowed)
        assert [(each.target.key, each.error, each.done) for each in answer] == [(f"d/{n}", None, True) for n in "ba"]
        assert [entry.key for entry in store.list("d/")] == ["d/c"]
        for each in answer:
            top = store.list_versions(each.target.key)[:1]
            assert [version.version for version in top] == ([each.marker] if store.keeps_versions() else [])
            if each.marker is not None:
                assert store.remove_marker(each.target.key, each.marker)
                assert store.get(each.target.key) == each.target.key.encode()

    def test_exactly_a_version(self, store: ObjectStore) -> None:
        """A delete with a version removes only that; a version or key that does not exist is no error."""
        if not store.keeps_versions():
            return
        store.put("v/a", b"old")
        old = store.list_versions("v/a")[0].version
        (hidden,) = store.delete_many([Target("v/a")], allowed)
        store.put("v/a", b"new")
        for turn in range(2):
            answer = store.delete_many([Target("v/a", old), Target("v/none")], allowed)
            assert [each.error for each in answer] == [None, None]
            assert answer[0].done or turn == 1
            assert store.get("v/a") == b"new"
            assert old not in {each.version for each in store.list_versions("v/a")}
        store.delete_many([Target("v/a", hidden.marker)], allowed)
        assert [each.is_marker for each in store.list_versions("v/a")] == [False]

    def test_a_key_twice(self, store: ObjectStore) -> None:
        """For a key with and without a version in one request, the returned marker is the new one."""
        if not store.keeps_versions():
            return
        store.put("t/a", b"old")
        (first,) = store.delete_many([Target("t/a")], allowed)
        store.put("t/a", b"new")
        answer = store.delete_many([Target("t/a"), Target("t/a", first.marker)], allowed)
        top = store.list_versions("t/a")[0]
        assert top.is_marker
        assert [each.marker for each in answer] == [top.version, None]

    def test_a_permit(self, store: ObjectStore) -> None:
        """An error of the permit is raised, and nothing is deleted; without targets no permit is asked for."""
        store.put("p/a", b"kept")
        with pytest.raises(ForbiddenError):
            store.delete_many([Target("p/a")], forbidden)
        assert store.get("p/a") == b"kept"
        assert store.delete_many([], forbidden) == []

    def test_too_many(self, store: ObjectStore) -> None:
        """A request with too many targets, or with one of them twice, is refused as a whole."""
        store.put("m/a", b"kept")
        for targets in ([Target("m/a")] * 2, [Target(f"m/{number}") for number in range(DELETE_LIMIT + 1)]):
            with pytest.raises(UsageError):
                store.delete_many(targets, allowed)
        assert store.get("m/a") == b"kept"


@pytest.fixture
def aged() -> Iterator[None]:
    """Sign requests as if this machine had slept since, for longer than a signature is valid."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    signed = now - datetime.timedelta(seconds=SIGNATURE_S + 60)
    with mock.patch("botocore.auth.get_current_datetime", return_value=signed):
        yield


@pytest.mark.usefixtures("aged", "buckets")
def test_a_delete_that_comes_late(connect_s3: MakeS3) -> None:
    """The store refuses a delete that was signed too long ago, so that a process that slept does no harm."""
    store = connect_s3(bucket=VERSIONED, attempts=1)
    with mock.patch("botocore.auth.get_current_datetime", side_effect=_now):
        store.put("late/a", b"kept")
    asked: list[None] = []
    with pytest.raises(UnavailableError, match="RequestTimeTooSkewed"):
        store.delete_many([Target("late/a")], lambda: asked.append(None))
    assert asked
    with mock.patch("botocore.auth.get_current_datetime", side_effect=_now):
        assert store.get("late/a") == b"kept"


def test_a_bucket_that_keeps_some(connect_s3: MakeS3, embedded_stack: StackEndpoints) -> None:
    """A bucket whose versioning is suspended is refused by name."""
    client = s3_client(embedded_stack)
    client.create_bucket(Bucket="suspended")
    store = connect_s3(bucket="suspended")
    assert not store.keeps_versions()
    store.enable_versioning()
    assert store.keeps_versions()
    client.put_bucket_versioning(Bucket="suspended", VersioningConfiguration={"Status": "Suspended"})
    with pytest.raises(UnsafeStoreError, match="'suspended'"):
        store.keeps_versions()


RULES: dict[str, dict[str, Any]] = {
    "old-versions": {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}, "Filter": {"Prefix": ""}},
    "all": {"Expiration": {"Days": 30}, "Filter": {"Prefix": "contract/"}},
    "old-uploads": {"Expiration": {"Days": 30}, "Filter": {"Prefix": "elsewhere/"}},
}


@pytest.mark.parametrize(("name", "refused"), [("old-versions", True), ("all", True), ("old-uploads", False)])
def test_a_bucket_that_deletes_by_itself(
    connect_s3: MakeS3, embedded_stack: StackEndpoints, name: str, refused: bool
) -> None:
    """A bucket with a rule that may delete hidden bytes is refused, with the rule's name; other rules are accepted."""
    client = s3_client(embedded_stack)
    client.create_bucket(Bucket=f"rules-{name}")
    store = connect_s3(bucket=f"rules-{name}")
    client.put_bucket_lifecycle_configuration(
        Bucket=f"rules-{name}",
        LifecycleConfiguration={"Rules": [{"ID": name, "Status": "Enabled", **RULES[name]}]},  # type: ignore[list-item]
    )
    if refused:
        with pytest.raises(UnsafeStoreError, match=f"'{name}'"):
            store.keeps_versions()
    else:
        assert store.keeps_versions() is False


def _now(*_: object, **__: object) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
