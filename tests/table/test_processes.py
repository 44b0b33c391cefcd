"""Registry processes: found in events, moved on by echoes, declared dead and retired."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from coordinator.doctor import table as findings
from coordinator.domain.names import PodName
from coordinator.domain.watermarks import ProcessState
from coordinator.errors import ConflictError, NotFoundError, UsageError
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.pods import table as pods
from coordinator.pods.watermarks import PROCESSES_LIMIT, RETIRED_SHOWN
from coordinator.table import echoes
from coordinator.table import processes as registry_processes
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item, OutOfStepError, Slice
from coordinator.table.echoes import KnownProcesses
from tests.support.tables import await_lock_wait
from tests.table.harness import NO_MARGIN, Table, begin, deadlocks
from tests.table.processes import HERE, THERE, URL, World


def nothing_stored(*_: object) -> bool:
    return False


@pytest.fixture
def world(fresh: Table) -> World:
    return World(fresh)


def dump(table: Table) -> list[list[tuple[Any, ...]]]:
    return [table.rows(f"SELECT * FROM {name} ORDER BY 1, 2, 3") for name in ("processes", "watermarks", "endpoints")]


def test_found_in_events(world: World) -> None:
    """A process that an event names is known from then on, and W is unknown until a probe reaches it."""
    table = world.table
    piece = table.slice([table.link("r", "l")])._replace(processes=frozenset({(world.pod, "new")}))
    BatchApplier(world.connection, NO_MARGIN, world.known).apply([piece])
    table.set_applied(piece)
    world.return_probe(world.probe())
    again = table.slice([table.link("r", "l")])._replace(processes=frozenset({(world.pod, "new")}))
    BatchApplier(world.connection, NO_MARGIN).apply([again])
    assert table.rows("SELECT instance_id FROM processes ORDER BY 1") == [("new",), ("s",)]
    assert world.view().at is None
    assert any("no probe has reached process new" in sentence for sentence in world.view().waits_for)


def test_an_echo_moves_the_watermark(world: World) -> None:
    """W of a partition is when the last probe was sent whose echo was applied there; a pod's is the least."""
    nonce = world.probe()
    sent = world.sent_at(nonce)
    applied = world.apply(world.piece([world.echo(nonce)]))
    assert (applied.echoes, applied.echoes_unknown) == (1, 0)
    assert world.marks() == {(EVENTS, 0): sent, (EVENTS, 1): None, (DEAD_LETTERS, 0): None}
    assert world.view().at is None
    world.apply(world.piece([world.echo(nonce)], 1))
    assert world.view().at is None
    world.apply(world.piece([world.echo(nonce)], 0, DEAD_LETTERS))
    view = world.view()
    assert (view.at, view.waits_for) == (sent, [])
    shown = world.process()
    assert (shown.state, shown.at) == (ProcessState.LIVE, sent)
    assert (shown.partitions, shown.dead_letters) == ({0: sent, 1: sent}, {0: sent})
    assert world.endpoint() == ("s", sent, False)
    later = world.probe()
    world.apply(world.piece([world.echo(later)]))
    assert world.marks()[EVENTS, 0] == world.sent_at(later)
    assert world.view().at == sent


def test_what_is_not_known_is_ignored(world: World) -> None:
    """An unknown nonce, one of another pod's probe and one that was forgotten move nothing, and are counted."""
    other = world.probe(pod="pod-b")
    old = world.probe()
    world.connection.execute("UPDATE probes SET sent_at = now() - interval '25 hours' WHERE nonce = %s::uuid", (old,))
    assert registry_processes.delete_old_probes(world.connection) == 1
    applied = world.apply(world.piece([world.echo(nonce) for nonce in ("ab" * 16, other, old)]))
    assert (applied.echoes, applied.echoes_unknown) == (0, 3)
    assert world.marks() == {}
    assert world.endpoint() == (None, None, False)
    # The process itself is known from it.
    assert world.process().state is ProcessState.LIVE


def test_again_late_and_in_any_order(world: World) -> None:
    """Echoes that are repeated or late change nothing, and W never moves back (scenario 25)."""
    first, second = world.probe(), world.probe()
    world.return_probe(second)
    before = dump(world.table)
    world.return_probe(first)
    world.return_probe(second)
    world.apply(world.piece([world.echo(first), world.echo(second), world.echo(first)], 1))
    assert dump(world.table) == before


