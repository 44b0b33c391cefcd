"""Reconciles run while a worker applies events about the same repositories, each on its own connection."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from coordinator.domain.facts import ManifestPushed
from coordinator.reconcile.sizes import Sizes
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item
from tests.reconcile.harness import MARGIN, World


def test_a_worker_and_reconciles(world: World) -> None:
    """Where both add and remove the same things at once, neither fails, and counts and holdings are the bucket's."""
    world.sizes = Sizes(added=3, compared=5)
    chance = random.Random(11)
    images = [world.image(f"m{n}", [f"l{n % 3}", f"l{n % 5}"]) for n in range(12)]
    stop = threading.Event()

    def work() -> None:
        second = 0.0
        while not stop.is_set():
            batch = []
            for _ in range(6):
                second += 1
                repository, image = f"r{chance.randrange(3)}", chance.choice(images)
                if chance.random() < 0.6:
                    batch.append(world.pushed(repository, image, second))
                else:
                    batch.append(world.deleted(repository, image.digest, second))
            world.arrive(*(fact for fact in batch if chance.random() < 0.7))

    # Without anything of a registry the root may be the wrong one, and the worker may begin late.
    world.pushed("r0", images[0])
    with ThreadPoolExecutor(1) as pool, World(world.url, sizes=world.sizes) as beside:
        worker = pool.submit(work)
        try:
            beside.bucket, beside.store, beside.pod, beside.pods = world.bucket, world.bucket, world.pod, world.pods
            for _ in range(4):
                assert beside.reconcile().count("parts_done") > 0
        finally:
            stop.set()
        worker.result()
    world.reconcile()
    world.assert_sound()


def test_two_who_add_the_same(world: World) -> None:
    """Two writers that order the same additions differently never deadlock, and each addition is counted once."""
    images = [world.image(f"m{n}", [f"l{n % 7}", f"l{n % 11}"]) for n in range(40)]
    facts = [world.pushed(f"r{n % 5}", image, n) for n, image in enumerate(images)]
    facts += [world.pushed(f"r{n % 3}", image, n) for n, image in enumerate(images)]
    meet = threading.Barrier(2)

    def add(order: list[ManifestPushed]) -> None:
        pod = world.pods[world.pod]
        with world.connect() as connection:
            apply = BatchApplier(connection, MARGIN)
            for start in range(0, len(order), 8):
                meet.wait(30)
                apply.apply_stored([Item(0, 0, pod, fact, None) for fact in order[start : start + 8]])

    shuffled = [random.Random(1).sample(facts[start : start + 8], 8) for start in range(0, len(facts), 8)]
    with ThreadPoolExecutor(2) as pool:
        adding = [pool.submit(add, order) for order in (facts, [fact for batch in shuffled for fact in batch])]
        for each in adding:
            each.result()
    world.assert_sound()
