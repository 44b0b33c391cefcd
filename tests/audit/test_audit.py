"""What an audit reports of a table and a store that differ, and that it raises no false alarm while both change."""

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.audit.audit import Ages, Audit, FoundObjects, Report, Sizes
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, PodName, RepositoryName, format_digest
from coordinator.errors import ConflictError, UnavailableError
from coordinator.gc.claims import PodClaims
from coordinator.reconcile.resolve import NotHereError
from coordinator.storage.layout import BLOBS, blob_key, layer_link_key
from tests.audit.conftest import NewStore
from tests.audit.harness import AGES, World
from tests.storage.memory import MemoryObjectStore
from tests.support.store import FaultyStore, from_nth

BASE = "docker/registry/v2"
#: What a blob can be like, each with nothing to do with how the audit goes about it.
KINDS = (
    "fine",
    "fine-unsized",
    "lost",
    "lost-unsized",
    "known-lost",
    "found",
    "garbage",
    "garbage-gone",
    "orphan",
    "purged",
    "purged-left",
    "hidden",
    "hidden-needed",
    "wrong-size",
    "wrong-size-garbage",
    "masked",
)
STATES = {
    "known-lost": BlobState.MISSING,
    "found": BlobState.MISSING,
    "garbage": BlobState.UNREFERENCED,
    "garbage-gone": BlobState.UNREFERENCED,
    "wrong-size-garbage": BlobState.UNREFERENCED,
    "purged": BlobState.PURGED,
    "purged-left": BlobState.PURGED,
    "hidden": BlobState.HIDDEN,
    "hidden-needed": BlobState.HIDDEN,
}
UNNEEDED = {"garbage", "garbage-gone", "wrong-size-garbage", "purged", "purged-left", "hidden"}
STORED = {
    "fine",
    "fine-unsized",
    "found",
    "garbage",
    "orphan",
    "purged-left",
    "wrong-size",
    "wrong-size-garbage",
    "masked",
}


@dataclass(frozen=True)
class Made:
    """A blob of a kind, as `make` has made it."""

    digest: Digest
    kind: str
    stored: int
    known: int

    @property
    def text(self) -> str:
        return format_digest(self.digest)


def make(world: World, kind: str, digest: Digest, size: int) -> Made:
    known = -1 if kind.endswith("unsized") else size + (1 if kind.startswith("wrong-size") else 0)
    if kind in STORED:
        world.store.put(blob_key(digest), bytes(size))
    if kind == "masked":
        world.store.delete(blob_key(digest))
    if kind != "orphan":
        needed = kind not in UNNEEDED
        world.connection.execute(
            "INSERT INTO blobs (digest, size, state, reference_count, link_count, unreferenced_since)"
            " VALUES (%s, %s, %s, %s, 0, CASE WHEN %s THEN NULL ELSE now() END)",
            (digest, known, int(STATES.get(kind, BlobState.LIVE)), int(needed), needed),
        )
    return Made(digest, kind, size, known)


def examples_of(kind: FoundObjects) -> dict[str, dict[str, object]]:
    assert kind.count == len(kind.examples)
    return {example["digest"]: example for example in kind.examples}


def assert_reports(report: Report, made: list[Made], *, versioned: bool) -> None:
    """Each kind is reported with exactly the blobs that were made of it."""

    def of(*kinds: str) -> set[str]:
        return {each.text for each in made if each.kind in kinds}

    def size(*kinds: str) -> int:
        return sum(max(0, each.known) for each in made if each.kind in kinds)

    lost = ("lost", "lost-unsized", "known-lost", "masked")
    assert examples_of(report.missing).keys() == of(*lost)
    assert report.missing.bytes == size(*lost)
    masked = examples_of(report.masked)
    assert masked.keys() == (of("masked") if versioned else set())
    assert all(example["restorable_version"] is not None for example in masked.values())
    assert examples_of(report.found_again).keys() == of("found")
    assert examples_of(report.orphans).keys() == of("orphan", "purged-left")
    wrong = examples_of(report.wrong_size)
    assert wrong.keys() == of("wrong-size", "wrong-size-garbage")
    assert all(each.known == wrong[each.text]["size"] for each in made if each.text in wrong)
    assert all(each.stored == wrong[each.text]["stored"] for each in made if each.text in wrong)
    stored = [each for each in made if each.kind in STORED - {"masked"}]
    assert (report.objects, report.bytes) == (len(stored), sum(each.stored for each in stored))
    assert report.blobs == sum(each.kind != "orphan" for each in made)
    assert report.needed == sum(each.kind not in {*UNNEEDED, "orphan"} for each in made)
    assert report.is_healthy == (not of(*lost, "wrong-size", "wrong-size-garbage"))
    assert report.recent.count == report.odd_keys.count == report.repaired.count == 0


