"""An operator who does what Baleen's messages say, word by word.

What blocks GC is asked as status asks it, and each command that a sentence names is run by what the command itself
calls. A command that the operator does not know is a violation: nobody has tried whether it helps.
Not here: what goes on in between (history.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from coordinator.audit.audit import Ages, Audit
from coordinator.domain.gc import block_reasons
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import PodName
from coordinator.gc import collect, controls, mark
from coordinator.kafka.topics import EVENTS
from coordinator.perimeter import root_listing
from coordinator.reconcile.presence import Presence
from coordinator.table import processes
from tests.simulation.scheduler import Violation
from tests.simulation.world import BOUND, DELETE_BOUND, World

DAY = timedelta(days=1)
WHY = "a history"
_COMMANDS = re.compile(r"`baleen ((?:gc|pods|dead-letters|audit|release|unpin)(?: [a-z]+(?:-[a-z]+)*)?)([^`]*)`")
#: Sentences that name no command, by what is in them.
_SENTENCES = {
    "switched off:": "gc on",
    " is held:": "release",
}
_PROCESS = re.compile(r"(?:no probe has reached process (\S+) since|process (\S+) has returned no probe)")
#: Commands that only show something, that are of pods of kind `relay`, or that no history needs.
_NOTHING_TO_DO = {
    "pods set-registries",
    "pods resolve-gaps",
    "pods show",
    "pods suggest-prefixes",
    "pods vanished",
    "gc status",
}


class Operator:
    def __init__(self, world: World) -> None:
        self.world = world
        self._connection: Any = world.session
        self._connections: Any = world.connections
        self._store: Any = world.store

    def read(self) -> list[str]:
        """Return what blocks GC, once a scheduler has compared bucket and database, and listed the root."""
        mark.record_mismatch(self._connections, self._store)
        root_listing.update_listing(self._connections, self._store)
        return block_reasons(self.world.facts())

    def commands(self, sentence: str) -> Iterator[tuple[str, Callable[[], object]]]:
        """Give the commands that a sentence names, and what they do; raises Violation."""
        world = self.world
        pod = next((name for name in world.pods if f"pod-{name}" in sentence), "a")
        known: Mapping[str, Callable[[], object]] = {
            "audit": self.audit,
            "gc claim": self.claim,
            "gc on": lambda: controls.set_switch(self._connection, WHY, on=True),
            "pods accept-vanished": lambda: world.accept_vanished(pod),
            "pods add": self._declare,
            "pods add-prefix": self._declare,
            "pods doctor": lambda: world.examine(pod),
            "pods reconcile": lambda: world.reconcile(pod),
            "pods retire-process": lambda: self._retire(pod, sentence),
            "release": lambda: world.release(sentence.split(" is held", maxsplit=1)[0]),
        }
        named = [found[1] for found in _COMMANDS.finditer(sentence)]
        named += [command for words, command in _SENTENCES.items() if words in sentence]
        for command in dict.fromkeys(named):
            if command in _NOTHING_TO_DO:
                continue
            if command not in known:
                raise Violation(f"a message names `baleen {command}`, which the operator does not know: {sentence}")
            yield command, known[command]

    def claim(self) -> None:
        """Claim the bucket for the database. Nothing else of Baleen may run."""
        mark.claim_bucket(self._connections, self._store, WHY, EVENTS, DELETE_BOUND)

    def audit(self) -> None:
        presence = Presence(self._connections, self._store)
        report = Audit(self._connections, self._store, presence, Ages(DAY, DAY), repair=True).run()
        pending = report.claim
        self.world.scheduler.note_current(
            "verifies the claim" if pending is None else f"does not verify the claim: {pending}"
        )

    def answer_missing(self) -> None:
        """Do what the runbook says of missing blobs."""
        if self.world.session.now("SELECT FROM blobs WHERE state = %s LIMIT 1", (BlobState.MISSING,)):
            self.audit()

    def check_runs(self) -> None:
        """Raise Violation unless the last collection came to its end."""
        found = self.world.session.now(
            "SELECT state, error FROM jobs WHERE kind = %s ORDER BY id DESC LIMIT 1", (collect.JOB_KIND,)
        )
        if found[0][0] != "done":
            raise Violation(f"nothing blocks GC, and the run that follows is {found[0][0]}: {found[0][1]}")

    def _retire(self, pod: str, sentence: str) -> None:
        """Retire a process that runs no more: one that began and ended in a history that was lost, for example."""
        running = {process.instance for process in self.world.processes if process.alive}
        for found in _PROCESS.finditer(sentence):
            instance = found[1] or found[2]
            if instance not in running:
                with self.world.session.transaction():
                    processes.retire_process(self.world.session, PodName(f"pod-{pod}"), instance, WHY, BOUND)

    def _declare(self) -> None:
        if self.world.has_strangers():
            self.world.declare_unmanaged()
