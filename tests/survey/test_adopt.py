"""Adopting a pod's own store: each linked blob is stored and has its digest, whatever happens on the way."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.errors import BaleenError, ConflictError, UnavailableError
from coordinator.registry.images import Image, Index, make_image, make_index, make_layer
from coordinator.storage.files import FileObjectStore
from coordinator.storage.port import ObjectReader, ObjectStore
from coordinator.storage.s3 import S3ObjectStore
from coordinator.survey import adopt, tree
from coordinator.survey.adopt import AdoptionResult, Trust
from coordinator.survey.adopt_plan import Plan, Why, children_first, make_plan
from tests.storage.memory import MemoryObjectStore
from tests.support.artifacts import make_artifact
from tests.support.store import FaultyStore
from tests.survey.trees import BASE, content_key, push

PREFIX = "team"
LAYERS = [make_layer(f"adopt/{number}", 300 + number) for number in range(5)]


@cache
def images() -> list[Image | Index]:
    """Images that share layers, an artifact, indexes, and one of indexes."""
    plain = [make_image(f"adopt/{n}", [LAYERS[n], LAYERS[(n + 1) % 5]]) for n in range(4)]
    first = make_index(plain[:2])
    second = make_index([plain[1], plain[2]])
    return [*plain, make_artifact("adopt/sbom"), first, second, make_index([first, plain[3]])]


def an_index() -> Index:
    """The index of the first two images."""
    index = images()[5]
    assert isinstance(index, Index)
    return index


def run(
    source: ObjectReader,
    shared: ObjectStore,
    *,
    prefixes: Sequence[str] = (PREFIX,),
    trust: Trust = adopt.NO_TRUST,
    threads: int = 4,
    **options: Any,
) -> tuple[Plan, AdoptionResult]:
    with ThreadPoolExecutor(threads) as pool:
        found = adopt.read_stores(source, shared, prefixes, pool, only_owned=options.pop("only_owned", False))
        planned = make_plan(found, **options)
        return planned, adopt.execute_plan(planned, source, shared, pool, trust=trust)


def remarked(found: Plan | AdoptionResult) -> list[tuple[Why, str]]:
    return [(remark.why, remark.what) for remark in found.remarks]


def revision(repository: str, digest: str) -> str:
    """The key of the link by which a repository holds a manifest."""
    return f"{BASE}/repositories/{repository}/_manifests/revisions/{path_of(digest)}/link"


def everything(store: ObjectStore) -> dict[str, bytes]:
    return {entry.key: store.get(entry.key) for entry in store.walk("")}


def keys_of(store: ObjectStore, below: str = PREFIX) -> set[str]:
    """The keys of the links of a pod."""
    return {entry.key for entry in store.walk(f"{BASE}/repositories/{below}/")}


# The expected result, computed from the keys and bytes of a store by the definitions.


class Truth:
    def __init__(self, objects: dict[str, bytes]) -> None:
        self.stored = {
            "sha256:" + key.split("/")[-2]: body for key, body in objects.items() if key.startswith(f"{BASE}/blobs/")
        }
        self.good = {name for name, body in self.stored.items() if name == digest_of(body)}
        self.links = {key: body for key, body in objects.items() if key.startswith(f"{BASE}/repositories/")}

    def references(self, manifest: str) -> list[str]:
        listed = json.loads(self.stored[manifest])
        entries = listed.get("manifests") or [listed["config"], *listed["layers"]]
        return [entry["digest"] for entry in entries]

    def adoptable(self, repository: str, manifest: str) -> bool:
        """Whether a manifest that the repository holds may be linked: nothing of it is stored and bad."""
        if manifest not in self.good:
            return False
        for part in self.references(manifest):
            if part in self.stored and part not in self.good:
                return False
            held = f"{repository}/_manifests/revisions/{path_of(part)}/link" in self.links and part in self.stored
            if held and not self.adoptable(repository, part):
                return False
        return True

    def expected(self) -> set[str]:
        """The links that adopting writes where the pod has none in the shared layer."""
        wanted = set()
        for key, body in self.links.items():
            repository, kind, rest = key.rpartition("/_layers/sha256/")
            if kind:
                if f"sha256:{rest.removesuffix('/link')}" in self.good:
                    wanted.add(key)
                continue
            repository, _, rest = key.rpartition("/_manifests/")
            if rest.startswith("revisions/"):
                if self.adoptable(repository, f"sha256:{rest.split('/')[-2]}"):
                    wanted.add(key)
            elif self._tag_is_adoptable(repository, rest.split("/")[1]):
                digest = body.decode() if rest.endswith("/current/link") else f"sha256:{rest.split('/')[-2]}"
                if self._held(repository, digest):
                    wanted.add(key)
        return wanted

    def _tag_is_adoptable(self, repository: str, tag: str) -> bool:
        current = self.links.get(f"{repository}/_manifests/tags/{tag}/current/link")
        return current is not None and self._held(repository, current.decode())

    def _held(self, repository: str, manifest: str) -> bool:
        link = f"{repository}/_manifests/revisions/{path_of(manifest)}/link"
        return link in self.links and self.adoptable(repository, manifest)


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def path_of(digest: str) -> str:
    return digest.replace(":", "/")


def check_whole(shared: ObjectStore) -> None:
    """No link of the pod is without its blob, and every blob that one of its links needs has its own bytes."""
    objects = everything(shared)
    truth = Truth(objects)
    for key in keys_of(shared):
        rest = objects[key].decode()
        assert rest in truth.good, f"{key} links {rest}, which is not there or not itself"
        if "/tags/" not in key:
            assert rest == f"sha256:{key.split('/')[-2]}"


# Random stores.

PUSHES = st.lists(
    st.tuples(
        st.sampled_from(["team", "team/app", "team/app/sub"]), st.integers(0, 7), st.sampled_from([None, "a", "b"])
    ),
    max_size=6,
)
BLOBS = st.lists(st.integers(0, 30), max_size=3)


def blob_keys(store: ObjectStore) -> list[str]:
    return [entry.key for entry in store.walk(f"{BASE}/blobs/")]


def make_source(store: ObjectStore, pushes: Any, absent: list[int], corrupt: list[int]) -> None:
    for repository, number, tag in pushes:
        push(store, repository, images()[number], tag)
    store.put(f"{BASE}/repositories/team/app/_uploads/1/startedat", b"now")
    found = blob_keys(store)
    for number in absent:
        if found:
            store.delete(found[number % len(found)])
    for number in corrupt:
        if left := blob_keys(store):
            key = left[number % len(left)]
            body = store.get(key)
            store.put(key, bytes((body[0] ^ 1,)) + body[1:] if number % 2 else body[:-1] + b"more")


@settings(max_examples=120)
@example([("team", 7, "a"), ("team", 5, "a"), ("team/app", 0, "b")], [(1, "v1")], [], [], True)
@example([("team", 7, "a")], [], [], [5], False)
@given(
    PUSHES,
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from([None, "v1"])), max_size=3),
    BLOBS,
    BLOBS,
    st.booleans(),
)
def test_what_can_be_adopted_is(pushes: Any, others: Any, absent: list[int], corrupt: list[int], copies: bool) -> None:
    """Adopting writes exactly the links whose blobs the source has intact, with their blobs, and nothing else.

    A second run does nothing, and a dry run shows what the real run does, to the byte.
    """
    source, shared = MemoryObjectStore(), MemoryObjectStore(copies=copies)
    make_source(source, pushes, absent, corrupt)
    for number, tag in others:
        push(shared, "other/app", images()[number], tag)
    before, there = everything(source), everything(shared)
    planned, outcome = run(source, shared)
    check_whole(shared)
    assert everything(source) == before
    assert keys_of(shared) == Truth(before).expected()
    after = everything(shared)
    assert {key: after[key] for key in there} == there
    new = Truth({key: body for key, body in after.items() if key not in there})
    assert new.stored.keys() == new.good
    assert outcome.figures.copied_blobs == len(new.stored)
    assert outcome.figures.copied_bytes == sum(map(len, new.stored.values()))
    assert outcome.copied_again == 0
    links = outcome.figures.layer_links + outcome.figures.revision_links + outcome.figures.tag_links
    assert links == len(keys_of(shared))
    refused = {remark.what for remark in outcome.remarks if remark.why is Why.REFUSED}
    assert refused <= Truth(before).stored.keys() - Truth(before).good
    if not corrupt:
        assert planned.figures == outcome.figures
    _, second = run(source, shared)
    assert everything(shared) == after
    links = second.figures.layer_links + second.figures.revision_links + second.figures.tag_links
    assert (second.figures.copied_blobs, second.figures.copied_bytes, links) == (0, 0, 0)


# Killed on the way.


class KilledError(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.mark.parametrize("copies", [True, False], ids=["by the service", "streamed"])
def test_killed_at_every_call(copies: bool) -> None:
    """Killed before any call to a store, it leaves no link without its blob, and another run ends as if undisturbed.

    Nothing but calls changes a store: killed after one, it leaves what it leaves before the next.
    """
    source, wanted = MemoryObjectStore(), MemoryObjectStore(copies=copies)
    push(source, "team/app", images()[7], "v1")
    push(source, "team/app", images()[0], "v1")
    push(source, "team", images()[1], "v2")
    push(wanted, "other", images()[2])
    there = everything(wanted)
    undisturbed = [FaultyStore(source), FaultyStore(wanted)]
    run(*undisturbed, threads=1)
    whole = everything(wanted)
    assert len(whole) > len(there)
    for at in range(1, sum(len(each.calls) for each in undisturbed) + 1):
        shared = MemoryObjectStore(copies=copies)
        for key, body in there.items():
            shared.put(key, body)
        calls = itertools.count(1)

        def kill(_: str, __: str, at: int = at, calls: Iterator[int] = calls) -> None:
            if next(calls) >= at:
                raise KilledError

        with pytest.raises(KilledError):
            run(FaultyStore(source, kill), FaultyStore(shared, kill), threads=1)
        check_whole(shared)
        run(source, shared, threads=1)
        assert everything(shared) == whole


# What is refused.


def test_bytes_that_are_wrong_are_not_linked() -> None:
    """A blob or manifest with other bytes than its digest says is reported and not linked, nor is what lists it."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    index = an_index()
    push(source, "team/app", index, "all")
    push(source, "team/app", images()[3], "fine")
    layer = LAYERS[1]  # of both images of the index
    source.put(content_key(layer.digest), bytes(len(layer.content)))
    _, outcome = run(source, shared)
    check_whole(shared)
    found = set(remarked(outcome))
    left_out = {index.digest, *(child.digest for child in index.manifests), "all"}
    assert found == {(Why.REFUSED, layer.digest)} | {(Why.LEFT_OUT, what) for what in left_out}
    assert shared.head(content_key(layer.digest)) is None
    assert {key for key in keys_of(shared) if "revisions" in key} == {revision("team/app", images()[3].digest)}

    source.put(content_key(layer.digest), layer.content)
    _, repaired = run(source, shared)
    assert repaired.remarks == []
    assert keys_of(shared) == keys_of(source)
    check_whole(shared)


