"""A table and a store to compare.

`World` is the database's harness with bytes beside it: `needed` makes a blob that is linked and stored.
Not here: what must hold (test_*.py).
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from datetime import timedelta
from types import TracebackType

from coordinator.audit.audit import PRODUCTION, Ages, Audit, Report, Sizes
from coordinator.db.connection import Connections
from coordinator.db.locks import FACTS_LOCK
from coordinator.domain.facts import Fact, Removed
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest
from coordinator.reconcile.presence import Presence
from coordinator.storage.layout import blob_key
from coordinator.storage.port import ObjectStore
from coordinator.table.batch import ApplyResult
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

    def apply(self, *facts: Fact, margin: timedelta = NO_MARGIN, partition: int = 0) -> ApplyResult:
        """Apply facts; removals are applied without a check, as there are no links."""
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

    def lose(self, *names: str) -> None:
        """Make needed blobs without bytes that nothing has noticed."""
        self.needed(*names)
        for name in names:
            self.store.delete(self.key(name))

    def state(self, name: str) -> BlobState:
        return self.row(name).state

    def outbox(self) -> list[tuple[str, str, int, int]]:
        """(digest, change, references, links) of what waits, in order."""
        found = self.rows("SELECT digest, change, reference_count, link_count FROM lifecycle_outbox ORDER BY id")
        return [(f"sha256:{row[0].hex()}", *row[1:]) for row in found]

    def writers_are_out(self) -> bool:
        """Whether all writers of facts are locked out now."""
        with self.connect() as other:
            row = other.execute("SELECT pg_try_advisory_xact_lock_shared(%s)", (FACTS_LOCK,)).fetchone()
        return not row[0]

    def audit(
        self, store: ObjectStore | None = None, ages: Ages = AGES, *, repair: bool = False, sizes: Sizes = PRODUCTION
    ) -> Report:
        """Run an audit of `store`, if that is given."""
        checked = store or self.store
        with closing(Presence(self.connections, checked)) as presence:
            return Audit(self.connections, checked, presence, ages, repair=repair, sizes=sizes).run()
