"""Blobs that are needed and have no bytes are told where an operator looks."""

from coordinator.domain.lifecycle import BlobState
from tests.api.harness import Facts, Served


def metric(api: Served, name: str) -> float:
    lines = api.get("/metrics", None).text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def test_missing_blobs_are_reported(api: Served, facts: Facts) -> None:
    """Missing blobs are counted by the status and its metric, listed by their state, and each says so."""
    repository = facts.repository(0, "app")
    for blob in range(5):
        facts.link(repository, blob)
    before, status = metric(api, "baleen_blobs_missing"), api.get("/v1/status").json()
    lost = [facts.digest(blob) for blob in (1, 2, 4)]
    ids = [bytes.fromhex(digest.removeprefix("sha256:")) for digest in lost]
    api.db.execute("UPDATE blobs SET state = %s WHERE digest = ANY(%s)", (int(BlobState.MISSING), ids))
    assert metric(api, "baleen_blobs_missing") == before + 3
    assert api.get("/v1/status").json()["missing_blobs"] == status["missing_blobs"] + 3
    listed = [item["digest"] for item in api.pages("/v1/blobs", state="missing", limit=1)]
    assert [digest for digest in listed if digest in lost] == lost
    assert api.get(f"/v1/blobs/{lost[0]}").json()["state"] == "missing"
    assert not api.pages("/v1/blobs", state="missing", min_references=1_000_000)
    api.db.execute("UPDATE blobs SET state = %s WHERE digest = ANY(%s)", (int(BlobState.LIVE), ids))


def test_changes_that_wait_are_reported(api: Served) -> None:
    """What blob.lifecycle has not got yet is counted."""
    before = metric(api, "baleen_lifecycle_waiting_records")
    api.db.execute(
        "INSERT INTO lifecycle_outbox (digest, change, reference_count, link_count) VALUES ('x', 'missing', 1, 0)"
    )
    assert metric(api, "baleen_lifecycle_waiting_records") == before + 1
    api.db.execute("DELETE FROM lifecycle_outbox")