def test_a_plan_shows_wrong_manifests() -> None:
    """A dry run reports a manifest with other bytes than its digest says: manifests are read for the plan."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    push(source, "team/app", images()[0], "v1")
    source.put(content_key(images()[0].digest), bytes(len(images()[0].content)))
    planned, outcome = run(source, shared)
    assert set(remarked(planned)) == {(Why.REFUSED, images()[0].digest), (Why.LEFT_OUT, "v1")}
    assert (outcome.remarks, outcome.figures) == (planned.remarks, planned.figures)


@pytest.mark.parametrize("wrong", [b"other size", None], ids=["another size", "the same size"])
@pytest.mark.parametrize("what", ["layer", "manifest"])
def test_the_shared_layer_has_other_bytes(what: str, wrong: bytes | None) -> None:
    """A blob of the shared layer with wrong bytes is left as it is, is reported, and is not linked."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    push(source, "team/app", images()[0], "v1")
    blob = LAYERS[0] if what == "layer" else images()[0]
    key = content_key(blob.digest)
    body = wrong or bytes(len(blob.content))
    shared.put(key, body)
    _, outcome = run(source, shared)
    assert shared.get(key) == body
    assert (Why.REFUSED, blob.digest) in remarked(outcome)
    check_whole(shared)
    assert not any("_manifests" in key or blob.digest[7:] in key for key in keys_of(shared))


