"""An object store in memory, which honours the port. It passes the contract tests beside this file."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from coordinator.errors import ConflictError, UnavailableError, UsageError
from coordinator.storage.port import (
    CHUNK_BYTES,
    DELETE_LIMIT,
    LIST_LIMIT,
    UNVERSIONED,
    VERSIONS_LIMIT,
    DeleteResult,
    KeyVersion,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectReader,
    ObjectVersion,
    OpenObject,
    Permit,
    Target,
    UnfinishedUpload,
    UnsafeStoreError,
    check_key,
    check_page_size,
)


class _Stored(NamedTuple):
    body: bytes
    modified_at: datetime

    @property
    def etag(self) -> str:
        return hashlib.md5(self.body, usedforsecurity=False).hexdigest()


class _Version(NamedTuple):
    version: str
    #: None of a marker.
    stored: _Stored | None
    modified_at: datetime


class MemoryObjectStore:
    """`by_parts` lists as stores with directories do; else the order is that of S3 itself.

    All stores in memory are on one service, unless one of them `copies` nothing. `versioned` keeps what is replaced.
    """

    def __init__(
        self,
        *,
        by_parts: bool = False,
        copies: bool = True,
        versioned: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._now = now
        self._by_parts = by_parts
        self._copies = copies
        self._versioned = versioned
        #: What is written while versioning is suspended is called UNVERSIONED, as on S3 and SeaweedFS.
        self.suspended = False
        self._objects: dict[str, _Stored] = {}
        #: Of each key, the newest last.
        self._versions: dict[str, list[_Version]] = {}
        self._numbers = itertools.count(1)
        self._unfinished: dict[str, UnfinishedUpload] = {}
        #: Bytes of each that came so far.
        self._parts: dict[str, int] = {}
        self._lock = threading.Lock()

    def get(self, key: str, limit: int | None = None) -> bytes:
        stored = self._find(key)
        if limit is not None and len(stored.body) > limit:
            raise UsageError(f"{key} has {len(stored.body)} bytes, more than {limit}.")
        return stored.body

    def head(self, key: str) -> ObjectInfo | None:
        with self._lock:
            stored = self._objects.get(check_key(key))
        return None if stored is None else ObjectInfo(key, len(stored.body), stored.modified_at)

    def put(self, key: str, body: bytes) -> None:
        with self._lock:
            self._objects[check_key(key)] = stored = _Stored(body, self._now())
            self._keep(key, stored)

    def suspend(self) -> None:
        self.suspended = True

    def _keep(self, key: str, stored: _Stored | None) -> None:
        kept = self._versions.setdefault(key, []) if self._versioned else []
        name = UNVERSIONED if self.suspended else str(next(self._numbers))
        kept[:] = [each for each in kept if each.version != UNVERSIONED or not self.suspended]
        kept.append(_Version(name, stored, self._now()))
        self._versions[key] = kept

    @contextmanager
    def open(self, key: str) -> Iterator[OpenObject]:
        yield _opened(self._find(key))

    def put_chunks(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        number = next(self._numbers)
        upload = UnfinishedUpload(check_key(key), self._now(), str(number))
        self._unfinished[upload.upload] = upload
        try:
            body = b""
            for chunk in chunks:
                body += chunk
                self._parts[upload.upload] = len(body)
        finally:
            self._parts.pop(upload.upload, None)
            aborted = self._unfinished.pop(upload.upload, None) is None
        if aborted:
            raise UnavailableError(f"The upload of {key} was given up.")
        if len(body) != size:
            raise UsageError(f"{key} should have {size} bytes, and {len(body)} came.")
        self.put(key, body)

    def copy_from(self, source: ObjectReader, source_key: str, key: str, *, etag: str | None = None) -> bool:
        if not isinstance(source, MemoryObjectStore) or not (self._copies and source._copies):
            return False
        stored = source._find(source_key)
        if etag is not None and stored.etag != etag:
            raise ConflictError(f"{source_key} has changed since it was read: try again.")
        self.put(key, stored.body)
        return True

    def _find(self, key: str) -> _Stored:
        with self._lock:
            stored = self._objects.get(check_key(key))
        if stored is None:
            raise ObjectNotFoundError(f"There is no object {key!r}.")
        return stored

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)
            if self._versioned:
                self._keep(key, None)
            else:
                self._versions.pop(key, None)

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
        if not targets:
            return []
        if len(targets) > DELETE_LIMIT or len(set(targets)) < len(targets):
            raise UsageError(f"Delete up to {DELETE_LIMIT} different objects at once.")
        permit()
        return [self._delete(each) for each in targets]

    def _delete(self, target: Target) -> DeleteResult:
        if target.version is None:
            self.delete(target.key)
            kept = self._versions.get(target.key)
            return DeleteResult(target, kept[-1].version if kept else None)
        with self._lock:
            kept = self._versions.get(check_key(target.key), [])
            left = [each for each in kept if each.version != target.version]
            self._versions[target.key] = left
            if left and left[-1].stored is not None:
                self._objects[target.key] = left[-1].stored
            else:
                self._objects.pop(target.key, None)
        return DeleteResult(target)

    def keeps_versions(self) -> bool:
        if self.suspended:
            raise UnsafeStoreError("Versioning is suspended.")
        return self._versioned

    def list_versions(self, key: str, limit: int = VERSIONS_LIMIT) -> Sequence[ObjectVersion]:
        return self._states(key)[:limit]

    def _states(self, key: str) -> Sequence[ObjectVersion]:
        with self._lock:
            kept = self._versions.get(check_key(key), [])[::-1]
        return [
            ObjectVersion(
                each.version, None if each.stored is None else len(each.stored.body), each.modified_at, n == 0
            )
            for n, each in enumerate(kept)
        ]

    @contextmanager
    def open_version(self, key: str, version: str) -> Iterator[OpenObject]:
        with self._lock:
            found = [each.stored for each in self._versions.get(check_key(key), []) if each.version == version]
        if not found or found[0] is None:
            raise ObjectNotFoundError(f"There is no version {version} of {key!r}.")
        yield _opened(found[0])

    def remove_marker(self, key: str, version: str) -> bool:
        with self._lock:
            kept = self._versions.get(check_key(key), [])
            left = [each for each in kept if each.stored is not None or each.version != version]
            if len(left) == len(kept):
                return False
            self._versions[key] = left
            if left and left[-1].stored is not None:
                self._objects[key] = left[-1].stored
        return True

    def walk_versions(self, prefix: str) -> Iterator[KeyVersion]:
        with self._lock:
            keys = sorted((key for key in self._versions if key.startswith(prefix)), key=self._place)
        for key in keys:
            yield from (KeyVersion(key, state) for state in self._states(key))

    def list_version_folders(self, prefix: str) -> Iterator[str]:
        with self._lock:
            keys = sorted((key for key, kept in self._versions.items() if kept), key=self._place)
        rests = [key.removeprefix(prefix).partition("/") for key in keys if key.startswith(prefix)]
        yield from dict.fromkeys(f"{prefix}{name}/" for name, slash, _ in rests if slash)

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        yield from [each for each in list(self._unfinished.values()) if each.key.startswith(prefix)]

    def count_stored_bytes(self, upload: UnfinishedUpload) -> int:
        return self._parts.get(upload.upload, 0)

    def abort_upload(self, upload: UnfinishedUpload, permit: Permit) -> None:
        permit()
        self._unfinished.pop(upload.upload, None)
        self._parts.pop(upload.upload, None)

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        limit = check_page_size(limit)
        after = self._place(start_after or "")
        return [entry for entry in self._listed(prefix) if self._place(entry.key) > after][:limit]

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._listed(prefix)

    def walk_keys(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.walk(prefix))

    def list_folders(self, prefix: str) -> Iterator[str]:
        rests = [entry.key.removeprefix(prefix).partition("/") for entry in self._listed(prefix)]
        yield from dict.fromkeys(f"{prefix}{name}/" for name, slash, _ in rests if slash)

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


def _opened(stored: _Stored) -> OpenObject:
    pieces = (stored.body[start : start + CHUNK_BYTES] for start in range(0, len(stored.body), CHUNK_BYTES))
    return OpenObject(len(stored.body), stored.etag, pieces)