def states(world: World) -> dict[str, BlobState]:
    return {f"sha256:{row[0].hex()}": BlobState(row[1]) for row in world.rows("SELECT digest, state FROM blobs")}


def compare(world: World, kinds: list[str], seed: int, *, versioned: bool) -> None:
    rnd = random.Random(seed)
    # Digests that begin alike, and all over.
    digests = [
        bytes(rnd.choice((0, 0xAB, 0xFF, rnd.randrange(256))) for _ in range(2)) + rnd.randbytes(30) for _ in kinds
    ]
    made = [
        make(world, kind, Digest(digest), rnd.randrange(1, 50)) for kind, digest in zip(kinds, digests, strict=True)
    ]
    before = states(world)
    assert_reports(world.audit(), made, versioned=versioned)
    # It has recorded exactly what it reports, and a second audit changes nothing.
    lost = {each.text for each in made if each.kind in {"lost", "lost-unsized", "masked"}}
    found = {each.text for each in made if each.kind == "found"}
    expected = before | dict.fromkeys(lost, BlobState.MISSING) | dict.fromkeys(found, BlobState.LIVE)
    assert states(world) == expected
    changes = sorted([(each, "missing", 1, 0) for each in lost] + [(each, "live", 1, 0) for each in found])
    assert sorted(world.outbox()) == changes
    again = world.audit()
    assert examples_of(again.missing).keys() == {text for text, state in expected.items() if state is BlobState.MISSING}
    assert again.found_again.count == 0
    assert sorted(world.outbox()) == changes


@settings(max_examples=20, database=None)
@given(kinds=st.lists(st.sampled_from(KINDS), max_size=40), seed=st.integers(0, 1000), versioned=st.booleans())
def test_differences_are_reported_exactly(database: str, kinds: list[str], seed: int, versioned: bool) -> None:
    """Each difference between table and store is reported once, as its kind, and nothing else is."""
    with World(database, MemoryObjectStore(versioned=versioned)) as world:
        compare(world, ["fine", *kinds], seed, versioned=versioned)


@pytest.mark.parametrize("kind", ["s3", "s3-versioned"])
def test_differences_on_a_real_store(database: str, new_store: NewStore, kind: str) -> None:
    """On an S3 server, with and without versions, each difference is reported, too."""
    with World(database, new_store(kind)) as world:
        compare(world, [*KINDS, *KINDS], 1, versioned=kind == "s3-versioned")


def test_many_of_a_kind(database: str) -> None:
    """Examples and what waits are bounded; counts are not, however small the steps are in which it goes on."""
    sizes = Sizes(batch=2, examples=3, block=2, blocks_waiting=1)
    rnd = random.Random(5)
    with World(database, MemoryObjectStore()) as world:
        for kind, count in (("fine", 30), ("lost", 11), ("orphan", 12)):
            for _ in range(count):
                make(world, kind, Digest(rnd.randbytes(32)), 5)
        report = world.audit(sizes=sizes)
    assert (report.missing.count, report.missing.bytes, len(report.missing.examples)) == (11, 55, 3)
    assert (report.orphans.count, report.orphans.bytes, len(report.orphans.examples)) == (12, 60, 3)
    assert report.objects == 42


# Whatever changes meanwhile

STEPS = st.lists(
    st.tuples(st.integers(0, 25), st.sampled_from(["push", "pushing", "remove", "heal", "expire"]), st.integers(0, 5)),
    max_size=12,
)


