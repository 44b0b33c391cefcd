"""Leftovers of registries and hides are deleted once nothing can need them, on every kind of store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from coordinator.db.connection import Connections
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName, format_digest, parse_digest
from coordinator.domain.own import PROBE_REPOSITORY
from coordinator.errors import UnavailableError
from coordinator.gc import controls
from coordinator.gc.collect import Collector
from coordinator.gc.leftovers import LeftoverKind, LeftoverState
from coordinator.gc.restore import Restorer
from coordinator.leftovers.run import LeftoversDeleter
from coordinator.leftovers.sweep import PRODUCTION, Ages, Sizes
from coordinator.pods.prober import make_probe_image
from coordinator.storage.layout import (
    MARK,
    QUARANTINE,
    REPOSITORIES,
    blob_key,
    layer_link_key,
    quarantine_key,
    revision_link_key,
)
from coordinator.storage.port import ObjectStore, Target
from tests.gc.harness import IN_FLIGHT, LANDED, NO_TIMES, Garbage, Run
from tests.services.databases import Databases
from tests.support.claims import NO_CLAIMS
from tests.support.store import ANSWERED, SEND, FaultyStore
from tests.support.wait import Waits

pytestmark = pytest.mark.lengthy

PROBED = parse_digest(make_probe_image().digest)

AGELESS = Ages(timedelta(0), timedelta(0), timedelta(0), timedelta(0), timedelta(0))
LONG = timedelta(hours=1)
VERSIONED = pytest.mark.parametrize("store", ["memory-versioned", "s3-versioned"], indirect=True)
UNVERSIONED = pytest.mark.parametrize("store", ["memory", "s3"], indirect=True)
MEMORY = pytest.mark.parametrize("store", ["memory", "memory-versioned"], indirect=True)
IN_MEMORY_VERSIONED = pytest.mark.parametrize("store", ["memory-versioned"], indirect=True)


class Litter(Garbage):
    """A collector that looks for leftovers in each run, none of which is too young."""

    def __init__(self, url: str, store: ObjectStore) -> None:
        super().__init__(url, store)
        self.ages = AGELESS
        self.every = timedelta(0)
        self.rate = 0
        self.swept = PRODUCTION
        self.blobs_only = False
        self.versioned = store.keeps_versions()
        self.links_are("link")

    @contextmanager
    def parts(self, store: ObjectStore | None = None) -> Iterator[tuple[Connections, Collector, Restorer]]:
        with super().parts(store) as (connections, _, restorer):
            used = self.store if store is None else store
            ages = self.ages._replace(delete_bound=self.delete_bound)
            leftovers = LeftoversDeleter(
                connections, used, ages, every=self.every, probed=PROBED, rate=self.rate, sizes=self.swept
            )
            also = None if self.blobs_only else leftovers
            collect = Collector(
                connections,
                used,
                self.facts,
                restorer,
                claims=NO_CLAIMS,
                limits=self.limits,
                leftovers=also,
                sizes=self.sizes,
            )
            try:
                yield connections, collect, restorer
            finally:
                collect.close()
                leftovers.close()

    def forget(self, *manifests: str) -> None:
        """Apply deletes without a check of links, as for a pod whose links are elsewhere."""
        self.links_are("relay")
        super().forget(*manifests)
        self.links_are("link")

    # What registries leave

    def path(self, repository: str) -> str:
        return f"{REPOSITORIES}{self.repository(repository)}/"

    def session(self, repository: str, name: str, *bodies: bytes) -> str:
        """An upload session, with the bytes of its data one after another."""
        prefix = f"{self.path(repository)}_uploads/{name}/"
        self.store.put(f"{prefix}startedat", b"2026-11-25T00:00:00Z")
        for body in bodies:
            self.store.put(f"{prefix}data", body)
            self.store.put(f"{prefix}hashstates/sha256/{len(body)}", b"state")
        return prefix

    def ended(self, repository: str, name: str, *bodies: bytes) -> str:
        """A session that a registry ended: all its objects are deleted."""
        prefix = self.session(repository, name, *bodies)
        for entry in list(self.store.walk(prefix)):
            self.store.delete(entry.key)
        return prefix

    def link(self, repository: str, name: str, second: float = 0, pod: str = "pod-a") -> Any:
        """A layer's link, in storage."""
        self.store.put(self.link_key(repository, name, pod), format_digest(self.digest(name)).encode())
        return super().link(repository, name, second, pod)

    def link_key(self, repository: str, name: str, pod: str = "pod-a") -> str:
        return layer_link_key(self.repository(repository, pod), self.digest(name))

    def linked_there(self, repository: str, name: str, pod: str = "pod-a") -> bool:
        return self.store.head(self.link_key(repository, name, pod)) is not None

    def probe_link(self, manifest: Digest) -> str:
        return revision_link_key(RepositoryName(f"pod-a/{PROBE_REPOSITORY}"), manifest)

    def purged_blobs(self, *names: str) -> None:
        """Push, delete, hide and purge blobs; their links in `r` stay."""
        self.pushed(f"{names[0]}-manifest", *names)
        for name in names:
            self.link("r", name)
        self.forget(f"{names[0]}-manifest")
        with self.without_leftovers():
            self.collect()
            self.collect()
        assert {self.state(name) for name in names} == {BlobState.PURGED}

    def collect_as_planned(self) -> Run:
        """Collect after a dry run that shows the same amounts."""
        planned, done = self.collect(dry=True), self.collect()
        assert amounts(planned) == amounts(done)
        return done

    @contextmanager
    def without_leftovers(self) -> Iterator[None]:
        self.blobs_only = True
        try:
            yield
        finally:
            self.blobs_only = False

    # What is seen

    def states(self, prefix: str) -> Sequence[Any]:
        return list(self.store.walk_versions(prefix)) if self.versioned else list(self.store.walk(prefix))

    def unlinks(self) -> int:
        return int(self.rows("SELECT count(*) FROM gc_unlinks")[0][0])


