"""Clients that push, delete and push again, as fast as skopeo does, and know what their registries must have then.

Each has repositories of its own, so that what it does to one comes in order. What a request came to that failed is not
known: a tag may then be one of several things.
Not here: the registries (places.py), what must hold at the end (test_soak.py).
"""

from __future__ import annotations

import random
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from coordinator.registry.images import Image, Index, make_image, make_index, make_layer
from tests.registries.skopeo import Skopeo, oci_layout

SHARED, IMAGES, INDEXES = 8, 60, 6
TAGS = ("v1", "v2")
#: Manifests that a repository holds as a rule: so some images are held nowhere.
HELD = 3
#: A tag that does not exist.
ABSENT = ""


class Layout(NamedTuple):
    digest: str
    #: In skopeo's words.
    source: str


def layouts(directory: Path, seed: int) -> list[Layout]:
    """Images that share layers, and indexes of others that share them, too: nobody deletes an index's children."""
    chance = random.Random(seed)
    shared = [make_layer(f"{seed}/shared/{number}", 3000) for number in range(SHARED)]

    def image(name: str, architecture: str = "amd64") -> Image:
        layers = [*chance.sample(shared, chance.randint(1, 3)), make_layer(f"{seed}/own/{name}", 2000)]
        return make_image(f"{seed}/{name}", layers, architecture=architecture)

    made: list[Image | Index] = [
        *(image(f"{number}") for number in range(IMAGES)),
        *(make_index([image(f"{n}/{each}", each) for each in ("amd64", "arm64")]) for n in range(INDEXES)),
    ]
    return [Layout(each.digest, oci_layout(directory / f"{n}", each)) for n, each in enumerate(made)]


class Client(threading.Thread):
    """Goes on until told to stop."""

    def __init__(
        self,
        seed: int,
        skopeo: Skopeo,
        addresses: Mapping[str, str],
        repositories: Sequence[str],
        images: Sequence[Layout],
    ) -> None:
        """A repository's first part names its pod, of whose registry `addresses` has the address."""
        super().__init__(daemon=True)
        self._chance = random.Random(seed)
        self._skopeo = skopeo
        self._addresses = addresses
        self._repositories = repositories
        self._images = images
        self._stopping = threading.Event()
        self.done: Counter[str] = Counter()
        #: What each tag may name, by repository and tag.
        self.tags = {(repository, tag): {ABSENT} for repository in repositories for tag in TAGS}
        #: Manifests that a repository may hold, also without a tag.
        self._held: dict[str, set[str]] = {repository: set() for repository in repositories}
        self.error: BaseException | None = None

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                repository = self._chance.choice(self._repositories)
                held = self._held[repository]
                if self._chance.random() < len(held) / (2 * HELD):
                    self._remove(repository, self._chance.choice(sorted(held)))
                else:
                    self._push(repository, self._chance.choice(TAGS), self._chance.choice(self._images))
        except BaseException as error:  # noqa: BLE001 - told by `stop`
            self.error = error

    def _push(self, repository: str, tag: str, image: Layout) -> None:
        name = f"{repository}:{tag}"
        self._held[repository].add(image.digest)
        refused = self._tried("push", lambda: self._skopeo.push(image.source, self._address(repository), name, "--all"))
        before = self.tags[repository, tag]
        self.tags[repository, tag] = {image.digest} if refused is None else before | {image.digest}

    def _remove(self, repository: str, digest: str) -> None:
        """Delete a manifest, and with it all its tags."""
        name = f"{repository}@{digest}"
        refused = self._tried("delete", lambda: self._skopeo.delete(self._address(repository), name))
        gone = refused is None or "manifest unknown" in refused
        if gone:
            self._held[repository].discard(digest)
        for tag in TAGS:
            may = self.tags[repository, tag]
            if digest in may:
                self.tags[repository, tag] = (may - {digest} if refused is None else may) | {ABSENT}

    def _tried(self, what: str, work: Callable[[], object]) -> str | None:
        """Return why it failed, if it did."""
        try:
            work()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.done[f"{what} failed"] += 1
            # What is away is not asked at once again.
            self._stopping.wait(0.2)
            return str(error)
        self.done[what] += 1
        return None

    def _address(self, repository: str) -> str:
        return self._addresses[repository.partition("/")[0]]