class Meddler:
    """Changes table and store, in ways that may happen, at the n-th call to the store."""

    def __init__(self, world: World, steps: list[tuple[int, str, int]]) -> None:
        self._world = world
        self._steps = steps
        self._calls = 0
        self._second = 100.0
        self._lock = threading.Lock()
        #: Blobs that came or went.
        self.touched: set[str] = set()

    def before(self, _: str, __: str) -> None:
        # Several threads call the store. The one with the lock of facts waits for them, and must not be waited for.
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._world.writers_are_out():
                return
            self._calls += 1
            for at, what, number in self._steps:
                if at == self._calls:
                    self._do(what, f"moving{number}")
        finally:
            self._lock.release()

    def _do(self, what: str, name: str) -> None:
        world = self._world
        self._second += 1
        self.touched.add(world.text(name))
        if what in {"push", "pushing"}:
            # The bytes come first, then the event; of a push that is under way only the bytes have come.
            world.put(name)
            if what == "push":
                world.link_blob(name, self._second)
        elif what == "remove":
            world.apply(world.removed("app", name, self._second))
        elif what == "heal":
            world.put("lost")
        elif (row := world.blob(name)) is not None and row.state is BlobState.UNREFERENCED:
            # As a garbage collection ends: what nobody needs is deleted.
            world.connection.execute("UPDATE blobs SET state = 3 WHERE digest = %s", (world.digest(name),))
            world.store.delete(world.key(name))


@pytest.mark.lengthy
@settings(max_examples=20, database=None)
@given(steps=STEPS, there=st.sets(st.integers(0, 5)))
def test_no_false_alarm_while_blobs_come_and_go(
    database: str, steps: list[tuple[int, str, int]], there: set[int]
) -> None:
    """Whenever blobs are pushed, removed and collected meanwhile, only what is lost is missing (scenarios 2 and 5)."""
    store = MemoryObjectStore()
    with World(database, store) as world:
        world.needed("here", *(f"moving{number}" for number in there))
        world.lose("lost", "also-lost")
        meddler = Meddler(world, steps)
        report = world.audit(FaultyStore(store, meddler.before), Ages(timedelta(hours=1), timedelta()))
        missing = examples_of(report.missing).keys()
        healed = world.store.head(world.key("lost")) is not None
        assert {world.text("also-lost")} <= missing <= {world.text("lost"), world.text("also-lost")}
        assert world.text("lost") in missing or healed
        assert report.wrong_size.count == report.orphans.count == 0
        assert examples_of(report.recent).keys() <= meddler.touched
        for row in world.rows("SELECT digest FROM blobs WHERE state = 4"):
            assert f"sha256:{row[0].hex()}" in missing
        assert world.check().is_healthy


def test_a_push_after_the_table_was_read(world: World) -> None:
    """A blob that is pushed and applied after the table was read, and before it is listed, is no orphan."""
    world.needed("here")

    store = FaultyStore(world.store)
    store.before("list_folders", lambda: world.needed("new"), key=BLOBS, nth=1)
    report = world.audit(store)
    assert (report.blobs, report.objects) == (1, 2)
    assert report.orphans.count == report.recent.count == 0


def test_what_is_too_young_is_not_left_over(world: World) -> None:
    """A stored blob that the table does not know is an orphan only if it is older than a push may take."""
    world.needed("here")
    world.put("unknown")
    old, young = world.audit(), world.audit(ages=Ages(timedelta(hours=1), timedelta()))
    assert (examples_of(old.orphans).keys(), old.recent.count) == ({world.text("unknown")}, 0)
    assert (examples_of(young.recent).keys(), young.orphans.count) == ({world.text("unknown")}, 0)
    assert old.is_healthy
    assert young.is_healthy


# When something is away