def test_the_last_of_a_batch(world: World) -> None:
    """Of several echoes in a batch the one of the last probe counts, in any order."""
    nonces = [world.probe() for _ in range(5)]
    mixed = [nonces[1], nonces[4], nonces[0], nonces[3]]
    world.apply(world.piece([world.echo(nonce) for nonce in mixed]), world.piece([world.echo(nonces[2])], 1))
    assert world.marks()[EVENTS, 0] == world.sent_at(nonces[4])
    assert world.marks()[EVENTS, 1] == world.sent_at(nonces[2])
    assert world.endpoint() == ("s", world.sent_at(nonces[4]), False)


def test_in_step(world: World) -> None:
    """An echo is applied in one transaction with the records before it, or not at all."""
    nonce = world.probe()
    piece = world.piece([world.echo(nonce)])
    ahead = piece._replace(first_offset=1, next_offset=2, items=[piece.items[0]._replace(offset=1)])
    with pytest.raises(OutOfStepError):
        world.apply(ahead)
    assert world.marks() == {}
    fact = world.table.link("r", "l")._replace(size=2**70)
    broken = piece._replace(items=[Item(0, 0, world.pod, fact, None), piece.items[0]._replace(offset=1)], next_offset=2)
    with pytest.raises(psycopg.DataError):
        world.apply(broken)
    assert world.marks() == {}
    assert world.table.rows("SELECT * FROM processes") == []


def test_a_failure_forgets_who_is_known(world: World) -> None:
    """After a failure the known processes are read again: the table may be another one, after a failover."""
    world.return_probe(world.probe())
    world.connection.execute("DELETE FROM processes")
    with pytest.raises(OutOfStepError):
        world.apply(world.piece([])._replace(first_offset=77))
    table = world.table
    piece = table.slice([table.link("r", "l")])._replace(processes=frozenset({(world.pod, "s")}))
    BatchApplier(world.connection, NO_MARGIN, world.known).apply([piece])
    assert table.rows("SELECT instance_id FROM processes") == [("s",)]


def test_an_echo_of_a_process_that_is_not_there(world: World) -> None:
    """An echo of a process that is cached as known and is not in the table adds it."""
    world.return_probe(world.probe())
    world.connection.execute("DELETE FROM processes")
    nonce = world.probe()
    world.return_probe(nonce)
    assert world.view().at == world.sent_at(nonce)


def test_who_is_known_is_bounded() -> None:
    """A worker remembers a bounded number of processes, and reads the others again."""
    known = KnownProcesses()
    crowd = {(1, f"s{number}") for number in range(KnownProcesses.LIMIT)}
    known.add(crowd)
    piece = Slice("t", 0, 0, 0, 0, [], frozenset({(1, "s1"), (1, "other")}))
    assert known.find_unknown([piece]) == {(1, "other")}
    known.add({(1, "other")})
    assert known.find_unknown([piece]) == {(1, "s1")}
    known.add({*crowd, (1, "other")})
    assert known.find_unknown([piece]) == {(1, "s1"), (1, "other")}


def test_replaced(world: World) -> None:
    """Where another process answers, the earlier one is dead, freezes W, and is retired only after the bound."""
    first = world.probe()
    world.return_probe(first, "s")
    before = datetime.now(UTC)
    second = world.probe()
    world.return_probe(second, "t")
    gone = world.process("s")
    assert (gone.state, gone.dead_why) == (ProcessState.DEAD, "replaced")
    assert gone.dead_since is not None
    assert before < world.sent_at(second) < gone.dead_since
    view = world.view()
    assert view.at == world.sent_at(first)
    assert any(sentence.startswith("process s has been dead") for sentence in view.waits_for)
    bound = timedelta(hours=1)
    early, late = gone.dead_since + bound - timedelta(microseconds=1), gone.dead_since + bound
    assert registry_processes.retire_dead_processes(world.connection, world.pod, early, bound, "reconciled") == []
    assert (
        registry_processes.retire_dead_processes(world.connection, world.table.pods["pod-b"], late, bound, "reconciled")
        == []
    )
    assert registry_processes.retire_dead_processes(world.connection, world.pod, late, bound, "reconciled") == ["s"]
    assert registry_processes.retire_dead_processes(world.connection, world.pod, late, bound, "reconciled") == []
    assert world.view().at == world.sent_at(second)
    assert (world.process("s").state, world.process("s").retired_why) == (ProcessState.RETIRED, "reconciled")