@pytest.fixture
def litter(store: ObjectStore, databases: Databases) -> Iterator[Litter]:
    with Litter(databases.migrated(), store) as litter:
        yield litter


def of(run: Run, kind: LeftoverKind) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.progress["leftovers"][kind.value]
    return found


def amounts(run: Run) -> dict[str, tuple[int, int]]:
    return {kind.value: (of(run, kind)["count"], of(run, kind)["bytes"]) for kind in LeftoverKind}


# Uploads


def test_sessions_that_nobody_ended(litter: Litter) -> None:
    """A session goes whole, with its versions and markers; what is beside it stays, also a tag of that name."""
    old = litter.session("r", "one", b"half", b"half a layer")
    litter.store.delete(f"{old}hashstates/sha256/4")
    also = litter.session("r/deeper", "two")
    tag = f"{litter.path('r')}_manifests/tags/_uploads/current/link"
    litter.store.put(tag, b"sha256:00")
    litter.pushed("m", "l")
    litter.link("r", "l")
    litter.store.put(f"{litter.path('r')}_uploads/odd", b"no session")
    planned = litter.collect(dry=True)
    assert len(litter.states(old)) > 0
    done = litter.collect()
    assert litter.states(old) == litter.states(also) == []
    assert amounts(planned) == amounts(done)
    assert of(done, LeftoverKind.UPLOADS) == {
        "state": LeftoverState.DONE,
        "count": 2,
        "bytes": 20 + 12 + 5 + 20 + (4 + 5 if litter.versioned else 0),
        "left": 0,
        "unknown": 0,
    }
    assert litter.store.head(tag) is not None
    assert litter.linked_there("r", "l")
    assert litter.is_served("l")
    assert litter.store.head(f"{litter.path('r')}_uploads/odd") is not None
    assert amounts(litter.collect())["uploads"] == (0, 0)


def test_sessions_that_are_too_young(litter: Litter) -> None:
    """Nothing of what is younger than its grace goes, of whatever kind."""
    litter.ages = Ages(*[LONG] * 5)
    litter.delete_bound = LONG
    prefixes = [litter.session("r", "one", b"1"), litter.ended("r", "two", b"22", b"333")]
    before = [litter.states(prefix) for prefix in prefixes]
    run = litter.collect()
    assert [litter.states(prefix) for prefix in prefixes] == before
    assert set(amounts(run).values()) == {(0, 0)}


@MEMORY
def test_one_object_that_is_young_keeps_its_session(litter: Litter) -> None:
    """A session in which anything was done within the grace stays whole; another of the same age goes."""
    kept, gone = litter.session("r", "kept", b"1", b"22"), litter.session("r", "gone", b"1", b"22")
    later(litter, LONG)
    litter.store.put(f"{kept}hashstates/sha256/9", b"state")
    run = litter.collect()
    assert [entry.key.removeprefix(kept) for entry in litter.store.walk(kept)] == [
        "data",
        "hashstates/sha256/1",
        "hashstates/sha256/2",
        "hashstates/sha256/9",
        "startedat",
    ]
    assert litter.states(gone) == []
    # With versions: what was replaced long ago in the session that goes on.
    assert amounts(run) == dict.fromkeys(LeftoverKind, (0, 0)) | {
        "uploads": (1, 20 + 2 + 5 + 5 + litter.versioned),
        "versions": (int(litter.versioned), int(litter.versioned)),
    }


