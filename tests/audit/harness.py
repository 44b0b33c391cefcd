"""A table and a store to part and to compare, and a store that does things while somebody looks at it.

`World` is the database's harness with bytes beside it: `needed` makes a blob that is linked and stored.
Not here: what must hold (test_*.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from coordinator.audit.audit import Ages, Audit, Report
from coordinator.db.connection import Connections
from coordinator.db.locks import FACTS_LOCK
from coordinator.domain.facts import Fact, Removed
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest
from coordinator.errors import UnavailableError
from coordinator.reconcile.presence import Presence
from coordinator.storage.layout import blob_key
from coordinator.storage.port import LIST_LIMIT, ObjectInfo, ObjectStore, OpenObject
from coordinator.table.batch import Applied
from tests.table.harness import NO_MARGIN, Table

AGES = Ages(timedelta(), timedelta())


def body_of(name: str) -> bytes:
    return f"the bytes of {name}".encode()


class World(Table):
    """A blob's digest is that of `body_of` its name, so that contents can be verified.

    An audit is of the whole table, so it is emptied, unless this is a second view of one.
    """

    def __init__(self, url: str, store: ObjectStore, *, empty: bool = True, **sizes: int) -> None:
        """`sizes`: as `Presence`."""
        super().__init__(url)
        if empty:
            for table in ("repository_manifests", "repository_blobs", "manifests", "blobs", "removals"):
                self.connection.execute(f"DELETE FROM {table}")
            self.connection.execute("DELETE FROM lifecycle_outbox")
            self.links_are("link")
        self.store = store
        self.connections = Connections(url, name="audit-tests")
        self.presence = Presence(self.connections, store, **sizes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.presence.close()
        self.connections.close()
        super().__exit__(kind, error, trace)

    def __enter__(self) -> Self:
        return self

    def apply(self, *facts: Fact, margin: timedelta = NO_MARGIN, partition: int = 0) -> Applied:
        """Apply facts; what is said to be removed is believed, as there are no links to look at."""
        if not any(isinstance(fact, Removed) for fact in facts):
            return super().apply(*facts, margin=margin, partition=partition)
        self.links_are("relay")
        applied = super().apply(*facts, margin=margin, partition=partition)
        self.links_are("link")
        return applied

    def digest(self, name: str) -> Digest:
        return Digest(hashlib.sha256(self.body(name)).digest())

    def body(self, name: str) -> bytes:
        return body_of(f"{self.space}/{name}")

    def key(self, name: str) -> str:
        return blob_key(self.digest(name))

    def put(self, name: str) -> None:
        self.store.put(self.key(name), self.body(name))

    def link_blob(self, name: str, second: float = 0) -> None:
        """Apply the event of an upload."""
        self.apply(self.link("app", name, second)._replace(size=len(self.body(name))))

    def needed(self, *names: str) -> None:
        for name in names:
            self.put(name)
            self.link_blob(name)

    def lost(self, *names: str) -> None:
        """Needed, without bytes, and nobody has noticed."""
        self.needed(*names)
        for name in names:
            self.store.delete(self.key(name))

    def state(self, name: str) -> BlobState:
        row = self.blob(name)
        assert row is not None
        return row.state

    def outbox(self) -> list[tuple[str, str, int, int]]:
        """(digest, change, references, links) of what waits, in order."""
        found = self.rows("SELECT digest, change, reference_count, link_count FROM lifecycle_outbox ORDER BY id")
        return [(f"sha256:{row[0].hex()}", *row[1:]) for row in found]

    def writers_are_out(self) -> bool:
        """Whether somebody keeps all writers of facts out now."""
        with self.connect() as other:
            row = other.execute("SELECT pg_try_advisory_xact_lock_shared(%s)", (FACTS_LOCK,)).fetchone()
        assert row is not None
        return not row[0]

    def audit(self, store: ObjectStore | None = None, ages: Ages = AGES, *, mend: bool = False) -> Report:
        """Run an audit; its looks are at `store`, where that is given."""
        looked_at = store or self.store
        presence = Presence(self.connections, looked_at)
        try:
            return Audit(self.connections, looked_at, presence, ages, mend=mend).run()
        finally:
            presence.close()


class Watched:
    """A store that calls `before` with the name of each call and its key."""

    def __init__(self, store: ObjectStore, before: Callable[[str, str], None]) -> None:
        self._store = store
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def head(self, key: str) -> ObjectInfo | None:
        self._before("head", key)
        return self._store.head(key)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        self._before("walk", prefix)
        yield from self._store.walk(prefix)
        self._before("walked", prefix)

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        self._before("list", prefix)
        return self._store.list(prefix, start_after, limit)

    def folders(self, prefix: str) -> Iterator[str]:
        self._before("folders", prefix)
        yield from self._store.folders(prefix)

    def open(self, key: str) -> AbstractContextManager[OpenObject]:
        self._before("open", key)
        return self._store.open(key)

    def open_version(self, key: str, version: str) -> AbstractContextManager[OpenObject]:
        self._before("open version", key)
        return self._store.open_version(key, version)

    def check(self) -> None:
        self._before("check", "")
        self._store.check()


def away(*_: object) -> None:
    """What a store says that does not answer."""
    raise UnavailableError("The object store does not answer: try again.")
