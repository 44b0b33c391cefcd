"""Blobs that are referenced and have no bytes are shown where an operator looks."""

from coordinator.domain.lifecycle import BlobState
from tests.api.harness import Facts, Served
from tests.support.tables import insert


def test_missing_blobs_are_reported(api: Served, facts: Facts) -> None:
    """Missing blobs are counted by the status and its metric, listed by their state, and each says so."""
    repository = facts.repository(0, "app")
    for blob in range(5):
        facts.link(repository, blob)
    before, status = api.metric("baleen_blobs_missing"), api.get("/v1/status").json()
    lost = [facts.digest(blob) for blob in (1, 2, 4)]
    ids = [bytes.fromhex(digest.removeprefix("sha256:")) for digest in lost]
    api.db.execute("UPDATE blobs SET state = %s WHERE digest = ANY(%s)", (int(BlobState.MISSING), ids))
    assert api.metric("baleen_blobs_missing") == before + 3
    assert api.get("/v1/status").json()["missing_blobs"] == status["missing_blobs"] + 3
    listed = [item["digest"] for item in api.pages("/v1/blobs", state="missing", limit=1)]
    assert [digest for digest in listed if digest in lost] == lost
    assert api.get(f"/v1/blobs/{lost[0]}").json()["state"] == "missing"
    assert not api.pages("/v1/blobs", state="missing", min_references=1_000_000)
    api.db.execute("UPDATE blobs SET state = %s WHERE digest = ANY(%s)", (int(BlobState.LIVE), ids))


def test_changes_that_wait_are_reported(api: Served) -> None:
    """Changes that blob.lifecycle has not received yet are counted."""
    before = api.metric("baleen_lifecycle_waiting_records")
    insert(api.db, "lifecycle_outbox", digest="x", change="missing", reference_count=1, link_count=0)
    assert api.metric("baleen_lifecycle_waiting_records") == before + 1
    api.db.execute("DELETE FROM lifecycle_outbox")
