"""Find a registry of a pod that can be reached. Each registry of a pod can answer for it.

Not here: a registry that fails later, in the middle of a blob; then the client uploads.
"""

from collections.abc import Callable
from typing import TypeVar

from coordinator.errors import UnavailableError
from coordinator.mounts.directory import MountPod
from coordinator.registry.client import RegistryClient
from coordinator.registry.errors import RegistryUnreachableError

T = TypeVar("T")


def ask_any_registry(
    pod: MountPod, connect: Callable[[str], RegistryClient], ask: Callable[[RegistryClient], T]
) -> tuple[RegistryClient, T]:
    """Try the pod's registries in turn, by their URLs, until one can be reached; return its client and answer.

    The caller closes the client. Raises UnavailableError if none can be reached, and whatever the first reachable one
    raises.
    """
    last = UnavailableError(f"Pod {pod.name} has no registry: set one with `baleen pods set-registries`.")
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