@MEMORY
def test_a_session_that_takes_bytes(litter: Litter) -> None:
    """While an upload in parts that was begun within the grace is under way, its session stays, and so does it."""
    kept = litter.session("r", "kept")
    before = litter.states(kept)
    later(litter, LONG)

    def chunks() -> Iterator[bytes]:
        yield b"1"
        run = litter.collect()
        assert (of(run, LeftoverKind.UPLOADS)["count"], of(run, LeftoverKind.PARTS)["count"]) == (0, 0)
        yield b"2"

    litter.store.put_chunks(f"{kept}data", chunks(), 2)
    assert litter.states(kept)[-len(before) :] == before or len(litter.states(kept)) == len(before) + 1


def later(litter: Litter, ages: timedelta) -> None:
    """Let all objects be of that age; those put later are younger."""
    litter.ages = Ages(*[ages] * 5)
    now = datetime.now(UTC) + ages
    known = litter.known
    litter.known = lambda facts: known(facts)._replace(now=now)


def test_a_large_session(litter: Litter) -> None:
    """A session of more objects than are held in memory, or go into a request, goes as any other."""
    litter.swept = Sizes(buffered=3, deletes=4)
    bodies = [bytes(size) for size in range(1, 8)]
    prefixes = [litter.session("r", "one", *bodies), litter.ended("r", "two", *bodies)]
    done = litter.collect_as_planned()
    assert [litter.states(prefix) for prefix in prefixes] == [[], []]
    assert amounts(done)["uploads"] == (1, 20 + 7 * 5 + (sum(range(1, 8)) if litter.versioned else 7))


# Uploads in parts


def test_uploads_in_parts_that_nobody_ended(litter: Litter) -> None:
    """Unfinished uploads of registries and copies are aborted, and their bytes counted; a later part is refused."""
    keys = [f"{litter.path('r')}_uploads/u/data", quarantine_key(litter.digest("x"), 7), "elsewhere/x"]

    def chunks(more: list[str]) -> Iterator[bytes]:
        yield bytes(6 << 20)
        if more:
            with nullcontext() if more[0].startswith("else") else pytest.raises(UnavailableError):
                litter.store.put_chunks(more[0], chunks(more[1:]), 7 << 20)
        else:
            done = litter.collect_as_planned()
            assert of(done, LeftoverKind.PARTS)["count"] == 2
            assert of(done, LeftoverKind.PARTS)["bytes"] >= 2 * (5 << 20)
            assert [each.key for each in litter.store.list_unfinished("")] == ["elsewhere/x"]
        yield bytes(1 << 20)

    with pytest.raises(UnavailableError):
        litter.store.put_chunks(keys[0], chunks(keys[1:]), 7 << 20)
    assert litter.store.head(keys[0]) is litter.store.head(keys[1]) is None
    assert litter.store.head("elsewhere/x") is not None


@MEMORY
def test_an_upload_in_parts_of_a_session_in_use(litter: Litter) -> None:
    """An old upload in parts stays as long as something is done in its session."""
    prefix = litter.session("r", "kept")

    def chunks() -> Iterator[bytes]:
        yield b"1"
        later(litter, LONG)
        litter.store.put(f"{prefix}hashstates/sha256/1", b"state")
        assert of(litter.collect(), LeftoverKind.PARTS)["count"] == 0
        yield b"2"

    litter.store.put_chunks(f"{prefix}data", chunks(), 2)
    assert litter.store.get(f"{prefix}data") == b"12"


# Versions


@VERSIONED
def test_what_ended_sessions_leave(litter: Litter) -> None:
    """Scenario 29: of a session that ended nothing is left, no copy and no marker; one that goes on stays as it is."""
    gone = [litter.ended("r", "one", b"1", b"22"), litter.ended("r/deeper", "two", b"333")]
    done = litter.collect_as_planned()
    assert [litter.states(prefix) for prefix in gone] == [[], []]
    # Two of data and three others, and a marker for each key; the same with one of data.
    assert amounts(done)["versions"] == (5 + 4 + 3 + 3, 20 + 1 + 5 + 2 + 5 + 20 + 3 + 5)
    assert amounts(litter.collect())["versions"] == (0, 0)


