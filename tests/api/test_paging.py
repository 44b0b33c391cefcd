"""Pages put together are the whole list: each row once, also while rows are added between pages."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.db import paging
from coordinator.domain.references import ManifestKind
from coordinator.lookup.sizes import PRODUCTION, Sizes
from tests.api.harness import FRESH, Facts, Json, Served, dead_letter
from tests.api.worlds import build, worlds

LIMITS = st.integers(1, 7)
#: References are found by reading manifests, so many for each page.
WALKS = [Sizes(indexed=0, manifests_walk=walk) for walk in (7, 20)]
#: Pages of blobs that read few blobs; in one of them most blobs are hot.
BLOBS = [FRESH, replace(FRESH, walk=300, pod_walk=300), replace(FRESH, walk=150, pod_walk=150, live=1)]


@pytest.mark.lengthy
@settings(max_examples=12, database=None)
@given(worlds(), LIMITS, st.sampled_from([PRODUCTION, *WALKS]))
def test_references(
    api_of: Callable[[Sizes], Served], steps: list[tuple[str, int, int, object]], limit: int, sizes: Sizes
) -> None:
    """All holdings of every blob are listed once with their kind, by the index and by the walk, in any pages."""
    api = api_of(sizes)
    facts = Facts(api.db)
    build(facts, steps)
    for blob in facts.blobs()[:5]:
        # The walk passes by whatever earlier tests have left; only this blob's manifests count.
        items = api.pages(f"/v1/blobs/{facts.digest(blob)}/references", limit=limit if sizes is PRODUCTION else 1000)
        shown = [(item["pod"], item["repository"], item["manifest"], item["kind"]) for item in items]
        assert len(shown) == len(set(shown))
        assert set(shown) == facts.references(blob)


@pytest.mark.parametrize("sizes", [PRODUCTION, WALKS[0]])
def test_references_while_holdings_are_added(api_of: Callable[[Sizes], Served], facts: Facts, sizes: Sizes) -> None:
    """Holdings that exist at the first page are each listed once while others are added."""
    api = api_of(sizes)
    for manifest in range(6):
        facts.manifest(manifest, ManifestKind.IMAGE, [20, 21])
        for name in "bdf":
            facts.hold(facts.repository(0, name), manifest)
    before = facts.references(20)
    # Before the cursor, behind it, at it; and the list must come to an end.
    additions = iter([(30 + n, manifest, name) for n, manifest in enumerate((0, 5, 3, 1)) for name in "aceg"])

    def add() -> None:
        new, manifest, name = next(additions, (0, 0, ""))
        if name:
            facts.hold(facts.repository(0, name), manifest)
            if new not in facts.kinds:
                facts.manifest(new, ManifestKind.LAYERS, [20])
            facts.hold(facts.repository(1, name), new)

    items = api.pages(f"/v1/blobs/{facts.digest(20)}/references", between=add, limit=2)
    shown = [(item["pod"], item["repository"], item["manifest"], item["kind"]) for item in items]
    assert len(shown) == len(set(shown))
    assert before <= set(shown) <= facts.references(20)


@pytest.mark.lengthy
@settings(max_examples=5, database=None)
@given(worlds(), LIMITS, st.sampled_from(BLOBS), st.integers(0, 3))
def test_blobs(
    api_of: Callable[[Sizes], Served],
    steps: list[tuple[str, int, int, object]],
    limit: int,
    sizes: Sizes,
    min_references: int,
) -> None:
    """Every order and filter lists exactly the blobs that match, also where a page reads few rows."""
    api = api_of(sizes)
    facts = Facts(api.db)
    build(facts, steps)
    mine = {facts.digest(blob): blob for blob in facts.blobs()}
    references, needed = facts.reference_counts(), facts.needed_by()

    def listed(**parameters: object) -> list[int]:
        found = [mine[item["digest"]] for item in api.pages("/v1/blobs", **parameters) if item["digest"] in mine]
        assert len(found) == len(set(found))
        return found

    size = limit * 50
    assert set(listed(limit=size)) == set(facts.blobs())
    enough = {blob for blob in facts.blobs() if references[blob] >= min_references}
    assert set(listed(limit=size, min_references=min_references)) == enough
    assert set(listed(limit=size, state="live")) == {blob for blob in facts.blobs() if needed[blob]}
    idle = {blob for blob in facts.blobs() if not needed[blob]}
    assert set(listed(limit=size, sort="unreferenced_since")) == idle
    assert set(listed(limit=size, sort="unreferenced_since", state="unreferenced")) == idle
    for pod in facts.pods:
        of_pod = {b for b in facts.blobs() if any(r.startswith(f"{pod}/") for r in needed[b])}
        assert set(listed(limit=limit, pod=pod)) == of_pod
        assert set(listed(limit=limit, pod=pod, min_references=min_references)) == of_pod & enough
    ranked = listed(limit=limit, sort="references", min_references=min_references)
    assert set(ranked) == enough
    assert [references[blob] for blob in ranked] == sorted(map(references.__getitem__, ranked), reverse=True)


def test_the_ranking_has_an_end(api_of: Callable[[Sizes], Served], facts: Facts) -> None:
    """Only the blobs with the most references are ranked."""
    for blob in range(5):
        facts.digest(blob)
    assert len(api_of(Sizes(ranked=3)).pages("/v1/blobs", limit=2, sort="references")) == 3


def test_ranking_is_kept(api: Served, facts: Facts) -> None:
    """All pages of a ranking are of one reading and show its time, also after counts have changed."""
    facts.manifest(1, ManifestKind.IMAGE, [2, 3])
    first = api.get("/v1/blobs", sort="references", limit=1).json()
    facts.hold(facts.repository(0, "a"), 1)
    second = api.get("/v1/blobs", sort="references", limit=1, cursor=first["next"]).json()
    assert first["counted_at"] == second["counted_at"] is not None
    assert first["items"] != second["items"]


def test_blobs_while_blobs_are_added(api_of: Callable[[Sizes], Served], facts: Facts) -> None:
    """A filtered list of blobs loses and repeats none while blobs are added."""
    api = api_of(Sizes(walk=10))
    for blob in range(40):
        facts.digest(blob)
    before = {facts.digest(blob) for blob in range(40)}
    new = iter(range(100, 120))

    def add() -> None:
        if (blob := next(new, None)) is not None:
            facts.digest(blob)

    for sort in ("first_seen", "unreferenced_since"):
        items = [i["digest"] for i in api.pages("/v1/blobs", between=add, limit=7, state="unreferenced", sort=sort)]
        assert len(items) == len(set(items))
        assert before <= set(items)


@pytest.mark.lengthy
@settings(max_examples=10, database=None)
@given(st.sets(st.from_regex(r"[ab](/[ab]|-[ab]|[ab]){0,3}", fullmatch=True), max_size=12), LIMITS)
def test_repositories(api: Served, names: set[str], limit: int) -> None:
    """Repositories are listed in the order of their names' bytes, by path prefix and by pod."""
    facts = Facts(api.db)
    mine = sorted(facts.repository(n % 2, name) for n, name in enumerate(sorted(names)))
    listed = [item["name"] for item in api.pages("/v1/repositories", limit=limit * 20)]
    assert listed == sorted(listed)
    assert [name for name in listed if facts.mark in name] == mine
    for pod in facts.pods:
        of_pod = [name for name in mine if name.startswith(f"{pod}/")]
        assert [item["name"] for item in api.pages("/v1/repositories", pod=pod, limit=limit)] == of_pod
        for prefix in ("a", "a/b", "b"):
            below = [n for n in of_pod if f"{n}/".startswith(f"{pod}/{prefix}/")]
            for parameters in ({"prefix": f"{pod}/{prefix}"}, {"prefix": f"{pod}/{prefix}/", "pod": pod}):
                assert [i["name"] for i in api.pages("/v1/repositories", limit=limit, **parameters)] == below
    first, second = facts.pods
    assert api.pages("/v1/repositories", pod=first, prefix=second) == []