def test_refused(world: World) -> None:
    """A refused connection proves the death of the process that echoed there last; other failures prove nothing."""
    world.return_probe(world.probe(), "s")
    assert registry_processes.record_probe_failure(world.connection, world.probe(), "timed out", refused=False) is None
    assert world.process().state is ProcessState.LIVE
    (shown,) = world.view().endpoints
    assert (shown.error, shown.failing_since is None) == ("timed out", False)
    assert world.refused(world.probe()) == "s"
    assert world.refused(world.probe()) is None
    assert (world.process().state, world.process().dead_why) == (ProcessState.DEAD, "refused")
    (again,) = world.view().endpoints
    assert (again.error, again.failing_since) == ("refused", shown.failing_since)
    registry_processes.record_probe_answer(world.connection, world.probe())
    (answered,) = world.view().endpoints
    assert (answered.error, answered.failing_since) == (None, None)
    assert answered.answered_at is not None


def test_a_refusal_that_is_older_than_an_echo(world: World) -> None:
    """A refusal from before the next process started does not declare that process dead."""
    world.return_probe(world.probe(), "s")
    refused = world.probe()
    world.return_probe(world.probe(), "t")
    assert world.refused(refused) is None
    assert world.process("t").state is ProcessState.LIVE


def test_one_of_two_addresses_refuses(world: World) -> None:
    """A process that one of its addresses no longer reaches is alive as long as it echoes at the other; it is dead once
    that refuses, too.
    """
    world.record_names({URL: [HERE, THERE]})
    world.return_probe(world.probe(), "s")
    world.return_probe(world.probe(THERE), "s")
    for _ in range(3):
        there, here = world.probe(THERE), world.probe()
        assert world.refused(here) is None
        world.return_probe(there, "s")
    assert world.table.rows("SELECT FROM gaps") == []
    assert world.view().at == world.sent_at(there)
    assert world.refused(world.probe(THERE)) == "s"


def test_answers_of_another_kind(world: World) -> None:
    """An answer that is no success shows that a process is there."""
    registry_processes.record_probe_failure(world.connection, world.probe(), "401", refused=False, answered=True)
    (shown,) = world.view().endpoints
    assert shown.answered_at is not None
    assert shown.failing_since is not None


def test_an_address_that_is_left(world: World) -> None:
    """Where the last process is retired, W moves while connections are refused, and stops as soon as they are not."""
    world.record_names({URL: [HERE, THERE]})
    world.return_probe(world.probe(), "s")
    world.return_probe(world.probe(THERE), "t")
    assert world.refused(world.probe()) == "s"
    retired = registry_processes.retire_dead_processes(
        world.connection, world.pod, datetime.now(UTC), timedelta(), "reconciled"
    )
    assert retired == ["s"]
    last = world.probe()
    world.refused(last)
    later = world.probe(THERE)
    world.return_probe(later, "t")
    assert world.view().at == world.sent_at(last)
    registry_processes.record_probe_failure(world.connection, world.probe(), "timed out", refused=False)
    world.answered()
    assert world.view().at == world.sent_at(last)
    # Another process is there now, and the one that answered before never echoed: it may have accepted a push.
    new = world.probe()
    world.return_probe(new, "new")
    assert world.view().at == world.sent_at(last)
    world.run_reconcile()
    assert world.view().at == world.sent_at(later)