@VERSIONED
def test_a_marker_with_something_below_stays(litter: Litter) -> None:
    """A marker is deleted only if there is nothing below it."""
    prefix = litter.ended("r", "one", b"1")

    def with_bytes(_: Sequence[Target]) -> Sequence[Target]:
        return [Target(key, state.version) for key, state in litter.states(prefix) if not state.is_marker]

    store = FaultyStore(litter.store)
    store.withhold(with_bytes, error="AccessDenied")
    before = litter.states(prefix)
    run = litter.try_collection(store)
    assert litter.states(prefix) == before
    assert of(run, LeftoverKind.VERSIONS) == {
        "state": LeftoverState.DONE,
        "count": 0,
        "bytes": 0,
        "left": 3,
        "unknown": 0,
    }
    litter.collect()
    assert litter.states(prefix) == []


# Links


@VERSIONED
def test_links_of_purged_blobs(litter: Litter) -> None:
    """The link of a purged blob goes, with its older versions; links of others stay, and links of manifests."""
    litter.pushed("kept", "k")
    litter.link("r", "k")
    litter.link("r", "gone")
    litter.purged_blobs("gone")
    revision = revision_link_key(litter.repository("r"), litter.digest("gone-manifest"))
    litter.store.put(revision, b"sha256:00")
    done = litter.collect_as_planned()
    assert not litter.linked_there("r", "gone")
    assert litter.states(litter.link_key("r", "gone")) == []
    assert litter.linked_there("r", "k")
    assert litter.store.head(revision) is not None
    assert amounts(done)["links"] == (1, 2 * 71)


@UNVERSIONED
def test_links_stay_without_versions(litter: Litter) -> None:
    """In a bucket without versions no link is ever deleted, and the run says so."""
    litter.purged_blobs("gone")
    run = litter.collect()
    assert litter.linked_there("r", "gone")
    assert [of(run, kind)["state"] for kind in (LeftoverKind.LINKS, LeftoverKind.VERSIONS, LeftoverKind.MARKERS)] == [
        LeftoverState.UNVERSIONED
    ] * 3


@IN_MEMORY_VERSIONED
@pytest.mark.parametrize("why", ["young purge", "young link", "bytes", "needed", "pinned", "mode", "kind", "owner"])
def test_links_that_stay(litter: Litter, why: str) -> None:
    """A link stays if its blob was purged recently, has bytes or is needed, if it is newer, or if its pod keeps links
    elsewhere.
    """
    litter.purged_blobs("l")
    key = litter.link_key("r", "l")
    if why == "young purge":
        litter.ages = litter.ages._replace(links=LONG)
    elif why == "young link":
        litter.link("r", "l")
    elif why == "bytes":
        litter.upload("l")
        litter.store.delete(blob_key(litter.digest("l")))  # below a marker they can be had back
    elif why == "needed":
        litter.report("other", "l")
    elif why == "pinned":
        litter.pin("l")
    elif why == "mode":
        litter.connection.execute("UPDATE pods SET mode = 'link' WHERE name = 'pod-a'")
    elif why == "kind":
        litter.connection.execute("UPDATE pods SET kind = 'relay' WHERE name = 'pod-a'")
    else:
        litter.connection.execute("DELETE FROM pod_prefixes WHERE prefix = 'pod-a'")
    before = litter.states(key)
    run = litter.collect()
    assert litter.states(key) == before
    assert of(run, LeftoverKind.LINKS)["count"] == 0


def at_any_moment(litter: Litter, push: Callable[[str], None], *, seed: int, put_back: bool = True) -> list[str]:
    """A run over links of many purged blobs, each of which is pushed at a moment of its own; returns their names.

    Of those whose links a request deletes one is pushed before it is permitted, one before it is sent, one after it;
    the others at any other time. Without `write_link_back` the run writes no link.
    """
    litter.swept = Sizes(deletes=4)
    random = Random(seed)
    waiting = {litter.link_key("r", name): name for name in (f"l{seed}-{number}" for number in range(32))}
    names = list(waiting.values())
    litter.purged_blobs("counting", *names)
    # Several threads may act at once, and each name is pushed by one.
    choosing = threading.Lock()

    def chosen(moment: str, keys: str) -> str | None:
        with choosing:
            if moment in {"delete_many", SEND, ANSWERED}:
                key = next((key for key in keys.split() if key in waiting), None)
            else:
                key = random.choice(list(waiting)) if waiting and random.random() < 0.05 else None
            return None if key is None else waiting.pop(key)

    def observe(moment: str, keys: str) -> None:
        name = chosen(moment, keys)
        if name is not None:
            push(name)

    store = FaultyStore(litter.store, observe)
    if not put_back:
        store.instead("put", lambda *_: None, key="/_layers/")
    litter.try_collection(store)
    for name in waiting.values():
        push(name)
    return names


