"""A long history of events from a seed: pushes that share layers, mounts, deletes, pushes again, now and then a rename.

Times grow with every event, so that with no margin each delete is certain.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.records import ReferenceRecord, RegistryEvent, RenameRecord

REPOSITORIES = 120
SHARED_LAYERS = 400
BLOB = "application/octet-stream"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass
class Repository:
    pod: str
    name: str
    manifests: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


class History:
    """Makes events one after the other, and knows what may follow."""

    def __init__(self, seed: int, pods: Sequence[str]) -> None:
        self._chance = random.Random(seed)
        self._seed = seed
        self._clock = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
        self._number = 0
        self._contents: dict[str, list[str]] = {}
        self._shared = [self._digest(f"shared {number}") for number in range(SHARED_LAYERS)]
        self._repositories = [
            Repository(pods[number % len(pods)], f"{pods[number % len(pods)]}/app-{number}")
            for number in range(REPOSITORIES)
        ]
        self.events: list[RegistryEvent] = []

    def step(self) -> None:
        repository = self._chance.choice(self._repositories)
        draw = self._chance.random()
        if draw < 0.60:
            self._push(repository)
        elif draw < 0.70:
            self._push_again(repository)
        elif draw < 0.78:
            self._link(repository, self._chance.choice(self._shared), "mount")
        elif draw < 0.92:
            self._delete(repository, repository.manifests)
        elif draw < 0.998:
            self._delete(repository, repository.links)
        elif draw < 0.999:
            self._add(repository, "delete")
            repository.manifests.clear()
            repository.links.clear()
        else:
            self._rename(repository)

    def _push(self, repository: Repository) -> None:
        """Layers of which some are shared, a config, and the manifest that lists them."""
        layers = self._chance.sample(self._shared, self._chance.randint(1, 5))
        layers += [self._digest(f"layer {self._number} {number}") for number in range(self._chance.randint(0, 2))]
        for layer in layers:
            if self._chance.random() < 0.4:
                self._link(repository, layer, "push")
        manifest = self._digest(f"manifest {self._number}")
        self._contents[manifest] = [self._digest(f"config {self._number}"), *layers]
        self._hold(repository, manifest)

    def _push_again(self, repository: Repository) -> None:
        """A manifest that exists somewhere: here again, or promoted from another repository."""
        if self._contents:
            self._hold(repository, self._chance.choice(list(self._contents)[-200:]))

    def _hold(self, repository: Repository, manifest: str) -> None:
        listed = [ReferenceRecord(digest, 100) for digest in self._contents[manifest]]
        self._add(repository, "push", digest=manifest, media_type=MANIFEST, references=listed)
        if manifest not in repository.manifests:
            repository.manifests.append(manifest)

    def _link(self, repository: Repository, digest: str, action: str) -> None:
        self._add(repository, action, digest=digest, media_type=BLOB)
        if digest not in repository.links:
            repository.links.append(digest)

    def _delete(self, repository: Repository, present: list[str]) -> None:
        if present:
            digest = present.pop(self._chance.randrange(len(present)))
            self._add(repository, "delete", digest=digest, media_type=None)

    def _rename(self, repository: Repository) -> None:
        """The old name is free afterwards. The new one is left alone: its events would be in another partition."""
        destination = f"{repository.name}-was-renamed-{self._number}"
        self._add(repository, "rename", media_type=None, rename=RenameRecord("name", repository.name, destination))
        repository.manifests.clear()
        repository.links.clear()

    def _add(self, repository: Repository, action: str, **fields: object) -> None:
        self._number += 1
        self._clock += dt.timedelta(milliseconds=self._chance.randint(1, 2000))
        self.events.append(
            RegistryEvent(
                id=f"{self._seed}-{self._number}",
                action=action,  # type: ignore[arg-type]
                pod=repository.pod,
                repository=repository.name,
                timestamp=self._clock,
                size=100,
                process=f"{repository.pod}-registry",
                **fields,  # type: ignore[arg-type]
            )
        )

    def _digest(self, text: str) -> str:
        return f"sha256:{hashlib.sha256(f'{self._seed} {text}'.encode()).hexdigest()}"


def history(seed: int, pods: Sequence[str], count: int) -> list[RegistryEvent]:
    """At least `count` events, the same for the same seed."""
    making = History(seed, pods)
    while len(making.events) < count:
        making.step()
    return making.events
