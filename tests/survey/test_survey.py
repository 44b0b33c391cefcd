"""A survey shows the figures that a count of every repository and every root by hand gives."""

import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.errors import BaleenError, NotFoundError, UnavailableError, UsageError
from coordinator.storage.files import FileObjectStore
from coordinator.storage.port import ObjectInfo
from coordinator.survey import survey
from coordinator.survey.survey import Root, Survey
from tests.storage.memory import MemoryObjectStore
from tests.survey.trees import (
    BASE,
    ODD_KEYS,
    Registry,
    Repository,
    ShuffledStore,
    digest,
    fill,
    registries,
    write_files,
)


def counted_by_hand(given_registries: list[Registry]) -> dict[str, Any]:
    """The figures from the definitions, one blob and one repository after the other."""
    roots = []
    linking_all: Counter[int] = Counter()
    copies: dict[int, list[int]] = {}
    for registry in given_registries:
        linking = Counter(
            blob for repository in registry.repositories.values() for blob in repository.layers | repository.revisions
        )
        linking_all += linking
        for blob, size in registry.blobs.items():
            copies.setdefault(blob, []).append(size)
        linked = [(registry.blobs[blob], many) for blob, many in linking.items() if blob in registry.blobs]
        missing = {blob: many for blob, many in linking.items() if blob not in registry.blobs}
        unlinked = [size for blob, size in registry.blobs.items() if blob not in linking]
        roots.append(
            {
                "repositories": sum(1 for each in registry.repositories.values() if each.layers | each.revisions),
                "links": linking.total(),
                "blobs": len(registry.blobs),
                "stored_bytes": sum(registry.blobs.values()),
                "logical_bytes": sum(size * many for size, many in linked),
                "unique_bytes": sum(size for size, many in linked if many == 1),
                "shared_bytes": sum(size for size, many in linked if many > 1),
                "unlinked_blobs": len(unlinked),
                "unlinked_bytes": sum(unlinked),
                "cross_root_bytes": sum(
                    size
                    for blob, size in registry.blobs.items()
                    if sum(blob in other.blobs for other in given_registries) > 1
                ),
                "missing_blobs": len(missing),
                "missing_links": sum(missing.values()),
                "odd_keys": sum(1 for key in registry.odd if key in ODD_KEYS),
            }
        )
    shared = [
        (max(sizes), digest(blob), linking_all[blob], len(sizes))
        for blob, sizes in copies.items()
        if linking_all[blob] > 1 or len(sizes) > 1
    ]
    layer = sum(max(sizes) for sizes in copies.values())
    stored = sum(sum(sizes) for sizes in copies.values())
    return {
        "roots": roots,
        "keys": sum(len(registry.keys()) for registry in given_registries),
        "repositories": sum(root["repositories"] for root in roots),
        "blobs": len(copies),
        "logical_bytes": sum(root["logical_bytes"] for root in roots),
        "stored_bytes": stored,
        "shared_layer_bytes": layer,
        "saving_bytes": stored - layer,
        "unique_bytes": sum(max(sizes) for blob, sizes in copies.items() if linking_all[blob] == 1),
        "cross_root_bytes": sum(max(sizes) for sizes in copies.values() if len(sizes) > 1),
        "cross_root_blobs": sum(1 for sizes in copies.values() if len(sizes) > 1),
        "conflicting_blobs": sum(1 for sizes in copies.values() if len(set(sizes)) > 1),
        "largest_shared": sorted(shared, reverse=True)[:3],
    }


def figures_of(found: Survey) -> dict[str, Any]:
    """The same figures as a survey has them."""
    names = counted_by_hand([]).keys()
    roots = [{name: value for name, value in asdict(root).items() if name != "url"} for root in found.roots]
    largest = [(blob.size, blob.digest, blob.repositories, blob.roots) for blob in found.largest_shared]
    return {name: getattr(found, name) for name in names} | {"roots": roots, "largest_shared": largest}


HOT = Registry({1: 10}, {f"r{number}": Repository({1}, {1} if number % 3 else set()) for number in range(50)})


@settings(max_examples=150)
@example([HOT, HOT], 0)
@given(st.lists(registries(), min_size=1, max_size=3), st.integers(0, 5))
def test_figures_are_those_of_a_count_by_hand(given_registries: list[Registry], seed: int) -> None:
    """The figures are right in any order of keys, over one root or several, also where trees are broken."""
    stores = [fill(ShuffledStore(seed + number), registry) for number, registry in enumerate(given_registries)]
    found = survey.survey_roots([Root(f"root-{n}", store) for n, store in enumerate(stores)], top=3)
    assert figures_of(found) == counted_by_hand(given_registries)