@VERSIONED
@pytest.mark.parametrize("seed", [1, 2])
def test_a_link_that_is_written_anew_at_any_moment(litter: Litter, seed: int) -> None:
    """Whenever a client pushes the blob through the repository again, its link is there when the run is over.

    None has to be put back for that: a delete names the version that it found.
    """

    def push(name: str) -> None:
        litter.upload(name)
        litter.link("r", name)

    for name in at_any_moment(litter, push, seed=seed, put_back=False):
        assert litter.linked_there("r", name), name
        assert litter.is_served(name), name
    assert not litter.linked_there("r", "counting")


@VERSIONED
@pytest.mark.parametrize("reported", [True, False], ids=["reported", "unreported"])
def test_a_link_that_is_relied_on_at_any_moment(litter: Litter, reported: bool) -> None:
    """A link by which a manifest was accepted is there in the end, whenever another repository brought the bytes.

    If it is reported, a worker's next round restores it, else the next run.
    """
    litter.delete_bound = IN_FLIGHT
    relied: list[str] = []

    def push(name: str) -> None:
        litter.upload(name)
        if litter.linked_there("r", name):
            relied.append(name)

    names = at_any_moment(litter, push, seed=3)
    if reported:
        litter.report("again", *names)
        litter.restore()
    else:
        litter.collect()
    assert [name for name in relied if not litter.linked_there("r", name)] == []
    assert all(litter.is_served(name) for name in names)
    assert len(relied) > 5


@IN_MEMORY_VERSIONED
@pytest.mark.parametrize("reported", [True, False], ids=["reported", "unreported"])
def test_a_request_that_read_the_link_before(litter: Litter, reported: bool) -> None:
    """A request that read the link before it was deleted, and saw bytes later, has its link restored."""
    litter.delete_bound = LANDED
    name = "l"
    litter.purged_blobs(name)
    # The link is older than the purge by R.
    litter.times = NO_TIMES._replace(request_bound=LONG)
    litter.known = lambda facts: facts._replace(now=facts.now + 3 * LONG)
    litter.connection.execute("UPDATE gc_ledger SET at = at + interval '2 hours' WHERE decision = 'purged'")
    litter.collect()
    assert not litter.linked_there("r", name)
    assert litter.unlinks() == 1
    litter.collect()
    assert litter.unlinks() == 1
    litter.upload(name)
    if reported:
        litter.report("again", name)
        litter.restore()
    else:
        litter.collect()
    assert litter.linked_there("r", name)
    assert litter.unlinks() == 0


@IN_MEMORY_VERSIONED
def test_a_link_that_cannot_be_given_back_keeps_no_other(litter: Litter) -> None:
    """If the store refuses to restore one link, the others are restored, and that one is tried again later."""
    litter.delete_bound = IN_FLIGHT
    litter.purged_blobs("l0", "l1", "l2")
    litter.collect()
    litter.upload("l0", "l1", "l2")
    litter.report("again", "l0", "l1", "l2")
    ((first,),) = litter.rows("SELECT digest FROM gc_unlinks ORDER BY id LIMIT 1")
    store = FaultyStore(litter.store)
    store.fail("put", key=first.hex(), error=UnavailableError("It refuses this one."))
    with pytest.raises(UnavailableError, match="refuses this one"):
        litter.restore(store)
    assert litter.unlinks() == 1
    # A run does not wait for it either.
    litter.collect(store)
    assert [litter.linked_there("r", name) for name in ("l0", "l1", "l2")].count(False) == 1
    litter.restore()
    assert all(litter.linked_there("r", name) for name in ("l0", "l1", "l2"))
    assert litter.unlinks() == 0


@IN_MEMORY_VERSIONED
@pytest.mark.parametrize("refused", [MARK, "/link"])
def test_what_is_refused_keeps_nothing_else(litter: Litter, refused: str) -> None:
    """While the store refuses the mark or a link, a round does everything else: links are restored, blobs are served.

    A restore is final only once the mark is written.
    """
    litter.delete_bound = IN_FLIGHT
    litter.purged_blobs("l")
    litter.hidden("n", "k")
    assert not litter.linked_there("r", "l")
    litter.upload("l")
    litter.report("again", "l", "k")
    store = FaultyStore(litter.store)
    store.fail("put", key=refused, error=UnavailableError("It refuses this one."))
    with pytest.raises(UnavailableError, match="refuses this one"):
        litter.restore(store)
    assert litter.state("l") is BlobState.LIVE
    assert litter.is_served("k")
    assert litter.state("k") is (BlobState.HIDDEN if refused == MARK else BlobState.LIVE)
    assert litter.linked_there("r", "l") is (refused == MARK)


@IN_MEMORY_VERSIONED
def test_deletes_of_links_are_forgotten(litter: Litter) -> None:
    """Once no request can rely on a deleted link any more, its record is deleted, and it is not restored."""
    litter.delete_bound = LANDED
    litter.purged_blobs("l")
    litter.collect()
    assert litter.unlinks() == 1
    litter.collect()
    assert litter.unlinks() == 0
    assert not litter.linked_there("r", "l")


