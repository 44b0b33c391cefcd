"""Events of several partitions about digests that they share."""

import random
from collections.abc import Iterable
from typing import Any

from coordinator.table.batch import Item, Slice
from schemas.records import RegistryEvent
from tests.table.harness import BLOBS, MANIFESTS, Events, Table, fact_of


def slices(table: Table, partition: int, batches: Iterable[list[RegistryEvent]]) -> Iterable[Slice]:
    offset = 0
    for batch in batches:
        items = []
        for event in batch:
            items.append(Item(offset, 0, table.pods[event.pod], fact_of(event), None))
            offset += 1
        yield Slice(table.space, partition, items[0].offset, offset, offset, items)


class Shared(Events):
    """Events of one partition's repositories about digests that all partitions share, new ones among them."""

    def __init__(self, space: str, partition: int) -> None:
        super().__init__()
        self.space, self.partition = space, partition
        self.random = random.Random(partition)

    def batch(self, number: int) -> list[RegistryEvent]:
        """Some old digests and some that the others meet for the first time at about the same time."""
        events = [self.some("" if self.random.random() < 0.5 else f".{number // 3}") for _ in range(25)]
        if number % 7 == self.partition:
            events.insert(self.random.randrange(25), self.barrier())
        return events

    def some(self, generation: str) -> RegistryEvent:
        repository = f"pod-{self.random.choice('abl')}/{self.partition}/{self.random.randrange(4)}"
        kind, blob = self.random.random(), self.random.choice(BLOBS) + generation
        manifest = self.random.choice(sorted(MANIFESTS))
        if kind < 0.5:
            event = self.pushed(repository, manifest)
            listed = [self.text(name + generation) for name in MANIFESTS[manifest]]
            self.random.shuffle(listed)
            references = [type(event.references[0])(digest) for digest in listed] if event.references else None
            return _replaced(event, digest=self.text(manifest + generation), references=references)
        if kind < 0.75:
            return self.uploaded(repository, blob)
        return self.deleted(repository, self.random.choice([blob, manifest + generation]))

    def barrier(self) -> RegistryEvent:
        process = f"pod-a/{self.partition}/{self.random.randrange(4)}"
        if self.random.random() < 0.5:
            return self.deleted(process, None)
        return self.renamed(process, f"pod-a/{self.partition}/{self.random.randrange(4)}")


def _replaced(event: RegistryEvent, **changes: Any) -> RegistryEvent:
    return RegistryEvent(**{name: getattr(event, name) for name in event.__struct_fields__} | changes)
