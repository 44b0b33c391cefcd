"""What `baleen pods suggest-prefixes` proposes."""

import pytest

from coordinator.commands.suggest_prefixes import suggest_prefix
from coordinator.domain.names import Digest, RepositoryName
from coordinator.perimeter.root_listing import count_repositories
from coordinator.storage.layout import layer_link_key
from tests.storage.memory import MemoryObjectStore


def test_repositories_are_counted_up_to_a_limit() -> None:
    """A folder's repositories are counted at every depth, itself included, and no more than the limit."""
    store = MemoryObjectStore()
    for name in ("team", "team/a", "team/a/b", "team/c", "other/x"):
        store.put(layer_link_key(RepositoryName(name), Digest(b"d" * 32)), b"link")
    assert count_repositories(store, "team", 100) == (4, True)
    assert count_repositories(store, "team", 2) == (2, False)
    assert count_repositories(store, "other", 100) == (1, True)


@pytest.mark.parametrize(
    ("prefix", "name"), [("team", "team"), ("team/app", "team-app"), ("a__b", "a-b"), ("pod-a", "pod-a-2")]
)
def test_a_command_registers_it(prefix: str, name: str) -> None:
    """The command names a pod that there is not yet, and declares it unmanaged."""
    found = suggest_prefix(prefix, ["z"], {"pod-a"}, 3, True)
    assert found["command"].startswith(f"baleen pods add {name} --prefix {prefix} --registry URL --unmanaged --why ")
    assert found["problem"] is None


@pytest.mark.parametrize(("prefix", "text"), [("Team", "not a valid name"), ("team", "team/x below it")])
def test_what_cannot_be_registered(prefix: str, text: str) -> None:
    """A folder that is no repository's name, or lies above a pod's prefix, has no command, and says why."""
    found = suggest_prefix(prefix, ["team/x"], set(), 1, True)
    assert found["command"] is None
    assert text in found["problem"]
