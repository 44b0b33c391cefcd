"""Pods that change while others look at them."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from coordinator.db import pods, reconcile
from coordinator.db.engine import async_engine
from coordinator.db.locks import PODS_LOCK
from coordinator.domain.names import PodName, RepositoryName
from coordinator.errors import ConflictError, UsageError
from tests.db.harness import Table

NEW = PodName("pod-new")


def do(table: Table, work: Callable[[Any], Awaitable[Any]]) -> Any:
    async def done() -> Any:
        engine = async_engine(table.url)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(done())


def add(table: Table) -> int:
    do(table, lambda engine: pods.add(engine, pods.NewPod(name=NEW, prefixes=[RepositoryName("new")])))
    ((number,),) = table.rows("SELECT id FROM pods WHERE name = %s", (NEW,))
    return int(number)


def gap(table: Table, pod: int) -> None:
    table.connection.execute(
        "INSERT INTO gaps (pod_id, topic, partition, reason, from_offset) VALUES (%s, '', -1, 'log-cut', 0)", (pod,)
    )


def test_a_gap_that_is_noticed_while_storage_is_looked_at(fresh: Table) -> None:
    """What was lost in it may have been written after the look: the pod stays, and the next attempt looks again."""
    pod = add(fresh)
    gap(fresh, pod)
    looks: list[list[str]] = []

    async def looked(prefixes: Any, _: Any) -> bool:
        looks.append(list(prefixes))
        if len(looks) == 1:
            gap(fresh, pod)
        return False

    with pytest.raises(ConflictError, match="try again"):
        do(fresh, lambda engine: pods.remove(engine, NEW, looked))
    do(fresh, lambda engine: pods.remove(engine, NEW, looked))
    assert looks == [["new"], ["new"]]
    assert fresh.rows("SELECT FROM pods WHERE name = %s", (NEW,)) == []


def test_a_prefix_that_is_added_while_a_reconcile_begins(fresh: Table) -> None:
    """A reconcile reads all prefixes that a gap noticed before it is about: it waits for whoever adds one."""
    pod = add(fresh)
    with fresh.connect() as adding, fresh.connect() as reading, ThreadPoolExecutor(1) as pool:
        with adding.transaction():
            adding.execute("SELECT pg_advisory_xact_lock(%s)", (PODS_LOCK,))
            adding.execute("INSERT INTO pod_prefixes (prefix, pod_id) VALUES ('more', %s)", (pod,))
            found = pool.submit(reconcile.pod, reading, pod)
            with fresh.connect() as watcher:
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                while watcher.execute(waiting).fetchone() == (0,):
                    assert not found.done(), "it did not wait"
        seen = found.result(30)
    assert seen is not None
    assert seen.prefixes == ["more", "new"]


def test_prefixes_have_a_limit(fresh: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod is given no more prefixes than one may be registered with."""
    monkeypatch.setattr(pods, "PREFIXES_LIMIT", 3)
    add(fresh)
    with pytest.raises(UsageError):
        do(fresh, lambda engine: pods.add_prefixes(engine, NEW, [RepositoryName(name) for name in ("a", "b", "c")]))
    do(fresh, lambda engine: pods.add_prefixes(engine, NEW, [RepositoryName(name) for name in ("a", "new", "b")]))
    assert fresh.rows("SELECT count(*) FROM pod_prefixes WHERE prefix IN ('a', 'b', 'new')") == [(3,)]
    assert fresh.rows("SELECT reason FROM gaps WHERE settled_at IS NULL") == [("prefix-added",)]
