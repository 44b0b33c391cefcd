"""Random histories of garbage collection hold what it promises, and find out when one of its rules is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.run import Ground, Total, run_mutants, simulate, start_ground

pytestmark = pytest.mark.simulation

#: With pods of kind `link` alone, and with one of kind `gitlab` beside them.
HISTORIES = {False: 1_200, True: 400}
PROCESSES = 2
#: Of the first history; fixed, so that what is found is found again.
SEED = 1


@pytest.fixture(scope="module")
def on() -> Iterator[Ground]:
    with start_ground() as made:
        yield made


@pytest.fixture(scope="module")
def caught(on: Ground) -> Mapping[str, Total]:
    """What histories find of each mutant."""
    return run_mutants(on, list(MUTANTS), processes=PROCESSES)


@pytest.mark.parametrize("mixed", HISTORIES)
def test_no_history_loses_what_is_needed(on: Ground, mixed: bool) -> None:
    """After every step what is linked has its bytes, and at rest it is served and counted; else the seed is printed."""
    total = simulate(on, histories=HISTORIES[mixed], seed=SEED, processes=PROCESSES, mixed=mixed)
    assert total.histories == HISTORIES[mixed]
    assert not total.found, str(total.found[0])


@pytest.mark.parametrize("mixed", HISTORIES)
def test_a_seed_is_one_history(on: Ground, mixed: bool) -> None:
    """The same seeds give the same histories, step by step, whatever ran before them and in however many processes."""
    one = simulate(on, histories=24, seed=7, processes=1, mixed=mixed)
    others = simulate(on, histories=24, seed=7, processes=2, mixed=mixed)
    assert one.fingerprint == others.fingerprint


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_left_out_is_noticed(name: str, caught: Mapping[str, Total]) -> None:
    """Among its first histories one loses or hides what is needed, and tells what happened. An error does not count."""
    total = caught[name]
    assert total.found, f"{total.histories} histories noticed nothing: the simulation is too weak"
    found = total.found[-1]
    assert MUTANTS[name].is_noticed(found.violation), str(found)
    assert "act: " in found.history
