"""Real registries under pushes and deletes while garbage is collected, and everything is killed now and then.

SOAK_SECONDS says how long it goes on, for each kind of bucket: some two minutes without it. SOAK_SEED gives the seed
of a run that is to be repeated; each run prints its own.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.audit.check import check_counts
from coordinator.db.engine import temporary_engine
from coordinator.demo import bucket
from coordinator.domain.gc import Facts, block_reasons, hide_policy, purge_policy
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import parse_digest
from coordinator.storage.layout import QUARANTINE, blob_key, parse_quarantine_key
from tests.registries.skopeo import Skopeo
from tests.soak.clients import ABSENT, Client, Layout, layouts
from tests.soak.places import PODS, SCHEDULERS, WORKERS, Operator, World
from tests.support.wait import eventually

pytestmark = pytest.mark.soak

SECONDS = 120.0
CLIENTS = 3
REPOSITORIES = 2
#: Kills of one storm, and the longest pause between two.
KILLS, PAUSE_S = 8, 2.0
#: So long a hide is waited for, in whose midst to kill.
AMBUSH_S = 60.0
#: What a calm waits for: so many blobs hidden and purged in it.
HIDDEN, PURGED = 10, 10
#: All processes have to be met again, reported and been reconciled, and what was hidden then has to be purged.
DEADLINE_S = 240.0
#: A registry that is killed may leave bytes that it has not linked yet, of which nobody will ever know.
ORPHANS_PER_KILL = 4


@pytest.fixture(params=[True, False], ids=["versioned", "unversioned"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World.started(versioned=request.param) as world:
        yield world


class Disturber:
    """Kills processes, one after the other."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self.killed: Counter[str] = Counter()
        self.storms = 0

    def ambush(self) -> bool:
        """Kill all that collects in the midst of a hide, if there is one soon; whether there was."""
        deadline = time.monotonic() + AMBUSH_S
        while time.monotonic() < deadline:
            if self._world.table.rows("SELECT FROM hides WHERE hidden_at IS NULL"):
                for number in range(SCHEDULERS):
                    self._world.kill(f"scheduler-{number}")
                self.killed["scheduler"] += SCHEDULERS
                return True
        return False

    def storm(self) -> None:
        world = self._world
        self.storms += 1
        names = [
            *[f"registry-{pod}" for pod in PODS],
            *[f"worker-{number}" for number in range(WORKERS)],
            # What it kills must now and then be in the midst of a collection.
            *[f"scheduler-{number}" for number in range(SCHEDULERS)] * 2,
            "api",
        ]
        for name in [*self._chance.sample(names, KILLS - 1), self._chance.choice(["database", "broker"])]:
            time.sleep(self._chance.random() * PAUSE_S)
            self.killed[name.partition("-")[0]] += 1
            if name == "database":
                world.kill_database()
            elif name == "broker":
                world.kill_broker()
            else:
                world.kill(name)
            world.revive()