def test_one_that_answers_and_is_never_echoed(world: World) -> None:
    """W passes no probe that was answered and not echoed until a reconcile, whatever echoes follow (scenario 25)."""
    world.return_probe(world.probe(), "s")
    refused = world.probe()
    assert world.refused(refused) == "s"
    answered = world.answered()
    world.run_reconcile()
    assert world.process("s").state is ProcessState.RETIRED
    # It runs on, so it answers on.
    last = world.answered()
    world.return_probe(world.probe(), "t")
    assert world.view().at == world.sent_at(refused)
    world.connection.execute("UPDATE probes SET sent_at = sent_at - interval '70 s'")
    (shown,) = [sentence for sentence in world.view().waits_for if "answered probes" in sentence]
    assert shown.startswith(f"{URL} at {HERE} has answered probes that no notification returned since ")
    bound = timedelta(hours=1)
    # Not since it was sent: its scheduler may have been stopped before that.
    ((at,),) = world.table.rows("SELECT answered_at FROM probes WHERE nonce = %s::uuid", (last,))
    registry_processes.delete_unechoed_probes(world.connection, world.table.pods["pod-b"], at + bound, bound)
    registry_processes.delete_unechoed_probes(
        world.connection, world.pod, at + bound - timedelta(microseconds=1), bound
    )
    assert world.unechoed() == [last]
    registry_processes.delete_unechoed_probes(world.connection, world.pod, at + bound, bound)
    assert world.unechoed() == []
    assert answered not in world.unechoed()
    now = world.probe()
    world.return_probe(now, "t")
    assert (world.view().at, world.view().waits_for) == (world.sent_at(now), [])


def test_one_that_is_never_echoed_where_nobody_is_listed(world: World) -> None:
    """A process that came with a new address, answered and went with it keeps W unknown until a reconcile."""
    world.return_probe(world.probe(), "s")
    world.record_names({URL: [HERE, THERE]})
    world.answered(THERE)
    world.record_names({URL: [HERE]})
    world.return_probe(world.probe(), "s")
    assert world.view().at is None
    (shown,) = world.view().waits_for
    assert shown.startswith(f"{URL} at {THERE} has answered probes")
    world.connection.execute("DELETE FROM endpoints WHERE address = %s", (THERE,))
    assert world.view().at is None
    world.run_reconcile()
    assert world.view().at is not None


def test_one_of_two_that_is_cut_off(world: World) -> None:
    """A process that was retired, and answers on behind the address of another, keeps W from what it takes now."""
    world.return_probe(world.probe(), "s")
    other = world.probe()
    world.return_probe(other, "t")
    world.run_reconcile()
    assert world.process("s").state is ProcessState.RETIRED
    unechoed = world.answered()
    for _ in range(2):
        world.return_probe(world.probe(), "t")
        world.answered()
    assert world.view().at == world.sent_at(other)
    world.return_probe(unechoed, "s")
    assert world.process("s").state is ProcessState.LIVE


def test_the_probe_under_way_costs_nothing(world: World) -> None:
    """A probe that was answered, and whose echo is on its way, delays neither W nor anything else."""
    for _ in range(3):
        nonce = world.answered()
        world.return_probe(nonce)
        world.answered()
        assert (world.view().at, world.view().waits_for) == (world.sent_at(nonce), [])
        world.connection.execute("UPDATE probes SET echoed = true")


def test_an_echo_that_is_there_before_the_answer(world: World) -> None:
    """An echo that is applied before the answer is recorded counts as the answer's."""
    nonce = world.probe()
    world.apply(world.piece([world.echo(nonce)]))
    registry_processes.record_probe_answer(world.connection, nonce)
    assert world.unechoed() == []


def test_what_is_kept_of_probes_that_are_never_echoed(world: World) -> None:
    """Of old probes without an echo the first and the newest are kept, and can be echoed late; one row replaces all
    others, and cannot.
    """
    world.return_probe(world.probe())
    sent = [world.answered() for _ in range(5)]
    there = [world.answered(THERE) for _ in range(2)]
    world.age_probes()
    assert registry_processes.delete_old_probes(world.connection) == 2
    (other,) = set(world.unechoed()) - set(sent) - set(there)
    assert world.unechoed() == [sent[0], other, sent[-1], *there]
    assert registry_processes.delete_old_probes(world.connection) == 0
    applied = world.apply(world.piece([world.echo(nonce) for nonce in sent]))
    assert (applied.echoes, applied.echoes_unknown) == (2, 3)
    assert world.unechoed() == [other, *there]
    assert registry_processes.delete_old_probes(world.connection) == 2


