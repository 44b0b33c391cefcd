"""What the demo's steps share: the two pods, the clients for checks, and the error of a failed check.

Not here: the steps (run.py, gc.py).
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from rich.console import Console

from coordinator.client import Api
from coordinator.demo.gate import Gate
from coordinator.errors import BaleenError
from coordinator.registry.client import RegistryClient
from coordinator.settings import Settings
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry
from coordinator.stack.model_registry import ModelRegistry
from coordinator.stack.process import ManagedProcess
from coordinator.storage.port import ObjectStore

PODS = ("pod-a", "pod-b")
#: How long counts may take to follow what a registry has done. Usually it takes well under a second.
FOLLOW_S = 30.0
POLL_S = 0.05
#: Checks of the doctor that cannot be proved here: the embedded broker is for evaluation only, and the embedded store
#: has one key, which both pods' registries share with Baleen (`cannot-delete` stands for all checks of that key).
UNSAFE_FINDINGS = ("kafka-durable", "cannot-delete")


T = TypeVar("T")


class DemoFailedError(BaleenError):
    """A check of the demo failed; the message says which and how."""


class DemoPod(NamedTuple):
    """A pod's registry. It sends its events through the gate."""

    registry: DistributionRegistry | ModelRegistry
    process: ManagedProcess
    client: RegistryClient
    gate: Gate


class Demo(NamedTuple):
    console: Console
    settings: Settings
    api: Api
    store: ObjectStore
    pods: dict[str, DemoPod]
    children: Children

    def show_step(self, what: str) -> None:
        self.console.print(f"[bold]•[/] {what}")

    def show_ok(self, what: str) -> None:
        self.console.print(f"  [green]ok[/]: {what}")

    def show_wait(self, what: str) -> None:
        self.console.print(f"  [dim]waiting: {what}[/]", highlight=False)

    def wait_until(
        self, read: Callable[[], T], there: Callable[[T], bool], why: Callable[[T], str], seconds: float = FOLLOW_S
    ) -> T:
        """Read again and again until it is there; return it. Raises DemoFailedError, which says `why`."""
        deadline = time.monotonic() + seconds
        while not there(found := read()):
            if time.monotonic() > deadline:
                raise DemoFailedError(why(found))
            time.sleep(POLL_S)
        return found

    def look_up(self, digests: list[str]) -> list[dict[str, Any] | None]:
        """Look up each blob; None for an unknown one."""
        found: list[dict[str, Any] | None] = self.api.post("/v1/blobs/lookup", {"digests": digests})["items"]
        return found