def test_an_outage_in_the_middle(world: World) -> None:
    """A store that fails at any moment ends the audit with an error, and nothing is missing by it (scenario 16)."""
    world.needed(*(f"b{n}" for n in range(20)))
    store = FaultyStore(world.store)
    world.audit(store)
    calls = len(store.calls)
    assert calls > 20
    for answered in (0, 1, 2, 7, calls - 2, calls - 1):
        store = FaultyStore(world.store)
        store.fail(nth=from_nth(answered + 1))
        with pytest.raises(UnavailableError):
            world.audit(store)
    assert set(states(world).values()) == {BlobState.LIVE}
    assert world.outbox() == []


def test_one_folder_that_breaks_off(world: World) -> None:
    """An error in one of many listings ends the audit with that error."""
    world.needed(*(f"b{n}" for n in range(20)))
    folder = world.key("b7").rpartition("/")[0].rpartition("/")[0] + "/"

    store = FaultyStore(world.store)
    store.fail("walk", key=folder, done=True)
    with pytest.raises(UnavailableError):
        world.audit(store)


def test_a_listing_that_is_not_whole(world: World) -> None:
    """A blob that a listing omits is looked up before it counts as missing (scenario 19)."""
    names = [f"b{n}" for n in range(30)]
    world.needed(*names)
    world.lose("lost")

    store = FaultyStore(world.store)
    store.instead("walk", lambda walk, prefix: iter(list(walk(prefix))[1::2]))
    store.instead("list_folders", lambda folders, prefix: iter(list(folders(prefix))[::2]))
    report = world.audit(store)
    assert examples_of(report.missing).keys() == {world.text("lost")}
    assert report.objects < len(names) / 2


def test_a_listing_in_another_order(world: World) -> None:
    """A store that lists in any order, and twice, causes no missing blob and no orphan."""
    world.needed(*(f"b{n}" for n in range(30)))
    world.lose("lost")

    store = FaultyStore(world.store)
    store.instead("walk", lambda walk, prefix: chain(sorted(walk(prefix), reverse=True), walk(prefix)))
    report = world.audit(store)
    assert examples_of(report.missing).keys() == {world.text("lost")}
    assert report.orphans.count == report.wrong_size.count == 0


def test_another_bucket(world: World) -> None:
    """A bucket with none of the needed blobs is an error, and no blob becomes missing by it."""
    world.needed("one", "two")
    elsewhere = MemoryObjectStore()
    elsewhere.put(f"{BLOBS}ab/whatever/data", b"1")
    with pytest.raises(NotHereError, match="Check BALEEN_S3_BUCKET"):
        world.audit(elsewhere)
    assert set(states(world).values()) == {BlobState.LIVE}


# What is left over


def test_keys_that_are_no_blobs(world: World) -> None:
    """Keys below blobs/ that are no blob's are reported, wherever they are, and change nothing else."""
    world.needed("here", "there")
    hexadecimal = world.digest("here").hex()
    odd = [
        f"{BLOBS}{hexadecimal[:2]}/{hexadecimal}/data.tombstone",
        f"{BLOBS}{hexadecimal[:2]}/{hexadecimal[:-1]}/data",
        f"{BLOBS}{hexadecimal[:2]}/{hexadecimal.upper()}x/data",
        f"{BLOBS}{hexadecimal[:2]}-x/{hexadecimal}/data",
        f"{BLOBS}zz/{hexadecimal}/data",
        f"{BASE}/blobs/sha512/ab/{hexadecimal}/data",
    ]
    for key in odd:
        world.store.put(key, b"123")
    report = world.audit()
    assert sorted(example["key"] for example in report.odd_keys.examples) == sorted(odd)
    assert (report.odd_keys.bytes, report.objects, report.is_healthy) == (3 * len(odd), 2, True)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_uploads_that_nobody_ended(database: str, new_store: NewStore, kind: str) -> None:
    """Old upload sessions and uploads in parts are reported, of every repository; links are not."""
    store = new_store(kind)
    with World(database, store) as world:
        world.needed("here")
        sessions = [f"{BASE}/repositories/{name}/_uploads/{n}-uuid/" for name in ("a", "a/b/c", "d") for n in range(2)]
        for prefix in sessions:
            store.put(f"{prefix}startedat", b"2026")
            store.put(f"{prefix}data", b"half a layer")
        store.put(f"{BASE}/repositories/a/_uploads/x-uuid/hashstates/sha256/0", b"?")
        store.put(f"{BASE}/repositories/a/_layers/sha256/{world.digest('here').hex()}/link", b"")
        store.put(f"{BASE}/repositories/e/_manifests/tags/_uploads/current/link", b"")
        reports: list[Report] = []

        def chunks() -> Iterator[bytes]:
            yield bytes(6 << 20)
            reports.extend([world.audit(), world.audit(ages=Ages(timedelta(), timedelta(hours=1)))])
            yield bytes(9 << 20)

        store.put_chunks(f"{sessions[0]}part", chunks(), 15 << 20)
        old, young = reports
        shown = {example["key"]: example["bytes"] for example in old.abandoned_uploads.examples}
        assert shown == dict.fromkeys(sessions, 16) | {f"{BASE}/repositories/a/_uploads/x-uuid/": 1}
        assert [example["key"] for example in old.unfinished_uploads.examples] == [f"{sessions[0]}part"]
        assert young.abandoned_uploads.count == young.unfinished_uploads.count == 0
        assert old.is_healthy
        assert AGES.uploads == timedelta()


