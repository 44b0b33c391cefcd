"""Apply a run of facts about single digests: load the rows they touch, fold the facts, write the difference.

Every blob gets its id before anything is written, so that everything else uses ids: new manifests, holdings, links, and
counts, which a new blob's row has from the start.

What a manifest lists. Its bytes decide, whatever pods report: content that was read replaces what is known, even if it
lists less, and no report changes it afterwards. Until the bytes are read, reports are joined, so that no report removes
what another one lists. A manifest about which reports differ is returned to the caller, which has its bytes read at
once (Applied.disputed). A reference that is dropped by reading was never one: the caller has compared the bytes with
the manifest's digest.
Not here: SQL (statements.py), the rules (domain/fold.py), transactions and progress (apply.py).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from itertools import chain
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db.arrays import clamp_time
from coordinator.domain.facts import BlobLinked, ManifestPushed, ManifestRead, Removed
from coordinator.domain.fold import Before, Changes, Fold, Key
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import PARENTS, ManifestContent, ManifestKind, unique_references
from coordinator.errors import BaleenError
from coordinator.table import implied, renames, statements
from coordinator.table.batch import ApplyResult, Item, Reports, StateChangedError


class AloneNeededError(BaleenError):
    """The run must change what a known manifest lists, which needs all other writers excluded."""


class _ListedContent(NamedTuple):
    """What a manifest lists according to this run; `read` and `by_links` as in ManifestPushed."""

    content: ManifestContent | None
    read: bool
    by_links: bool


class FactRun:
    """Apply one run of facts; used once. `alone`: this transaction excludes all other writers (see db/locks.py)."""

    def __init__(
        self,
        connection: Connection[Any],
        items: list[Item],
        margin: timedelta,
        *,
        alone: bool,
        reports: Reports | None = None,
    ) -> None:
        """`reports`: what pods reported earlier about manifests that are read now, to be compared with the bytes."""
        self._connection = connection
        self._margin = margin
        self._alone = alone
        self._facts = [
            fact if (at := clamp_time(fact.at)) is fact.at else fact._replace(at=at)
            for item in items
            if isinstance(fact := item.fact, ManifestPushed | BlobLinked | Removed)
        ]
        self._reads = [fact for item in items if isinstance(fact := item.fact, ManifestRead)]
        self._owners: dict[RepositoryName, int] = {
            item.fact.repository: item.pod_id
            for item in items
            if item.fact is not None and not isinstance(item.fact, ManifestRead)
        }
        #: What each manifest lists.
        self._listed: dict[Digest, _ListedContent] = {}
        #: What pods report about it.
        self._reports: dict[Digest, list[tuple[int, ManifestContent]]] = {
            digest: list(found) for digest, found in (reports or {}).items()
        }
        self._earlier = [reference for found in (reports or {}).values() for _, each in found for reference in each[1]]
        self._disputed: set[Digest] = set()
        #: For each pod, how many reports are false, and the manifest of the last one.
        self._false: dict[int, tuple[int, Digest]] = {}
        #: Manifests that are kept by links: ids.
        self._by_links: set[int] = set()
        #: Size of every blob that gets a row, in bytes; None if it is not known.
        self._sizes: dict[Digest, int | None] = {}
        self._ids: dict[Digest, int] = {}
        self._new: set[Digest] = set()
        #: Known blobs whose size is not known yet.
        self._unsized: list[Digest] = []
        self._repositories: dict[RepositoryName, int] = {}
        #: What each manifest of this run lists, by id; None while it could not be read.
        self._refs: dict[int, Sequence[int] | None] = {}
        self._references: Counter[int] = Counter()
        self._links: Counter[int] = Counter()
        #: Implied holdings: a held index lists them, and no link of the repository is known.
        self._implied: set[Key] = set()
        #: Known manifests whose list this run has changed, or that it has found to be indexes.
        self._widened: set[int] = set()
        #: What known manifests listed before, if they were indexes.
        self._narrowed: dict[int, Sequence[int]] = {}

    def apply(self) -> ApplyResult:
        self._collect_stated()
        self._repositories = statements.ensure_repositories(self._connection, self._owners)
        self._assign_blob_ids()
        before = self._read_before()
        fold = Fold(before, self._margin, self._repositories_by_report())
        fold.apply(fact for fact in self._facts if not isinstance(fact, ManifestPushed) or fact.linked)
        changes = fold.changes()
        if changes.holdings.removed and not self._alone:
            raise AloneNeededError("Another writer may be adding an index that lists the removed manifest.")
        new_manifests = self._update_manifests()
        self._count_changes(changes)
        self._write_changes(before, changes, new_manifests)
        self._update_implied_holdings(changes, new_manifests)
        removals = chain(changes.removals.added.values(), changes.removals.changed.values())
        return ApplyResult(
            holdings_added=len(changes.holdings.added),
            holdings_removed=len(changes.holdings.removed),
            links_added=len(changes.links.added),
            links_removed=len(changes.links.removed),
            removals_doubtful=sum(removal.doubtful for removal in removals),
            removals_overtaken=fold.overtaken,
            false_reports=sum(count for count, _ in self._false.values()),
            disputed=frozenset(self._disputed),
        )

    def _collect_stated(self) -> None:
        sizes = self._sizes
        for read in self._reads:
            self._add_listed(read.digest, _ListedContent(read.content, read.content is not None, read.by_links))
        for fact in self._facts:
            if isinstance(fact, Removed):
                continue
            if isinstance(fact, ManifestPushed):
                self._add_listed(fact.digest, _ListedContent(fact.content, fact.read, fact.by_links))
                if fact.content is not None and not fact.read:
                    self._reports.setdefault(fact.digest, []).append((self._owners[fact.repository], fact.content))
            if fact.size is not None or fact.digest not in sizes:
                sizes[fact.digest] = fact.size

    def _add_listed(self, digest: Digest, stated: _ListedContent) -> None:
        known = self._listed.get(digest)
        self._add_sizes(stated.content)
        if known is None or (stated.read and not known.read):
            self._listed[digest] = stated
        elif not known.read:
            content = known.content or stated.content
            if known.content is not None and stated.content is not None and known.content != stated.content:
                content = _join_reports(known.content, stated.content)
                if set(content.references) != set(known.content.references):
                    self._disputed.add(digest)
            self._listed[digest] = _ListedContent(content, read=False, by_links=known.by_links or stated.by_links)

    def _add_sizes(self, content: ManifestContent | None) -> None:
        sizes = self._sizes
        for reference, size in content.references if content is not None else ():
            if sizes.get(reference) is None:
                sizes[reference] = size

    def _assign_blob_ids(self) -> None:
        """Find the ids of known blobs, and assign ids to the others in the order of writing."""
        wanted = list(self._sizes)
        named = {fact.digest for fact in self._facts if isinstance(fact, Removed)}
        named |= {fact.digest for fact in self._reads} | {reference.digest for reference in self._earlier}
        wanted += named - self._sizes.keys()
        self._ids, self._unsized = statements.read_blob_ids(self._connection, wanted)
        ids = self._ids
        new = sorted(self._sizes.keys() - ids.keys())
        ids.update(zip(new, statements.allocate_blob_ids(self._connection, len(new)), strict=True))
        self._new = set(new)

    def _read_before(self) -> Before:
        """Load the holdings, links and removals of exactly the pairs that the facts name."""
        keys: dict[Key, None] = {(fact.repository, fact.digest): None for fact in self._facts}
        known = {
            (self._repositories[repository], self._ids[digest]): (repository, digest)
            for repository, digest in keys
            if digest in self._ids and digest not in self._new
        }
        pairs = list(known)
        held = {known[pair]: at for pair, at in statements.read_holdings(self._connection, pairs)}
        self._implied = {key for key, at in held.items() if at is None}
        return Before(
            holdings={key: at for key, at in held.items() if at is not None},
            links={known[pair]: at for pair, at in statements.read_links(self._connection, pairs)},
            removals=statements.read_removals(self._connection, list(keys), self._repositories),
        )

    def _repositories_by_report(self) -> AbstractSet[RepositoryName]:
        """Return the repositories whose removals are applied as their events report them.

        Baleen cannot read their links, and no rename gave them anything that may be newer than the removal.
        """
        removals = [fact for fact in self._facts if isinstance(fact, Removed)]
        removed = {fact.repository for fact in removals}
        elsewhere = statements.read_pods_by_report(self._connection, {self._owners[name] for name in removed})
        by_report = {name for name in removed if self._owners[name] in elsewhere}
        return by_report - renames.read_renamed_over(
            self._connection, [fact for fact in removals if fact.repository in by_report], self._margin
        )

    def _update_manifests(self) -> list[statements.NewManifest]:
        """Fill in what the manifests of this run list; return those that have no row yet."""
        ids = self._ids
        known = statements.read_manifests(
            self._connection, [ids[digest] for digest in self._listed if digest in ids and digest not in self._new]
        )
        self._refs.update((manifest, each.refs) for manifest, each in known.items())
        new: list[statements.NewManifest] = []
        pushed = {fact.digest for fact in self._facts if isinstance(fact, ManifestPushed)}
        for digest, stated in self._listed.items():
            if digest not in ids or (ids[digest] not in known and digest not in pushed):
                # It was read, and no repository holds it any more.
                continue
            manifest = ids[digest]
            refs = None
            if stated.content is not None:
                # No manifest can list itself; a report of that would count its own holdings twice.
                refs = [ids[reference] for reference, _ in stated.content.references if reference != digest]
            elif stated.by_links:
                refs = []
            if manifest not in known:
                self._refs[manifest] = refs
                kind = None if stated.content is None else stated.content.kind
                new.append(statements.NewManifest(manifest, kind, refs, stated.read, stated.by_links))
                now = statements.KnownManifest(kind, refs, stated.read, stated.by_links)
            else:
                now = self._update_manifest(digest, known[manifest], stated, refs)
            if now.by_links:
                self._by_links.add(manifest)
            self._count_contradicted_reports(digest, now)
        return new

    def _update_manifest(
        self, digest: Digest, known: statements.KnownManifest, stated: _ListedContent, refs: list[int] | None
    ) -> statements.KnownManifest:
        """Update a known manifest with what this run says of it; return the new state."""
        kind = None if stated.content is None else stated.content.kind
        if stated.read:
            self._disputed.discard(digest)
            now = statements.KnownManifest(kind, refs, verified=True, by_links=stated.by_links)
            if not known.verified and known.refs is not None and not known.by_links:
                self._count_earlier_false_report(digest, known, now)
        elif known.verified:
            return known
        else:
            listed = set(known.refs or ())
            extra = [blob for blob in refs or () if blob not in listed]
            if known.refs is not None and stated.content is not None and (extra or len(listed) != len(refs or ())):
                self._disputed.add(digest)
            both = known.refs if refs is None else [*(known.refs or ()), *extra]
            if kind is not ManifestKind.INDEX or known.kind is None:
                kind = known.kind or kind
            now = statements.KnownManifest(kind, both, verified=False, by_links=known.by_links or stated.by_links)
        if now != known:
            self._change_manifest(digest, known, now)
        return now

    def _change_manifest(self, digest: Digest, known: statements.KnownManifest, now: statements.KnownManifest) -> None:
        manifest = self._ids[digest]
        if now.kind in PARENTS:
            self._widened.add(manifest)
        is_narrowed = known.kind in PARENTS and now.kind not in PARENTS
        if not is_narrowed and known._replace(verified=now.verified, kind=now.kind) == now:
            # The counts do not change, so `_write_changes` does it without excluding other writers.
            return
        if not self._alone:
            raise AloneNeededError(f"The references of manifest {manifest} changed: retry with the exclusive lock.")
        holdings = statements.change_manifest(self._connection, manifest, known, now)
        self._refs[manifest] = now.refs
        if known.kind in PARENTS:
            self._narrowed[manifest] = known.refs or ()
        for blob in now.refs or ():
            self._references[blob] += holdings
        for blob in known.refs or ():
            self._references[blob] -= holdings

    def _count_contradicted_reports(self, digest: Digest, now: statements.KnownManifest) -> None:
        """Count the reports of this run that the manifest's bytes contradict."""
        reports = self._reports.get(digest)
        # A NAMED manifest's bytes may name more than it lists.
        if not reports or not now.verified or now.kind is ManifestKind.NAMED:
            return
        truth = set(now.refs or ())
        for pod, content in reports:
            if self._reported_ids(digest, content) != truth:
                self._count_false_report(pod, digest)

    def _count_earlier_false_report(
        self, digest: Digest, known: statements.KnownManifest, now: statements.KnownManifest
    ) -> None:
        """Count an earlier false report, if only one pod can have made it."""
        truth, reports = set(now.refs or ()), self._reports.get(digest, ())
        if now.kind is ManifestKind.NAMED:
            return
        stated = {pod: self._reported_ids(digest, content) for pod, content in reports}
        left = set(known.refs or ()).difference(*(each - truth for each in stated.values()))
        if left == truth:
            return
        others = statements.read_holding_pods(self._connection, self._ids[digest]) - stated.keys()
        if len(others) == 1:
            self._count_false_report(others.pop(), digest)

    def _reported_ids(self, digest: Digest, content: ManifestContent) -> set[int]:
        # 0 for a digest without a row: it equals no known reference, since ids begin at 1.
        return {self._ids.get(reference, 0) for reference, _ in content.references if reference != digest}

    def _count_false_report(self, pod: int, digest: Digest) -> None:
        if pod:
            self._false[pod] = (self._false.get(pod, (0, digest))[0] + 1, digest)

    def _count_changes(self, changes: Changes) -> None:
        ids, refs, references = self._ids, self._refs, self._references
        for key in changes.holdings.added:
            if key in self._implied:
                # The implied holding is counted already.
                continue
            manifest = ids[key[1]]
            references[manifest] += 1
            references.update(refs[manifest] or ())
        self._links.update(ids[digest] for _, digest in changes.links.added)
        self._links.subtract(ids[digest] for _, digest in changes.links.removed)

    def _write_changes(self, before: Before, changes: Changes, new_manifests: list[statements.NewManifest]) -> None:
        ids = self._ids
        new_ids = {ids[digest] for digest in self._new}
        self._insert_blobs()
        statements.insert_manifests(self._connection, sorted(new_manifests))
        written = {manifest.id for manifest in new_manifests}
        statements.mark_kinds(self._connection, self._known_kinds(written, read=False), read=False)
        statements.mark_kinds(self._connection, self._known_kinds(written, read=True), read=True)
        statements.write_holdings(
            self._connection, before.holdings, changes.holdings, ids, self._repositories, self._implied
        )
        statements.mark_links_pending(
            self._connection,
            [
                (self._repositories[repository], ids[digest])
                for repository, digest in chain(changes.holdings.added, changes.holdings.changed)
                if ids[digest] in self._by_links
            ],
        )
        statements.write_links(self._connection, before.links, changes.links, ids, self._repositories)
        statements.write_removals(self._connection, changes.removals, self._repositories)
        sizes = {ids[digest]: self._sizes.get(digest) for digest in self._unsized}
        touched = sorted((self._references.keys() | self._links.keys() | sizes.keys()) - new_ids)
        deltas = [
            statements.CountDelta(blob, self._references[blob], self._links[blob], sizes.get(blob)) for blob in touched
        ]
        statements.add_counts(self._connection, [delta for delta in deltas if delta[1:] != (0, 0, None)])
        statements.count_false_reports(self._connection, self._false)

    def _known_kinds(self, written: AbstractSet[int], *, read: bool) -> Mapping[int, ManifestKind]:
        """Return the kinds of known manifests: by their bytes, or, of reported ones, only those of indexes."""
        return {
            self._ids[digest]: stated.content.kind
            for digest, stated in self._listed.items()
            if digest in self._ids
            and stated.content is not None
            and stated.read is read
            and (read or stated.content.kind is ManifestKind.INDEX)
            and self._ids[digest] not in written
        }

    def _update_implied_holdings(self, changes: Changes, new_manifests: list[statements.NewManifest]) -> None:
        """Update the implied holdings of held indexes, after the counts are written (see implied.py)."""

        def holdings(keys: Iterable[Key]) -> list[implied.Holding]:
            return [(self._repositories[name], self._ids[digest]) for name, digest in keys]

        implied.remove_unlinked(self._connection, holdings(changes.holdings.removed))
        no_indexes = {manifest.id for manifest in new_manifests if manifest.kind not in PARENTS}
        added = holdings(changes.holdings.added)
        implied.add_implied(self._connection, [pair for pair in added if pair[1] not in no_indexes])
        # No known manifest lists a digest that had no row.
        new = {self._ids[digest] for digest in self._new}
        implied.add_implied_everywhere(
            self._connection,
            listed={manifest.id for manifest in new_manifests} - new,
            indexes=self._widened,
        )
        for manifest, listed in self._narrowed.items():
            implied.remove_former_children(self._connection, manifest, listed)

    def _insert_blobs(self) -> None:
        ids, sizes = self._ids, self._sizes
        inserted = statements.insert_blobs(
            self._connection,
            [
                statements.NewBlob(
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
            raise StateChangedError("Another worker inserted the same new blob.")


def _join_reports(one: ManifestContent, other: ManifestContent) -> ManifestContent:
    """Join two reports, so that neither removes what the other lists."""
    kind = ManifestKind.INDEX if ManifestKind.INDEX in {one.kind, other.kind} else one.kind
    return ManifestContent(kind, unique_references([*one.references, *other.references]))
