"""What the demo's steps share: the two pods, where they are looked at from, and how a step that fails says so.

Not here: the steps (run.py, gc.py).
"""

from typing import Any, NamedTuple

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
#: How long counts may take to follow what a registry has done. It is well under a second when all is well.
FOLLOW_S = 30.0
POLL_S = 0.05
#: Checks of the doctor that cannot be proved here: the embedded broker is for trying Baleen, and the embedded store has
#: one key, which both pods' registries share with Baleen (`cannot-delete` stands for all checks of that key).
UNSAFE_FINDINGS = ("kafka-durable", "cannot-delete")


class DemoFailedError(BaleenError):
    """A step of the demo did not hold; the message says which and how."""


class Pod(NamedTuple):
    """A pod's registry, whose events pass the gate."""

    registry: DistributionRegistry | ModelRegistry
    process: ManagedProcess
    client: RegistryClient
    gate: Gate


class Demo(NamedTuple):
    console: Console
    settings: Settings
    api: Api
    store: ObjectStore
    pods: dict[str, Pod]
    children: Children

    def step(self, what: str) -> None:
        self.console.print(f"[bold]•[/] {what}")

    def held(self, what: str) -> None:
        self.console.print(f"  [green]held[/]: {what}")

    def waits(self, what: str) -> None:
        self.console.print(f"  [dim]waits: {what}[/]", highlight=False)

    def look_up(self, digests: list[str]) -> list[dict[str, Any] | None]:
        """Return what is told of each blob."""
        found: list[dict[str, Any] | None] = self.api.post("/v1/blobs/lookup", {"digests": digests})["items"]
        return found