def test_a_late_echo_before_probes_that_were_forgotten(world: World) -> None:
    """A late echo of the first probe resolves nothing of another process that answered later probes, which are too old
    to be kept one by one (scenario 25).
    """
    world.return_probe(world.probe(), "healthy")
    first = world.answered()
    world.return_probe(world.probe(), "healthy")
    others = []
    for _ in range(3):
        others.append(world.answered())
        world.return_probe(world.probe(), "healthy")
    world.age_probes()
    ((known,),) = world.table.rows("SELECT known_until FROM probes WHERE nonce = %s::uuid", (others[0],))
    world.answered()
    registry_processes.delete_old_probes(world.connection)
    world.return_probe(first, "late")
    world.return_probe(world.probe(), "late")
    for nonce in others:
        world.return_probe(nonce, "late")
    world.answered()
    assert world.view().at == known
    # Probes that are forgotten later do not change that.
    world.age_probes()
    world.answered()
    registry_processes.delete_old_probes(world.connection)
    assert world.view().at == known
    world.connection.execute("UPDATE probes SET sent_at = now() - interval '1 minute' WHERE NOT echoed")
    world.run_reconcile()
    last = world.probe()
    world.return_probe(last, "healthy")
    world.return_probe(world.probe(), "late")
    assert world.view().at == world.sent_at(last)


def test_a_reconcile_that_takes_more_than_a_day(world: World) -> None:
    """A reconcile resolves no probe that was sent after it began, even if most of these are too old to be kept."""
    world.return_probe(world.probe())
    unechoed = []
    for hours in (40, 30, 28, 26, 1):
        nonce = world.answered()
        world.return_probe(world.probe())
        world.connection.execute(
            "UPDATE probes p SET sent_at = x.at, answered_at = x.at FROM (SELECT now() - %s * interval '1 hour') x (at)"
            " WHERE nonce = %s::uuid",
            (hours, nonce),
        )
        unechoed.append(nonce)
    ((known,),) = world.table.rows("SELECT known_until FROM probes WHERE nonce = %s::uuid", (unechoed[1],))
    registry_processes.delete_old_probes(world.connection)
    began = datetime.now(UTC) - timedelta(hours=31)
    registry_processes.delete_unechoed_probes(world.connection, world.pod, began, timedelta(hours=1))
    assert world.view().at == known


def test_one_for_all_was_answered_as_the_last_of_them(world: World) -> None:
    """The row that replaces several probes is resolved by the time of their last answer, not of the last one sent."""
    world.return_probe(world.probe())
    late = [world.answered() for _ in range(4)][1]
    world.age_probes()
    world.connection.execute("UPDATE probes SET answered_at = sent_at WHERE NOT echoed AND nonce <> %s::uuid", (late,))
    assert registry_processes.delete_old_probes(world.connection) == 1
    registry_processes.delete_unechoed_probes(
        world.connection, world.pod, datetime.now(UTC) - timedelta(hours=2), timedelta()
    )
    assert len(world.unechoed()) == 1


def test_forgotten_where_nothing_was_known(world: World) -> None:
    """W is unknown if the pod's processes were unknown when one of the forgotten probes was sent."""
    first = world.answered()
    world.answered()
    world.return_probe(world.probe())
    world.answered()
    world.age_probes()
    world.answered()
    assert registry_processes.delete_old_probes(world.connection) == 1
    world.return_probe(first)
    world.return_probe(world.unechoed()[-1])
    assert len(world.unechoed()) == 1
    assert world.view().at is None


def test_forgotten_while_an_echo_is_applied(world: World) -> None:
    """A probe whose echo is being applied is not forgotten, and is not waited for."""
    world.return_probe(world.probe())
    sent = [world.answered() for _ in range(5)]
    world.age_probes()
    piece = world.piece([world.echo(sent[2])])
    with world.table.connect() as other:
        with other.transaction():
            BatchApplier(other, NO_MARGIN, world.known).apply([piece])
            assert registry_processes.delete_old_probes(world.connection) == 1
        first, between, newest = world.unechoed()
    assert (first, newest) == (sent[0], sent[4])
    assert between not in sent


def test_what_a_name_leads_to_now_is_not_known(world: World) -> None:
    """W does not pass the last time that a registry's name was looked up: later addresses are not known."""
    ((resolved_at,),) = world.table.rows("SELECT resolved_at FROM endpoints")
    nonce = world.probe()
    world.return_probe(nonce)
    assert resolved_at < world.sent_at(nonce)
    assert world.view(looked_up=False).at == resolved_at
    world.connection.execute("UPDATE endpoints SET resolved_at = now() - interval '61 s'")
    (shown,) = world.view(looked_up=False).waits_for
    assert shown.startswith(f"the name of {URL} was not looked up since ")
    assert world.view().at == world.sent_at(nonce)