@IN_MEMORY_VERSIONED
def test_links_that_are_watched(litter: Litter) -> None:
    """A run deletes no more links than workers can watch; the next run deletes the others without delay."""
    litter.swept = Sizes(watched_links=3)
    litter.every = LONG
    litter.delete_bound = LANDED
    litter.purged_blobs(*(f"l{number}" for number in range(5)))
    planned, first, second, third = litter.collect(dry=True), litter.collect(), litter.collect(), litter.collect()
    assert amounts(planned)["links"] == amounts(first)["links"] == (3, 3 * 71)
    assert [of(run, LeftoverKind.LINKS)["state"] for run in (first, second, third)] == [
        LeftoverState.FULL,
        LeftoverState.DONE,
        LeftoverState.NOT_DUE,
    ]
    assert of(second, LeftoverKind.UPLOADS)["state"] == LeftoverState.NOT_DUE
    assert amounts(second)["links"] == (2, 2 * 71)


@IN_MEMORY_VERSIONED
@pytest.mark.parametrize("what", ["list_versions", "delete_many", SEND, ANSWERED, "head", "answer lost"])
def test_a_run_that_dies(litter: Litter, what: str) -> None:
    """Wherever a run dies, the next ones restore the links that may be relied on, and delete the others."""
    litter.swept = Sizes(deletes=4)
    litter.delete_bound = IN_FLIGHT
    names = [f"l{number}" for number in range(8)]
    litter.purged_blobs(*names)
    litter.ended("r", "one", b"1")
    litter.session("r", "two", b"1")
    begun = 0

    def die(now: str, _: str) -> None:
        nonlocal begun
        begun += now == "delete_many"
        if begun >= 2 and now == what:
            raise RuntimeError("A test ends it.")
        if begun >= 2 and now == ANSWERED and what == "answer lost":
            raise UnavailableError("A test ends it.")

    assert litter.try_collection(FaultyStore(litter.store, die)).state == (
        "done" if what == "answer lost" else "failed"
    )
    for name in names[::2]:
        litter.upload(name)
    relied = [name for name in names[::2] if litter.linked_there("r", name)]
    deleted = [name for name in names[::2] if name not in relied]
    litter.collect()
    # Of what was deleted it is not known whether anybody relied on it.
    assert all(litter.linked_there("r", name) for name in relied + deleted)
    assert not any(litter.linked_there("r", name) for name in names[1::2])
    assert litter.states(f"{litter.path('r')}_uploads/") == []
    assert all(litter.is_served(name) for name in names[::2])


# Copies