def test_nothing_is_lost_and_nothing_is_left(world: World, tmp_path: Path) -> None:
    """At the end every tag is pulled whole, counts are those of the links, and what nobody needs is gone."""
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(10**9))
    seconds = float(os.environ.get("SOAK_SECONDS") or SECONDS)
    print(f"SOAK_SEED={seed}")
    images = layouts(tmp_path / "images", seed)
    disturber = Disturber(world, seed)
    began = time.monotonic()

    def show(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    with operating(world), clients(world, seed, tmp_path, images) as pushing:
        while True:
            caught = disturber.ambush()
            calm(world)
            after = " after a hide was cut off" if caught else ""
            show(f"calm{after}: {world.count('hidden')} hidden, {world.count('purged')} purged")
            if disturber.storms and time.monotonic() - began > seconds:
                break
            disturber.storm()
            show(f"storm: {dict(disturber.killed)}")
        rest(world, pushing)
        show("rest")
    done: Counter[str] = sum((each.done for each in pushing), Counter())
    made = {decision: world.count(decision) for decision in ("hidden", "purged", "restored", "undone", "kept")}
    print(f"done: {dict(done)}, killed: {dict(disturber.killed)}, collected: {made}")
    orphans = assert_nothing_is_left(world)
    assert len(orphans) <= disturber.killed["registry"] * ORPHANS_PER_KILL, orphans
    assert_nothing_is_lost(world, pushing, tmp_path)
    # It was a test of something.
    assert made["hidden"] >= 2 * HIDDEN
    assert made["purged"] >= 2 * PURGED
    assert made["restored"] >= 1


@contextmanager
def operating(world: World) -> Iterator[None]:
    operator = Operator(world)
    operator.start()
    try:
        yield
    finally:
        operator.stop()


@contextmanager
def clients(world: World, seed: int, directory: Path, images: Sequence[Layout]) -> Iterator[list[Client]]:
    """Clients at work; `rest` stops them."""
    made = []
    for number in range(CLIENTS):
        home = directory / f"client-{number}"
        home.mkdir()
        repositories = [f"{pod}/c{number}/r{each}" for pod in PODS for each in range(REPOSITORIES)]
        made.append(Client(seed + number, Skopeo(home), world.addresses, repositories, images))
    for client in made:
        client.start()
    try:
        yield made
    finally:
        for client in made:
            client.stop()


def calm(world: World) -> None:
    """Kill nothing until so many blobs were hidden, and so many purged, while clients go on."""
    hidden, purged = world.count("hidden") + HIDDEN, world.count("purged") + PURGED

    def collected() -> bool:
        world.revive()
        return world.count("hidden") >= hidden and world.count("purged") >= purged

    eventually(collected, lambda: f"nothing was collected: {describe(world)}", seconds=DEADLINE_S)


def rest(world: World, pushing: Sequence[Client]) -> None:
    """Let everything come to its end: all that clients did is known, and what nobody needs has gone all its way."""
    for client in pushing:
        client.stop()
    rested_at = world.facts().now
    bound = timedelta(seconds=world.settings.safety_request_bound)

    def known() -> bool:
        world.revive()
        facts = world.facts()
        return not block_reasons(facts) and all(
            at is not None and at > rested_at + bound for pod in facts.pods for at in (pod.watermark, pod.reconciled_at)
        )

    eventually(known, lambda: f"not everything is known: {describe(world)}", seconds=DEADLINE_S)
    eventually(lambda: not open_states(world), lambda: f"not everything is gone: {describe(world)}", seconds=DEADLINE_S)


def open_states(world: World) -> dict[str, int]:
    """How many blobs are on their way, by state, and how many hides are not over."""
    found = world.table.rows(
        "SELECT state, count(*) FROM blobs WHERE state <> ALL (%s) OR (state = %s AND unreferenced_since IS NULL)"
        " GROUP BY 1",
        [BlobState.LIVE, BlobState.PURGED],
        BlobState.PURGED,
    )
    hides = world.table.rows("SELECT count(*) FROM hides")[0][0]
    return {BlobState(state).name: number for state, number in found} | ({"hides": hides} if hides else {})


def describe(world: World) -> str:
    facts: Facts = world.facts()
    return (
        f"held by {block_reasons(facts)}, now {facts.now}, to hide until {hide_policy(facts).until}, to purge until "
        f"{purge_policy(facts).until}, blobs {open_states(world)}, last runs "
        f"{world.table.rows('SELECT state, error, progress FROM jobs WHERE kind = %s ORDER BY id DESC LIMIT 3', 'gc')}"
    )


def assert_nothing_is_lost(world: World, pushing: Sequence[Client], directory: Path) -> None:
    """Each tag names what its client may expect, and is pulled whole, with all platforms."""
    skopeo = Skopeo(directory)

    def pulled(number: int, repository: str, tag: str, may: set[str]) -> str | None:
        address = world.addresses[repository.partition("/")[0]]
        there = tag in tags(repository)
        if not there:
            return None if ABSENT in may else f"{repository}:{tag} is gone"
        try:
            found = skopeo.digest(address, f"{repository}:{tag}")
            skopeo.pull(address, f"{repository}:{tag}", directory / f"pulled-{number}")
        except AssertionError as error:
            # Its manifest may have been deleted by a request that was cut off before it came to the tag.
            return None if ABSENT in may and "manifest unknown" in str(error) else f"{repository}:{tag}: {error}"
        return None if found in may else f"{repository}:{tag} is {found}, not of {may}"

    def tags(repository: str) -> set[str]:
        try:
            return set(skopeo.tags(world.addresses[repository.partition("/")[0]], repository))
        except AssertionError:
            return set()  # nobody has pushed to it

    wanted = [(*name, may) for client in pushing for name, may in client.tags.items()]
    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = list(pool.map(lambda each: pulled(each[0], *each[1]), enumerate(wanted)))
    assert [each for each in wrong if each is not None] == []


def assert_nothing_is_left(world: World) -> list[str]:
    """Table and links agree, and nothing else has bytes, but for what Baleen cannot know of: that is returned."""
    expected = bucket.read_expected_counts(world.store)
    holdings = world.table.rows(
        "SELECT r.name, encode(b.digest, 'hex') FROM repository_manifests f"
        " JOIN blobs b ON b.id = f.manifest_id JOIN repositories r ON r.id = f.repository_id"
    )
    assert {(name, f"sha256:{digest}") for name, digest in holdings} == expected.holdings
    blobs = world.table.rows("SELECT encode(digest, 'hex'), reference_count, state FROM blobs")
    assert {f"sha256:{digest}": count for digest, count, _ in blobs if count} == expected.reference_counts
    with temporary_engine(world.database.url, name="test") as engine:
        report = check_counts(engine)
    assert report.is_healthy, report.differences
    assert expected.reference_counts.keys() <= expected.sizes.keys()
    orphans = sorted(expected.sizes.keys() - expected.reference_counts.keys())
    gone = [digest for digest, _, state in blobs if state == BlobState.PURGED and f"sha256:{digest}" not in orphans]
    with ThreadPoolExecutor(8) as pool:
        left = pool.map(lambda digest: world.store.list_versions(blob_key(parse_digest(f"sha256:{digest}"))), gone)
        assert [(digest, found) for digest, found in zip(gone, left, strict=True) if any(v.size for v in found)] == []
    purged = {row[0] for row in world.table.rows("SELECT hide_id FROM gc_ledger WHERE decision = 'purged'")}
    copies = [parse_quarantine_key(entry.key) for entry in world.store.walk(QUARANTINE)]
    assert [copy for copy in copies if copy is None or copy[1] in purged] == []
    return orphans