def test_a_look_up_that_was_overtaken(world: World) -> None:
    """A look-up that is recorded late, by a delayed scheduler, does not replace a newer one."""
    asked_at = findings.read_clock(world.connection)
    world.record_names({URL: [HERE, THERE]})
    known = world.table.rows("SELECT address, resolved_at FROM endpoints ORDER BY address")
    assert {row[0] for row in known} == {HERE, THERE}
    registry_processes.record_endpoints(world.connection, world.pod, {URL: [HERE, "10.0.0.3"]}, asked_at)
    now_known = world.table.rows("SELECT address, resolved_at FROM endpoints ORDER BY address")
    assert now_known == [*known, ("10.0.0.3", asked_at)]
    waits = world.view(looked_up=False).waits_for
    assert [wait for wait in waits if THERE in wait]
    assert not [wait for wait in waits if "10.0.0.3" in wait]


def test_a_clock_that_is_set_back(world: World) -> None:
    """While any time that W depends on is later than now, W is unknown until new probes come back."""
    world.return_probe(world.probe())
    assert world.view().at is not None
    world.connection.execute("UPDATE watermarks SET at = at + interval '2 hours' WHERE topic = %s", (DEAD_LETTERS,))
    assert world.view().at is None
    world.return_probe(nonce := world.probe())
    assert world.view().at == world.sent_at(nonce)


def test_probes_of_an_endpoint_that_is_gone(world: World) -> None:
    """The echo of a probe whose address is no longer listed still counts for its process."""
    nonce = world.probe(THERE)
    registry_processes.record_probe_answer(world.connection, nonce)
    assert world.refused(nonce) is None
    world.return_probe(nonce)
    assert world.process().at == world.sent_at(nonce)
    assert world.endpoint() == (None, None, False)


def test_back_from_the_dead(world: World) -> None:
    """A later echo revives a process that was declared dead or retired; its address is then a shared one."""
    world.return_probe(world.probe(), "s")
    lagging = world.probe()
    world.return_probe(world.probe(), "t")
    world.return_probe(lagging, "s")
    assert world.process("s").state is ProcessState.DEAD
    world.connection.execute("UPDATE processes SET retired_at = now(), retired_why = 'x' WHERE instance_id = 's'")
    world.return_probe(world.probe(), "s")
    for name in "st":
        shown = world.process(name)
        known = (shown.state, shown.dead_since, shown.retired_at, shown.retired_why)
        assert known == (ProcessState.LIVE, None, None, None)
    process, _, shared = world.endpoint()
    assert (process, shared) == ("s", True)
    world.return_probe(world.probe(), "t")
    world.refused(world.probe())
    assert {world.process(name).state for name in "st"} == {ProcessState.LIVE}


def test_two_at_one_probe(world: World) -> None:
    """Where one probe is echoed by two processes, the address is shared, and neither is dead."""
    nonce = world.probe()
    world.return_probe(nonce, "s")
    world.return_probe(nonce, "t")
    assert world.endpoint() == ("s", world.sent_at(nonce), True)
    assert {world.process(name).state for name in "st"} == {ProcessState.LIVE}
    assert world.view().at == world.sent_at(nonce)


def test_retired_by_an_operator(world: World) -> None:
    """A process that an operator retires, with a reason, no longer counts until it echoes again."""
    world.return_probe(world.probe(), "s")
    world.record_names({URL: [HERE, THERE]})
    nonce = world.probe(THERE)
    world.return_probe(nonce, "t")
    world.retire("s")
    assert (world.process("s").state, world.process("s").retired_why) == (ProcessState.RETIRED, "it is gone")
    assert world.view().at < world.sent_at(nonce)  # type: ignore[operator]
    world.record_names({URL: [THERE]})
    assert world.view().at == world.sent_at(nonce)
    for instance, why, error in (("s", "x", NotFoundError), ("nobody", "x", NotFoundError), ("t", " ", UsageError)):
        with pytest.raises(error):
            world.retire(instance, why=why)
    world.return_probe(world.probe(), "s")
    assert world.process("s").state is ProcessState.LIVE


