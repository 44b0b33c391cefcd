"""Register pods and take them away again.

Invariants: no two prefixes overlap (checked under a lock that every change of pods takes); a pod's token is shown
once and only its hash is kept; a pod goes only when nothing of it is left that anybody would miss.
Not here: how pods are shown (queries/pods.py), what ownership means (domain/pods.py).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.db.locks import FACTS_LOCK, PODS_LOCK
from coordinator.db.queries.session import reading, writing
from coordinator.db.tokens import hash_of, new_token
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import Linker, PodMode, RegistryUrl, check_prefixes
from coordinator.domain.progress import GapReason
from coordinator.errors import ConflictError, NotFoundError, UsageError
from coordinator.ingest.directory import KnownPod
from coordinator.settings import Secret

PREFIXES_LIMIT = 1000


#: Whether storage has links that keep blobs, below these prefixes, in a pod of this mode.
StillHolds = Callable[[Sequence[RepositoryName], PodMode], Awaitable[bool]]


class NewPod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod as it is asked for; names are parsed."""

    name: PodName
    prefixes: Sequence[RepositoryName]
    registries: Sequence[RegistryUrl] = ()
    mode: PodMode = PodMode.MANIFEST
    linker: Linker = Linker.LINK


async def add(engine: AsyncEngine, pod: NewPod) -> Secret:
    """Register a pod and return its event token; raises ConflictError if its name, a prefix or a URL is taken."""
    if not pod.prefixes or len(pod.prefixes) > PREFIXES_LIMIT:
        raise UsageError(f"A pod needs from 1 to {PREFIXES_LIMIT} prefixes: name them with --prefix.")
    token = new_token()
    async with writing(engine) as connection:
        await _lock(connection, PODS_LOCK)
        if await _id(connection, pod.name) is not None:
            raise ConflictError(f"There is a pod {pod.name} already: choose another name, or remove it first.")
        check_prefixes(pod.prefixes, await _owners(connection))
        registries = list(dict.fromkeys(map(str, pod.registries)))
        await _refuse_if_known(connection, pod.name, registries)
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
                "registries": registries,
                "prefixes": list(pod.prefixes),
                "sha256": hash_of(token.reveal()),
            },
        )
    return token


async def add_prefixes(engine: AsyncEngine, name: PodName, prefixes: Sequence[RepositoryName]) -> None:
    """Let the pod own further prefixes; raises NotFoundError, and ConflictError if one overlaps another.

    Those that it owns already stay its. What it has below a new one since before is not known until a reconcile, so
    that garbage collection is held until then: that is a gap, noticed after the lock (see `reconcile.pod`). Whose
    links are not in shared storage has nothing that a reconcile could look at: the operator's word stands.
    """
    async with writing(engine) as connection:
        await _lock(connection, PODS_LOCK)
        pod = await _id(connection, name)
        if pod is None:
            raise _no_pod(name)
        owners = await _owners(connection)
        new = [prefix for prefix in prefixes if owners.get(prefix) != name]
        check_prefixes(new, owners)
        if not new:
            return
        if list(owners.values()).count(name) + len(new) > PREFIXES_LIMIT:
            raise UsageError(f"A pod may have {PREFIXES_LIMIT} prefixes: name one that is above several of them.")
        await connection.execute(
            text("INSERT INTO pod_prefixes (prefix, pod_id) SELECT unnest(CAST(:prefixes AS text[])), :pod"),
            {"prefixes": new, "pod": pod},
        )
        await connection.execute(
            text("""
                INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, noticed_at)
                SELECT id, '', -1, :reason, 0, clock_timestamp() FROM pods WHERE id = :pod AND linker = 'link'
            """),
            {"reason": GapReason.PREFIX_ADDED, "pod": pod},
        )


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


async def set_registries(engine: AsyncEngine, name: PodName, registries: Sequence[RegistryUrl]) -> None:
    """Say which URLs the pod's registry has now; raises NotFoundError, and ConflictError if another pod has one.

    The processes that were heard at others go on counting until they are retired. What a doctor found out is of the
    processes that it met, so that with a new URL nothing is proved any more.
    """
    urls = list(dict.fromkeys(map(str, registries)))
    async with writing(engine) as connection:
        await _lock(connection, PODS_LOCK)
        await _refuse_if_known(connection, name, urls)
        await connection.execute(
            text("""
                DELETE FROM findings f USING pods p
                WHERE p.id = f.pod_id AND p.name = :name AND NOT CAST(:urls AS text[]) <@ p.registries
            """),
            {"urls": urls, "name": name},
        )
        done = await connection.execute(
            text("UPDATE pods SET registries = CAST(:urls AS text[]) WHERE name = :name"), {"urls": urls, "name": name}
        )
        if not done.rowcount:
            raise _no_pod(name)


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


async def remove(engine: AsyncEngine, name: PodName, still_holds: StillHolds) -> None:
    """Forget a pod; raises ConflictError while it holds, links or leaves open anything.

    In a gap something may have been told that the table lacks, and that nobody would keep once the pod is forgotten.
    So with open gaps storage is asked too: what is not there either is not lost.
    """
    looked_to = await _look_into_gaps(engine, name, still_holds)
    try:
        async with writing(engine) as connection:
            await _lock(connection, PODS_LOCK)
            # No worker may add to a repository of the pod between the look and the deletion.
            await _lock(connection, FACTS_LOCK)
            pod = await _id(connection, name)
            if pod is None:
                raise _no_pod(name)
            await _refuse_if_needed(connection, name, pod, looked_to)
            for statement in _REMOVE:
                await connection.execute(statement, {"pod": pod})
    except IntegrityError as error:
        raise ConflictError(f"Pod {name} was given something while it was removed: try again.") from error


_REMOVE = (
    text("DELETE FROM removals x USING repositories r WHERE r.id = x.repository_id AND r.pod_id = :pod"),
    text("DELETE FROM repositories WHERE pod_id = :pod"),
    text("DELETE FROM renames WHERE pod_id = :pod"),
    text("DELETE FROM gaps WHERE pod_id = :pod"),
    text("DELETE FROM probes WHERE pod_id = :pod"),
    # In the order in which the prober locks them (sources.py).
    text("SELECT FROM endpoints WHERE pod_id = :pod ORDER BY pod_id, url, address FOR UPDATE"),
    text("DELETE FROM endpoints WHERE pod_id = :pod"),
    text("DELETE FROM sources WHERE pod_id = :pod"),
    text("DELETE FROM jobs WHERE pod_id = :pod"),
    text("DELETE FROM findings WHERE pod_id = :pod"),
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
        "a gap that was noticed just now: try again",
        text("SELECT EXISTS (SELECT FROM gaps WHERE pod_id = :pod AND settled_at IS NULL AND id > :looked_to)"),
    ),
    (
        "open dead letters: retry or discard them first",
        text("SELECT EXISTS (SELECT FROM dead_letters WHERE pod = :name AND settled_at IS NULL)"),
    ),
)


async def _look_into_gaps(engine: AsyncEngine, name: PodName, still_holds: StillHolds) -> int:
    """Return the last of the pod's gaps that hide nothing, 0 if it has none; raises ConflictError if one may."""
    async with reading(engine) as connection:
        found = await connection.execute(
            text("""
                SELECT p.mode, p.linker, max(g.id) AS last,
                       ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY prefix) AS prefixes
                FROM pods p JOIN gaps g ON g.pod_id = p.id AND g.settled_at IS NULL
                WHERE p.name = :name GROUP BY p.id
            """),
            {"name": name},
        )
        row = found.one_or_none()
    if row is None:
        return 0
    # Whose links are not in shared storage has nothing to look at: the operator's word stands.
    if row.linker == Linker.LINK and await still_holds(row.prefixes, PodMode(row.mode)):
        raise ConflictError(
            f"Pod {name} has open gaps, and storage has links of it that the table may lack: reconcile it first."
        )
    return int(row.last)


async def _refuse_if_needed(connection: AsyncConnection, name: PodName, pod: int, looked_to: int) -> None:
    known = {"name": name, "pod": pod, "looked_to": looked_to}
    for what, question in _NEEDED:
        if await connection.scalar(question, {word: known[word] for word in known if f":{word}" in str(question)}):
            raise ConflictError(f"Pod {name} still has {what}.")


async def _refuse_if_known(connection: AsyncConnection, pod: PodName, registries: Sequence[str]) -> None:
    """Raise ConflictError if another pod has one of the URLs: events of its processes would be taken for ours."""
    known = await connection.execute(
        text("""
            SELECT u.url, p.name FROM pods p, unnest(p.registries) u (url)
            WHERE u.url = ANY(CAST(:registries AS text[])) AND p.name <> :pod ORDER BY u.url LIMIT 1
        """),
        {"registries": registries, "pod": pod},
    )
    if (row := known.one_or_none()) is not None:
        raise ConflictError(
            f"The registry {row.url} is one of pod {row.name}: name that of this pod, or remove that one."
        )


async def _owners(connection: AsyncConnection) -> dict[str, PodName]:
    """Return who owns each prefix."""
    rows = await connection.execute(text("SELECT x.prefix, p.name FROM pod_prefixes x JOIN pods p ON p.id = x.pod_id"))
    return {row.prefix: PodName(row.name) for row in rows}


async def _lock(connection: AsyncConnection, key: int) -> None:
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


async def _id(connection: AsyncConnection, name: PodName) -> int | None:
    found: int | None = await connection.scalar(text("SELECT id FROM pods WHERE name = :name"), {"name": name})
    return found


def _no_pod(name: PodName) -> NotFoundError:
    return NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
