"""A history from a seed: acts in which actors take turns, and then rest.

A history begins where something is under way already: blobs that nothing references, that are hidden, or whose purge is
due. It is a few acts: in each a collection, reports (probes and reconciles), clients, restorers go on at the same time,
step by step, in an order that the seed decides; between them time passes. What the seed lets happen besides (deaths,
slow deletes, lost events, …) is drawn for each history, so that some have much of one thing.
Whoever is about to do something to the store falls asleep there more often than elsewhere.
Not here: what holds (world.py), what is run in parallel (run.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import product
from typing import Any, NamedTuple

from coordinator.jobs import table as jobs
from coordinator.storage.layout import blob_key
from tests.simulation.database import Server, Session
from tests.simulation.gitlab import REVIEWED_AFTER
from tests.simulation.operators import Operator
from tests.simulation.registry import GITLAB_REPOSITORIES, IMAGES, UNREGISTERED, DeadError, Process, digest_of
from tests.simulation.scheduler import SECOND, Actor, Scheduler, Violation
from tests.simulation.store import Bucket
from tests.simulation.world import BOUND, Saved, Worker, World, populate

STEPS_LIMIT = 1500
#: How the line of an act begins.
ACT = "act: "
#: So often the operator reads what blocks GC, and does something about it.
ROUNDS = 8
#: What a clock of a registry may be wrong by.
SKEW = timedelta(seconds=4)
#: Longer than a request may run; than a delete may be under way; than a job may be silent.
ALL_REQUESTS_ENDED, ALL_DELETES_LANDED, JOB_IS_SILENT = 301.0, 601.0, 61.0
SOME_TIMES = (0.01, 1.0, 15.0, JOB_IS_SILENT, 155.0, ALL_REQUESTS_ENDED)


class Odds(NamedTuple):
    """How probable things are in one history."""

    crash: float = 0
    lossy: float = 0
    slow: float = 0
    twice: float = 0
    errors: float = 0
    away: float = 0
    sleep: float = 0
    kill: float = 0
    again: float = 0
    skew: float = 0
    operator: float = 0
    flush: float = 0.8
    withhold: float = 0
    #: That a client uses a registry that is no registered pod's; that an operator has declared that one unmanaged.
    stranger: float = 0
    unmanaged: float = 0
    #: That somebody takes the marker off a hidden blob.
    shown: float = 0
    #: That somebody removes a link beside its registry.
    unlinked: float = 0
    #: That a standby gets what was committed, or takes the database's place; the same of the bucket and a replica.
    failover: float = 0
    rollback: float = 0
    #: That an operator does what messages say.
    literal: float = 0
    #: Of a pod of kind `gitlab`: that its database is away, that it reviews what nothing refers to, and that a client
    #: deletes a blob there.
    rows_away: float = 0
    reviewed: float = 0
    unlinked_blob: float = 0
    #: That it has a row of a blob that nothing refers to. If the blob is hidden already, the row came after that.
    unlisted: float = 0
    #: Of what happens besides the plot.
    noise: float = 1.0


def _make_draw(chance: random.Random) -> Callable[[float, float], float]:
    """Return what draws a value, or 0, with a probability."""
    return lambda probability, value: value if chance.random() < probability else 0.0


def draw_odds(chance: random.Random) -> Odds:
    some = _make_draw(chance)
    return Odds(
        crash=some(0.25, 0.04),
        lossy=some(0.2, 0.3),
        slow=some(0.3, 0.35),
        twice=some(0.2, 0.35),
        errors=some(0.15, 0.02),
        away=some(0.1, 0.01),
        sleep=some(0.6, 0.05),
        kill=some(0.2, 0.004),
        again=some(0.2, 0.3),
        skew=some(0.2, 1.0),
        operator=some(0.15, 0.5),
        flush=chance.choice((0.3, 0.8, 1.0)),
        withhold=chance.choice((0.0, 0.0, 1.0)),
        stranger=some(0.2, 0.4),
        unmanaged=some(0.5, 1.0),
        shown=some(0.15, 0.4),
    )


def draw_more_odds(chance: random.Random) -> dict[str, float]:
    """Odds by a chance of their own: what histories come to without these actors stays as it is."""
    some = _make_draw(chance)
    return {
        "unlinked": some(0.12, 0.4),
        "failover": some(0.08, 0.2),
        "rollback": some(0.06, 0.2),
        "literal": some(0.12, 0.3),
    }


def draw_gitlab_odds(chance: random.Random) -> dict[str, float]:
    some = _make_draw(chance)
    return {
        "rows_away": some(0.2, 0.05),
        "reviewed": some(0.4, 0.1),
        "unlinked_blob": some(0.2, 0.05),
        "unlisted": some(0.5, 1.0),
    }


#: Which acts follow each other, by where a history begins. An act may be left out, or another may come in between.
#:
#:     collect   a collection               report  time passes; probes and reconciles of all
#:                                          half    the same, and requests that began before go on
#:     straggle  a request stops half way   now     the same, and hardly any time passes
#:     wake      sleepers go on             probe   time passes, and nobody reconciles
#:     restore   two restorers              die     a process with a request or an event dies
#:     push      a client pushes            swap    a delete is told after the push that came after it
#:     forget    what was pushed goes       race    the same, while a collection is between look and intent
#:     show      somebody shows a hidden blob             unlink somebody removes a link beside its registry
#:     index     a client pushes an index                 accept an operator accepts what vanished
#:     standby   a standby gets all commits          failover it takes the database's place
#:     behind    a collection goes on after a standby got its last commits
#:     replica   a replica gets all of the bucket    rollback it takes the bucket's place
#:     obey      an operator does what messages say  undelete an operator asks a hidden blob back
#:
#: With a pod of kind `gitlab`:
#:
#:     stored    a client uploads a blob there        upload   the same, and stops before its row is written
#:     confirm   while a collection runs, a client relies on its rows
#:     expire    links without a manifest expire      review   long after, rows go that nothing refers to
PLOTS: dict[str, tuple[str, ...]] = {
    "unreferenced": (
        "straggle collect report collect",
        "straggle collect now collect",
        "straggle collect now probe collect",
        "straggle collect die report now collect",
        "straggle collect probe half collect",
        "swap probe collect report collect",
        "straggle collect half die half now collect",
        "straggle collect half half collect",
        "collect half collect",
        "straggle collect wake restore forget report collect report wake straggle collect",
        "push forget swap now collect now collect",
        "race report collect",
        "collect push restore collect",
        "straggle collect wake collect restore",
        "collect collect restore",
        "push collect report collect",
    ),
    "hidden": (
        "report collect",
        "report straggle collect",
        "push restore forget report collect report collect",
        "push report collect",
        "now collect collect",
    ),
    "due": (
        "straggle collect",
        "collect",
        "push collect",
        "collect collect",
        "push restore forget report collect",
    ),
}
OTHER_ACTS = ("collect", "now", "straggle", "wake", "restore", "push", "die", "forget")
GITLAB_PLOTS: dict[str, tuple[str, ...]] = {
    "unreferenced": (
        "upload expire now collect wake report confirm",
        "upload expire now collect wake half half confirm restore",
        "upload collect wake report confirm",
        "stored expire report collect confirm collect report collect",
        "stored expire report review report collect report collect",
        "stored expire report review report collect upload report confirm",
        "confirm forget expire report collect review report collect report collect",
    ),
    "hidden": (
        "upload report collect wake confirm",
        "stored expire report confirm",
        "report upload confirm wake",
        "push restore forget report review report collect report collect",
    ),
    "due": (
        "upload confirm wake",
        "stored confirm collect",
        "stored expire confirm",
        "confirm forget report review report collect",
    ),
}
#: How old the row of a blob is that nothing refers to, by where a history begins.
SINCE_ROW = {"unreferenced": timedelta(seconds=1000), "hidden": timedelta(0), "due": timedelta(seconds=200)}
GITLAB_ACTS = ("stored", "upload", "confirm", "review", "expire")

#: Where it matters who sleeps.
DELICATE = ("sends", "signs", "links", "removes", "copies", "puts", "hears", "looks at the versions", "is about")


class Base(NamedTuple):
    """Where histories begin: a database, a bucket, and what is not in either."""

    name: str
    session: Session
    bucket: Bucket
    saved: Saved
    #: There is a pod of kind `gitlab`.
    mixed: bool = False


class History:
    def __init__(self, base: Base, seed: int, plots: Sequence[str] = (), **odds_set: float) -> None:
        """`plots`: of which one is drawn, instead of all that begin here; `odds_set`: what is not drawn."""
        self.scheduler = scheduler = Scheduler(seed)
        self.chance = scheduler.chance
        self.base = base
        self._plots = plots or PLOTS[base.name]
        self._other_acts = OTHER_ACTS
        beside = draw_more_odds(random.Random(f"beside {seed}"))
        if base.mixed:
            beside |= draw_gitlab_odds(random.Random(f"gitlab {seed}"))
            self._other_acts += GITLAB_ACTS
            if not plots and self.chance.random() < 0.6:
                self._plots = GITLAB_PLOTS[base.name]
        self.odds = odds = draw_odds(self.chance)._replace(**beside | odds_set)
        self.world = World(base.session, base.bucket, scheduler, base.saved, mixed=base.mixed)
        world = self.world
        world.store.errors, world.store.slow, world.store.twice = odds.errors, odds.slow, odds.twice
        world.session.away = odds.away
        for registry in world.registries:
            registry.lossy = odds.lossy
        if world.gitlab is not None:
            world.gitlab.rows.away = odds.rows_away
            if odds.unlisted:
                world.gitlab.begin_with_blob("g/one", "x", SINCE_ROW[base.name])
        if odds.skew:
            for process in world.processes:
                process.skew = process.skew + self.chance.choice((-1, 0, 1)) * SKEW
        self.operator = Operator(world)
        if odds.stranger:
            self.world.begin_stranger(unmanaged=bool(odds.unmanaged))
        self.steps = 0
        #: What is at rest is not looked at.
        self.bytes_only = False
        self._numbers: dict[str, int] = {}
        #: A process that delivers nothing, or a partition of which nothing is applied, for as long as acts go on.
        self._stuck: Process | int | None = None
        if self.chance.random() < odds.withhold:
            self._stuck = self.chance.choice((*self.world.processes, 0, 1))

    # The course of it

    def run(self) -> None:
        """Raises Violation."""
        chance, noise = self.chance, self.odds.noise
        for act in chance.choice(self._plots).split():
            if chance.random() < 0.05 * noise:
                continue
            if chance.random() < 0.05 * noise:
                self._act(chance.choice(self._other_acts))
            self._act(act)
            if self.steps > STEPS_LIMIT:
                break
        self._come_to_rest()

    def _act(self, what: str) -> None:
        scheduler, chance, world = self.scheduler, self.chance, self.world
        scheduler.note("", f"{ACT}{what}")
        for actor in scheduler.actors:
            if actor.asleep and (what == "wake" or (not actor.deeply and chance.random() < 0.15 * self.odds.noise)):
                actor.asleep = False
        acts: dict[str, Callable[[], object]] = {
            "collect": self._collect,
            "report": lambda: self._report(ALL_REQUESTS_ENDED),
            "half": lambda: self._report(155.0),
            "now": lambda: self._report(0.01),
            "probe": lambda: self._report(ALL_REQUESTS_ENDED, listed=False),
            "straggle": self._straggle,
            "die": self._die,
            "swap": self._swap,
            "race": self._race,
            "push": self._spawn_client,
            "forget": self._forget,
            "restore": lambda: self._restore(world.workers),
            "wake": lambda: None,
            "show": self._show,
            "unlink": self._unlink,
            "index": self._index,
            "accept": self._accept,
            "standby": self._replicate,
            "behind": self._lag_standby,
            "failover": self._fail_over,
            "replica": self._copy_bucket,
            "rollback": self._roll_back,
            "obey": self._obey_messages,
            "undelete": lambda: self._spawn("operator", "operator", lambda: world.undelete(digest_of("x"))),
            "stored": lambda: self._upload(whole=True),
            "upload": lambda: self._upload(whole=False),
            "confirm": self._confirm,
            "expire": self._expire,
            "review": self._review,
        }
        acts[what]()
        noise = self.odds.noise
        if chance.random() < 0.2 * noise:
            self._spawn_client()
        if what != "restore" and chance.random() < 0.15 * noise:
            self._restore(world.workers[:1])
        if chance.random() < self.odds.operator:
            self._spawn_operator()
        if chance.random() < self.odds.shown:
            self._show()
        self._act_beside()
        self._go_on()
        if what in {"report", "half", "now", "probe"} or chance.random() < self.odds.flush:
            self._flush()
        if what == "forget" and chance.random() < 0.8:
            self._expire()

    def _act_beside(self) -> None:
        scheduler = self.scheduler
        if scheduler.roll(self.odds.unlinked):
            scheduler.chance.choice((self._unlink, self._unlink, self._index, self._accept))()
        if scheduler.roll(self.odds.literal):
            self._obey_messages()

    def _collect(self) -> None:
        if self.chance.random() < 0.15 * self.odds.noise:
            self.world.pass_time(self.chance.choice(SOME_TIMES))
        self._spawn("collection", "job", self.world.collect)

    # Of a pod of kind `gitlab`

    def _upload(self, *, whole: bool) -> None:
        world = self.world
        assert world.gitlab is not None
        where, registry = self.chance.choice(tuple(GITLAB_REPOSITORIES)), world.gitlab
        process = self._choose_process(where)

        def work(where: str, name: str) -> None:
            registry.upload(process, where, name)

        actor = self._spawn("uploader", "client", lambda: self._as_client(work, where, "x"))
        while not actor.done and (whole or actor.writing is None):
            self.scheduler.step(actor)
        actor.asleep = actor.deeply = not actor.done

    def _confirm(self) -> None:
        """A client relies on rows alone, as long as there are any: it has blobs mounted, and pushes a manifest."""
        registry = self.world.gitlab
        assert registry is not None

        def rely(where: str, image: str) -> None:
            process = self._choose_process(where)
            for other in GITLAB_REPOSITORIES:
                if other != where and self.chance.random() < 0.7:
                    registry.mount(process, where, "x", other)
            registry.put_manifest(process, where, image)

        for where in GITLAB_REPOSITORIES:
            self._spawn("client", "client", lambda where=where: self._as_client(rely, where, "A"))
        self._spawn("collection", "job", self.world.collect)

    def _expire(self) -> None:
        self.world.pass_time(JOB_IS_SILENT + 10)
        self._run_alone("sweeper", self.world.sweep)

    def _review(self) -> None:
        """The registry removes rows that nothing refers to, as of then; perhaps a manifest without a tag before."""
        assert self.world.gitlab is not None
        self.world.pass_time(REVIEWED_AFTER / SECOND)
        if self.chance.random() < 0.5:
            self.world.gitlab.review_manifests(self.chance.choice)
            self.world.pass_time(REVIEWED_AFTER / SECOND)
        self.world.gitlab.review_blobs()

    def _review_some(self) -> None:
        registry = self.world.gitlab
        assert registry is not None
        registry.review_blobs()
        registry.review_manifests(self.chance.choice)

    def _unlink_blob(self) -> None:
        registry, where = self.world.gitlab, self.chance.choice(tuple(GITLAB_REPOSITORIES))
        assert registry is not None
        process = self._choose_process(where)

        def work(where: str, name: str) -> None:
            registry.delete_blob(process, where, name)

        self._spawn("client", "client", lambda: self._as_client(work, where, "x"))

    def _show(self) -> None:
        self._spawn("somebody", "somebody", lambda: self.world.show("x"))

    def _unlink(self) -> None:
        self._spawn("somebody", "somebody", self.world.remove_link)

    def _index(self) -> None:
        where = self.chance.choice(tuple(self.world.cast.repositories))
        self._spawn("client", "client", lambda: self._as_client(self._push_index, where, "I"))

    def _accept(self) -> None:
        for pod in self.world.cast.pods:
            self._spawn("operator", "operator", lambda pod=pod: self.world.accept_vanished(pod))

    def _restore(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            self._spawn(worker.name, "restorer", lambda worker=worker: self.world.restore(worker))

    def _report(self, seconds: float, *, listed: bool = True) -> None:
        world = self.world
        world.pass_time(seconds)
        self._repair()
        for process in world.processes:
            self._spawn(f"prober of {process.name}", "prober", lambda process=process: world.probe(process))
        if listed:
            for pod in world.pods:
                self._spawn(f"reconcile of {pod}", "job", lambda pod=pod: self._reconcile(pod))

    def _straggle(self) -> None:
        """A request goes on for a few steps, and then for long not at all."""
        chance, scheduler = self.chance, self.scheduler
        where = self._choose_repository()
        # What is hidden is brought anew, which takes longer.
        served = self.world.bucket.has(blob_key(digest_of("x")))
        # What a registry of kind `gitlab` has no rows of is brought, too.
        served = served and (self.world.gitlab is None or self.world.gitlab.may_take(where, "x"))
        work = self._put if served and chance.random() < 0.7 else self._push
        steps = chance.choice((2, 2, 2, 3, 4, 8)) if work == self._put else chance.randrange(3, 12)
        actor = self._spawn("straggler", "client", lambda: self._as_client(work, where, "A"))
        for _ in range(steps):
            if actor.done:
                return
            scheduler.step(actor)
        actor.asleep, actor.deeply = not actor.done, True

    def _choose_repository(self) -> str:
        """A repository; rather one of which somebody waits for events, or whose events nobody gets."""
        if self.scheduler.roll(self.odds.stranger):
            return self.chance.choice(tuple(UNREGISTERED))
        stuck, chance, cast = self._stuck, self.chance, self.world.cast
        waited = [
            where
            for where, repository in cast.repositories.items()
            if stuck is not None
            and (repository.partition == stuck if isinstance(stuck, int) else cast.pods[repository.pod] == stuck.pod)
        ]
        return chance.choice(waited if waited and chance.random() < 0.7 else tuple(cast.repositories))

    def _die(self) -> None:
        """A process dies: one that serves a request, or has something to tell."""
        world, chance = self.world, self.chance
        serving = [actor.process for actor in self.scheduler.actors if actor.process is not None]
        busy = serving + [process for process in world.processes if process.queue]
        process = chance.choice(busy or world.processes)
        if process.alive:
            world.crash(process, lands=chance.random() < 0.8)
        if chance.random() < 0.7:
            world.restart(process)

    def _swap(self) -> None:
        """A delete unlinks; a push links again and is told of; then the delete is told of."""
        known: tuple[tuple[str, str], ...] = (("D", "a/two"), ("A", "a/one"))
        if self.world.gitlab is not None:
            known += (("D", "g/one"), ("A", "g/one"))
        image, where = self.chance.choice(known)
        self._swap_link(image, where, lambda: None)

    def _race(self) -> None:
        """The same, while a collection has looked at links, and has not yet written its intents."""
        self._run_alone("client", lambda: self._as_client(self._put, "a/one", "A"))
        collection = self._spawn("collection", "job", self.world.collect)

        def between() -> None:
            began = len(self.scheduler.trace)
            while not collection.done:
                trace = self.scheduler.trace[began:]
                checked = any(who == collection.name and "/revisions/" in what for _, who, what in trace)
                if checked and collection.next.startswith("begins"):
                    break
                self.scheduler.step(collection)
            collection.asleep = not collection.done

        self._swap_link("A", "a/one", between)
        collection.asleep = False

    def _swap_link(self, image: str, where: str, between: Callable[[], None]) -> None:
        world, scheduler = self.world, self.scheduler
        delete = self._spawn("deleter", "client", lambda: self._as_client(self._delete, where, image))
        for _ in range(2):
            if not delete.done:
                scheduler.step(delete)
        between()
        self._run_alone("client", lambda: self._as_client(self._put, where, image))
        for process in world.processes:
            while process.queue and self.chance.random() < 0.9:
                world.deliver(process)
        world.pass_time(15)
        if not delete.done:
            scheduler.finish(delete)
        self._flush()

    def _go_on(self) -> None:
        """Let actors take turns until none is left but who sleeps."""
        scheduler, chance = self.scheduler, self.chance
        while True:
            ready = scheduler.ready()
            if not ready:
                sleepers = [actor for actor in scheduler.actors if actor.asleep and not actor.deeply]
                if not sleepers:
                    return
                chance.choice(sleepers).asleep = False
                continue
            self.steps += 1
            if self.steps > STEPS_LIMIT:
                scheduler.finish_all()
                return
            if chance.random() < 0.08 * self.odds.noise:
                self._cause_incident()
                continue
            actor = chance.choices(ready, [each.weight for each in ready])[0] if len(ready) > 1 else ready[0]
            if scheduler.may_stop(actor):
                if self._may_fall_asleep(actor):
                    actor.asleep, actor.deeply = True, chance.random() < 0.25
                    scheduler.note(actor.name, f"falls asleep: {actor.next}")
                    self._act_on_sleep(actor)
                    continue
                if actor.kind in {"job", "restorer"} and scheduler.roll(self.odds.kill):
                    scheduler.kill(actor)
                    continue
            scheduler.step(actor)

    def _act_on_sleep(self, sleeper: Actor) -> None:
        """What makes it matter that somebody sleeps here."""
        if self.chance.random() < 0.2:
            return
        if sleeper.kind == "restorer" and self.world.store.flights:
            self.world.pass_time(ALL_DELETES_LANDED)
        elif sleeper.kind == "job" and sleeper.next.startswith(("signs", "sends")):
            self.world.pass_time(155)
            self._straggle()

    def _may_fall_asleep(self, actor: Actor) -> bool:
        odds = self.odds.sleep
        delicate = actor.next.startswith(DELICATE) or (
            # It has looked at the bytes, and is about to look at the bound.
            actor.kind == "restorer" and actor.next.startswith("SELECT h.id")
        )
        return self.scheduler.roll(odds if delicate else odds / 10)

    def _cause_incident(self) -> None:
        """Something that nobody does."""
        incidents = (
            (0.35, self._deliver_some),
            (0.35, self._work_some),
            (0.08, self._land_some),
            (0.08, self._wake_some),
            (0.06, lambda: self.world.pass_time(self.chance.choice((0.01, 1.0, 155.0, *SOME_TIMES)))),
            (0.04, self._repeat_some),
            (self.odds.crash, self._die),
            (self.odds.failover, self._fail_over_or_replicate),
            (self.odds.rollback, self._roll_back_or_copy),
            (self.odds.reviewed, self._review_some),
            (self.odds.unlinked_blob, self._unlink_blob),
        )
        self.chance.choices([each for _, each in incidents], [odds for odds, _ in incidents])[0]()

    def _fail_over_or_replicate(self) -> None:
        if self.world.session.has_standby:
            self._fail_over()
        else:
            self._replicate()

    def _replicate(self) -> None:
        if self.scheduler.holder is None:
            self.world.session.replicate()
            self.scheduler.note("database", "has a standby that has all commits")

    def _fail_over(self) -> None:
        if self.scheduler.holder is None and self.world.session.has_standby:
            self.world.fail_over()
            self.scheduler.note("database", "fails over to its standby")

    def _lag_standby(self) -> None:
        collection = self._spawn("collection", "job", self.world.collect)
        began = len(self.scheduler.trace)
        while not collection.done:
            if any(what.startswith("UPDATE gc_mark SET written") for _, _, what in self.scheduler.trace[began:]):
                break
            self.scheduler.step(collection)
        self._replicate()

    def _roll_back_or_copy(self) -> None:
        if self.world.replica is None:
            self._copy_bucket()
        else:
            self._roll_back()

    def _copy_bucket(self) -> None:
        self.world.replica = self.world.bucket.save()
        self.scheduler.note("storage", "has a replica that has everything")

    def _roll_back(self) -> None:
        self.scheduler.note("storage", "is rolled back to its replica")
        self.world.roll_back_bucket()
        self.world.inspect()

    def _obey_messages(self) -> None:
        """An operator reads what blocks GC, and does what it says."""
        for sentence in self._read_blocks():
            for command, work in self.operator.commands(sentence):
                self._run_command(command, work)

    def _read_blocks(self) -> list[str]:
        blocked: list[str] = []
        self._run_alone("reader", lambda: blocked.extend(self.operator.read()))
        for sentence in blocked:
            self.scheduler.note("operator", f"reads: {sentence}")
        return blocked

    def _run_command(self, command: str, work: Callable[[], object]) -> None:
        scheduler = self.scheduler
        scheduler.note("operator", f"runs `baleen {command}`")
        if command == "gc claim":
            while scheduler.holder is not None:
                scheduler.step(scheduler.holder)
            for actor in list(scheduler.actors):
                if actor.kind in {"job", "restorer", "worker"}:
                    scheduler.kill(actor)
        self._run_alone(f"baleen {command}", work)

    def _land_some(self) -> None:
        world = self.world
        if world.store.flights:
            world.land(self.chance.choice(world.store.flights))
        elif world.late:
            world.land_late(self.chance.choice(world.late))

    def _wake_some(self) -> None:
        sleepers = [actor for actor in self.scheduler.actors if actor.asleep and not actor.deeply]
        if sleepers:
            self.chance.choice(sleepers).asleep = False

    def _repeat_some(self) -> None:
        copies = self.world.copies
        if copies:
            self.world.append(copies.pop(self.chance.randrange(len(copies))))

    def _deliver_some(self) -> None:
        waiting = [process for process in self.world.processes if process.queue and process is not self._stuck]
        if waiting:
            self.world.deliver(self.chance.choice(waiting), again=self.scheduler.roll(self.odds.again))

    def _work_some(self) -> None:
        world, chance = self.world, self.chance
        busy = {actor.name for actor in self.scheduler.actors}
        worker = world.workers[0] if chance.random() < 0.8 else world.workers[1]
        if f"applier of {worker.name}" in busy:
            return
        partitions = chance.choice(((0,), (1,), (0, 1)))
        if self._stuck in partitions:
            partitions = tuple(number for number in partitions if number != self._stuck)
        if all(worker.positions[number] >= len(world.log[number]) for number in partitions):
            return
        limit = chance.choice((1, 2, 100))
        self._spawn(f"applier of {worker.name}", "worker", lambda: world.apply(worker, partitions, limit))

    def _flush(self) -> None:
        """All that was told arrives and is applied, but for what is stuck."""
        world, stuck = self.world, self._stuck
        for process in world.processes:
            while process is not stuck and process.queue:
                world.deliver(process)
        partitions = [number for number in range(len(world.log)) if number is not stuck]
        for _ in range(5):
            behind = [number for number in partitions if world.workers[0].positions[number] < len(world.log[number])]
            if not behind:
                return
            self._run_alone("flush", lambda behind=behind: world.apply(world.workers[0], behind, 1000))

    def _repair(self) -> None:
        """Processes run again, and are examined."""
        for process in self.world.processes:
            if not process.alive and self.chance.random() < 0.8:
                self.world.restart(process)
        if any(process.generation for process in self.world.processes):
            for pod in self.world.cast.pods:
                self._run_alone(f"doctor of {pod}", lambda pod=pod: self.world.examine(pod))

    # Who there is

    def _spawn(self, name: str, kind: str, work: Callable[[], object]) -> Actor:
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        actor = self.scheduler.spawn(name if number == 1 or kind == "worker" else f"{name} ({number})", kind, work)
        actor.weight = self.chance.choice((1.0, 1.0, 1.0, 0.1))
        return actor

    def _run_alone(self, name: str, work: Callable[[], object]) -> None:
        self.scheduler.finish(self._spawn(name, "alone", work))

    def _reconcile(self, pod: str) -> None:
        if self.chance.random() < 0.3:
            self.scheduler.pause("store", "is about to begin")
        self.world.reconcile(pod)

    def _forget(self) -> None:
        """Clients delete what the repositories have of one image."""
        for where in self.world.cast.repositories:
            if self.world.registry_of(where).holds(where, "A") and self.chance.random() < 0.9:
                self._spawn("client", "client", lambda where=where: self._as_client(self._delete, where, "A"))

    def _spawn_client(self) -> None:
        chance = self.chance
        where = chance.choice(
            tuple(UNREGISTERED if self.scheduler.roll(self.odds.stranger) else self.world.cast.repositories)
        )
        draw = chance.random()
        if draw < 0.15:
            work, image = self._delete, chance.choice("AAAB")
        elif draw < 0.5:
            work, image = self._put, "A"
        elif draw < 0.95:
            work, image = self._push, chance.choice("AAAABBD")
        else:
            work, image = self._push_index, "I"
        self._spawn("client", "client", lambda: self._as_client(work, where, image))

    def _as_client(self, work: Callable[[str, str], object], where: str, image: str) -> None:
        try:
            work(where, image)
        except DeadError:
            self.scheduler.note_current("finds nobody there, and gives up")

    def _choose_process(self, where: str) -> Process:
        if where in UNREGISTERED:
            return self.world.stranger
        pod = self.world.cast.pods[self.world.cast.repositories[where].pod]
        return self.chance.choice([each for each in self.world.processes if each.pod == pod])

    def _delete(self, where: str, image: str) -> None:
        self.world.registry_of(where).delete_manifest(self._choose_process(where), where, image)

    def _put(self, where: str, image: str) -> None:
        self.world.registry_of(where).put_manifest(self._choose_process(where), where, image)

    def _push(self, where: str, image: str) -> bool:
        registry, repositories = self.world.registry_of(where), self.world.cast.repositories
        for _ in range(2):
            for layer in IMAGES[image].lists:
                process = self._choose_process(where)
                if self.chance.random() < 0.6 and registry.has(process, where, layer):
                    continue
                other = self.chance.choice([each for each in repositories if each != where])
                # Where two pods are one to a client, the router has Baleen make the mount.
                draw = self.chance.random()
                if draw < 0.3 and registry.mount(process, where, layer, other):
                    continue
                if draw >= 0.6 and where in repositories and self.world.mount(where, layer, other):
                    continue
                registry.upload(self._choose_process(where), where, layer)
            if registry.put_manifest(self._choose_process(where), where, image):
                return True
        return False

    def _push_index(self, where: str, image: str) -> None:
        registry = self.world.registry_of(where)
        process = self._choose_process(where)
        # What is there already need not be pushed again: its link is all that the registry looks for.
        if self.chance.random() < 0.5 and registry.put_manifest(process, where, image):
            return
        for each in IMAGES[image].lists:
            self._push(where, each)
        registry.put_manifest(self._choose_process(where), where, image)

    def _spawn_operator(self) -> None:
        world, chance = self.world, self.chance
        digest = digest_of(chance.choice("xA"))
        work = chance.choice(
            (
                lambda: world.undelete(digest),
                lambda: world.pin_for_a_while(digest),
                world.hold_for_a_while,
                world.switch_off_for_a_while,
                world.sweep,
            )
        )
        self._spawn("operator", "operator", work)

    # The end of it

    def _come_to_rest(self) -> None:
        """Everybody wakes up and comes to an end, all arrives, and Baleen does what it does by itself."""
        scheduler, chance, world = self.scheduler, self.chance, self.world
        scheduler.note("", "towards rest")
        literal = bool(self.odds.literal)
        self.odds, self._stuck = Odds(), None
        world.end_failures()
        scheduler.finish_all()
        while world.late:
            world.land_late(world.late[0])
        while world.copies:
            world.append(world.copies.pop())
        for process in world.processes:
            if not process.alive:
                world.restart(process)
        self._flush()
        # Deletes that are under way may still land after that.
        self._restore_alone()
        world.pass_time(ALL_DELETES_LANDED)
        if world.has_strangers():
            self._run_alone("operator", world.declare_unmanaged)
        if world.lost_events or world.links_without_events or world.holds_too_much() or "c" in world.pods:
            self._reconcile_all()
        if literal or world.went_back:
            self._unblock()
        self._run_alone("settler", world.workers[0].resolver.resolve_all)
        for _ in range(3):
            self._restore_alone()
        world.inspect()
        if self.bytes_only:
            return
        # The counts are compared each time; `check` costs as much as all the rest.
        world.inspect_at_rest(checked=chance.random() < 0.25)

    def _unblock(self) -> None:
        """The operator does what messages say until nothing blocks GC; raises Violation if that does not help."""
        for _ in range(ROUNDS):
            blocked = self._read_blocks()
            if not blocked:
                self._run_alone("collection", self.world.collect)
                self.operator.check_runs()
                if self.world.went_back:
                    # Rows outlive a bucket that went back: then a blob may be missing of which there is a copy.
                    self._run_alone("operator", self.operator.answer_missing)
                return
            for sentence in blocked:
                for command, work in self.operator.commands(sentence):
                    self._run_command(command, work)
            self._let_time_pass()
        raise Violation(f"the operator did all that was said, and GC is still blocked: {'; '.join(blocked)}")

    def _let_time_pass(self) -> None:
        """Time passes, longer than anybody waits for, and Baleen does what it does by itself."""
        world = self.world
        connection: Any = world.session
        world.pass_time(ALL_REQUESTS_ENDED + ALL_DELETES_LANDED)
        self._repair()
        self._probe_alone()
        self._run_alone("scheduler", lambda: jobs.request_needed_reconciles(connection, timedelta(days=1), BOUND))
        for pod in [pod for pod in world.pods if world.is_under_way(pod)]:
            self._reconcile_alone(pod)
        world.pass_time(ALL_REQUESTS_ENDED)
        self._probe_alone()
        self._restore_alone()

    def _reconcile_all(self) -> None:
        world = self.world
        self._probe_alone()
        world.pass_time(ALL_REQUESTS_ENDED)
        # One that was begun before does not know of later links: it is ended first.
        for pod in [pod for pod in world.pods if world.is_under_way(pod)] + list(world.pods):
            self._reconcile_alone(pod)
        # Each takes the oldest, which may be of another pod.
        for pod in [pod for pod in world.pods if world.is_under_way(pod)]:
            self._reconcile_alone(pod)
        # What was hidden when a reconcile found it can be read once it is served again.
        for pod in [pod for pod in world.pods if world.has_failed(pod)]:
            self._restore_alone()
            self._reconcile_alone(pod)

    def _probe_alone(self) -> None:
        """Probe all processes, and apply what they report."""
        for process in self.world.processes:
            self._run_alone("prober", lambda process=process: self.world.probe(process))
        self._flush()

    def _restore_alone(self) -> None:
        self._run_alone("restorer", lambda: self.world.restore(self.world.workers[0]))

    def _reconcile_alone(self, pod: str) -> None:
        self._run_alone(f"reconcile of {pod}", lambda: self.world.reconcile(pod))


class Current:
    """The history that is under way in this process, if any."""

    history: History | None = None


def current_history() -> History:
    assert Current.history is not None
    return Current.history


def describe_history(history: History, limit: int = 400) -> str:
    """What happened, in sentences: every act, and of the rest the last `limit` lines."""
    whole = history.scheduler.trace
    trace = [line for line in whole[:-limit] if line[2].startswith(ACT)] + whole[-limit:]
    lines = [f"{at / 1e6 - history.base.saved.now / 1e6:12.6f}  {who:<24} {what}" for at, who, what in trace]
    return "\n".join(lines)


class SavedBase(NamedTuple):
    """A base as one process has left it to others: its database, and what is not in there."""

    name: str
    versioned: bool
    database: str
    saved: Saved
    mixed: bool = False
    url: str = ""

    def copied(self, server: Server, number: str) -> SavedBase:
        """One of one's own."""
        return self._replace(url=server.database(f"{self.database}_{number}", self.database))