@pytest.mark.parametrize("new", ["manifest", "index", "layer"])
def test_what_has_its_link_is_hashed_for_a_new_one(new: str) -> None:
    """A link that exists proves nothing about the bytes: they are hashed before a new link relies on them.

    This holds for a manifest over a linked layer, an index over a linked image, and a layer that a linked image lists.
    With trust in the shared layer nothing is hashed.
    """
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    image, index, layer = images()[0], an_index(), LAYERS[0]
    push(source, "team/app", index if new == "index" else image, "v1")
    push(shared, "team/app", image)
    missing = {
        "manifest": revision("team/app", image.digest),
        "index": revision("team/app", index.digest),
        "layer": f"{BASE}/repositories/team/app/_layers/{path_of(layer.digest)}/link",
    }[new]
    shared.delete(missing)
    other = bytes(len(layer.content))
    shared.put(content_key(layer.digest), other)

    _, outcome = run(source, shared)
    assert (Why.REFUSED, layer.digest) in remarked(outcome)
    assert missing not in keys_of(shared)
    assert shared.get(content_key(layer.digest)) == other

    _, trusting = run(source, shared, trust=Trust(shared=True))
    assert trusting.remarks == []
    assert missing in keys_of(shared)


@pytest.mark.parametrize("stored", [True, False], ids=["other bytes", "nothing"])
def test_a_link_alone_gives_no_right_to_read(stored: bool) -> None:
    """A pod with a link and without the bytes gets no link to the bytes that others have in the shared layer."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    push(source, "team/app", images()[0])
    push(shared, "other", images()[2], "v1")
    secret = LAYERS[2]
    assert shared.head(content_key(secret.digest)) is not None
    source.put(f"{BASE}/repositories/team/app/_layers/{path_of(secret.digest)}/link", secret.digest.encode())
    if stored:
        source.put(content_key(secret.digest), bytes(len(secret.content)))
    _, outcome = run(source, shared)
    assert not any(secret.digest[7:] in key for key in keys_of(shared))
    why = Why.REFUSED if stored else Why.ABSENT
    assert remarked(outcome) == [(why, secret.digest)]
    check_whole(shared)


def test_trust_hashes_less_and_never_trusts_what_it_reads() -> None:
    """With both kinds of trust only bytes that are copied here are read, and wrong ones among them are refused."""
    for copies in (True, False):
        source, shared = MemoryObjectStore(), MemoryObjectStore(copies=copies)
        push(source, "team/app", images()[0])
        push(shared, "other", images()[1])
        source.put(content_key(LAYERS[0].digest), bytes(len(LAYERS[0].content)))
        _, outcome = run(source, shared, trust=Trust(source=True, shared=True))
        refused = {remark.what for remark in outcome.remarks if remark.why is Why.REFUSED}
        assert refused == (set() if copies else {LAYERS[0].digest})


# Who owns what, and tags.


def test_repositories_of_others() -> None:
    """Repositories that the pod does not own are refused by name; with `only_owned` they are left out."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    for repository in ("team/app", "teams", "else/app", "Team/app"):
        push(source, repository, images()[0], "v1")
    shown = r"3 of the source.s repositories .*: Team/app, else/app, teams\. .*--only-owned"
    with pytest.raises(ConflictError, match=shown):
        run(source, shared)
    assert everything(shared) == {}
    run(source, shared, only_owned=True)
    assert {entry.key for entry in shared.walk(f"{BASE}/repositories/")} == keys_of(source)