@pytest.mark.lengthy
@settings(max_examples=4, database=None)
@given(LIMITS)
def test_pods_and_dead_letters(api: Served, limit: int) -> None:
    """Pods are listed by name and dead letters by age, filtered by pod and `resolved`."""
    facts = Facts(api.db, pods=3)
    names = [item["name"] for item in api.pages("/v1/pods", limit=limit)]
    assert names == sorted(names)
    assert set(facts.pods) <= set(names)
    dead_letters = [dead_letter(api.db, facts.pods[n % 2], "{}", "text/plain") for n in range(7)]
    api.ask("POST", f"/v1/dead-letters/{dead_letters[0]}/discard", json={"why": "a test"})

    def listed(**parameters: object) -> list[int]:
        return [item["id"] for item in api.pages("/v1/dead-letters", limit=limit, **parameters)]

    assert [i for i in listed() if i in dead_letters] == dead_letters[1:]
    assert [i for i in listed(resolved=True) if i in dead_letters] == dead_letters
    assert listed(pod=facts.pods[1]) == dead_letters[1::2]
    assert listed(pod=facts.pods[0], resolved=True) == dead_letters[::2]


def malformed(api: Served) -> list[tuple[str, str]]:
    cursor = page(api, "/v1/blobs")["next"]
    return [
        ("/v1/blobs", "!"),
        ("/v1/blobs", "AAAA"),
        ("/v1/blobs", ""),
        ("/v1/blobs", cursor[:-2]),
        ("/v1/repositories", cursor),
        ("/v1/pods", cursor),
        ("/v1/dead-letters", cursor),
        (f"/v1/blobs/sha256:{'0' * 64}/references", cursor),
        ("/v1/jobs", paging.encode_cursor("jobs", 2**63)),
        ("/v1/dead-letters", paging.encode_cursor("dead-letters", 2**63)),
    ]


def page(api: Served, path: str) -> Json:
    return api.get(path, limit=1).json()


def test_cursors_that_are_not_ours(api: Served, facts: Facts) -> None:
    """A cursor that is malformed or of another list is refused with 400."""
    facts.digest(1), facts.digest(2)
    for path, cursor in malformed(api):
        answer = api.get(path, cursor=cursor)
        assert answer.status_code == 400, (path, cursor, answer.text)
        assert "cursor" in answer.json()["detail"]
