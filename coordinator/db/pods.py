"""Register pods and take them away again.

Invariants: no two prefixes overlap (checked under a lock that every change of pods takes); a pod's token is shown
once and only its hash is kept; a pod goes only when nothing of it is left that anybody would miss.
Not here: how pods are shown (queries/pods.py), what ownership means (domain/pods.py).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.db.locks import FACTS_LOCK
from coordinator.db.queries.session import reading, writing
from coordinator.db.tokens import hash_of, new_token
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import Linker, PodMode, check_prefixes
from coordinator.errors import ConflictError, NotFoundError, UsageError
from coordinator.ingest.directory import KnownPod
from coordinator.settings import Secret

#: A constant of ours in the space of advisory locks: who changes pods takes it.
PODS_LOCK = 0x62616C67
PREFIXES_LIMIT = 1000


class NewPod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod as it is asked for; names are parsed."""

    name: PodName
    prefixes: Sequence[RepositoryName]
    registries: Sequence[str] = ()
    mode: PodMode = PodMode.MANIFEST
    linker: Linker = Linker.LINK


async def add(engine: AsyncEngine, pod: NewPod) -> Secret:
    """Register a pod and return its event token; raises ConflictError if its name or a prefix is taken."""
    if not pod.prefixes or len(pod.prefixes) > PREFIXES_LIMIT:
        raise UsageError(f"A pod needs from 1 to {PREFIXES_LIMIT} prefixes: name them with --prefix.")
    token = new_token()
    async with writing(engine) as connection:
        await _lock(connection, PODS_LOCK)
        if await _id(connection, pod.name) is not None:
            raise ConflictError(f"There is a pod {pod.name} already: choose another name, or remove it first.")
        owners = await connection.execute(
            text("SELECT x.prefix, p.name FROM pod_prefixes x JOIN pods p ON p.id = x.pod_id")
        )
        check_prefixes(pod.prefixes, {row.prefix: PodName(row.name) for row in owners})
        await connection.execute(
            text("""
                WITH added AS (
                  INSERT INTO pods (name, mode, linker, registries, event_token_sha256)
                  VALUES (:name, :mode, :linker, CAST(:registries AS text[]), :sha256) RETURNING id
                )
                INSERT INTO pod_prefixes (prefix, pod_id)
                SELECT x.prefix, added.id FROM added, unnest(CAST(:prefixes AS text[])) x (prefix)
            """),
            {
                "name": pod.name,
                "mode": str(pod.mode),
                "linker": str(pod.linker),
                "registries": list(pod.registries),
                "prefixes": list(pod.prefixes),
                "sha256": hash_of(token.reveal()),
            },
        )
    return token


async def rotate_token(engine: AsyncEngine, name: PodName) -> Secret:
    """Give the pod another event token; the old one is refused within seconds. Raises NotFoundError."""
    token = new_token()
    async with writing(engine) as connection:
        done = await connection.execute(
            text("UPDATE pods SET event_token_sha256 = :sha256 WHERE name = :name"),
            {"name": name, "sha256": hash_of(token.reveal())},
        )
        if not done.rowcount:
            raise _no_pod(name)
    return token


async def known_pods(engine: AsyncEngine) -> list[KnownPod]:
    """Return every pod as ingest has to know it."""
    async with reading(engine) as connection:
        rows = await connection.execute(
            text("""
                SELECT name, event_token_sha256 AS sha256,
                       ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id) AS prefixes
                FROM pods p
            """)
        )
        return [KnownPod(PodName(row.name), tuple(row.prefixes), row.sha256) for row in rows]


async def remove(engine: AsyncEngine, name: PodName) -> None:
    """Forget a pod; raises ConflictError while it holds, links or leaves open anything."""
    try:
        async with writing(engine) as connection:
            await _lock(connection, PODS_LOCK)
            # No worker may add to a repository of the pod between the look and the deletion.
            await _lock(connection, FACTS_LOCK)
            pod = await _id(connection, name)
            if pod is None:
                raise _no_pod(name)
            await _refuse_if_needed(connection, name, pod)
            for statement in _REMOVE:
                await connection.execute(statement, {"pod": pod})
    except IntegrityError as error:
        raise ConflictError(f"Pod {name} was given something while it was removed: try again.") from error


_REMOVE = (
    text("DELETE FROM removals x USING repositories r WHERE r.id = x.repository_id AND r.pod_id = :pod"),
    text("DELETE FROM repositories WHERE pod_id = :pod"),
    text("DELETE FROM gaps WHERE pod_id = :pod"),
    text("DELETE FROM pod_prefixes WHERE pod_id = :pod"),
    text("DELETE FROM pods WHERE id = :pod"),
)

_NEEDED: tuple[tuple[str, Any], ...] = (
    (
        "repositories that hold manifests: delete these in the registry first",
        text("""
            SELECT EXISTS (SELECT FROM repositories r WHERE r.pod_id = :pod
              AND EXISTS (SELECT FROM repository_manifests h WHERE h.repository_id = r.id))
        """),
    ),
    (
        "repositories that link blobs: wait for the link grace, or delete them",
        text("""
            SELECT EXISTS (SELECT FROM repositories r WHERE r.pod_id = :pod
              AND EXISTS (SELECT FROM repository_blobs l WHERE l.repository_id = r.id))
        """),
    ),
    (
        "open gaps: reconcile it first",
        text("SELECT EXISTS (SELECT FROM gaps WHERE pod_id = :pod AND settled_at IS NULL)"),
    ),
    (
        "open dead letters: retry or discard them first",
        text("SELECT EXISTS (SELECT FROM dead_letters WHERE pod = :name AND settled_at IS NULL)"),
    ),
)


async def _refuse_if_needed(connection: AsyncConnection, name: PodName, pod: int) -> None:
    for what, question in _NEEDED:
        values = {"name": name} if ":name" in str(question) else {"pod": pod}
        if await connection.scalar(question, values):
            raise ConflictError(f"Pod {name} still has {what}.")


async def _lock(connection: AsyncConnection, key: int) -> None:
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


async def _id(connection: AsyncConnection, name: PodName) -> int | None:
    found: int | None = await connection.scalar(text("SELECT id FROM pods WHERE name = :name"), {"name": name})
    return found


def _no_pod(name: PodName) -> NotFoundError:
    return NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
