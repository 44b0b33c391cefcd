"""The API's figures of blobs equal those of plain sets, whichever way it counts them."""

from collections.abc import Callable
from datetime import datetime

from hypothesis import given, settings

from coordinator.domain.references import ManifestKind
from coordinator.lookup.sizes import Sizes
from tests.api.harness import Facts, Json, Served
from tests.api.worlds import build, worlds

#: A blob with two holdings is hot, and counted in a group of its own.
HOT = Sizes(live=1, hot_group=2)


def check_blobs(api: Served, facts: Facts) -> None:
    references, needed = facts.reference_counts(), facts.needed_by()
    blobs = facts.blobs()
    digests = [facts.digest(blob) for blob in blobs]
    together = api.ask("POST", "/v1/blobs/lookup", json={"digests": digests}).json()["items"]
    for blob, digest, shown in zip(blobs, digests, together, strict=True):
        assert shown["digest"] == digest
        assert shown["reference_count"] == references[blob]
        assert shown["link_count"] == sum(linked == blob for _, linked in facts.links)
        assert shown["repository_count"] == len(needed[blob])
        assert shown["pods"] == sorted({repository.split("/")[0] for repository in needed[blob]})
        assert shown["state"] == ("live" if needed[blob] else "unreferenced")
        assert (shown["unreferenced_since"] is None) == bool(needed[blob])
        assert shown["size"] == facts.sizes[blob]
        alone = api.get(f"/v1/blobs/{digest}").json()
        assert without_time(alone) == without_time(shown)


def without_time(blob: Json) -> Json:
    return {name: value for name, value in blob.items() if name != "counted_at"}


@settings(max_examples=15, database=None)
@given(worlds())
def test_counts_are_those_of_the_sets(api: Served, steps: list[tuple[str, int, int, object]]) -> None:
    """Counts, repositories and pods of every blob equal those of plain sets, alone and together."""
    facts = Facts(api.db)
    build(facts, steps)
    check_blobs(api, facts)


@settings(max_examples=10, database=None)
@given(worlds())
def test_hot_blobs_are_counted_as_exactly(
    api_of: Callable[[Sizes], Served], steps: list[tuple[str, int, int, object]]
) -> None:
    """A blob with too many references to be counted at once gets the same figures, in groups of any size."""
    api = api_of(HOT)
    facts = Facts(api.db)
    build(facts, steps)
    check_blobs(api, facts)


def test_a_question_counts_the_rarest_at_once(api_of: Callable[[Sizes], Served], facts: Facts) -> None:
    """The blobs of one look-up share a cost limit, and those beyond it are counted as hot ones."""
    facts.manifest(0, ManifestKind.IMAGE, [10, 11])
    facts.manifest(1, ManifestKind.IMAGE, [10, 12])
    for manifest in (0, 1):
        for name in "abc":
            facts.hold(facts.repository(0, name), manifest)
    check_blobs(api_of(Sizes(live_total=5)), facts)


def test_a_pods_hot_blobs_are_not_counted(api_of: Callable[[Sizes], Served], facts: Facts) -> None:
    """The page of a pod's blobs counts none of its hot blobs."""
    api = api_of(HOT)
    facts.manifest(0, ManifestKind.IMAGE, [10, 11])
    for pod in (0, 1):
        for name in "abc":
            facts.hold(facts.repository(pod, name), 0)
    for pod in facts.pods[:2]:
        found = {item["digest"] for item in api.pages("/v1/blobs", pod=pod)}
        assert {facts.digest(blob) for blob in (0, 10, 11)} <= found
    # Counts are cached, and say when they were made.
    ((paged_at,),) = api.db.execute("SELECT now()").fetchall()
    for blob in (0, 10, 11):
        counted_at = api.get(f"/v1/blobs/{facts.digest(blob)}").json()["counted_at"]
        assert datetime.fromisoformat(counted_at) > paged_at


def test_unknown_digests_are_null_in_their_place(api: Served, facts: Facts) -> None:
    """A look-up answers in the order of its digests, null for an unknown one, and twice for a repeated one."""
    known, unknown = facts.digest(1), f"sha256:{'0' * 64}"
    answer = api.ask("POST", "/v1/blobs/lookup", json={"digests": [unknown, known, unknown, known]})
    assert [item and item["digest"] for item in answer.json()["items"]] == [None, known, None, known]
    assert api.get(f"/v1/blobs/{unknown}").status_code == 404


def test_a_lookup_has_a_limit(api: Served) -> None:
    """A look-up takes up to a thousand digests."""
    digests = [f"sha256:{n:064x}" for n in range(1001)]
    assert len(api.ask("POST", "/v1/blobs/lookup", json={"digests": digests[:1000]}).json()["items"]) == 1000
    assert api.ask("POST", "/v1/blobs/lookup", json={"digests": digests}).status_code == 400
    assert api.ask("POST", "/v1/blobs/lookup", json={"digests": []}).json() == {"items": []}
    answer = api.ask("POST", "/v1/blobs/lookup", content=b" " * 300_000, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_an_unknown_size_is_null(api: Served, facts: Facts) -> None:
    """A size that no registry has reported is null."""
    digest = facts.digest(1)
    api.db.execute("UPDATE blobs SET size = -1 WHERE digest = %s", (bytes.fromhex(digest[7:]),))
    assert api.get(f"/v1/blobs/{digest}").json()["size"] is None