@UNVERSIONED
class TestCopies:
    def copies(self, litter: Litter) -> list[str]:
        return [entry.key for entry in litter.store.walk(QUARANTINE)]

    def copy_of(self, litter: Litter, name: str) -> str:
        """The key of a hidden blob's copy."""
        return quarantine_key(litter.digest(name), litter.hide_of(name).id)

    def restored(self, litter: Litter, name: str) -> str:
        """A blob that was hidden and restored; returns the key of the copy that stayed."""
        litter.push_and_forget(f"{name}-manifest", name)
        with litter.without_leftovers():
            litter.collect()
            copy = self.copy_of(litter, name)
            litter.report(f"{name}-again", name)
            assert litter.restore() == 1
        return copy

    def test_after_a_restore(self, litter: Litter) -> None:
        """The copy of a hide that has ended is deleted once no delete can land; one of a pending hide stays."""
        over = self.restored(litter, "l")
        under_way = quarantine_key(litter.digest("l-manifest"), 1)
        assert over in self.copies(litter)
        litter.delete_bound = IN_FLIGHT
        litter.collect()
        assert over in self.copies(litter)
        litter.delete_bound = LANDED
        litter.push_and_forget("m", "x")
        assert amounts(litter.collect_as_planned())["copies"] == (1, len(litter.body("l")))
        assert over not in self.copies(litter)
        assert self.copy_of(litter, "x") in self.copies(litter)
        assert under_way not in self.copies(litter)
        assert litter.is_served("l")

    def test_of_which_nothing_is_known(self, litter: Litter) -> None:
        """A copy of a hide that is not in the ledger stays: the table may be older than the bucket."""
        litter.delete_bound = LANDED
        over = self.restored(litter, "l")
        litter.connection.execute("DELETE FROM gc_ledger")
        strange = [quarantine_key(litter.digest("x"), 7), f"{QUARANTINE}odd"]
        for key in strange:
            litter.store.put(key, b"?")
        run = litter.collect()
        assert {over, *strange} <= set(self.copies(litter))
        assert of(run, LeftoverKind.COPIES) == {
            "state": LeftoverState.DONE,
            "count": 0,
            "bytes": 0,
            "left": 0,
            "unknown": 2,
        }

    def test_of_a_blob_that_is_not_served(self, litter: Litter) -> None:
        """While a needed blob has no bytes, or others than its copy, the copy stays."""
        litter.delete_bound = LANDED
        over = self.restored(litter, "l")
        litter.store.delete(blob_key(litter.digest("l")))
        litter.collect()
        assert over in self.copies(litter)
        litter.store.put(blob_key(litter.digest("l")), b"another length")
        litter.collect()
        assert over in self.copies(litter)
        litter.upload("l")
        litter.collect()
        assert over not in self.copies(litter)

    def test_that_came_too_late(self, litter: Litter) -> None:
        """A copy that a delayed job writes after the purge is deleted, too."""
        litter.delete_bound = LANDED
        litter.hidden("m", "l")
        copy = self.copy_of(litter, "l")
        litter.collect()
        assert self.copies(litter) == []
        litter.store.put(copy, litter.body("l"))
        litter.collect()
        assert self.copies(litter) == []

    def test_a_hide_that_is_not_over_after_all(self, litter: Litter) -> None:
        """The hide is read again right before the delete of its copy."""
        litter.delete_bound = LANDED
        over = self.restored(litter, "l")
        hide = int(over.rpartition("/")[2])

        def reopen() -> None:
            litter.connection.execute(
                "INSERT INTO hides (id, blob_id, run_id, taken, unreferenced_since) OVERRIDING SYSTEM VALUE"
                " SELECT %s, id, 0, 0, now() FROM blobs WHERE digest = %s ON CONFLICT DO NOTHING",
                (hide, litter.digest("l")),
            )

        store = FaultyStore(litter.store)
        store.before("delete_many", reopen, key=over)
        litter.try_collection(store)
        assert store.count("delete_many", over) == 1
        assert over in self.copies(litter)


# Probes


@VERSIONED
class TestProbes:
    def test_older_versions_of_the_link(self, litter: Litter) -> None:
        """Of the link that probes write again and again the newest version stays; nothing else is touched."""
        key, other = litter.probe_link(PROBED), litter.probe_link(litter.digest("other"))
        for _ in range(3):
            litter.store.put(key, b"link")
            litter.store.put(other, b"link")
        kept = litter.states(other)
        assert amounts(litter.collect_as_planned())["probes"] == (2, 8)
        assert len(litter.states(key)) == 1
        assert litter.store.head(key) is not None
        assert litter.states(other) == kept

    def test_what_is_young_stays(self, litter: Litter) -> None:
        """Versions that were written since the age of versions stay."""
        litter.ages = litter.ages._replace(versions=timedelta(hours=1))
        key = litter.probe_link(PROBED)
        for _ in range(3):
            litter.store.put(key, b"link")
        assert amounts(litter.collect())["probes"] == (0, 0)
        assert len(litter.states(key)) == 3


# Markers


@VERSIONED
class TestMarkers:
    def test_with_nothing_below(self, litter: Litter) -> None:
        """A marker that is all that is left of a purged blob goes; one with bytes below it stays."""
        litter.delete_bound = LANDED
        for name in ("bare", "masked"):
            litter.purged_blobs(name)
        litter.store.delete(blob_key(litter.digest("bare")))
        litter.upload("masked")
        litter.store.delete(blob_key(litter.digest("masked")))
        before = litter.states(blob_key(litter.digest("masked")))
        assert amounts(litter.collect_as_planned())["markers"] == (1, 0)
        assert litter.states(blob_key(litter.digest("bare"))) == []
        assert litter.states(blob_key(litter.digest("masked"))) == before

    def test_a_run_goes_on_where_the_last_one_was(self, litter: Litter) -> None:
        """A run checks only purges that no earlier run has checked."""
        litter.delete_bound = LANDED
        litter.purged_blobs("l")
        litter.collect()
        litter.store.delete(blob_key(litter.digest("l")))
        assert amounts(litter.collect())["markers"] == (0, 0)
        litter.purged_blobs("other")
        litter.store.delete(blob_key(litter.digest("other")))
        assert amounts(litter.collect())["markers"] == (1, 0)

    def test_of_a_blob_that_is_being_hidden(self, litter: Litter) -> None:
        """While a hide of a blob is pending its markers stay: they may be the hide's."""
        litter.delete_bound = LANDED
        litter.purged_blobs("l")
        litter.store.delete(blob_key(litter.digest("l")))

        def hide() -> None:
            litter.connection.execute(
                "INSERT INTO hides (blob_id, run_id, taken, unreferenced_since)"
                " SELECT id, 0, 0, now() FROM blobs WHERE digest = %s ON CONFLICT DO NOTHING",
                (litter.digest("l"),),
            )

        litter.ages = litter.ages._replace(links=LONG)
        store = FaultyStore(litter.store)
        store.before("delete_many", hide)
        litter.try_collection(store)
        assert len(litter.states(blob_key(litter.digest("l")))) == 1