@pytest.mark.parametrize(("kind", "gaps"), [("link", [("retired",)]), ("relay", [])])
def test_retired_with_what_it_had_not_reported(world: World, kind: str, gaps: list[tuple[str]]) -> None:
    """What a process had not reported when it was retired is a gap that a later reconcile resolves (scenario 25). Pods
    whose links cannot be listed have none.
    """
    world.linked(kind)
    world.return_probe(world.probe())
    bound = timedelta(minutes=7)
    before = datetime.now(UTC)
    world.retire("s", bound=bound)
    found = world.table.rows("SELECT reason, resolves_from FROM gaps WHERE pod_id = %s", (world.pod,))
    assert [row[:1] for row in found] == gaps
    assert all(before + bound < resolves_from < datetime.now(UTC) + bound for _, resolves_from in found)
    with pytest.raises(NotFoundError):
        world.retire("s")
    assert len(world.table.rows("SELECT FROM gaps")) == len(gaps)


@pytest.mark.parametrize("kind", ["link", "relay"])
def test_the_same_name_after_a_refusal(world: World, kind: str) -> None:
    """A process that refused connections and returns under its name may have lost events, which is a gap (scenario 25);
    one that was only declared replaced has lost nothing.
    """
    world.linked(kind)
    world.return_probe(world.probe(), "s")
    world.return_probe(world.probe(), "t")
    world.return_probe(world.probe(), "s")
    assert world.process("s").state is ProcessState.LIVE
    assert world.table.rows("SELECT reason FROM gaps") == []
    world.connection.execute("UPDATE endpoints SET shared = false")
    assert world.refused(world.probe()) == "s"
    before = datetime.now(UTC)
    world.return_probe(world.probe(), "s")
    assert world.process("s").state is ProcessState.LIVE
    assert world.table.rows("SELECT reason FROM gaps WHERE pod_id = %s", (world.pod,)) == [("restarted",)]
    for (resolves_from,) in world.table.rows("SELECT resolves_from FROM gaps"):
        assert resolves_from > before + registry_processes.REQUEST_BOUND


def test_one_that_may_have_been_paused(world: World) -> None:
    """A process that echoes again after more than half the request bound may have been paused until then, also once it
    is retired; one that echoed all the time, or is new, was not.
    """
    for _ in range(2):
        world.return_probe(world.probe())
    assert world.view().paused_until is None
    world.connection.execute("UPDATE watermarks SET at = at - interval '29 minutes' WHERE at > '-infinity'")
    world.return_probe(world.probe())
    assert world.view().paused_until is None
    world.connection.execute("UPDATE watermarks SET at = at - interval '31 minutes' WHERE at > '-infinity'")
    before = findings.read_clock(world.connection)
    world.return_probe(world.probe())
    paused = world.view().paused_until
    assert paused is not None
    assert before < paused < findings.read_clock(world.connection)
    world.return_probe(world.probe())
    world.return_probe(world.probe(), "new")
    world.retire("s")
    assert world.view().paused_until == paused


def test_where_names_lead(world: World) -> None:
    """W does not wait for an address that the name no longer resolves to, nor for a URL that is no longer listed."""
    world.return_probe(world.probe())
    known = world.view().at
    assert known is not None
    world.record_names({URL: [HERE, THERE]})
    assert world.view().at is None
    world.record_names({URL: [HERE]})
    assert world.view().at == known
    other = "http://r2:5000"
    world.connection.execute("UPDATE pods SET registries = %s WHERE id = %s", ([URL, other], world.pod))
    assert world.view().at is None
    world.record_names({other: [THERE]})
    world.connection.execute("UPDATE pods SET registries = %s WHERE id = %s", ([URL], world.pod))
    assert world.view().at == known
    world.record_names({URL: [HERE]})
    assert [(endpoint.url, endpoint.address) for endpoint in world.view().endpoints] == [(URL, HERE), (URL, THERE)]


def test_partitions_that_nobody_reads_yet(world: World) -> None:
    """A partition that an echo names counts before any worker has read it (scenario 25)."""
    world.return_probe(world.probe())
    assert world.view().at is not None
    pod, echo = world.echo(world.probe())
    world.apply(world.piece([(pod, echo._replace(partitions=3))]))
    assert world.view().at is None
    assert world.marks()[EVENTS, 2] is None


