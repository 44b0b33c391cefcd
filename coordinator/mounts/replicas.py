"""Registries of one pod, each of which answers for it: one that cannot be reached is passed over.

Not here: one that ends later, in the midst of a blob; then the client uploads.
"""

from collections.abc import Callable
from typing import TypeVar

from coordinator.errors import UnavailableError
from coordinator.mounts.directory import MountPod
from coordinator.registry.client import RegistryClient
from coordinator.registry.errors import RegistryUnreachableError

T = TypeVar("T")


def any_of(
    pod: MountPod, connect: Callable[[str], RegistryClient], ask: Callable[[RegistryClient], T]
) -> tuple[RegistryClient, T]:
    """Ask the pod's registries in turn, by their URLs, until one can be reached; return it and its answer.

    Whoever asks closes it. Raises UnavailableError if none can be reached, and what the first that can raises.
    """
    last = UnavailableError(f"Pod {pod.name} has no registry: `baleen pods set-registries`.")
    for registry in pod.registries:
        client = connect(registry)
        try:
            return client, ask(client)
        except RegistryUnreachableError as error:
            last = error
            client.close()
        except BaseException:
            client.close()
            raise
    raise last
