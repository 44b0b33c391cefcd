"""An object store in memory, which honours the port. It passes the contract tests beside this file."""

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from coordinator.errors import UsageError
from coordinator.storage.port import LIST_LIMIT, ObjectInfo, ObjectNotFoundError, check_key, page_size


class _Stored(NamedTuple):
    body: bytes
    modified_at: datetime


class MemoryObjectStore:
    """`by_parts` lists as stores with directories do; else the order is that of S3 itself."""

    def __init__(self, *, by_parts: bool = False) -> None:
        self._by_parts = by_parts
        self._objects: dict[str, _Stored] = {}
        self._lock = threading.Lock()

    def get(self, key: str, limit: int | None = None) -> bytes:
        with self._lock:
            stored = self._objects.get(check_key(key))
        if stored is None:
            raise ObjectNotFoundError(f"There is no object {key!r}.")
        if limit is not None and len(stored.body) > limit:
            raise UsageError(f"{key} has {len(stored.body)} bytes, more than {limit}.")
        return stored.body

    def head(self, key: str) -> ObjectInfo | None:
        with self._lock:
            stored = self._objects.get(check_key(key))
        return None if stored is None else ObjectInfo(key, len(stored.body), stored.modified_at)

    def put(self, key: str, body: bytes) -> None:
        with self._lock:
            self._objects[check_key(key)] = _Stored(body, datetime.now(UTC))

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        limit = page_size(limit)
        after = self._place(start_after or "")
        return [entry for entry in self._listed(prefix) if self._place(entry.key) > after][:limit]

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._listed(prefix)

    def _listed(self, prefix: str) -> Sequence[ObjectInfo]:
        with self._lock:
            found = [
                ObjectInfo(key, len(stored.body), stored.modified_at)
                for key, stored in self._objects.items()
                if key.startswith(prefix)
            ]
        return sorted(found, key=lambda entry: self._place(entry.key))

    def check(self) -> None:
        pass

    def _place(self, key: str) -> tuple[bytes, ...]:
        return tuple(key.encode().split(b"/")) if self._by_parts else (key.encode(),)