def make_bases(server: Server) -> list[SavedBase]:
    """Make all places where histories begin."""
    made = []
    for mixed, versioned, name in product((False, True), (True, False), PLOTS):
        database = f"base_{'versioned' if versioned else 'plain'}_{name}{'_mixed' if mixed else ''}"
        saved = _make_base(server.database(database), name, versioned=versioned, mixed=mixed)
        made.append(SavedBase(name, versioned, database, saved, mixed))
    return made


def open_base(place: SavedBase) -> Base:
    return Base(place.name, Session(place.url), Bucket(versioned=place.versioned), place.saved, place.mixed)


def _make_base(  # noqa: C901 - one sequence of steps
    url: str, name: str, *, versioned: bool, mixed: bool
) -> Saved:
    session, bucket, scheduler = Session(url), Bucket(versioned=versioned), Scheduler(0)
    world = World(session, bucket, scheduler, None, mixed=mixed)
    populate(world)
    worker, (a1, a2, b1, *others) = world.workers[0], world.processes

    def arrive() -> None:
        for process in world.processes:
            while process.queue:
                world.deliver(process)
        world.apply(worker, (0, 1), 1000)

    def report() -> None:
        world.pass_time(ALL_REQUESTS_ENDED)
        for process in world.processes:
            world.probe(process)
        arrive()
        for pod in world.cast.pods:
            world.reconcile(pod)
        for process in world.processes:
            world.probe(process)
        arrive()

    def image(process: Process, where: str, name: str, layers: Sequence[str]) -> None:
        registry = world.registry_of(where)
        for layer in layers:
            registry.upload(process, where, layer)
        registry.put_manifest(process, where, name)

    image(b1, "b/one", "C", "y")
    image(a1, "a/one", "A", "x")
    image(a2, "a/two", "D", "z")
    for g1 in others:
        image(g1, "g/one", "D", "z")
    for where in ("b/one", "a/two"):
        world.registry.upload(b1 if where == "b/one" else a2, where, "x")
    arrive()
    for pod in world.cast.pods:
        world.examine(pod)
    report()
    world.registry.delete_manifest(a1, "a/one", "A")
    arrive()
    world.pass_time(100)
    world.sweep()
    report()
    if name != "unreferenced":
        world.collect()
    if name == "due":
        report()
    for each in scheduler.trace:
        assert "gives up" not in each[2], each
    saved = world.save()
    session.keep()
    session.vacuum()
    session.close()
    return saved
