"""Plan the adoption of a pod's own store. Pure: a dry run shows this plan, and the real run does it.

Route: adopt.read -> (source's links, sizes, manifests; what the shared layer has) -> `make_plan` -> adopt.execute

Rules:
- A blob is adopted if a repository links it, or one of its manifests lists it, and the source stores it.
- A link to a blob that the source does not store is left out: it would be a link without a blob. Also if the shared
  layer has that blob: only a source that has the bytes may have the link, else a link would be a way to read blobs that
  others have pushed.
- A manifest of which the source lacks a part is adopted as it is, and reported as incomplete: registries also serve an
  index of which some platform was deleted.
- Bytes that do not match their digest, and blobs of another size than in the shared layer, are refused, and with them
  every manifest that needs them and every tag of such a manifest.
- A tag is written if the shared layer has none, or if the source has moved it since: the source's history lists where
  the shared layer's tag points, and the shared layer's history does not list where the source's points. Otherwise the
  shared layer's tag stays.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from coordinator.domain.names import Digest, RepositoryName, format_digest, parse_repository
from coordinator.domain.pods import prefixes_of
from coordinator.errors import ConflictError, InvalidNameError
from coordinator.survey.tree import Kind, Link, Links, Manifest

NAMES_SHOWN = 20


class AdoptionInput(NamedTuple):
    """What was read from the two stores."""

    #: The source's links, of the repositories that are adopted.
    links: Mapping[RepositoryName, Links]
    sizes: Mapping[Digest, int]
    manifests: Mapping[Digest, Manifest]
    #: The shared layer's: links of the same repositories, and sizes of those of the source's blobs that it has.
    shared_links: Mapping[RepositoryName, Links]
    shared_sizes: Mapping[Digest, int]


class Why(StrEnum):
    """Why something is not adopted, or only in part."""

    #: Linked, and the source does not store it: left out.
    ABSENT = "absent"
    #: A manifest that lists blobs which the source does not store: adopted as it is.
    INCOMPLETE = "incomplete"
    #: A manifest that cannot be read: adopted as it is.
    UNREAD = "unread"
    #: Bytes that do not match their digest, or differ from the shared layer's: refused, with all that needs them.
    REFUSED = "refused"
    #: A manifest or a tag that needs something refused or absent: left out.
    LEFT_OUT = "left_out"
    #: A tag that points elsewhere in the shared layer: it stays as it is there.
    TAG_KEPT = "tag_kept"


class Remark(NamedTuple):
    why: Why
    repository: str
    #: A digest or a tag.
    what: str
    detail: str


class Blob(NamedTuple):
    """A blob that is to be in the shared layer, with bytes that are verified against its digest."""

    digest: Digest
    size: int
    #: The shared layer has it: nothing is copied.
    present: bool


class Revision(NamedTuple):
    link: Link
    digest: Digest
    #: Listed blobs that the source stores: all must be there, and verified, before the link is written.
    needs: tuple[Digest, ...]


class TagWrite(NamedTuple):
    link: Link
    digest: Digest
    #: Where the shared layer's tag pointed when it was read.
    there: Digest | None


class RepositoryPlan(NamedTuple):
    repository: RepositoryName
    #: Blobs that no earlier repository brings; without those that have their link and on which no new link relies.
    blobs: Sequence[Blob]
    #: Links to write, in this order. Of revisions children come before those that list them.
    layers: Sequence[Link]
    revisions: Sequence[Revision]
    history: Sequence[Link]
    tags: Sequence[TagWrite]


class Figures(NamedTuple):
    """Counts of what a plan will do, or of what a run has done."""

    repositories: int = 0
    #: Distinct blobs that the adopted repositories need, and their bytes.
    blobs: int = 0
    bytes: int = 0
    #: Those of them that the shared layer lacks.
    copied_blobs: int = 0
    copied_bytes: int = 0
    layer_links: int = 0
    revision_links: int = 0
    tag_links: int = 0


class Plan(NamedTuple):
    repositories: Sequence[RepositoryPlan]
    #: Every blob that has to be in the shared layer at the end, including those that were there with their links.
    needed: Mapping[Digest, int]
    remarks: Sequence[Remark]
    figures: Figures


def select_owned(repositories: Iterable[str], prefixes: Collection[str], *, only_owned: bool) -> list[RepositoryName]:
    """Return the repositories that are below the prefixes; raises ConflictError if others are not.

    With `only_owned` the others are left out.
    """
    ours: list[RepositoryName] = []
    others: list[RepositoryName] = []
    for name in sorted(repositories):
        try:
            mine = not set(prefixes).isdisjoint(prefixes_of(parse_repository(name)))
        except InvalidNameError:
            mine = False
        (ours if mine else others).append(RepositoryName(name))
    if others and not only_owned:
        names = ", ".join(others[:NAMES_SHOWN]) + (
            f" and {len(others) - NAMES_SHOWN} more" if others[NAMES_SHOWN:] else ""
        )
        raise ConflictError(
            f"{len(others)} of the source's repositories are not below the pod's prefixes "
            f"({', '.join(sorted(prefixes))}): {names}. "
            "Give the pod their prefixes, or leave them out with --only-owned."
        )
    return ours


def find_needed_blobs(
    links: Links, manifests: Mapping[Digest, Manifest], sizes: Collection[Digest]
) -> frozenset[Digest]:
    """Return the blobs that a repository needs and the source stores."""
    wanted = {*links.layers, *links.revisions}
    for revision in links.revisions:
        wanted.update(manifests.get(revision, Manifest()).references)
    return frozenset(digest for digest in wanted if digest in sizes)


def make_plan(found: AdoptionInput, *, tags_from_source: bool = False) -> Plan:
    """Decide which blobs are copied, and which links are written, in which order."""
    return _Planner(found, tags_from_source=tags_from_source).make_plan()


class _Planner:
    def __init__(self, found: AdoptionInput, *, tags_from_source: bool) -> None:
        self._found = found
        self._tags_from_source = tags_from_source
        self._needed: dict[Digest, int] = {}
        self._brought: set[Digest] = set()
        self._remarks: list[Remark] = []
        self._refused = dict(self._find_refusals())

    def make_plan(self) -> Plan:
        repositories = [self._plan_repository(name) for name in sorted(self._found.links)]
        copied = [blob for each in repositories for blob in each.blobs if not blob.present]
        figures = Figures(
            repositories=len(repositories),
            blobs=len(self._needed),
            bytes=sum(self._needed.values()),
            copied_blobs=len(copied),
            copied_bytes=sum(blob.size for blob in copied),
            layer_links=sum(len(each.layers) for each in repositories),
            revision_links=sum(len(each.revisions) for each in repositories),
            tag_links=sum(len(each.history) + len(each.tags) for each in repositories),
        )
        return Plan(repositories, self._needed, self._remarks, figures)

    def _find_refusals(self) -> Iterator[tuple[Digest, str]]:
        for digest, size in self._found.shared_sizes.items():
            if self._found.sizes[digest] != size:
                yield digest, f"the source stores {self._found.sizes[digest]} bytes, the shared layer {size}"
        for digest, manifest in self._found.manifests.items():
            if manifest.corrupt is not None:
                yield digest, manifest.corrupt

    def _plan_repository(self, name: RepositoryName) -> RepositoryPlan:
        found, links = self._found, self._found.links[name]
        have = found.shared_links.get(name, Links())
        wanted = find_needed_blobs(links, found.manifests, found.sizes.keys())
        self._add_link_remarks(name, links, wanted)
        revisions = list(
            children_first({digest: found.manifests[digest].references for digest in self._stored_blobs(links)})
        )
        adopted: dict[Digest, Revision] = {}
        left_out: set[Digest] = set()
        for digest in revisions:
            needs = self._needs_of(digest, have, adopted)
            bad = [each for each in needs if each in self._refused or each in left_out]
            if digest in self._refused or bad:
                left_out.add(digest)
                if digest not in self._refused:
                    self._add_remark(Why.LEFT_OUT, name, digest, f"it lists {format_digest(bad[0])}")
            else:
                adopted[digest] = Revision(Link(Kind.REVISION, name, digest), digest, needs)
        brought = {digest for digest in wanted if digest not in self._refused}
        self._needed.update((digest, found.sizes[digest]) for digest in sorted(brought))
        layers = sorted(links.layers & brought - have.layers)
        new = [revision for digest, revision in adopted.items() if digest not in have.revisions]
        complete = have.layers | have.revisions | find_needed_blobs(have, found.manifests, found.sizes.keys())
        complete -= {*layers, *(digest for revision in new for digest in (revision.digest, *revision.needs))}
        blobs = [
            Blob(digest, found.sizes[digest], digest in found.shared_sizes)
            for digest in sorted(brought - self._brought)
            if not (digest in complete and digest in found.shared_sizes)
        ]
        self._brought.update(blob.digest for blob in blobs)
        tags = list(self._plan_tags(name, links, have, adopted))
        written = {each.link.tag for each in tags}
        return RepositoryPlan(
            name,
            blobs,
            [Link(Kind.LAYER, name, digest) for digest in layers],
            new,
            [
                Link(Kind.HISTORY, name, digest, tag)
                for tag, digest in sorted(links.history - have.history)
                if digest in adopted and (tag in written or links.tags.get(tag) == have.tags.get(tag))
            ],
            tags,
        )

    def _needs_of(self, digest: Digest, have: Links, adopted: Mapping[Digest, Revision]) -> tuple[Digest, ...]:
        """Return what a manifest lists, and what those of its children need that have their links already."""
        listed = [each for each in self._found.manifests[digest].references if each in self._found.sizes]
        linked = [adopted[each] for each in listed if each in have.revisions and each in adopted]
        return tuple(dict.fromkeys([*listed, *(each for child in linked for each in child.needs)]))

    def _stored_blobs(self, links: Links) -> Sequence[Digest]:
        return sorted(digest for digest in links.revisions if digest in self._found.manifests)

    def _add_link_remarks(self, name: RepositoryName, links: Links, wanted: Collection[Digest]) -> None:
        for digest in sorted(links.layers | links.revisions):
            if digest not in self._found.sizes:
                self._add_remark(Why.ABSENT, name, digest, "the source does not store it")
            elif digest in self._refused:
                self._add_remark(Why.REFUSED, name, digest, self._refused[digest])
        for digest in sorted(set(wanted) - links.layers - links.revisions):
            if digest in self._refused:
                self._add_remark(Why.REFUSED, name, digest, self._refused[digest])
        for digest in self._stored_blobs(links):
            manifest = self._found.manifests[digest]
            if manifest.unread is not None:
                self._add_remark(Why.UNREAD, name, digest, manifest.unread)
            lacking = [each for each in manifest.references if each not in self._found.sizes]
            if lacking:
                example = format_digest(lacking[0])
                detail = f"the source does not store {len(lacking)} of what it lists, such as {example}"
                self._add_remark(Why.INCOMPLETE, name, digest, detail)

    def _plan_tags(
        self, name: RepositoryName, links: Links, have: Links, adopted: Collection[Digest]
    ) -> Iterator[TagWrite]:
        for tag, digest in sorted(links.tags.items()):
            if digest is None or digest not in adopted:
                what = "its link cannot be read" if digest is None else f"{format_digest(digest)} is not adopted"
                self._remarks.append(Remark(Why.LEFT_OUT, name, tag, what))
                continue
            there = have.tags.get(tag)
            moved_on = (tag, there) in links.history and (tag, digest) not in have.history
            if there is None or moved_on or (self._tags_from_source and there != digest):
                yield TagWrite(Link(Kind.TAG, name, tag=tag), digest, there)
            elif there != digest:
                detail = f"{format_digest(there)} in the shared layer, {format_digest(digest)} in the source"
                self._remarks.append(Remark(Why.TAG_KEPT, name, tag, detail))

    def _add_remark(self, why: Why, name: RepositoryName, digest: Digest, detail: str) -> None:
        self._remarks.append(Remark(why, name, format_digest(digest), detail))


def children_first(references: Mapping[Digest, Sequence[Digest]]) -> Iterator[Digest]:
    """Give the manifests, each after those of them that it lists. Digests allow no circle."""
    done: set[Digest] = set()
    for first in references:
        stack = [first]
        while stack:
            here = stack[-1]
            waiting = [each for each in references[here] if each in references and each not in done and each != here]
            if here in done:
                stack.pop()
            elif waiting:
                stack += waiting
            else:
                done.add(stack.pop())
                yield here