def pointing(store: ObjectStore, tag: str = "v1") -> str:
    return store.get(f"{BASE}/repositories/team/app/_manifests/tags/{tag}/current/link").decode()


def test_tags_follow_the_source_until_the_pod_has_moved_them() -> None:
    """A tag that moves at the source moves here; one that the pod moved since stays, unless the source has priority."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    old, new, newest = (image.digest for image in images()[:3])
    push(source, "team/app", images()[0], "v1")
    run(source, shared)
    push(source, "team/app", images()[1], "v1")
    _, outcome = run(source, shared)
    assert (pointing(shared), outcome.remarks) == (new, [])

    push(shared, "team/app", images()[2], "v1")  # the pod's registry, now on the shared layer
    _, outcome = run(source, shared)
    assert remarked(outcome) == [(Why.TAG_KEPT, "v1")]
    assert pointing(shared) == newest
    push(shared, "team/app", images()[0], "v1")  # and back to what the source knows as older
    _, outcome = run(source, shared)
    assert pointing(shared) == old
    assert [remark.why for remark in outcome.remarks] == [Why.TAG_KEPT]

    run(source, shared, tags_from_source=True)
    assert pointing(shared) == new
    check_whole(shared)


def test_a_tag_that_moves_while_it_is_adopted() -> None:
    """A tag that the pod's registry moves after the shared layer was read stays where the registry has put it."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    push(source, "team/app", images()[0], "v1")
    with ThreadPoolExecutor(1) as pool:
        planned = make_plan(adopt.read_stores(source, shared, [PREFIX], pool))
        push(shared, "team/app", images()[1], "v1")
        outcome = adopt.execute_plan(planned, source, shared, pool)
    assert pointing(shared) == images()[1].digest
    assert [remark.why for remark in outcome.remarks] == [Why.TAG_KEPT]


