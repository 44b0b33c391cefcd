"""Register, change and remove pods.

Invariants: no two prefixes overlap (checked under a lock that every change of pods takes); a pod's token is shown
once and only its hash is stored; a pod is removed only when it has no content that would be lost.
Not here: how pods are shown (pods/view.py), what ownership means (domain/pods.py).
"""

import datetime
import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from coordinator.db.locks import FACTS_LOCK, PODS_LOCK
from coordinator.db.session import driver_connection, read_connection, write_transaction
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.own import PROBE_REPOSITORY, is_own
from coordinator.domain.pods import PodKind, PodMode, ProbeMethod, RegistryUrl, TokenIssuer, check_prefixes
from coordinator.domain.progress import GapReason
from coordinator.domain.reasons import check_reason
from coordinator.errors import ConflictError, NotFoundError, UsageError
from coordinator.ingest.directory import KnownPod
from coordinator.pods.of_kind import COLUMNS, PodOfKind, make_pod_of_kind
from coordinator.settings import Secret
from coordinator.table.batch import StateChangedError
from coordinator.table.dead_letters import GAP_FITS_POD
from coordinator.table.epochs import epoch_transaction
from coordinator.table.statements import count_rows
from coordinator.tokens.table import hash_token, make_token

PREFIXES_LIMIT = 1000
#: Repositories that an error names.
EXAMPLES = 3
#: An operator who compares what a pod holds may not have seen pushes of this last time, by the registry's clock.
COMPARED_WITHIN = datetime.timedelta(hours=1)

#: Does a pod have links that keep blobs, where something shows them?
StillHolds = Callable[[PodOfKind], bool]

#: Open gaps by id, with the time up to which events may be lost in each: a gap that widens keeps its id.
Gaps = Mapping[int, datetime.datetime]


class Unmanaged(msgspec.Struct, frozen=True):
    """Declares that a registry sends no events: why, and by which operator."""

    why: str
    by: str


class NewPod(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a new pod; names are parsed."""

    name: PodName
    prefixes: Sequence[RepositoryName]
    registries: Sequence[RegistryUrl] = ()
    mode: PodMode = PodMode.MANIFEST
    kind: PodKind = PodKind.LINK
    probe: ProbeMethod = ProbeMethod.PUSH
    issuer: TokenIssuer | None = None
    #: Its registry sends no events.
    unmanaged: Unmanaged | None = None


def add_pod(engine: Engine, pod: NewPod) -> Secret:
    """Register a pod and return its event token; raises ConflictError if its name, a prefix or a URL is taken.

    The caller must not pass on the token of a pod that is not managed.
    """
    declared = _unmanaged_columns(pod.unmanaged)
    if pod.unmanaged is not None and not pod.kind.links_in_store:
        raise UsageError(_NEEDS_EVENTS)
    if pod.mode is PodMode.LINK and pod.kind.has_registry_database:
        raise UsageError(
            f"A pod of kind {pod.kind} has mode {PodMode.MANIFEST}: its registry reports no delete of a link, so in "
            f"mode {PodMode.LINK} a blob would stay for ever."
        )
    if not pod.prefixes or len(pod.prefixes) > PREFIXES_LIMIT:
        raise UsageError(f"A pod needs from 1 to {PREFIXES_LIMIT} prefixes: name them with --prefix.")
    token = make_token()
    with epoch_transaction(engine) as connection:
        _take_lock(connection, PODS_LOCK)
        if _read_id(connection, pod.name) is not None:
            raise ConflictError(f"There is a pod {pod.name} already: choose another name, or remove it first.")
        check_prefixes(pod.prefixes, _read_owners(connection))
        registries = list(dict.fromkeys(map(str, pod.registries)))
        _refuse_known_urls(connection, pod.name, registries)
        connection.execute(
            text("""
                WITH added AS (
                  INSERT INTO pods (name, mode, kind, probe, registries, event_token_sha256,
                                    token_url, token_issuer, token_service, token_keys, token_key_ids,
                                    managed, unmanaged_why, unmanaged_by)
                  VALUES (:name, :mode, :kind, :probe, CAST(:registries AS text[]), :sha256,
                          :url, :issuer, :service, :keys, CAST(:key_ids AS text[]), :managed, :why, :by) RETURNING id
                )
                INSERT INTO pod_prefixes (prefix, pod_id)
                SELECT x.prefix, added.id FROM added, unnest(CAST(:prefixes AS text[])) x (prefix)
            """),
            {
                "name": pod.name,
                "mode": str(pod.mode),
                "kind": str(pod.kind),
                "probe": str(pod.probe),
                "registries": registries,
                "prefixes": list(pod.prefixes),
                "sha256": hash_token(token.reveal()),
                **_issuer_columns(pod.issuer),
                **declared,
            },
        )
    return token


def set_managed(engine: Engine, name: PodName, unmanaged: Unmanaged | None) -> None:
    """Declare that the pod's registry sends events (None), or why it sends none; raises NotFoundError.

    Either way the previous token is refused, and a doctor must examine the pod again: one that sends events has more
    to prove. Its holdings, gaps and reconciles stay. Raises UsageError for one whose links are not in shared storage.
    """
    declared = _unmanaged_columns(unmanaged)
    token = make_token()
    with epoch_transaction(engine) as connection:
        _take_lock(connection, PODS_LOCK)
        kind = _read_kind(connection, name)
        if unmanaged is not None and not kind.links_in_store:
            raise UsageError(_NEEDS_EVENTS)
        connection.execute(
            text("""
                UPDATE pods SET managed = :managed, unmanaged_why = :why, unmanaged_by = :by,
                                event_token_sha256 = :sha256 WHERE name = :name
            """),
            {"name": name, "sha256": hash_token(token.reveal()), **declared},
        )
        connection.execute(
            text("DELETE FROM findings f USING pods p WHERE p.id = f.pod_id AND p.name = :name"), {"name": name}
        )


_NEEDS_EVENTS = "A pod whose links are not in shared storage must send events: leave out --unmanaged."


def _unmanaged_columns(unmanaged: Unmanaged | None) -> dict[str, Any]:
    if unmanaged is None:
        return {"managed": True, "why": None, "by": None}
    why = check_reason(unmanaged.why, "why the registry sends no events")
    return {"managed": False, "why": why, "by": check_reason(unmanaged.by, "who declares it")}


def set_issuer(engine: Engine, name: PodName, issuer: TokenIssuer | None) -> None:
    """Set or remove the issuer of the tokens for the pod's registry; raises NotFoundError."""
    with write_transaction(engine) as connection:
        done = connection.execute(
            text("""
                UPDATE pods SET token_url = :url, token_issuer = :issuer, token_service = :service, token_keys = :keys,
                                token_key_ids = CAST(:key_ids AS text[])
                WHERE name = :name
            """),
            {"name": name, **_issuer_columns(issuer)},
        )
        if not done.rowcount:
            raise _make_not_found(name)


def _issuer_columns(issuer: TokenIssuer | None) -> dict[str, Any]:
    if issuer is None:
        return dict.fromkeys(TokenIssuer._fields)
    return issuer._asdict() | {"key_ids": list(issuer.key_ids)}


def add_prefixes(engine: Engine, name: PodName, prefixes: Sequence[RepositoryName]) -> None:
    """Add prefixes to the pod; raises NotFoundError, and ConflictError if one overlaps another.

    Prefixes that it owns already are ignored. What it stored below a new one before is not known until a reconcile, so
    GC is blocked until then by a gap, noticed after the lock (see `reconcile.pod`). Where no reconcile can read the
    links, an operator must confirm that nothing is lost: an earlier confirmation covered the other prefixes only.
    """
    with epoch_transaction(engine) as connection:
        _take_lock(connection, PODS_LOCK)
        pod = _read_id(connection, name)
        if pod is None:
            raise _make_not_found(name)
        owners = _read_owners(connection)
        new = [prefix for prefix in prefixes if owners.get(prefix) != name]
        check_prefixes(new, owners, name)
        if not new:
            return
        if list(owners.values()).count(name) + len(new) > PREFIXES_LIMIT:
            raise UsageError(f"A pod may have {PREFIXES_LIMIT} prefixes: use one that is above several of them.")
        connection.execute(
            text("INSERT INTO pod_prefixes (prefix, pod_id) SELECT unnest(CAST(:prefixes AS text[])), :pod"),
            {"prefixes": new, "pod": pod},
        )
        connection.execute(
            text("""
                INSERT INTO gaps (pod_id, topic, partition, reason, from_offset) VALUES (:pod, '', -1, :reason, 0)
            """),
            {"reason": GapReason.PREFIX_ADDED, "pod": pod},
        )


def rotate_token(engine: Engine, name: PodName) -> Secret:
    """Replace the pod's event token; the old one is refused within seconds. Raises NotFoundError.

    Raises ConflictError for a pod that is not managed.
    """
    token = make_token()
    with write_transaction(engine) as connection:
        managed = connection.scalar(text("SELECT managed FROM pods WHERE name = :name"), {"name": name})
        if managed is False:
            raise ConflictError(
                f"Pod {name} is not managed, so its events are refused: run `baleen pods set-managed {name}` first."
            )
        done = connection.execute(
            text("UPDATE pods SET event_token_sha256 = :sha256 WHERE name = :name AND managed"),
            {"name": name, "sha256": hash_token(token.reveal())},
        )
        if not done.rowcount:
            raise _make_not_found(name)
        # The recorded refusals were of the previous token.
        connection.execute(
            text("DELETE FROM token_refusals t USING pods p WHERE p.id = t.pod_id AND p.name = :name"), {"name": name}
        )
    return token


def has_token(engine: Engine, name: PodName, token: str) -> bool:
    """Whether this is the pod's event token; raises NotFoundError."""
    with read_connection(engine) as connection:
        known = connection.scalar(text("SELECT event_token_sha256 FROM pods WHERE name = :name"), {"name": name})
    if known is None:
        raise _make_not_found(name)
    return hmac.compare_digest(bytes(known), hash_token(token))


def set_registries(engine: Engine, name: PodName, registries: Sequence[RegistryUrl]) -> None:
    """Set the URLs of the pod's registry; raises NotFoundError, and ConflictError if another pod has one.

    Processes that echoed from other URLs count until they are retired. The doctor's findings cover the processes that
    it met, so they are void after a new URL.
    """
    urls = list(dict.fromkeys(map(str, registries)))
    with epoch_transaction(engine) as connection:
        _take_lock(connection, PODS_LOCK)
        _refuse_known_urls(connection, name, urls)
        connection.execute(
            text("""
                DELETE FROM findings f USING pods p
                WHERE p.id = f.pod_id AND p.name = :name AND NOT CAST(:urls AS text[]) <@ p.registries
            """),
            {"urls": urls, "name": name},
        )
        done = connection.execute(
            text("UPDATE pods SET registries = CAST(:urls AS text[]) WHERE name = :name"), {"urls": urls, "name": name}
        )
        if not done.rowcount:
            raise _make_not_found(name)


def set_probe(engine: Engine, name: PodName, probe: ProbeMethod) -> None:
    """Set how the pod's registry is probed; raises NotFoundError.

    The doctor examined the events of the other kind of probe, so its findings are void after a change.
    """
    with write_transaction(engine) as connection:
        _take_lock(connection, PODS_LOCK)
        connection.execute(
            text("""
                DELETE FROM findings f USING pods p WHERE p.id = f.pod_id AND p.name = :name AND p.probe <> :probe
            """),
            {"name": name, "probe": str(probe)},
        )
        done = connection.execute(
            text("UPDATE pods SET probe = :probe WHERE name = :name"), {"name": name, "probe": str(probe)}
        )
        if not done.rowcount:
            raise _make_not_found(name)


def read_notifying(engine: Engine, name: PodName) -> tuple[ProbeMethod, PodKind]:
    """Return what the configuration of the pod's notifications depends on; raises NotFoundError."""
    with read_connection(engine) as connection:
        found = connection.execute(
            text("SELECT probe, kind FROM pods WHERE name = :name"), {"name": name}
        ).one_or_none()
    if found is None:
        raise _make_not_found(name)
    return ProbeMethod(found.probe), PodKind(found.kind)


def resolve_gaps(engine: Engine, name: PodName, why: str) -> None:
    """Record an operator's confirmation that the table has everything that the pod holds; raises NotFoundError.

    It resolves the open gaps and what the pod held before its first event, and cancels doubtful removals. Manifests
    whose bytes do not say all that they need no longer wait for a listing: what their bytes name and what the table has
    as links of their repositories is kept (table/expiry.py). Those that were pushed within `COMPARED_WITHIN` still
    wait, since the operator may not have seen them. Raises ConflictError for a pod that can be reconciled.
    """
    why = check_reason(why, "why nothing is lost")
    with write_transaction(engine) as connection:
        kind = _read_kind(connection, name)
        if kind.is_reconcilable:
            raise ConflictError(
                f"Pod {name} is of kind {kind}, so a reconcile resolves its gaps: run `baleen pods reconcile {name}`."
            )
        # Holdings change: no batch may be half applied.
        _take_lock(connection, FACTS_LOCK)
        # The operator's name is not known: tokens belong to roles.
        values = {
            "name": name,
            "why": f"operator: {why.strip()}",
            "reason": GapReason.PREFIX_ADDED,
            "compared": COMPARED_WITHIN,
        }
        for statement in _RESOLVE_GAPS:
            connection.execute(text(statement), values)
        # A process that answered probes and sent no event is such a gap, too; probes under way are not.
        connection.execute(
            text("""
                DELETE FROM probes a USING pods p
                WHERE p.id = a.pod_id AND p.name = :name
                  AND a.answered_at < now() - interval '1 minute' AND NOT a.echoed
            """),
            {"name": name},
        )


_RESOLVE_GAPS = (
    # As a reconcile ends: if no gap was open, one is recorded for what came before the first event.
    f"""
    WITH resolved AS (
        UPDATE gaps g SET resolved_at = clock_timestamp(), resolved_why = :why
        FROM pods p WHERE p.id = g.pod_id AND p.name = :name AND g.resolved_at IS NULL AND {GAP_FITS_POD} RETURNING g.id
    )
    INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, resolved_at, resolved_why)
    SELECT id, '', -1, :reason, 0, clock_timestamp(), :why FROM pods
    WHERE name = :name AND NOT EXISTS (SELECT FROM resolved)
    """,
    """
    DELETE FROM removals x USING repositories r, pods p
    WHERE r.id = x.repository_id AND p.id = r.pod_id AND p.name = :name AND x.doubtful_since IS NOT NULL
    """,
    """
    UPDATE repository_manifests h SET links_pending = false FROM repositories r, pods p
    WHERE r.id = h.repository_id AND p.id = r.pod_id AND p.name = :name AND h.links_pending
      AND h.pushed_at < now() - CAST(:compared AS interval)
    """,
)


def read_known_pods(engine: Engine) -> list[KnownPod]:
    """Return every pod, as the directory of ingest keeps it in memory."""
    with read_connection(engine) as connection:
        rows = connection.execute(
            text("""
                SELECT name, event_token_sha256 AS sha256,
                       token_url, token_issuer, token_service, token_keys, token_key_ids,
                       ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id) AS prefixes
                FROM pods p
            """)
        )
        return [
            KnownPod(
                PodName(row.name),
                tuple(row.prefixes),
                row.sha256,
                None
                if row.token_url is None
                else TokenIssuer(
                    row.token_url, row.token_issuer, row.token_service, row.token_keys, tuple(row.token_key_ids)
                ),
            )
            for row in rows
        ]


def remove_pod(engine: Engine, name: PodName, still_holds: StillHolds, image: Collection[Digest] = ()) -> None:
    """Remove a pod; raises ConflictError while it has manifests, links, open gaps or open dead letters.

    The table may not have everything that the pod has: it was never reconciled, events are lost or under way. Nothing
    would keep those blobs once the pod is removed, so storage is checked too. What Baleen has made in the pod
    (domain/own.py) is removed with it: `image` is the probe image and the blobs that it lists.
    """
    gaps = _check_storage(engine, name, still_holds, image)
    try:
        with epoch_transaction(engine) as connection:
            _take_lock(connection, PODS_LOCK)
            # No worker may add to a repository of the pod between the check and the deletion.
            _take_lock(connection, FACTS_LOCK)
            pod = _read_id(connection, name)
            if pod is None:
                raise _make_not_found(name)
            own = _find_own_repositories(connection, pod, image)
            _refuse_if_needed(connection, name, pod, gaps, own)
            _empty_repositories(connection, own)
            for statement in _REMOVE:
                connection.execute(statement, {"pod": pod})
    except (IntegrityError, StateChangedError) as error:
        raise ConflictError(f"Pod {name} changed while it was being removed: try again.") from error


_REMOVE = (
    text("DELETE FROM removals x USING repositories r WHERE r.id = x.repository_id AND r.pod_id = :pod"),
    text("DELETE FROM repositories WHERE pod_id = :pod"),
    text("DELETE FROM renames WHERE pod_id = :pod"),
    text("DELETE FROM gaps WHERE pod_id = :pod"),
    text("DELETE FROM probes WHERE pod_id = :pod"),
    # In the order in which the prober locks them (table/processes.py).
    text("SELECT FROM endpoints WHERE pod_id = :pod ORDER BY pod_id, url, address FOR UPDATE"),
    text("DELETE FROM endpoints WHERE pod_id = :pod"),
    text("DELETE FROM processes WHERE pod_id = :pod"),
    text("DELETE FROM jobs WHERE pod_id = :pod"),
    text("DELETE FROM findings WHERE pod_id = :pod"),
    text("DELETE FROM pod_prefixes WHERE pod_id = :pod"),
    text("DELETE FROM pods WHERE id = :pod"),
)

#: What refuses a removal if its query finds anything, with what to do; `{}` are examples of what it finds.
_NEEDED_ROWS: tuple[tuple[str, Any], ...] = (
    (
        "repositories that hold manifests ({}): delete these in the registry first",
        text("""
            SELECT r.name FROM repositories r WHERE r.pod_id = :pod AND r.id <> ALL(CAST(:own AS int[]))
              AND EXISTS (SELECT FROM repository_manifests h WHERE h.repository_id = r.id) ORDER BY r.id LIMIT :limit
        """),
    ),
    (
        "repositories that link blobs ({}): wait for the link grace, or delete them",
        text("""
            SELECT r.name FROM repositories r WHERE r.pod_id = :pod AND r.id <> ALL(CAST(:own AS int[]))
              AND EXISTS (SELECT FROM repository_blobs l WHERE l.repository_id = r.id) ORDER BY r.id LIMIT :limit
        """),
    ),
    (
        "a gap about repositories that are not below its prefixes: reconcile the pods that own them",
        text(f"SELECT g.id FROM gaps g WHERE g.pod_id = :pod AND g.resolved_at IS NULL AND NOT {GAP_FITS_POD} LIMIT 1"),
    ),
    (
        "a gap that was noticed in this moment: try again",
        text("""
            SELECT g.id FROM gaps g WHERE g.pod_id = :pod AND g.resolved_at IS NULL
              AND (g.id, g.resolves_from) NOT IN (
                SELECT * FROM unnest(CAST(:looked_to AS bigint[]), CAST(:as_of AS timestamptz[]))) LIMIT 1
        """),
    ),
    (
        "links that vanished without a delete event: find out what deleted them, and accept them first",
        text("""
            SELECT 1 FROM removals x JOIN repositories r ON r.id = x.repository_id
            WHERE r.pod_id = :pod AND x.vanished_since IS NOT NULL LIMIT 1
        """),
    ),
    (
        "open dead letters: retry or discard them first",
        text("SELECT id FROM dead_letters WHERE pod = :name AND resolved_at IS NULL LIMIT 1"),
    ),
)


def _find_own_repositories(connection: Connection, pod: int, image: Collection[Digest]) -> list[int]:
    """Return the pod's repositories that Baleen has made and that have nothing of others."""
    prefixes = set(connection.scalars(text("SELECT prefix FROM pod_prefixes WHERE pod_id = :pod"), {"pod": pod}))
    named = connection.execute(
        text("SELECT id, name FROM repositories WHERE pod_id = :pod AND name LIKE '%/baleen-%' ORDER BY id"),
        {"pod": pod},
    )
    own = {row.id: row.name for row in named if is_own(RepositoryName(row.name), prefixes)}
    probes = [number for number, name in own.items() if name.endswith(f"/{PROBE_REPOSITORY}")]
    if probes:
        for shared in connection.scalars(
            text("""
                SELECT f.repository_id FROM (
                    SELECT repository_id, manifest_id AS blob_id FROM repository_manifests
                    WHERE repository_id = ANY(CAST(:probes AS int[]))
                    UNION SELECT repository_id, blob_id FROM repository_blobs
                    WHERE repository_id = ANY(CAST(:probes AS int[]))
                ) f JOIN blobs b ON b.id = f.blob_id WHERE b.digest <> ALL(CAST(:image AS bytea[])) GROUP BY 1
            """),
            {"probes": probes, "image": list(image)},
        ):
            del own[shared]
    return list(own)


def _empty_repositories(connection: Connection, repositories: Sequence[int]) -> None:
    """Delete all manifests and links of these repositories, under the lock that excludes all other writers."""
    held, linked = [
        list(
            connection.scalars(
                text(f"DELETE FROM {table} WHERE repository_id = ANY(CAST(:own AS int[])) RETURNING {column}"),
                {"own": list(repositories)},
            )
        )
        for table, column in (("repository_manifests", "manifest_id"), ("repository_blobs", "blob_id"))
    ]
    count_rows(driver_connection(connection), held, linked, by=-1)


def _check_storage(engine: Engine, name: PodName, still_holds: StillHolds, image: Collection[Digest]) -> Gaps:
    """Return the pod's gaps, which then hide nothing; raises ConflictError if storage has links.

    The table is checked first: reading storage takes longer, and its error says less about what to do.
    """
    with read_connection(engine) as connection:
        found = connection.execute(text(f"SELECT p.id, {COLUMNS} FROM pods p WHERE p.name = :name"), {"name": name})
        row = found.one_or_none()
        if row is None:
            raise _make_not_found(name)
        opened = connection.execute(
            text("SELECT id, resolves_from FROM gaps WHERE pod_id = :pod AND resolved_at IS NULL"), {"pod": row.id}
        )
        gaps = {gap.id: gap.resolves_from for gap in opened}
        _refuse_if_needed(connection, name, row.id, gaps, _find_own_repositories(connection, row.id, image))
    # A pod that only its events show cannot be checked: the operator's confirmation stands.
    pod = make_pod_of_kind(row[1:])
    if pod.kind.is_reconcilable and still_holds(pod):
        raise ConflictError(
            f"Pod {name} has links or manifests that the table lacks: reconcile it first. If its registry has "
            "repositories outside the pod's prefixes, add these prefixes before."
        )
    return gaps


def _refuse_if_needed(connection: Connection, name: PodName, pod: int, gaps: Gaps, own: Sequence[int]) -> None:
    known = {
        "name": name,
        "pod": pod,
        "looked_to": list(gaps),
        "as_of": list(gaps.values()),
        "own": list(own),
        "limit": EXAMPLES + 1,
    }
    for what, question in _NEEDED_ROWS:
        values = {parameter: known[parameter] for parameter in known if f":{parameter}" in str(question)}
        if found := list(connection.scalars(question, values)):
            examples = ", ".join(map(str, found[:EXAMPLES])) + (", …" if len(found) > EXAMPLES else "")
            raise ConflictError(f"Pod {name} still has {what.format(examples)}.")


def _refuse_known_urls(connection: Connection, pod: PodName, registries: Sequence[str]) -> None:
    """Raise ConflictError if another pod has one of the URLs: its events would be taken for this pod's."""
    known = connection.execute(
        text("""
            SELECT u.url, p.name FROM pods p, unnest(p.registries) u (url)
            WHERE u.url = ANY(CAST(:registries AS text[])) AND p.name <> :pod ORDER BY u.url LIMIT 1
        """),
        {"registries": registries, "pod": pod},
    )
    if (row := known.one_or_none()) is not None:
        raise ConflictError(
            f"The registry {row.url} belongs to pod {row.name}: use a URL of this pod's registry, or remove pod "
            f"{row.name} first."
        )


def _read_owners(connection: Connection) -> dict[str, PodName]:
    """Return the owner of each prefix."""
    rows = connection.execute(text("SELECT x.prefix, p.name FROM pod_prefixes x JOIN pods p ON p.id = x.pod_id"))
    return {row.prefix: PodName(row.name) for row in rows}


def _take_lock(connection: Connection, key: int) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _read_id(connection: Connection, name: PodName) -> int | None:
    found: int | None = connection.scalar(text("SELECT id FROM pods WHERE name = :name"), {"name": name})
    return found


def _read_kind(connection: Connection, name: PodName) -> PodKind:
    """Return the pod's kind; raises NotFoundError."""
    kind = connection.scalar(text("SELECT kind FROM pods WHERE name = :name"), {"name": name})
    if kind is None:
        raise _make_not_found(name)
    return PodKind(kind)


def _make_not_found(name: PodName) -> NotFoundError:
    return NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
