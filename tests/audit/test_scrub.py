"""Reading every byte: blobs with wrong bytes are reported, with an intact version if there is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from coordinator.audit.scrub import BURST_S, Rate, Scrub, ScrubReport, StoppedError
from coordinator.domain.names import Digest, format_digest, parse_digest
from coordinator.errors import UnavailableError
from coordinator.storage.layout import BLOBS, blob_key
from coordinator.storage.port import CHUNK_BYTES, ObjectStore, OpenObject
from tests.audit.conftest import NewStore
from tests.audit.harness import World
from tests.storage.memory import MemoryObjectStore
from tests.support.store import FaultyStore, raise_unavailable
from tests.support.wait import Waits


def scrub(world: World, store: ObjectStore | None = None, **how: object) -> ScrubReport:
    return Scrub(world.connections, store or world.store).run(**how)


def damage(world: World, name: str) -> None:
    world.store.put(world.key(name), b"!" * len(world.body(name)))


@pytest.mark.parametrize("kind", ["memory", "memory-versioned", "s3", "s3-versioned"])
def test_other_bytes_are_reported(database: str, new_store: NewStore, kind: str) -> None:
    """Every stored blob is read, needed or not; those with wrong bytes are reported, with an intact version."""
    with World(database, new_store(kind)) as world:
        world.needed("one", "two", "bad", "worse")
        world.put("unknown")
        world.put("unknown-bad")
        for name in ("bad", "worse", "unknown-bad"):
            damage(world, name)
        for _ in range(2):
            damage(world, "worse")
        world.store.put(f"{BLOBS}ab/nothing", b"odd")
        content = scrub(world)
        assert content.blobs == 6
        assert content.resume_from is None
        shown = {example["digest"]: example for example in content.other_bytes.examples}
        assert shown.keys() == {world.text(name) for name in ("bad", "worse", "unknown-bad")}
        assert [shown[world.text(name)]["link_count"] for name in ("bad", "unknown-bad")] == [1, 0]
        for name, versions in (("bad", 2), ("worse", 4)):
            example = shown[world.text(name)]
            assert parse_digest(example["found"]) != world.digest(name)
            if not kind.endswith("versioned"):
                assert (example["whole_version"], len(example["versions"])) == (None, 1)
                continue
            assert len(example["versions"]) == versions
            with world.store.open_version(world.key(name), example["whole_version"]) as opened:
                assert b"".join(opened.chunks) == world.body(name)
        assert not content.is_healthy
        assert world.state("bad").name == "LIVE"
        assert world.outbox() == []


def test_a_blob_that_is_replaced_while_it_is_read(world: World) -> None:
    """Bytes that are right at the second read, and blobs that are gone by then, are no damage."""
    world.needed("one", "healed", "gone")
    damage(world, "healed")
    store = FaultyStore(world.store)
    store.before("open", lambda: store.delete(world.key("gone")), key=world.key("gone"))
    store.before("open", lambda: world.put("healed"), key=world.key("healed"), nth=2)
    content = scrub(world, store)
    assert content.is_healthy
    assert (content.blobs, store.count("open", world.key("healed"))) == (2, 2)


def test_it_goes_on_where_it_stopped(world: World) -> None:
    """A store that goes away ends it with the digest to go on at, and from there each blob is read, none in between."""
    names = [f"b{n}" for n in range(20)]
    world.needed(*names)
    digests = sorted(world.digest(name) for name in names)
    read: set[str] = set()
    opened = count()

    def before(name: str, key: str) -> None:
        if name == "open":
            if next(opened) >= 9:
                raise_unavailable()
            read.add(key)
        elif name == "check" and next(opened) > 9:
            raise_unavailable()

    store = FaultyStore(world.store, before)
    store.instead("list", lambda real, prefix, after: real(prefix, after, 3))
    with pytest.raises(UnavailableError, match="--from sha256:") as raised:
        scrub(world, store)
    stopped = parse_digest(str(raised.value).rpartition(" ")[2])
    assert stopped > digests[0]
    assert {blob_key(digest) for digest in digests if digest < stopped} <= read
    store = FaultyStore(world.store)
    content = scrub(world, store, start=stopped)
    rest = store.keys("open")
    assert sorted(rest) == [blob_key(digest) for digest in digests if digest >= stopped]
    assert content.blobs == len(rest)
    assert scrub(world, start=Digest(bytes(32))).blobs == len(names)
    assert scrub(world, start=Digest(bytes([255] * 32))).blobs == 0


def test_one_that_cannot_be_read(world: World) -> None:
    """A single unreadable blob is reported; several in a row are an outage."""
    names = [f"b{n}" for n in range(12)]
    world.needed(*names)
    digests = sorted(world.digest(name) for name in names)
    store = FaultyStore(world.store)
    for number in (4, 6):
        store.fail("open", key=blob_key(digests[number]))
    content = scrub(world, store)
    unreadable = [example["digest"] for example in content.unreadable.examples]
    assert unreadable == [format_digest(digests[number]) for number in (4, 6)]
    assert (content.blobs, content.is_healthy, content.other_bytes.count) == (12, False, 0)
    for digest in digests[4:]:
        store.fail("open", key=blob_key(digest))
    with pytest.raises(UnavailableError, match=format_digest(digests[4])):
        scrub(world, store)


def test_a_sample(world: World) -> None:
    """A sample reads as many different blobs as are asked for, or all that there are."""
    world.needed(*(f"b{n}" for n in range(40)))
    for wanted, read in ((1, 1), (7, 7)):
        store = FaultyStore(world.store)
        assert scrub(world, store, sample=wanted).blobs == read
        assert len(set(store.keys("open"))) == store.count("open") == read
    few = MemoryObjectStore()
    few.put(world.key("b0"), world.body("b0"))
    assert scrub(world, few, sample=5).blobs == 1
    assert scrub(world, MemoryObjectStore(), sample=5).blobs == 0


def test_a_sample_of_more_than_there_are(world: World) -> None:
    """A sample larger than the store ends soon after all blobs were chosen."""
    store = FaultyStore(MemoryObjectStore())
    for n in range(12):
        store.put(world.key(f"b{n}"), world.body(f"b{n}"))
    store.fail("list", nth=1000)
    assert scrub(world, store, sample=10_000).blobs == 12


def test_the_rate() -> None:
    """Reads wait so that no more bytes are read than the rate allows; without a rate they do not wait."""
    clock = 1000.0
    waits, free = Waits(), Waits()
    limited, unlimited = Rate(1000, waits, lambda: clock), Rate(None, free, lambda: clock)
    for _ in range(30):
        before = sum(waits.waits)
        limited.wait_for(500)
        unlimited.wait_for(500)
        clock += sum(waits.waits) - before
    # The first second's worth may come at once.
    assert 30 * 0.5 - BURST_S <= clock - 1000.0 <= 30 * 0.5
    assert sum(free.waits) == 0.0
    waits.set()
    with pytest.raises(StoppedError):
        limited.wait_for(1)


def test_memory_does_not_grow_with_blobs(world: World) -> None:
    """A blob is read piece by piece."""
    world.needed("here")
    pieces: list[int] = []

    store = FaultyStore(world.store)
    store.instead("open", lambda *_: large(pieces.append))
    content = scrub(world, store)
    assert pieces == [*range(64), *range(64)]
    assert content.other_bytes.count == 1


@contextmanager
def large(taken: Callable[[int], None]) -> Iterator[OpenObject]:
    """64 MiB that are never there at once."""

    def chunks() -> Iterator[bytes]:
        for number in range(64):
            taken(number)
            yield bytes(CHUNK_BYTES)

    yield OpenObject(64 * CHUNK_BYTES, None, chunks())
