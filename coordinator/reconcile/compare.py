"""Reconcile one part of a pod: list it, merge it with the table, add missing links, verify links that were not listed.

Repositories with few links are compared many at a time; one with more than `Sizes.compared` is streamed, against a
cursor.
Everything here may be done twice, by any process and at any time: only a link that exists is added, and only the
look-up under the lock (resolve.py) decides about a removal, never its absence from a listing (scenario 19).

A listing that ended early without an error is noticed by the look-ups: a known link that it lacks exists. What else it
lacks is not known, so the part is listed again. Such a link may also have been written after the listing had passed its
key, but not after the second listing began: if that lacks it too, and it is still the same object, listings are
incomplete.

Links that are compared: those of manifests and, in pods of mode `link`, those of blobs, both ways. In mode `manifest` a
link of a blob counts only for a grace period, so missing young links are added, and all others left to the sweep. What
an index or a tag names may be a manifest that is linked only as a blob (linked_manifests.py), whatever its age.
Not here: the parts (plan.py), running them side by side and again (reconcile.py).
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

from coordinator.domain.facts import BlobLinked, ManifestPushed, ManifestRead
from coordinator.domain.merge import Link, LinkKind, find_differences
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.pods import PodMode
from coordinator.errors import BaleenError
from coordinator.jobs.table import Job
from coordinator.pods import directory
from coordinator.reconcile import linked_manifests, resolve, scan, table
from coordinator.reconcile.links import Named, PodLinks
from coordinator.reconcile.resolve import Resolver
from coordinator.reconcile.scan import ListedLink
from coordinator.reconcile.sizes import PRODUCTION, Sizes
from coordinator.reconcile.table import Child, ReconciledPod
from coordinator.reconcile.tally import EXAMPLES, Change, Tally
from coordinator.storage.layout import (
    REPOSITORIES,
    LinkFolder,
    blob_key,
    layer_link_key,
    link_key,
    parse_link_folder,
    parse_tags_folder,
    repository_prefix,
)
from coordinator.storage.port import ObjectInfo, ObjectStore
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item

T = TypeVar("T")

Fact = ManifestPushed | BlobLinked


class PartialListingError(BaleenError):
    """The store's listings are incomplete, so nothing can be concluded from them."""


class Scope(NamedTuple):
    """Values that all parts of a reconcile share."""

    job: Job
    pod: ReconciledPod
    #: Prefixes of keys that are listed.
    parts: Sequence[str]
    #: How much the clocks of registries and of the store may differ.
    margin: timedelta
    link_grace: timedelta
    sizes: Sizes = PRODUCTION