def test_what_an_index_lists_no_more() -> None:
    """An index of which a platform was deleted is adopted as it is, and reported."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    index = an_index()
    push(source, "team/app", index, "all")
    gone = index.manifests[0].digest
    source.delete(revision("team/app", gone))
    source.delete(content_key(gone))
    _, outcome = run(source, shared)
    assert keys_of(shared) == keys_of(source)
    assert remarked(outcome) == [(Why.INCOMPLETE, index.digest)]


def test_what_the_link_of_a_blob_holds() -> None:
    """What an index or a tag of the source names or named, and only a blob's link holds, is linked as a manifest."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    index, before, tagged = an_index(), images()[3], images()[0]
    push(source, "team/app", index, "all")
    push(source, "team/tagged", before, "v1")
    push(source, "team/tagged", tagged, "v1")
    named = {("team/app", child.digest) for child in index.manifests}
    named |= {("team/tagged", image.digest) for image in (before, tagged)}
    for repository, digest in named:
        source.delete(revision(repository, digest))
        source.put(f"{BASE}/repositories/{repository}/_layers/{path_of(digest)}/link", digest.encode())
    run(source, shared)
    held = {revision(repository, digest) for repository, digest in named}
    assert keys_of(shared) == keys_of(source) | held
    check_whole(shared)


def test_a_manifest_that_nobody_can_read() -> None:
    """Bytes that are no manifest, and are held as one, are adopted and reported: unknown means keep."""
    source, shared = MemoryObjectStore(), MemoryObjectStore()
    content = b"no manifest"
    digest = digest_of(content)
    source.put(content_key(digest), content)
    source.put(revision("team/app", digest), digest.encode())
    _, outcome = run(source, shared)
    assert keys_of(shared) == keys_of(source)
    assert remarked(outcome) == [(Why.UNREAD, digest)]
    check_whole(shared)


# Others at work in the shared layer.


@pytest.mark.parametrize("present", [True, False], ids=["was there", "was copied"])
@pytest.mark.parametrize("when", ["_layers", "current"])
def test_a_blob_that_is_hidden_meanwhile_is_copied_anew(when: str, present: bool) -> None:
    """A blob that GC hides after it was checked, before or after its link, is stored in the end (scenarios 3 and 6)."""
    source, shared = MemoryObjectStore(), FaultyStore(MemoryObjectStore())
    shared.after("put", lambda: shared.delete(content_key(LAYERS[0].digest)), key=when, nth=1)
    push(source, "team/app", images()[0], "v1")
    if present:
        shared.put(content_key(LAYERS[0].digest), LAYERS[0].content)
    _, outcome = run(source, shared, threads=1)
    check_whole(shared)
    assert keys_of(shared) == keys_of(source)
    if when == "current":
        assert outcome.copied_again == 1


def test_a_blob_that_is_deleted_again_and_again() -> None:
    """A process that deletes whatever is copied makes it fail, and the message says what to look for."""
    source, shared = MemoryObjectStore(copies=False), MemoryObjectStore()
    push(source, "team/app", images()[0], "v1")
    deleting = FaultyStore(shared)
    for call in ("put", "put_chunks"):
        deleting.instead(call, lambda *_: None, key=f"{BASE}/blobs/")
    with pytest.raises(BaleenError, match="what deletes there"):
        run(source, deleting)
    assert everything(shared) == {}


