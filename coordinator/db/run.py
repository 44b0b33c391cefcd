"""One run of facts about single digests: load what they touch, fold them, write the difference.

Every blob gets its id before anything is written, so that all that follows speaks of ids: new manifests, holdings,
links, and counts, which a new blob's row carries from its first version.
Not here: SQL (rows.py), the rules (domain/fold.py), transactions and progress (apply.py).
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import timedelta
from itertools import chain
from typing import Any

from psycopg import Connection

from coordinator.db import implied, renames, rows
from coordinator.db.arrays import within
from coordinator.db.batch import Applied, Item, StateChangedError
from coordinator.domain.facts import BlobLinked, ManifestPushed, Removed
from coordinator.domain.fold import Before, Changes, Fold, Key
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestContent, ManifestKind, unique
from coordinator.errors import BaleenError


class AloneNeededError(BaleenError):
    """The run must change what a known manifest lists, which is done only while nobody else writes."""


class Run:
    """Used once. `alone`: this transaction keeps all other writers out (see locks.py)."""

    def __init__(self, connection: Connection[Any], items: list[Item], margin: timedelta, *, alone: bool) -> None:
        self._connection = connection
        self._margin = margin
        self._alone = alone
        self._facts = [
            fact if (at := within(fact.at)) is fact.at else fact._replace(at=at)
            for item in items
            if isinstance(fact := item.fact, ManifestPushed | BlobLinked | Removed)
        ]
        self._owners: dict[RepositoryName, int] = {
            item.fact.repository: item.pod_id for item in items if item.fact is not None
        }
        #: A push of each manifest, one that says what the manifest lists if there is any.
        self._pushes: dict[Digest, ManifestPushed] = {}
        #: Size of every blob that gets a row, in bytes; None where nobody said.
        self._sizes: dict[Digest, int | None] = {}
        self._ids: dict[Digest, int] = {}
        self._new: set[Digest] = set()
        #: Known blobs whose size nobody has said yet.
        self._unsized: list[Digest] = []
        self._repositories: dict[RepositoryName, int] = {}
        #: What each manifest of this run lists, by id; None while it could not be read.
        self._refs: dict[int, list[int] | None] = {}
        self._references: Counter[int] = Counter()
        self._links: Counter[int] = Counter()
        #: What a held index lists, and no link of the repository is known of.
        self._implied: set[Key] = set()
        #: Known manifests of which this run has changed what they list, or that they are indexes.
        self._widened: set[int] = set()

    def apply(self) -> Applied:
        self._collect()
        self._repositories = rows.repository_ids(self._connection, self._owners)
        self._name_blobs()
        before = self._before()
        fold = Fold(before, self._margin, self._by_word())
        fold.take(fact for fact in self._facts if not isinstance(fact, ManifestPushed) or fact.linked)
        changes = fold.changes()
        if changes.holdings.removed and not self._alone:
            raise AloneNeededError("An index that another writer adds may list what is removed.")
        new_manifests = self._learn_manifests()
        self._count(changes)
        self._write(before, changes, new_manifests)
        self._keep_children(changes, new_manifests)
        removals = chain(changes.removals.added.values(), changes.removals.changed.values())
        return Applied(
            holdings_added=len(changes.holdings.added),
            holdings_removed=len(changes.holdings.removed),
            links_added=len(changes.links.added),
            links_removed=len(changes.links.removed),
            removals_doubtful=sum(removal.doubtful for removal in removals),
            removals_overtaken=fold.overtaken,
        )

    def _collect(self) -> None:
        sizes, pushes = self._sizes, self._pushes
        for fact in self._facts:
            if isinstance(fact, Removed):
                continue
            if isinstance(fact, ManifestPushed):
                known = pushes.get(fact.digest)
                if known is None or known.content is None:
                    pushes[fact.digest] = fact
                    self._size(fact.content)
                elif fact.content is not None and (fact.content != known.content or fact.read):
                    # Two that say different things of one manifest: believe both.
                    both = unique([*known.content.references, *fact.content.references])
                    is_index = not known.read and fact.content.kind is ManifestKind.INDEX
                    kind = fact.content.kind if fact.read or is_index else known.content.kind
                    pushes[fact.digest] = known._replace(
                        content=ManifestContent(kind, both), read=known.read or fact.read
                    )
                    self._size(fact.content)
            if fact.size is not None or fact.digest not in sizes:
                sizes[fact.digest] = fact.size

    def _size(self, content: ManifestContent | None) -> None:
        sizes = self._sizes
        for reference, size in content.references if content is not None else ():
            if sizes.get(reference) is None:
                sizes[reference] = size

    def _name_blobs(self) -> None:
        """Find the ids of known blobs, and give ids to the others, in the order in which they will be written."""
        wanted = list(self._sizes)
        wanted += {fact.digest for fact in self._facts if isinstance(fact, Removed)} - self._sizes.keys()
        self._ids, self._unsized = rows.blob_ids(self._connection, wanted)
        ids = self._ids
        new = sorted(self._sizes.keys() - ids.keys())
        ids.update(zip(new, rows.new_blob_ids(self._connection, len(new)), strict=True))
        self._new = set(new)

    def _before(self) -> Before:
        """Load the holdings, links and removals of exactly the pairs that the facts name."""
        keys: dict[Key, None] = {(fact.repository, fact.digest): None for fact in self._facts}
        known = {
            (self._repositories[repository], self._ids[digest]): (repository, digest)
            for repository, digest in keys
            if digest in self._ids and digest not in self._new
        }
        pairs = list(known)
        held = {known[pair]: at for pair, at in rows.holdings(self._connection, pairs)}
        self._implied = {key for key, at in held.items() if at is None}
        return Before(
            holdings={key: at for key, at in held.items() if at is not None},
            links={known[pair]: at for pair, at in rows.links(self._connection, pairs)},
            removals=rows.removals(self._connection, list(keys), self._repositories),
        )

    def _by_word(self) -> AbstractSet[RepositoryName]:
        """Of the repositories from which something is removed, those of which a pod's word is believed.

        Their links are not in shared storage, and nothing came to their names that may be newer than the removal.
        """
        removals = [fact for fact in self._facts if isinstance(fact, Removed)]
        removed = {fact.repository for fact in removals}
        elsewhere = rows.pods_elsewhere(self._connection, {self._owners[name] for name in removed})
        by_word = {name for name in removed if self._owners[name] in elsewhere}
        return by_word - renames.taken_since(
            self._connection, [fact for fact in removals if fact.repository in by_word], self._margin
        )

    def _learn_manifests(self) -> list[rows.NewManifest]:
        """Fill in what the manifests of this run list; return those that have no row yet."""
        ids = self._ids
        known = rows.manifests(self._connection, [ids[digest] for digest in self._pushes if digest not in self._new])
        self._refs.update(known)
        new: list[rows.NewManifest] = []
        for digest, push in self._pushes.items():
            manifest = ids[digest]
            said, kind = None, None
            if push.content is not None:
                # No manifest can list itself; one that is said to would count its own holdings twice.
                said = [ids[reference] for reference, _ in push.content.references if reference != digest]
                kind = push.content.kind
            if manifest not in known:
                self._refs[manifest] = said
                new.append(rows.NewManifest(manifest, kind, said, push.read))
            elif said is not None and kind is not None:
                self._widen(manifest, kind, known[manifest], said)
        return new

    def _widen(self, manifest: int, kind: ManifestKind, known: list[int] | None, said: list[int]) -> None:
        """Add what this push says beyond what is known. Nobody's word may take a reference away from another."""
        listed = set(known or ())
        extra = [blob for blob in said if blob not in listed]
        if known is not None and not extra:
            return
        if not self._alone:
            raise AloneNeededError(f"Manifest {manifest} lists more than was known.")
        widened = (known or []) + extra
        holdings = rows.widen_manifest(self._connection, manifest, kind, widened)
        self._refs[manifest] = widened
        self._widened.add(manifest)
        for blob in extra:
            self._references[blob] += holdings

    def _count(self, changes: Changes) -> None:
        ids, refs, references = self._ids, self._refs, self._references
        for key in changes.holdings.added:
            if key in self._implied:
                # It is counted already.
                continue
            manifest = ids[key[1]]
            references[manifest] += 1
            references.update(refs[manifest] or ())
        self._links.update(ids[digest] for _, digest in changes.links.added)
        self._links.subtract(ids[digest] for _, digest in changes.links.removed)

    def _write(self, before: Before, changes: Changes, new_manifests: list[rows.NewManifest]) -> None:
        ids = self._ids
        new_ids = {ids[digest] for digest in self._new}
        self._insert_blobs()
        rows.insert_manifests(self._connection, sorted(new_manifests))
        self._widened.update(
            rows.mark_indexes(
                self._connection,
                {
                    ids[digest]
                    for digest, push in self._pushes.items()
                    if push.content is not None and push.content.kind is ManifestKind.INDEX
                }
                - {manifest.id for manifest in new_manifests},
            )
        )
        read = {ids[digest] for digest, push in self._pushes.items() if push.read}
        rows.verify_manifests(self._connection, read - {manifest.id for manifest in new_manifests})
        rows.write_holdings(self._connection, before.holdings, changes.holdings, ids, self._repositories, self._implied)
        rows.write_links(self._connection, before.links, changes.links, ids, self._repositories)
        rows.write_removals(self._connection, changes.removals, self._repositories)
        sizes = {ids[digest]: self._sizes.get(digest) for digest in self._unsized}
        touched = sorted((self._references.keys() | self._links.keys() | sizes.keys()) - new_ids)
        deltas = [rows.Delta(blob, self._references[blob], self._links[blob], sizes.get(blob)) for blob in touched]
        rows.add_counts(self._connection, [delta for delta in deltas if delta[1:] != (0, 0, None)])

    def _keep_children(self, changes: Changes, new_manifests: list[rows.NewManifest]) -> None:
        """Let held indexes hold what they list. Counts are written: see implied.py."""

        def holdings(keys: Iterable[Key]) -> list[implied.Holding]:
            return [(self._repositories[name], self._ids[digest]) for name, digest in keys]

        implied.drop(self._connection, holdings(changes.holdings.removed))
        no_indexes = {manifest.id for manifest in new_manifests if manifest.kind is not ManifestKind.INDEX}
        added = holdings(changes.holdings.added)
        implied.complete(self._connection, [pair for pair in added if pair[1] not in no_indexes])
        # Nobody lists what had no row.
        new = {self._ids[digest] for digest in self._new}
        implied.complete_all(
            self._connection,
            listed={manifest.id for manifest in new_manifests} - new,
            indexes=self._widened,
        )

    def _insert_blobs(self) -> None:
        ids, sizes = self._ids, self._sizes
        inserted = rows.insert_blobs(
            self._connection,
            [
                rows.NewBlob(
                    ids[digest],
                    digest,
                    sizes[digest],
                    self._references[ids[digest]],
                    self._links[ids[digest]],
                )
                for digest in sorted(self._new)
            ],
        )
        if inserted != len(self._new):
            raise StateChangedError("Another worker met the same new blob.")