def test_many_processes(world: World) -> None:
    """With more processes than the limit W is unknown; of retired ones the last are shown."""
    world.record_names({URL: [HERE, THERE]})
    world.return_probe(world.probe(), "s")
    world.return_probe(world.probe(THERE), "t")
    assert world.view().at is not None
    more = [f"more{number:03}" for number in range(PROCESSES_LIMIT)]
    echoes.insert_processes(world.connection, {(world.pod, instance) for instance in more})
    assert world.view().at is None
    assert any("2 processes are beyond the limit" in sentence for sentence in world.view().waits_for)
    world.retire(*more)
    assert [process.instance_id for process in world.view().processes] == ["t", "s", *reversed(more[-RETIRED_SHOWN:])]
    assert world.view().at is not None


def test_a_pod_that_goes(world: World) -> None:
    """Removing a pod deletes all rows of its processes; later echoes are ignored."""
    world.return_probe(world.probe())
    nonce = world.probe()
    world.connection.execute("DELETE FROM pod_prefixes WHERE pod_id = %s", (world.pod,))
    world.by_engine(lambda engine: pods.remove_pod(engine, PodName("pod-a"), nothing_stored))
    for name in ("processes", "watermarks", "endpoints", "probes"):
        assert world.table.rows(f"SELECT * FROM {name}") == []
    applied = world.apply(world.piece([world.echo(nonce, "late")]))
    assert (applied.echoes, applied.echoes_unknown) == (0, 1)
    assert world.table.rows("SELECT * FROM processes") == []


def test_a_pod_that_is_probed_while_it_goes(world: World) -> None:
    """A pod that is probed while it is removed stays, and the removal is a conflict."""
    with world.table.connect() as other, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            registry_processes.insert_probe(other, world.pod, URL, HERE)
            done = pool.submit(
                world.by_engine, lambda engine: pods.remove_pod(engine, PodName("pod-a"), nothing_stored)
            )
            await_lock_wait(world.connection, done)
        with pytest.raises(ConflictError):
            done.result(30)


def test_no_deadlock(world: World) -> None:
    """Workers that apply the same probes in other partitions never deadlock, nor do probers (scenario 26)."""
    table, workers, rounds = world.table, 4, 40
    addresses = [f"10.0.0.{number}" for number in range(6)]
    world.record_names({URL: addresses})
    for partition in range(2, workers):
        begin(table.connection, EVENTS, partition)
    before = deadlocks(table)
    together = threading.Barrier(workers + 2)
    nonces = [[(world.answered(address), address) for address in addresses] for _ in range(rounds)]
    a_quarter = world.sent_at(nonces[rounds // 4][0][0])
    ended = threading.Event()

    def work(partition: int) -> None:
        chance, offset = random.Random(partition), 0
        together.wait(10)
        with table.connect() as connection:
            for number, sent in enumerate(nonces):
                mixed = [(nonce, f"{address}-{number // chance.randint(1, 8)}") for nonce, address in sent]
                chance.shuffle(mixed)
                found = [world.echo(nonce, instance) for nonce, instance in mixed]
                items = [Item(offset + n, 0, pod, None, None, echo) for n, (pod, echo) in enumerate(found)]
                processes = frozenset((pod, echo.instance_id) for pod, echo in found)
                piece = Slice(EVENTS, partition, offset, offset + len(items), 0, items, processes)
                BatchApplier(connection, NO_MARGIN).apply([piece])
                offset = piece.next_offset

    def meanwhile(seed: int) -> None:
        chance = random.Random(seed)
        together.wait(10)
        with table.connect() as connection:
            while not ended.is_set():
                nonce = registry_processes.insert_probe(connection, world.pod, URL, chance.choice(addresses))
                registry_processes.record_probe_failure(connection, nonce, "refused", refused=True)
                registry_processes.record_endpoints(
                    connection, world.pod, {URL: chance.sample(addresses, 3)}, findings.read_clock(connection)
                )
                registry_processes.record_probe_answer(connection, nonce)
                registry_processes.delete_unechoed_probes(connection, world.pod, a_quarter, timedelta())
                registry_processes.retire_dead_processes(connection, world.pod, datetime.now(UTC), timedelta(), "x")
                registry_processes.delete_old_probes(connection)

    with ThreadPoolExecutor(workers + 2) as pool:
        applying = [pool.submit(work, partition) for partition in range(workers)]
        others = [pool.submit(meanwhile, seed) for seed in range(2)]
        try:
            for each in applying:
                each.result(120)
        finally:
            ended.set()
        for each in others:
            each.result(30)
    assert deadlocks(table) == before