@pytest.mark.parametrize("call", ["walk", "get", "open", "head", "put_chunks"])
def test_an_outage_is_no_refusal(call: str) -> None:
    """A store that is away ends the run with an error; nothing is taken for wrong or absent (scenario 16)."""
    stores = [FaultyStore(MemoryObjectStore(copies=False)), FaultyStore(MemoryObjectStore())]
    source, shared = stores
    push(source, "team/app", images()[0], "v1")
    stores[call in {"head", "put_chunks"}].fail(call)
    with pytest.raises(UnavailableError):
        run(source, shared)
    for store in stores:
        store.clear()
    check_whole(shared)
    _, outcome = run(source, shared)
    assert outcome.remarks == []
    assert keys_of(shared) == keys_of(source)


def test_a_source_that_changes_while_it_is_copied() -> None:
    """Bytes that are replaced between the hash and the copy are not copied by the service."""
    source, shared = FaultyStore(MemoryObjectStore()), MemoryObjectStore()
    push(source, "team/app", images()[0], "v1")
    layer = LAYERS[0]
    key = content_key(layer.digest)
    source.after("open", lambda: source.put(key, bytes(len(layer.content))), key=key)
    _, outcome = run(source, shared)
    assert shared.head(key) is None
    assert (Why.REFUSED, layer.digest) in remarked(outcome)
    check_whole(shared)


# The real server, and directories.


@pytest.mark.parametrize("kind", ["bucket", "directory"])
def test_on_a_real_store(s3: S3ObjectStore, tmp_path: Path, kind: str) -> None:
    """A pod is adopted from another root of the same service and from a directory; large blobs go in parts."""
    s3.copy_bytes = 5 << 20
    filled = MemoryObjectStore()
    image = make_image("adopt/large", [make_layer("adopt/large", 17 << 20), LAYERS[0]])
    push(filled, "team/app", image, "v1")
    push(filled, "team/app", images()[7], "all")
    push(s3, "other", images()[2])
    source: ObjectReader
    if kind == "bucket":
        bucket = S3ObjectStore.__new__(S3ObjectStore)
        bucket.__dict__.update(s3.__dict__, root=f"{s3.root[:-1]}-source/")
        for key, body in everything(filled).items():
            bucket.put(key, body)
        source = bucket
    else:
        for key, body in everything(filled).items():
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(body)
        source = FileObjectStore(tmp_path)
    planned, outcome = run(source, s3)
    assert planned.figures == outcome.figures
    assert outcome.remarks == []
    assert keys_of(s3) == keys_of(filled)
    check_whole(s3)
    _, again = run(source, s3)
    assert again.figures._replace(repositories=0, blobs=0, bytes=0) == again.figures.__class__()


def test_children_come_first() -> None:
    """Manifests are ordered so that each comes after what it lists, however deep indexes are nested."""
    graph: dict[Any, Any] = {number: [number + 1, number + 2] for number in range(3000)} | {3000: [], 3001: []}
    seen: set[Any] = set()
    for manifest in children_first(graph):
        assert seen.issuperset(graph[manifest])
        seen.add(manifest)
    assert seen == graph.keys()
    assert len(list(children_first(graph))) == len(graph)


@pytest.mark.parametrize(
    "key",
    [
        "repositories/team/app/_layers/sha256/{}/link",
        "repositories/team/_manifests/revisions/sha256/{}/link",
        "repositories/a/b/c/_manifests/tags/v1/current/link",
        "repositories/a/_manifests/tags/v1/index/sha256/{}/link",
    ],
)
def test_keys_of_links(key: str) -> None:
    """The key of a link parses to a link of the same key, and other keys parse to none."""
    key = f"{BASE}/{key.format('ab' * 32)}"
    link = tree.parse_link(key)
    assert link.key == key
    for other in (key.replace("link", "data"), key.replace("ab", "AB"), key.replace("sha256", "sha512"), f"x/{key}"):
        assert other == key or tree.parse_link(other) is None
