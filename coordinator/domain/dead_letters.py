"""Decide which pods a dead letter concerns, and when nothing is lost without it.

A dead letter is an event that was not applied. What the event reports was in storage before the event was sent, so a
listing that begins later shows it. A reconcile of the pods that own the letter's repositories therefore resolves the
letter; until then the letter, or the gap that took its place, blocks garbage collection. No reconcile lists
repositories that no pod owns: a letter about one of them is resolved only while storage has nothing of it.

Not here: what a payload is about (ingest/dead_letters.py), SQL (table/dead_letters.py, dead_letters/resolve.py),
reading storage (reconcile/stored_content.py).
"""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from coordinator.domain.names import RepositoryName
from coordinator.domain.pods import prefixes_of

#: A letter about more repositories is treated as one about any repository.
REPOSITORIES_LIMIT: Final = 100


class DeadLetterPod(NamedTuple):
    """What letters need of a pod. `is_listed`: its links are in shared storage, where a reconcile lists them."""

    id: int
    name: str
    is_listed: bool


class Concern(NamedTuple):
    """The pods and repositories that a letter concerns.

    `pods`: each with its repositories, None for any. `unlisted`: repositories of storage that no reconcile lists,
    because no pod owns them, or one whose links are elsewhere and that did not send the letter.
    """

    pods: Mapping[DeadLetterPod, Sequence[RepositoryName] | None]
    unlisted: Sequence[RepositoryName]


def find_concern(
    repositories: Sequence[RepositoryName] | None,
    sender: str,
    pods: Collection[DeadLetterPod],
    owners: Mapping[str, DeadLetterPod],
) -> Concern:
    """Return the pods a letter concerns. `sender`: the pod's name, "" if it is not known. `owners`: by prefix."""
    if repositories is None:
        # The links in storage show what the sender did in any pod, except in pods whose links are elsewhere.
        return Concern({pod: None for pod in pods if pod.is_listed or sender in {pod.name, ""}}, ())
    owned: dict[DeadLetterPod, list[RepositoryName]] = {}
    unlisted: list[RepositoryName] = []
    for repository in repositories:
        owner = next((owners[prefix] for prefix in prefixes_of(repository) if prefix in owners), None)
        if owner is not None:
            owned.setdefault(owner, []).append(repository)
        if owner is None or (not owner.is_listed and owner.name != sender):
            unlisted.append(repository)
    return Concern(owned, unlisted)


def is_covered(
    concerned: Concern,
    stored_at: dt.datetime,
    reconciled: Mapping[int, dt.datetime],
    absent: Collection[RepositoryName],
) -> bool:
    """Whether nothing is lost without the letter: everything it may be about was listed since it was stored.

    `reconciled`: when the last reconcile of each pod began, by the pod's id. `absent`: repositories of which storage
    had nothing since the letter was stored.
    """
    return all(
        pod.is_listed and (began_at := reconciled.get(pod.id)) is not None and began_at >= stored_at
        for pod in concerned.pods
    ) and all(repository in absent for repository in concerned.unlisted)