# Delete markers


@pytest.mark.parametrize("kind", ["memory-versioned", "s3-versioned"])
def test_markers_are_taken_off(database: str, new_store: NewStore, kind: str) -> None:
    """With `repair` a needed blob below delete markers is served again if its own bytes are there, and no other."""
    store = new_store(kind)
    with World(database, store) as world:
        world.needed("here", "masked", "twice", "other-bytes", "overwritten", "hidden")
        world.store.put(world.key("other-bytes"), b"x" * len(world.body("other-bytes")))
        world.store.put(world.key("overwritten"), b"short")
        for name in ("masked", "twice", "twice", "other-bytes", "overwritten", "hidden"):
            store.delete(world.key(name))
        world.link_blob("never-stored")
        world.connection.execute("UPDATE blobs SET state = 2 WHERE digest = %s", (world.digest("hidden"),))
        checked = world.audit()
        assert checked.repaired.count == 0
        assert examples_of(checked.masked).keys() == {
            world.text(name) for name in ("masked", "twice", "other-bytes", "overwritten")
        }
        report = world.audit(repair=True)
        assert examples_of(report.repaired).keys() == {world.text("masked"), world.text("twice")}
        assert examples_of(report.found_again).keys() == examples_of(report.repaired).keys()
        missing = examples_of(report.missing)
        assert missing.keys() == {world.text(name) for name in ("other-bytes", "overwritten", "never-stored")}
        assert missing[world.text("overwritten")]["restorable_version"] is not None
        for name in ("masked", "twice"):
            assert store.get(world.key(name)) == world.body(name)
            assert world.state(name) is BlobState.LIVE
        for name in ("other-bytes", "overwritten", "hidden", "never-stored"):
            assert store.head(world.key(name)) is None
        changes = [change for digest, change, _, _ in world.outbox() if digest == world.text("twice")]
        assert changes == ["missing", "live"]


@pytest.mark.parametrize("kind", ["memory-versioned", "s3-versioned"])
def test_a_blob_is_hidden_while_it_is_repaired(database: str, new_store: NewStore, kind: str) -> None:
    """A marker of a hide is never removed, even if the blob is hidden while the audit reads its bytes."""
    store = new_store(kind)
    with World(database, store) as world:
        world.needed("here", "masked")
        store.delete(world.key("masked"))

        def hide() -> None:
            world.apply(world.removed("app", "masked", 1))
            world.connection.execute("UPDATE blobs SET state = 2 WHERE digest = %s", (world.digest("masked"),))
            store.delete(world.key("masked"))

        hiding = FaultyStore(store)
        hiding.before("open_version", hide, key=world.key("masked"))
        assert world.audit(hiding, repair=True).repaired.count == 0
        assert world.state("masked") is BlobState.HIDDEN
        assert len([each for each in store.list_versions(world.key("masked")) if each.is_marker]) == 2
        assert store.head(world.key("masked")) is None