class Comparison:
    """Compares parts on one connection, set up by `rows.prepare`. Not safe for use by several threads."""

    def __init__(
        self,
        scope: Scope,
        connection: Any,
        store: ObjectStore,
        links: PodLinks,
        resolver: Resolver,
        lookups: Executor,
        tally: Tally,
        check: Callable[[], None],
    ) -> None:
        """`check` raises when the work has to end; it is called once per thousand keys."""
        self._scope = scope
        self._sizes = scope.sizes
        self._connection = connection
        self._store = store
        self._links = links
        self._resolver = resolver
        self._lookups = lookups
        self._tally = tally
        self._check = check
        self._apply = BatchApplier(connection, scope.margin)
        #: All links of folders that have few; a folder is never split.
        self._listed: list[ListedLink] = []
        self._young = _Batch(self._sizes.added, self._add_lacking)
        self._tagged: set[Named] = set()
        self._facts: _Batch[Fact] = _Batch(self._sizes.added, self._write_facts)
        self._missed = _Batch(self._sizes.looked_up, self._resolve_unlisted)
        self._lacking = _LackingLinks(self._sizes.lacking_kept)

    def compare_part(self, prefix: str) -> None:
        """List and compare everything below a prefix.

        Raises UnavailableError, after it has perhaps done some of it, and PartialListingError.
        """
        self._forget_listed(prefix)
        self._list_part(prefix)
        self._list_again()

    def _forget_listed(self, prefix: str) -> None:
        """Forget what a failed attempt listed: it may have listed what this one lacks, and not have compared it."""
        one = parse_link_folder(prefix)
        if one is not None:
            table.forget_listed(self._connection, self._scope.job, [one[1].kind], repository=one[1].repository)
        elif parse_tags_folder(prefix) is None:
            beginning = prefix.removeprefix(REPOSITORIES)
            table.forget_listed(self._connection, self._scope.job, list(LinkKind), beginning=beginning)

    def _list_part(self, prefix: str, lacking: "_LackingLinks | None" = None) -> None:
        self._tally.begin_part(prefix)
        scope = self._scope
        grown = scope.pod.mode is PodMode.LINK
        objects = self._links.walk(prefix)
        found = scan.find_links(
            objects if lacking is None else lacking.forget_listed(objects),
            # Before that the grace of a link has certainly ended, whatever the clocks say.
            layers_after=None if grown else scope.job.began_at - scope.link_grace - scope.margin,
            on_progress=lambda keys, links: self._report_progress(prefix, keys, links),
            tagged=self._take_tagged,
        )
        for folder, links in groupby(found, key=attrgetter("folder")):
            if folder.kind is LinkKind.LAYER and not grown:
                for each in links:
                    self._young.add(each)
            else:
                self._take_links(folder, links)
        self.finish()

    def verify_unlisted(self, kind: LinkKind) -> None:
        """Verify the table's links in repositories of which the listing showed nothing."""
        with table.read_unlisted_links(
            self._connection, self._scope.job, kind, self._scope.margin, self._sizes.fetched
        ) as found:
            for count, thing in enumerate(found):
                if count % resolve.BATCH_SIZE == 0:
                    self._check()
                self._missed.add((kind, thing))
        self.finish()
        self._list_again()

    def read_reported(self) -> int:
        """Read the manifests whose references are known only from reports; return how many were read.

        Each is read once: its bytes replace the reports. Manifests that are kept by links are read each time, and
        counted.
        """
        found = 0
        with table.read_reported_manifests(self._connection, self._scope.pod.id, self._sizes.fetched) as held:
            for batch in _split_batches(held, self._sizes.read):
                self._check()
                contents = self._links.read_manifests(batch)
                facts: list[Item] = []
                for repository, digest in batch:
                    stored = contents[digest]
                    facts.append(
                        Item(0, 0, 0, ManifestRead(digest, stored.size, stored.content, stored.by_links), None)
                    )
                    found += stored.content is not None
                    if stored.by_links:
                        self._tally.count_change(Change.UNREAD)
                        self._tally.add_example(Change.UNREAD, repository, digest, stored.why)
                self._apply.apply_stored(facts)
        return found

    def add_children(self) -> None:
        """Add children of indexes that are held only by the link of a blob, or only by their index.

        A child may be an index itself.
        """
        found: list[Named] = []
        with table.read_children(self._connection, self._scope.pod.id, self._sizes.fetched) as named:
            for children in _split_batches(named, self._sizes.looked_up):
                self._check()
                found += self._add_named(children)
        self.finish()
        while found:
            indexes, found = found, []
            for batch in _split_batches(indexes, self._sizes.looked_up):
                self._check()
                found += self._add_named(table.read_unheld_children(self._connection, batch))
            self.finish()

    def finish(self) -> None:
        """Process everything that waits in batches."""
        self._compare_listed()
        self._young.finish()
        self._add_tagged()
        self._facts.finish()
        self._missed.finish()

    def _list_again(self) -> None:
        """List parts again whose listing lacked existing links; raises PartialListingError if one is lacking again."""
        lacking, self._lacking = self._lacking, _LackingLinks(self._sizes.lacking_kept)
        for prefix in sorted(lacking.prefixes):
            self._list_part(prefix, lacking)
        for link in self._links.find(list(lacking.links)):
            # Another object by now was written after the listing had passed its key.
            if link is not None and link.modified_at == lacking.links[link.key]:
                raise PartialListingError(
                    f"Storage has {link.key}, but two listings did not show it: the object store's listings are "
                    "incomplete, so nothing was removed. Find out what is wrong with the store; the reconcile is tried "
                    "again."
                )
        # A link that only the second listing lacked is known already, and may have been written since.
        self._lacking = _LackingLinks(self._sizes.lacking_kept)

    def _part_of_key(self, repository: RepositoryName, key: str) -> str:
        """Return the part of a key; for a repository that is newer than the plan, the pod's whole prefix."""
        for part in self._scope.parts:
            if key.startswith(part):
                return part
        owners = (repository_prefix(prefix) for prefix in self._scope.pod.prefixes)
        return next((owner for owner in owners if key.startswith(owner)), repository_prefix(repository))

    def _report_progress(self, part: str, keys: int, links: int) -> None:
        self._tally.set_listed(part, keys, links)
        self._check()

    def _take_links(self, folder: LinkFolder, links: Iterator[ListedLink]) -> None:
        """Compare the folder's links together with those of others, or by themselves if they are many."""
        first = list(islice(links, self._sizes.compared))
        if len(first) == self._sizes.compared:
            self._compare_folder(folder, chain(first, links))
            return
        # A store that lists without order may give a folder's links in several pieces.
        self._listed += first
        if len(self._listed) >= self._sizes.compared:
            self._compare_listed()

    def _add_lacking(self, wanted: Sequence[ListedLink]) -> None:
        """Add the young links that the table does not have."""
        lacking = table.read_lacking(
            self._connection, LinkKind.LAYER, [(each.folder.repository, each.digest) for each in wanted]
        )
        for each in wanted:
            if (each.folder.repository, each.digest) in lacking:
                self._add_fact(LinkKind.LAYER, each.folder.repository, each.digest, each.modified_at)

    def _take_tagged(self, repository: RepositoryName, digest: Digest) -> None:
        self._tagged.add((repository, digest))
        if len(self._tagged) >= self._sizes.compared:
            self._compare_listed()
            self._add_tagged()

    def _add_tagged(self) -> None:
        """Add manifests that tags point to, or have pointed to, and that are held by the link of a blob."""
        if not self._tagged:
            return
        # Write the listed links of these repositories first, so that the table has them below.
        self._facts.finish()
        named, self._tagged = sorted(self._tagged), set()
        for batch in _split_batches(named, self._sizes.looked_up):
            self._add_named(sorted(table.read_lacking(self._connection, LinkKind.REVISION, batch)))

    def _add_named(self, named: Sequence[Named | Child]) -> list[Named]:
        """Add those of these manifests that are held by the link of a blob, or by an index; return them."""
        found = linked_manifests.find_linked_manifests(self._links, named)
        for fact in found:
            self._facts.add(fact)
        return [(fact.repository, fact.digest) for fact in found]

    def _compare_listed(self) -> None:
        listed, self._listed = self._listed, []
        for kind in LinkKind:
            found = [each for each in listed if each.folder.kind is kind]
            if found:
                ids = self._repository_ids(list({each.folder.repository for each in found}))
                links = sorted(Link(ids[each.folder.repository], each.digest, each.modified_at) for each in found)
                self._compare_links(kind, {number: name for name, number in ids.items()}, links)

    def _compare_folder(self, folder: LinkFolder, found: Iterable[ListedLink]) -> None:
        number = self._repository_ids([folder.repository])[folder.repository]
        links = (Link(number, listed.digest, listed.modified_at) for listed in found)
        self._compare_links(folder.kind, {number: folder.repository}, links)

    def _repository_ids(self, repositories: Sequence[RepositoryName]) -> dict[RepositoryName, int]:
        return table.ensure_repositories(self._connection, self._scope.pod.id, repositories)

    def _compare_links(self, kind: LinkKind, names: dict[int, RepositoryName], links: Iterable[Link]) -> None:
        scope = self._scope
        repositories = sorted(names)
        table.mark_listed(self._connection, scope.job, kind, repositories)
        rows = table.read_known_links(
            self._connection, kind, repositories, scope.job.began_at, scope.margin, self._sizes.fetched
        )
        with rows as known:
            for difference in find_differences(links, known):
                number, digest, _ = difference
                if isinstance(difference, Link):
                    self._add_fact(kind, names[number], digest, difference.modified_at)
                else:
                    self._missed.add((kind, table.UnlistedLink(number, names[number], digest)))

    def _add_fact(self, kind: LinkKind, repository: RepositoryName, digest: Digest, at: datetime.datetime) -> None:
        if kind is LinkKind.REVISION:
            self._facts.add(ManifestPushed(repository, digest, at, None, None))
        else:
            self._facts.add(BlobLinked(repository, digest, at, None))

    def _write_facts(self, found: Sequence[Fact]) -> None:
        self._check()
        items = [Item(0, 0, self._scope.pod.id, fact, None) for fact in self._fill_facts(found)]
        applied = self._apply.apply_stored(items)
        for change, kind, added in (
            (Change.HOLDING_ADDED, ManifestPushed, applied.holdings_added),
            (Change.LINK_ADDED, BlobLinked, applied.links_added),
        ):
            self._tally.count_change(change, added)
            for fact in islice((fact for fact in found if isinstance(fact, kind)), min(added, EXAMPLES)):
                self._tally.add_example(change, fact.repository, fact.digest)

    def _fill_facts(self, facts: Sequence[Fact]) -> list[Fact]:
        """Add what no event has reported: the references of new manifests, and sizes."""
        pushed = {
            fact.digest: fact.repository for fact in facts if isinstance(fact, ManifestPushed) and fact.content is None
        }
        known = directory.find_verified_manifests(self._connection, set(pushed)) if pushed else set()
        contents = self._links.read_manifests(
            [(repository, digest) for digest, repository in pushed.items() if digest not in known]
        )
        linked = {fact.digest for fact in facts if isinstance(fact, BlobLinked)}
        unsized = table.read_unsized(self._connection, list(linked)) if linked else []
        stored = dict(zip(unsized, self._lookups.map(self._store.head, map(blob_key, unsized)), strict=True))

        def filled(fact: Fact) -> Fact:
            if isinstance(fact, BlobLinked):
                blob = stored.get(fact.digest)
                return fact if blob is None else fact._replace(size=blob.size)
            return contents[fact.digest].fill(fact) if fact.content is None and fact.digest in contents else fact

        return [filled(fact) for fact in facts]

    def _resolve_unlisted(self, missed: Sequence[tuple[LinkKind, table.UnlistedLink]]) -> None:
        """Look up links that were not listed; those that do not exist are doubted and resolved under the lock."""
        present = self._links.find([link_key(thing.repository, kind, thing.digest) for kind, thing in missed])
        unlinked: list[table.UnlistedLink] = []
        for (_, thing), link in zip(missed, present, strict=True):
            if link is None:
                unlinked.append(thing)
            else:
                self._tally.count_change(Change.STILL_LINKED)
                self._lacking.add(link, self._part_of_key(thing.repository, link.key))
        # A manifest may be held by the link of a blob alone.
        layers = self._links.find([layer_link_key(thing.repository, thing.digest) for thing in unlinked])
        absent = dict.fromkeys(
            (thing.repository_id, thing.digest) for thing, layer in zip(unlinked, layers, strict=True) if layer is None
        )
        for batch in _split_batches(absent, resolve.BATCH_SIZE):
            self._check()
            results = self._resolver.resolve_unlisted(
                self._scope.pod.linked, batch, self._scope.job.began_at, self._scope.pod.prefixes
            )
            self._tally.count_removed(results)


class _Batch(Generic[T]):
    """Collects things, and processes up to `size` of them at a time."""

    def __init__(self, size: int, process: Callable[[list[T]], None]) -> None:
        self._size = size
        self._process = process
        self._things: list[T] = []

    def add(self, thing: T) -> None:
        self._things.append(thing)
        if len(self._things) >= self._size:
            self.finish()

    def finish(self) -> None:
        things, self._things = self._things, []
        if things:
            self._process(things)


class _LackingLinks:
    """Existing links that a listing did not show."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        #: The time each was written, by key; at most `kept`.
        self.links: dict[str, datetime.datetime] = {}
        #: Parts that have to be listed again.
        self.prefixes: set[str] = set()
        self._count, self._every = 0, 1

    def add(self, link: ObjectInfo, prefix: str) -> None:
        self.prefixes.add(prefix)
        if self._count % self._every == 0:
            self.links[link.key] = link.modified_at
            if len(self.links) > self._kept:
                self.links = dict(islice(self.links.items(), 0, None, 2))
                self._every *= 2
        self._count += 1

    def forget_listed(self, objects: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
        """Give the listed objects, and forget the links that are among them."""
        for entry in objects:
            self.links.pop(entry.key, None)
            yield entry


def _split_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
