"""Count what a reconcile has done, for its progress and, at its end, for what changed and why.

Counts of changes add up over all processes that worked on the job. Listed keys are counted by part, so a part that is
done again is not counted twice. A killed process loses the last second's counts, never a change.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.table.doubtful_removals import Confirmation

#: Examples of each change that are kept.
EXAMPLES = 20


class Change(StrEnum):
    HOLDING_ADDED = "holdings_added"
    LINK_ADDED = "links_added"
    HOLDING_REMOVED = "holdings_removed"
    LINK_REMOVED = "links_removed"
    #: The table had it, the listing did not show it, and its link exists.
    STILL_LINKED = "still_linked"
    #: Removals that were doubtful before.
    DOUBTFUL_REMOVAL_RESOLVED = "doubtful_removals_resolved"
    #: Held manifests whose references are not known.
    UNREAD = "unread"


#: The reason for each change, as the examples give it.
WHY = {
    Change.HOLDING_ADDED: "its link is in storage, and no event reported it",
    Change.LINK_ADDED: "its link is in storage, and no event reported it",
    Change.HOLDING_REMOVED: "its link is not in storage",
    Change.LINK_REMOVED: "its link is not in storage",
}


class Tally:
    """The counts of one job. Safe to use from several threads."""

    def __init__(self, before: Mapping[str, Any]) -> None:
        """`before`: the progress of processes that worked on the job before."""
        self._lock = threading.Lock()
        # Unread manifests are counted at the end, by the process that gets there.
        self._changes = Counter[Change]({change: int(before.get(change, 0)) for change in Change})
        self._changes[Change.UNREAD] = 0
        self._examples: list[dict[str, str]] = [
            example for example in before.get("examples", []) if example["change"] != Change.UNREAD
        ]
        self._shown = Counter(example["change"] for example in self._examples)
        #: Keys and links of each part, done or not.
        self._listed: dict[str, tuple[int, int]] = {}
        self._parts = self._parts_done = 0

    def count_change(self, change: Change, count: int = 1) -> None:
        with self._lock:
            self._changes[change] += count

    def add_example(self, change: Change, repository: RepositoryName, digest: Digest, why: str | None = None) -> None:
        """Add an example of a change, up to EXAMPLES."""
        with self._lock:
            if self._shown[change] < EXAMPLES:
                self._shown[change] += 1
                self._examples.append(
                    {
                        "change": str(change),
                        "repository": repository,
                        "digest": format_digest(digest),
                        "why": why or WHY[change],
                    }
                )

    def count_removed(self, results: Sequence[Confirmation]) -> None:
        """Count what was removed because its link does not exist."""
        for doubtful, held, linked in results:
            for change, gone in (
                (Change.HOLDING_REMOVED, doubtful.held and not held),
                (Change.LINK_REMOVED, doubtful.linked and not linked),
            ):
                if gone:
                    self.count_change(change)
                    self.add_example(change, doubtful.repository, doubtful.digest)

    def set_parts(self, parts: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Set the parts, with the counts of those that are done."""
        with self._lock:
            self._parts = len(parts)
            done = {name: counts for name, counts in parts.items() if counts is not None}
            self._parts_done = len(done)
            self._listed = {name: (counts.get("keys", 0), counts.get("links", 0)) for name, counts in done.items()}

    def begin_part(self, part: str) -> None:
        with self._lock:
            self._listed[part] = (0, 0)

    def set_listed(self, part: str, keys: int, links: int) -> None:
        with self._lock:
            before = self._listed[part]
            self._listed[part] = (before[0] + keys, before[1] + links)

    def part_counts(self, part: str) -> dict[str, int]:
        """Return the counts to write with a finished part."""
        with self._lock:
            keys, links = self._listed[part]
        return {"keys": keys, "links": links}

    def end_parts(self) -> None:
        with self._lock:
            self._parts_done += 1

    def progress(self) -> dict[str, Any]:
        with self._lock:
            return {
                "parts": self._parts,
                "parts_done": self._parts_done,
                "keys": sum(keys for keys, _ in self._listed.values()),
                "links": sum(links for _, links in self._listed.values()),
                **{str(change): self._changes[change] for change in Change},
                "examples": list(self._examples),
            }