@settings(max_examples=15)
@given(st.lists(registries(), min_size=1, max_size=2))
def test_a_directory_is_counted_as_a_bucket(tmp_path_factory: pytest.TempPathFactory, given_registries: Any) -> None:
    """The same trees as files give the same figures."""
    roots = []
    for registry in given_registries:
        path = tmp_path_factory.mktemp("root")
        write_files(path, registry)
        roots.append(Root(str(path), FileObjectStore(path)))
    assert figures_of(survey.survey_roots(roots, top=3)) == counted_by_hand(given_registries)


def test_many_records_of_a_bucket_are_written_out() -> None:
    """Figures do not depend on how much is held in memory before it goes to disk, and the disk's use is bounded."""
    rnd = random.Random(7)
    registry = Registry(
        {blob: rnd.randint(0, 99) for blob in range(2000)},
        {f"r{n}": Repository(set(rnd.sample(range(2100), 30)), set(rnd.sample(range(2100), 5))) for n in range(200)},
    )
    store = fill(ShuffledStore(), registry)
    wanted = counted_by_hand([registry])
    for size in (64, 200, 4096):
        found = survey.survey_roots([Root("root", store)], top=3, chunk_bytes=size)
        assert figures_of(found) == wanted
        assert found.disk_bytes <= survey.DISK_BYTES_PER_KEY * found.keys


@pytest.mark.parametrize("where", ["", "/docker", "/docker/registry/v2"])
def test_a_root_without_a_registry(where: str) -> None:
    """A root without a registry's tree is refused; the message says what was expected and where it may be."""
    store = MemoryObjectStore()
    store.put("something/else", b"")
    with pytest.raises(
        NotFoundError, match=r"docker/registry/v2/, where blobs/ and repositories/ should be. Name"
    ) as raised:
        survey.survey_roots([Root(f"s3://bucket/x{where}", store)])
    assert not where or str(raised.value).endswith("contains `docker`: s3://bucket/x.")
    store.put(f"team/registry/{BASE}/blobs/sha256/x", b"")
    with pytest.raises(NotFoundError, match=r"Did you mean s3://bucket/x.*/team/registry\?"):
        survey.survey_roots([Root(f"s3://bucket/x{where}/", store)])


def test_a_root_named_twice() -> None:
    """A root that is named twice would be counted twice: it is refused."""
    store = fill(MemoryObjectStore(), HOT)
    with pytest.raises(UsageError, match="each once"):
        survey.survey_roots([Root("one", store), Root("one", store)])


class Failing(ShuffledStore):
    """Fails in one subtree, and goes on and on in the other."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.ended = False

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix == self.prefix:
            raise UnavailableError("The object store does not answer: try again.")
        for entry in super().walk(prefix):
            yield from itertools.repeat(entry, 2_000_000)
        self.ended = True


@pytest.mark.parametrize("prefix", [f"{BASE}/blobs/", f"{BASE}/repositories/"])
def test_a_listing_that_fails(prefix: str) -> None:
    """A survey whose listing fails has no result, and stops listing the rest (scenario 19)."""
    store = fill(Failing(prefix), HOT)
    before = set(threading.enumerate())
    with pytest.raises(UnavailableError):
        survey.survey_roots([Root("one", store)])
    assert not store.ended
    # Of those of other tests some may end meanwhile.
    assert set(threading.enumerate()) <= before


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the message says what to do."""
    store = fill(MemoryObjectStore(), HOT)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(BaleenError, match=r"No space left on device.*--tmp-dir"):
        survey.survey_roots([Root("one", store)])


def test_nothing_is_left_on_disk(tmp_path: Path) -> None:
    """Records go into the given directory, which is empty at every moment."""
    seen = []
    store = fill(MemoryObjectStore(), HOT)
    survey.survey_roots(
        [Root("one", store)], directory=tmp_path, progress=lambda _: seen.append(list(tmp_path.iterdir()))
    )
    assert seen
    assert not any(seen)


def test_progress_reaches_the_number_of_keys() -> None:
    """Progress ends at the number of keys listed."""
    store = fill(MemoryObjectStore(), HOT)
    seen: list[int] = []
    found = survey.survey_roots([Root("one", store)], progress=seen.append)
    assert max(seen) == found.keys == len(HOT.keys())