# What stops it


def requests(litter: Litter) -> list[str]:
    """Sessions that take a request each."""
    litter.swept = Sizes(deletes=2)
    return [litter.session("r", f"s{number}") for number in range(6)]


def test_the_kill_switch_between_two_requests(litter: Litter) -> None:
    """Once the switch is off no request is sent."""
    prefixes = requests(litter)
    store = FaultyStore(litter.store)
    store.after("delete_many", lambda: controls.set_switch(litter.connection, "enough", on=False))
    run = litter.try_collection(store)
    assert store.count(ANSWERED) == 1
    assert run.state in {"failed", "done"}
    assert sum(not litter.states(prefix) for prefix in prefixes) == 2


@pytest.mark.parametrize("control", ["switch", "hold", "lease"])
def test_the_permit(litter: Litter, control: str) -> None:
    """What stops collection just before a request is sent stops that request."""
    prefixes = requests(litter)

    def stop() -> None:
        if control == "switch":
            controls.set_switch(litter.connection, "enough", on=False)
        elif control == "hold":
            litter.hold("pod-b", "enough")
        else:
            litter.connection.execute("UPDATE jobs SET taken = taken + 1 WHERE state = 'running'")

    store = FaultyStore(litter.store)
    store.before("delete_many", stop)
    litter.try_collection(store)
    assert all(litter.states(prefix) for prefix in prefixes)


def test_what_holds_collection_holds_it(litter: Litter) -> None:
    """While anything holds collection no leftovers go, in a dry run neither."""
    prefix = litter.session("r", "one")
    litter.known = lambda facts: facts._replace(blocked_by=["a test holds it"])
    for run in (litter.collect(dry=True), litter.collect()):
        assert set(amounts(run).values()) == {(0, 0)}
    assert litter.states(prefix) != []


@IN_MEMORY_VERSIONED
def test_a_store_that_is_away_for_a_while(litter: Litter) -> None:
    """A listing that fails leaves its kinds to the next run; the other kinds are searched for."""
    litter.every = LONG
    prefix = litter.session("r", "one")

    store = FaultyStore(litter.store)
    store.fail("walk_versions")
    run = litter.collect(store)
    assert (of(run, LeftoverKind.UPLOADS)["state"], of(run, LeftoverKind.MARKERS)["state"]) == (
        LeftoverState.FAILED,
        LeftoverState.DONE,
    )
    run = litter.collect()
    assert (of(run, LeftoverKind.UPLOADS)["state"], of(run, LeftoverKind.MARKERS)["state"]) == (
        LeftoverState.DONE,
        LeftoverState.NOT_DUE,
    )
    assert litter.states(prefix) == []


def test_it_is_searched_for_now_and_then(litter: Litter) -> None:
    """A run within the interval searches for nothing, unless `leftovers` is given; each search is recorded."""
    litter.every = LONG
    litter.session("r", "one", b"1")
    first = litter.collect()
    litter.session("r", "two")
    second = litter.collect()
    assert of(second, LeftoverKind.UPLOADS)["state"] == LeftoverState.NOT_DUE
    third = litter.collect(leftovers=True)
    assert [of(run, LeftoverKind.UPLOADS)["count"] for run in (first, second, third)] == [1, 0, 1]
    found = litter.rows(
        "SELECT run_id, count, bytes, failed, ended_at IS NOT NULL, evidence -> 'ages' ->> 'uploads',"
        " evidence ->> 'first' FROM gc_leftovers WHERE kind = 'uploads' ORDER BY run_id"
    )
    assert found == [
        (first.id, 1, 26, 0, True, "0s", f"{litter.path('r')}_uploads/one/"),
        (third.id, 1, 20, 0, True, "0s", f"{litter.path('r')}_uploads/two/"),
    ]


@IN_MEMORY_VERSIONED
def test_the_rate(litter: Litter) -> None:
    """With a rate the run pauses after each request in proportion to its objects."""
    stop = Waits()
    litter.rate = 2
    litter.session("r", "one", b"1")
    litter.ask()
    litter.run_waiting(stop=stop)
    assert stop.waits == [3 / 2]