def test_orphans_are_taken_up(world: World) -> None:
    """With `take_up` orphans become unreferenced as of now, for GC; needed blobs stay as they are."""
    world.needed("mine")
    world.put("left")
    world.put("again")
    world.needed("again")
    world.apply(world.removed("app", "again", 1))
    world.connection.execute(
        "UPDATE blobs SET state = 3, unreferenced_since = '2020-01-01' WHERE digest = %s", (world.digest("again"),)
    )
    report = Audit(world.connections, world.store, world.presence, AGES, take_up=True).run()
    assert report.taken_up == report.orphans.count == 2
    for name in ("left", "again"):
        assert world.state(name) is BlobState.UNREFERENCED
        ((age,),) = world.rows("SELECT now() - unreferenced_since FROM blobs WHERE digest = %s", (world.digest(name),))
        assert age < timedelta(minutes=10)
    assert world.state("mine") is BlobState.LIVE
    assert Audit(world.connections, world.store, world.presence, AGES, take_up=True).run().taken_up == 0


@pytest.mark.parametrize("stranger", ["other/app", "pod-a-not/app"])
def test_orphans_of_a_pod_that_is_not_registered(world: World, stranger: str) -> None:
    """While a repository of no pod is in the root no orphan is taken up: that repository may link it."""
    world.put("left")
    world.store.put(layer_link_key(RepositoryName(stranger), world.digest("left")), b"link")
    with pytest.raises(ConflictError, match=stranger.partition("/")[0]):
        Audit(world.connections, world.store, world.presence, AGES, take_up=True).run()
    assert world.blob("left") is None
    world.store.delete(layer_link_key(RepositoryName(stranger), world.digest("left")))
    world.store.put(layer_link_key(RepositoryName("pod-a/app"), world.digest("left")), b"link")
    assert Audit(world.connections, world.store, world.presence, AGES, take_up=True).run().taken_up == 1


def test_blobs_that_a_registrys_database_lists(world: World) -> None:
    """A blob that is not stored, and that only a registry's database lists and links, is reported; one that is hidden,
    or that no repository links, is not.
    """
    world.needed("mine", "lost", "gone", "hidden")
    world.put("unknown")
    world.connection.execute(
        "UPDATE blobs SET state = %s, link_count = 0, unreferenced_since = now() WHERE digest = %s",
        (BlobState.UNREFERENCED, world.digest("gone")),
    )
    world.connection.execute(
        "UPDATE blobs SET state = %s WHERE digest = %s", (BlobState.HIDDEN, world.digest("hidden"))
    )
    for name in ("lost", "gone", "hidden"):
        world.store.delete(world.key(name))
    listed = [world.digest(name) for name in ("mine", "lost", "gone", "hidden", "unknown", "nowhere")]

    unlinked = world.digest("a doctor's")

    def read_claims() -> Iterator[PodClaims]:
        yield PodClaims(PodName("team-g"), iter([*listed, unlinked]), lambda asked: set(asked) - {unlinked})

    report = Audit(world.connections, world.store, world.presence, AGES, read_claims, sizes=Sizes(batch=2)).run()
    assert {example["digest"] for example in report.claimed.examples} == {
        format_digest(world.digest(name)) for name in ("gone", "nowhere")
    }
    assert {example["pod"] for example in report.claimed.examples} == {"team-g"}
    assert not report.is_healthy


def test_a_registrys_database_that_cannot_be_read(world: World) -> None:
    """The audit says which database it did not compare, compares everything else, and is not healthy."""
    world.needed("mine")

    def fail() -> Iterator[Digest]:
        yield world.digest("mine")
        raise UnavailableError("It does not answer.")

    def read_claims() -> Iterator[PodClaims]:
        yield PodClaims(PodName("team-g"), fail(), set)
        yield PodClaims(PodName("team-h"), iter([world.digest("nowhere")]), set)

    report = Audit(world.connections, world.store, world.presence, AGES, read_claims, sizes=Sizes(batch=1)).run()
    assert report.unread_claims == {"team-g": "It does not answer."}
    assert (report.needed, report.claimed.count) == (1, 1)
    assert not report.is_healthy
