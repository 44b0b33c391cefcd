"""Actors that take turns: at any time one of them runs, up to its next call of the store or its next transaction.

An actor is ordinary code, that of Baleen or of a registry, in a greenlet. It stops at each `pause`, and whoever drives
the history decides who goes on: so a seed decides everything, and a history can be repeated. While a transaction is
open no other actor may begin one, but whoever only speaks to the store may go on.
An actor may *sleep*: nobody wakes it until the history says so; or be *killed*: it never takes another step.
Not here: which actors there are (world.py), who goes on when (history.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from coordinator.errors import BaleenError

#: The time at which every history begins.
BEGINNING = datetime(2026, 11, 1, tzinfo=UTC)
SECOND = 1_000_000


class Violation(BaseException):
    """Something happened that must not. No code of an actor catches it."""


class Actor:
    def __init__(self, name: str, kind: str, run: Callable[[], None], hub: greenlet) -> None:
        self.name = name
        self.kind = kind
        self.greenlet = greenlet(run, hub)
        #: What its next step needs: "db" or "store".
        self.wants = "store"
        self.next = "begins"
        self.asleep = False
        #: So that only an act of waking wakes it.
        self.deeply = False
        #: Of a request to a registry: the process that serves it, and when it must have ended.
        self.process: Any = None
        self.deadline: int | None = None
        #: A link or rows that its next step writes, and how: what may still land after the death of the process.
        self.writing: tuple[str, Callable[[], object]] | None = None
        #: How readily it is chosen.
        self.weight = 1.0
        self.dying = False

    @property
    def done(self) -> bool:
        return self.greenlet.dead


class Scheduler:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        #: Microseconds since BEGINNING.
        self.now = 0
        self.actors: list[Actor] = []
        #: Who has a transaction open.
        self.holder: Actor | None = None
        #: What happened: when, who, what.
        self.trace: list[tuple[int, str, str]] = []
        self._hub = getcurrent()
        #: Called after every step.
        self.after_step: Callable[[], None] = lambda: None

    # For those that run

    def pause(self, wants: str, what: str) -> None:
        """Let others go on before this happens."""
        actor = self.current
        if actor is None or actor.dying:
            return
        actor.wants, actor.next = wants, what
        self._hub.switch()
        self.note(actor.name, what)

    def note_current(self, what: str) -> None:
        actor = self.current
        self.note("" if actor is None else actor.name, what)

    def note(self, who: str, what: str) -> None:
        self.trace.append((self.now, who, what))

    @property
    def current(self) -> Actor | None:
        return getattr(getcurrent(), "actor", None)

    def time(self) -> datetime:
        return BEGINNING + timedelta(microseconds=self.now)

    def at(self, time: datetime) -> int:
        """Return the moment of `now` at which `time` returned this."""
        return (time - BEGINNING) // timedelta(microseconds=1)

    def roll(self, probability: float) -> bool:
        return probability > 0 and self.chance.random() < probability

    # For whoever drives the history

    def spawn(self, name: str, kind: str, work: Callable[[], object]) -> Actor:
        def run() -> None:
            try:
                work()
            except BaleenError as error:
                self.note_current(f"gives up: {error}")
            except GreenletExit:
                pass

        actor = Actor(name, kind, run, self._hub)
        actor.greenlet.actor = actor
        self.actors.append(actor)
        # Up to its first pause nothing happens.
        self._resume(actor)
        return actor

    def ready(self) -> list[Actor]:
        return [
            actor
            for actor in self.actors
            if not actor.asleep and (actor.wants != "db" or self.holder is None or self.holder is actor)
        ]

    def step(self, actor: Actor) -> None:
        self.now += 1
        self._resume(actor)
        self.after_step()

    def _resume(self, actor: Actor) -> None:
        actor.greenlet.switch()
        if actor.done:
            self.actors.remove(actor)

    def may_stop(self, actor: Actor) -> bool:
        """Whether it may sleep or be killed here: a process that stops in a transaction loses that after a while."""
        return self.holder is not actor

    def kill(self, actor: Actor) -> None:
        actor.dying = True
        self.note(actor.name, "is killed")
        actor.greenlet.throw(GreenletExit)
        self.actors.remove(actor)

    def finish(self, actor: Actor) -> None:
        """Let it go on alone, to its end."""
        actor.asleep = False
        while not actor.done:
            if actor.wants == "db" and self.holder not in {None, actor}:
                self.step(self.holder)
            else:
                self.step(actor)

    def finish_all(self) -> None:
        for actor in self.actors:
            actor.asleep = False
        while self.actors:
            self.step(self.chance.choice(self.ready()))

    def abandon(self) -> None:
        """End the history, wherever it is."""
        for actor in list(self.actors):
            actor.dying = True
            actor.greenlet.throw(GreenletExit)
        self.actors.clear()


class Serial(Executor):
    """Does what pools of threads do, one after the other, where it is asked to."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - it is handed on
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass
