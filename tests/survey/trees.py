"""Registry trees, and how they are written into a store. Not here: what must hold of them."""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

from coordinator.registry.images import Image, Index
from coordinator.storage.port import ObjectInfo, ObjectStore
from tests.storage.memory import MemoryObjectStore

BASE = "docker/registry/v2"

Store = TypeVar("Store", bound=ObjectStore)


class ShuffledStore(MemoryObjectStore):
    """Lists in an order that no store has."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        found = list(super().walk(prefix))
        random.Random(self._seed).shuffle(found)
        yield from found


@dataclass
class Repository:
    """What a repository links, by the blobs' names in the test."""

    layers: set[int] = field(default_factory=set)
    revisions: set[int] = field(default_factory=set)
    tags: dict[str, int] = field(default_factory=dict)


@dataclass
class Registry:
    """A registry's whole store."""

    #: Bytes of each blob that is stored.
    blobs: dict[int, int] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)

    def keys(self) -> dict[str, bytes]:
        found = {blob_key(blob): bytes(size) for blob, size in self.blobs.items()}
        for name, repository in self.repositories.items():
            base = f"{BASE}/repositories/{name}"
            found |= {f"{base}/_layers/sha256/{hexadecimal(blob)}/link": b"" for blob in repository.layers}
            found |= {
                f"{base}/_manifests/revisions/sha256/{hexadecimal(blob)}/link": b"" for blob in repository.revisions
            }
            for tag, blob in repository.tags.items():
                found[f"{base}/_manifests/tags/{tag}/current/link"] = b""
                found[f"{base}/_manifests/tags/{tag}/index/sha256/{hexadecimal(blob)}/link"] = b""
        return found | {f"{BASE}/{key}": b"" for key in self.odd}


def hexadecimal(blob: int) -> str:
    return hashlib.sha256(str(blob).encode()).hexdigest()


def digest(blob: int) -> str:
    return f"sha256:{hexadecimal(blob)}"


def blob_key(blob: int) -> str:
    return f"{BASE}/blobs/sha256/{hexadecimal(blob)[:2]}/{hexadecimal(blob)}/data"


def fill(store: Store, registry: Registry) -> Store:
    """Write a registry into a store; return the store."""
    for key, body in registry.keys().items():
        store.put(key, body)
    return store


def write_files(root: Path, registry: Registry) -> None:
    for key, body in registry.keys().items():
        file = root / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)


ODD_KEYS = [
    "blobs/sha256/ab/data",
    f"blobs/sha256/00/{'f' * 64}/data",
    f"blobs/sha256/ff/{'F' * 64}/data",
    f"blobs/sha256/ff/{'f' * 64}/data.tombstone",
    f"blobs/sha256/ff/{'f' * 64}/deeper/data",
    f"blobs/sha512/ff/{'f' * 128}/data",
    f"repositories/a/_layers/sha256/{'f' * 63}/link",
    f"repositories/a/_layers/sha256/{'F' * 64}/link",
    f"repositories/a/_layers/sha256/{' f' * 32}/link",
    f"repositories/a/_layers/sha512/{'f' * 64}/link",
    f"repositories/a/_layers/sha256/{'f' * 64}/blink",
    f"repositories/_layers/sha256/{'f' * 64}/link",
    "repositories/link",
    "repositories/a/readme",
]
UPLOADS = ["repositories/a/_uploads/1/startedat", "repositories/a/b/_uploads/2/hashstates/sha256/0"]

_BLOBS = st.integers(0, 12)
_NAMES = st.sampled_from(["a", "a/b", "a-b", "a/b/c", "b", "team/app", "team/app-2"])
_TAGS = st.dictionaries(st.sampled_from(["v1", "latest"]), _BLOBS, max_size=2)
_REPOSITORIES = st.builds(Repository, st.sets(_BLOBS, max_size=6), st.sets(_BLOBS, max_size=4), _TAGS)
registries: Callable[..., Any] = lambda: st.builds(  # noqa: E731
    Registry,
    st.dictionaries(_BLOBS, st.integers(0, 50), min_size=1, max_size=10),
    st.dictionaries(_NAMES, _REPOSITORIES, max_size=5),
    st.sets(st.sampled_from(ODD_KEYS + UPLOADS), max_size=4),
)


def push(store: ObjectStore, repository: str, image: Image | Index, tag: str | None = None) -> None:
    """Store an image as a registry does."""
    base = f"{BASE}/repositories/{repository}"
    if isinstance(image, Index):
        for child in image.manifests:
            push(store, repository, child)
    else:
        for blob in image.blobs:
            _store(store, blob.content)
            store.put(f"{base}/_layers/{_path(blob.digest)}/link", blob.digest.encode())
    _store(store, image.content)
    store.put(f"{base}/_manifests/revisions/{_path(image.digest)}/link", image.digest.encode())
    if tag is not None:
        store.put(f"{base}/_manifests/tags/{tag}/index/{_path(image.digest)}/link", image.digest.encode())
        store.put(f"{base}/_manifests/tags/{tag}/current/link", image.digest.encode())


def content_key(digest: str) -> str:
    return f"{BASE}/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"


def _store(store: ObjectStore, content: bytes) -> None:
    store.put(content_key("sha256:" + hashlib.sha256(content).hexdigest()), content)


def _path(digest: str) -> str:
    return digest.replace(":", "/")
