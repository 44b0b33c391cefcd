"""The SQL of the batch apply: each function is one statement over arrays, whatever the size of the batch.

Joins against `unnest` are forced to use indexes (see `prepare_connection`): the planner cannot know how long an array
will be.
A write knows how many rows it must change, and raises StateChangedError if it changed another number.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection, Cursor

from coordinator.db.arrays import digest_array, integer_array, register_dumper, time_array
from coordinator.domain.fold import Difference, Key, Removal
from coordinator.domain.lifecycle import BlobState, state_after_count
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestKind
from coordinator.table.batch import Slice, StateChangedError

Pair = tuple[int, int]


class NewBlob(NamedTuple):
    id: int
    digest: Digest
    size: int | None
    reference_count: int
    link_count: int


class CountDelta(NamedTuple):
    """How a known blob's counts change, and its size in bytes if that was not known."""

    blob: int
    references: int
    links: int
    size: int | None = None


class NewManifest(NamedTuple):
    id: int
    kind: ManifestKind | None
    refs: list[int] | None
    #: `refs` were read from the manifest's own bytes.
    verified: bool = False
    #: It may also need anything that the repositories which hold it link.
    by_links: bool = False


class KnownManifest(NamedTuple):
    """What the table knows of a manifest; `refs` is None while it is not known what it lists."""

    kind: ManifestKind | None
    refs: list[int] | None
    verified: bool
    by_links: bool


def prepare_connection(connection: Connection[Any]) -> None:
    """Set the connection up for batches: statements are planned once, and for index look-ups."""
    register_dumper(connection)
    connection.prepare_threshold = 0
    for setting in ("enable_seqscan = off", "enable_hashjoin = off", "enable_mergejoin = off"):
        connection.execute(f"SET {setting}")
    connection.execute("SET plan_cache_mode = force_generic_plan")


def _execute(connection: Connection[Any], statement: str, parameters: Sequence[Any]) -> Cursor[Any]:
    return connection.cursor(binary=True).execute(statement, parameters)


def _execute_expecting(connection: Connection[Any], expected: int, statement: str, parameters: Sequence[Any]) -> None:
    if expected and _execute(connection, statement, parameters).rowcount != expected:
        raise StateChangedError("Rows were added or removed by another writer.")


def lock_progress(connection: Connection[Any], partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Lock the partitions' progress, in order; return the next offset of each."""
    stands: dict[tuple[str, int], int] = {}
    for topic, partition in partitions:
        row = _execute(
            connection,
            "SELECT next_offset FROM partition_progress WHERE topic = %s AND partition = %s FOR UPDATE",
            (topic, partition),
        ).fetchone()
        if row is not None:
            stands[topic, partition] = row[0]
    return stands


def advance_progress(connection: Connection[Any], slices: Sequence[Slice]) -> None:
    _execute_expecting(
        connection,
        len(slices),
        """
        UPDATE partition_progress p SET next_offset = d.next_offset, fingerprint = d.fingerprint, updated_at = now()
        FROM unnest(%b::text[], %s::int[], %s::bigint[], %s::bigint[]) d (topic, partition, next_offset, fingerprint)
        WHERE p.topic = d.topic AND p.partition = d.partition
        """,
        (
            [piece.topic for piece in slices],
            integer_array(piece.partition for piece in slices),
            integer_array(piece.next_offset for piece in slices),
            integer_array(piece.fingerprint for piece in slices),
        ),
    )


def ensure_repositories(connection: Connection[Any], owners: Mapping[RepositoryName, int]) -> dict[RepositoryName, int]:
    """Return the id of each repository, creating those that are not there; `owners` gives their pods."""
    found = dict(
        _execute(
            connection,
            "SELECT r.name, r.id FROM unnest(%b::text[]) d (name) JOIN repositories r ON r.name = d.name",
            (list(owners),),
        ).fetchall()
    )
    missing = sorted(owners.keys() - found.keys())
    if missing:
        created = _execute(
            connection,
            """
            INSERT INTO repositories (name, pod_id) SELECT * FROM unnest(%b::text[], %s::smallint[])
            ON CONFLICT (name) DO NOTHING RETURNING name, id
            """,
            (missing, integer_array(owners[name] for name in missing)),
        ).fetchall()
        if len(created) != len(missing):
            raise StateChangedError("A repository was created at the same time.")
        found.update(created)
    return found


def read_pods_by_report(connection: Connection[Any], pods: Collection[int]) -> set[int]:
    """Return those of these pods of which only events show what they hold."""
    if not pods:
        return set()
    statement = "SELECT id FROM pods WHERE id = ANY(%s::int[]) AND NOT is_reconcilable"
    return {row[0] for row in _execute(connection, statement, (integer_array(pods),))}


def read_blob_ids(connection: Connection[Any], wanted: list[Digest]) -> tuple[dict[Digest, int], list[Digest]]:
    """Return the ids of the digests that have a row, and which of these have no size yet."""
    found = _execute(
        connection,
        "SELECT b.digest, b.id, b.size < 0 FROM unnest(%b::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest",
        (digest_array(wanted),),
    ).fetchall()
    return {row[0]: row[1] for row in found}, [row[0] for row in found if row[2]]


def allocate_blob_ids(connection: Connection[Any], count: int) -> list[int]:
    if not count:
        return []
    statement = "SELECT nextval('blobs_id_seq') FROM generate_series(1, %b)"
    return [row[0] for row in _execute(connection, statement, (count,))]


def insert_blobs(connection: Connection[Any], blobs: list[NewBlob]) -> int:
    """Insert blobs, sorted by digest; return how many had no row yet."""
    if not blobs:
        return 0
    return _execute(
        connection,
        f"""
        INSERT INTO blobs (id, size, unreferenced_since, reference_count, link_count, state, digest)
        SELECT id, size, CASE WHEN refs = 0 AND links = 0 THEN now() END, refs, links,
               CASE WHEN refs = 0 AND links = 0 THEN {BlobState.UNREFERENCED:d} ELSE {BlobState.LIVE:d} END, digest
        FROM unnest(%s::bigint[], %s::bigint[], %s::int[], %s::int[], %b::bytea[]) d (id, size, refs, links, digest)
        ON CONFLICT DO NOTHING
        """,
        (
            integer_array(blob.id for blob in blobs),
            integer_array(-1 if blob.size is None else blob.size for blob in blobs),
            integer_array(blob.reference_count for blob in blobs),
            integer_array(blob.link_count for blob in blobs),
            digest_array(blob.digest for blob in blobs),
        ),
    ).rowcount


def read_manifests(connection: Connection[Any], ids: list[int]) -> dict[int, KnownManifest]:
    """Return what is known of each of these manifests that has a row."""
    if not ids:
        return {}
    statement = """
        SELECT m.id, m.kind, m.refs, m.verified, m.by_links
        FROM unnest(%s::bigint[]) d (id) JOIN manifests m ON m.id = d.id
    """
    found = _execute(connection, statement, (integer_array(ids),)).fetchall()
    return {
        row[0]: KnownManifest(None if row[1] is None else ManifestKind(row[1]), row[2], row[3], row[4]) for row in found
    }


def insert_manifests(connection: Connection[Any], new: list[NewManifest]) -> None:
    _execute_expecting(
        connection,
        len(new),
        """
        INSERT INTO manifests (id, kind, refs, verified, by_links)
        SELECT id, nullif(kind, 0), refs::bigint[], verified, by_links
        FROM unnest(%s::bigint[], %s::smallint[], %b::text[], %b::bool[], %b::bool[])
             d (id, kind, refs, verified, by_links)
        ON CONFLICT DO NOTHING
        """,
        (
            integer_array(manifest.id for manifest in new),
            integer_array(0 if manifest.kind is None else manifest.kind for manifest in new),
            [None if manifest.refs is None else integer_array(manifest.refs) for manifest in new],
            [manifest.verified for manifest in new],
            [manifest.by_links for manifest in new],
        ),
    )


def mark_kinds(connection: Connection[Any], kinds: Mapping[int, ManifestKind], *, read: bool) -> None:
    """Set the kinds of manifests; with `read`, from their bytes, and then no report changes them afterwards."""
    if kinds:
        ordered = sorted(kinds)
        _execute(
            connection,
            """
            UPDATE manifests m SET kind = d.kind, verified = m.verified OR %b
            FROM unnest(%s::bigint[], %s::smallint[]) d (id, kind)
            WHERE m.id = d.id AND (m.kind IS DISTINCT FROM d.kind OR m.verified <> %b) AND (%b OR NOT m.verified)
            """,
            (read, integer_array(ordered), integer_array(int(kinds[each]) for each in ordered), read, read),
        )


def read_holding_pods(connection: Connection[Any], manifest: int) -> set[int]:
    """Return the ids of the pods that hold a manifest."""
    found = _execute(
        connection,
        """
        SELECT DISTINCT r.pod_id::int FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
        WHERE h.manifest_id = %b
        """,
        (manifest,),
    )
    return {row[0] for row in found}


def change_manifest(connection: Connection[Any], manifest: int, known: KnownManifest, now: KnownManifest) -> int:
    """Set what a manifest lists; return how many holdings it has. Needs all other writers excluded (db/locks.py)."""
    _execute_expecting(
        connection,
        1,
        "UPDATE manifests SET kind = nullif(%b, 0), refs = %s::bigint[], verified = %b, by_links = %b WHERE id = %b",
        (
            0 if now.kind is None else int(now.kind),
            None if now.refs is None else integer_array(now.refs),
            now.verified,
            now.by_links,
            manifest,
        ),
    )
    if known.by_links != now.by_links:
        _execute(
            connection,
            "UPDATE repository_manifests SET links_pending = %b WHERE manifest_id = %b AND links_pending <> %b",
            (now.by_links, manifest, now.by_links),
        )
    row = _execute(
        connection, "SELECT count(*) FROM repository_manifests WHERE manifest_id = %b", (manifest,)
    ).fetchone()
    assert row is not None
    return int(row[0])


def mark_links_pending(connection: Connection[Any], pairs: Sequence[Pair]) -> None:
    """Mark these (repository, manifest) holdings as pending: the links of their repositories must be listed."""
    if pairs:
        _execute(
            connection,
            """
            UPDATE repository_manifests h SET links_pending = true
            FROM unnest(%s::int[], %s::bigint[]) d (repository_id, id)
            WHERE h.manifest_id = d.id AND h.repository_id = d.repository_id
            """,
            (integer_array(pair[0] for pair in pairs), integer_array(pair[1] for pair in pairs)),
        )


def keep_links(connection: Connection[Any], repository: RepositoryName, blobs: Sequence[Digest]) -> None:
    """Keep these links of a repository until it holds no manifest marked `by_links`; they must have rows."""
    _execute_expecting(
        connection,
        len(blobs),
        """
        UPDATE repository_blobs l SET kept = true FROM unnest(%b::bytea[]) d (digest)
        JOIN blobs b ON b.digest = d.digest JOIN repositories r ON r.name = %b
        WHERE l.blob_id = b.id AND l.repository_id = r.id
        """,
        (digest_array(blobs), repository),
    )


def count_false_reports(connection: Connection[Any], found: Mapping[int, tuple[int, Digest]]) -> None:
    """Add to the count of false reports of each pod, with one manifest as an example."""
    if found:
        pods = sorted(found)
        _execute(
            connection,
            """
            INSERT INTO false_reports (pod_id, count, manifest)
            SELECT * FROM unnest(%s::smallint[], %s::bigint[], %b::bytea[])
            ON CONFLICT (pod_id) DO UPDATE
            SET count = false_reports.count + excluded.count, last_at = now(), manifest = excluded.manifest
            """,
            (
                integer_array(pods),
                integer_array(found[pod][0] for pod in pods),
                digest_array(found[pod][1] for pod in pods),
            ),
        )


def read_holdings(connection: Connection[Any], pairs: list[Pair]) -> list[tuple[Pair, datetime | None]]:
    """Return those (repository, manifest) pairs that are held, with the registry's time of the push.

    Implied ones have None: no link of theirs is known.
    """
    return _read_pairs(
        connection,
        """
        SELECT h.repository_id, h.manifest_id, CASE WHEN NOT h.implied THEN h.pushed_at END
        FROM unnest(%s::int[], %s::bigint[]) d (repository_id, id)
        JOIN repository_manifests h ON h.manifest_id = d.id AND h.repository_id = d.repository_id
        """,
        pairs,
    )


def read_links(connection: Connection[Any], pairs: list[Pair]) -> list[tuple[Pair, datetime]]:
    """Return those (repository, blob) pairs that are linked, with the registry's time of the link."""
    return _read_pairs(
        connection,
        """
        SELECT l.repository_id, l.blob_id, l.event_at
        FROM unnest(%s::int[], %s::bigint[]) d (repository_id, id)
        JOIN repository_blobs l ON l.blob_id = d.id AND l.repository_id = d.repository_id
        """,
        pairs,
    )


def _read_pairs(connection: Connection[Any], statement: str, pairs: list[Pair]) -> list[tuple[Pair, Any]]:
    if not pairs:
        return []
    found = _execute(
        connection, statement, (integer_array(pair[0] for pair in pairs), integer_array(pair[1] for pair in pairs))
    )
    return [((row[0], row[1]), row[2]) for row in found]


def read_removals(
    connection: Connection[Any], keys: list[Key], repositories: Mapping[RepositoryName, int]
) -> dict[Key, Removal]:
    """Return the known removals of these (repository, digest) pairs."""
    names = {number: name for name, number in repositories.items()}
    found = _execute(
        connection,
        """
        SELECT r.repository_id, r.digest, r.removed_at, r.doubtful_since IS NOT NULL, r.reported, r.vanished_added_at
        FROM unnest(%s::int[], %b::bytea[]) d (repository_id, digest)
        JOIN removals r ON r.repository_id = d.repository_id AND r.digest = d.digest
        """,
        (integer_array(repositories[name] for name, _ in keys), digest_array(digest for _, digest in keys)),
    )
    return {(names[row[0]], Digest(row[1])): Removal(*row[2:]) for row in found}


def write_holdings(
    connection: Connection[Any],
    before: Mapping[Key, datetime],
    difference: Difference[datetime],
    ids: Mapping[Digest, int],
    repositories: Mapping[RepositoryName, int],
    implied: Collection[Key] = (),
) -> None:
    """Write what differs from `before`; raises StateChangedError if a row is no longer as it was read.

    Added holdings that are in `implied` have a row already, and now have a link of their own. Removals are left to
    implied.py.
    """
    own = [key for key in difference.added if key in implied]
    _execute_expecting(
        connection,
        len(own),
        """
        UPDATE repository_manifests t SET implied = false, pushed_at = d.at
        FROM unnest(%s::int[], %s::bigint[], %s::timestamptz[]) d (repository_id, id, at)
        WHERE t.manifest_id = d.id AND t.repository_id = d.repository_id AND t.implied
        """,
        (
            integer_array(repositories[name] for name, _ in own),
            integer_array(ids[digest] for _, digest in own),
            time_array(difference.added[key] for key in own),
        ),
    )
    added = {key: at for key, at in difference.added.items() if key not in implied} if own else difference.added
    difference = Difference(added, difference.changed, [])
    _write_pairs(connection, "repository_manifests", "manifest_id", "pushed_at", before, difference, ids, repositories)


def write_links(
    connection: Connection[Any],
    before: Mapping[Key, datetime],
    difference: Difference[datetime],
    ids: Mapping[Digest, int],
    repositories: Mapping[RepositoryName, int],
) -> None:
    """Write links as `write_holdings` does; the grace of a link that was made again begins anew."""
    _write_pairs(connection, "repository_blobs", "blob_id", "event_at", before, difference, ids, repositories)


def _write_pairs(
    connection: Connection[Any],
    table: str,
    column: str,
    time: str,
    before: Mapping[Key, datetime],
    difference: Difference[datetime],
    ids: Mapping[Digest, int],
    repositories: Mapping[RepositoryName, int],
) -> None:
    def arrays(keys: Sequence[Key]) -> tuple[str, str]:
        return integer_array(repositories[name] for name, _ in keys), integer_array(ids[digest] for _, digest in keys)

    # In the order of ids, so that an index grows at its end and its pages fill up; by repository, too, so that two
    # writers that add the same rows do not deadlock.
    added = sorted(difference.added, key=lambda key: (ids[key[1]], repositories[key[0]]))

    again = ", linked_at = now()" if table == "repository_blobs" else ""
    _execute_expecting(
        connection,
        len(difference.added),
        f"""
        INSERT INTO {table} (repository_id, {column}, {time})
        SELECT * FROM unnest(%s::int[], %s::bigint[], %s::timestamptz[]) ON CONFLICT DO NOTHING
        """,
        (*arrays(added), time_array(difference.added[key] for key in added)),
    )
    _execute_expecting(
        connection,
        len(difference.changed),
        f"""
        UPDATE {table} t SET {time} = d.at{again}
        FROM unnest(%s::int[], %s::bigint[], %s::timestamptz[], %s::timestamptz[]) d (repository_id, id, at, known)
        WHERE t.{column} = d.id AND t.repository_id = d.repository_id AND t.{time} = d.known
        """,
        (
            *arrays(list(difference.changed)),
            time_array(difference.changed.values()),
            time_array(before[key] for key in difference.changed),
        ),
    )
    _execute_expecting(
        connection,
        len(difference.removed),
        f"""
        DELETE FROM {table} t USING unnest(%s::int[], %s::bigint[], %s::timestamptz[]) d (repository_id, id, known)
        WHERE t.{column} = d.id AND t.repository_id = d.repository_id AND t.{time} = d.known
        """,
        (*arrays(difference.removed), time_array(before[key] for key in difference.removed)),
    )


def write_removals(
    connection: Connection[Any], difference: Difference[Removal], repositories: Mapping[RepositoryName, int]
) -> None:
    written = difference.added | difference.changed
    _execute_expecting(
        connection,
        len(written),
        """
        INSERT INTO removals (repository_id, digest, removed_at, doubtful_since, reported)
        SELECT repository_id, digest, at, CASE WHEN doubtful THEN now() END, reported
        FROM unnest(%s::int[], %b::bytea[], %s::timestamptz[], %b::bool[], %b::bool[])
             d (repository_id, digest, at, doubtful, reported)
        ON CONFLICT (repository_id, digest) DO UPDATE
        SET removed_at = excluded.removed_at, seen_at = now(), doubtful_since = excluded.doubtful_since,
            reported = excluded.reported,
            vanished_since = CASE WHEN NOT excluded.reported THEN removals.vanished_since END,
            vanished_added_at = CASE WHEN NOT excluded.reported THEN removals.vanished_added_at END,
            vanished_kind = CASE WHEN NOT excluded.reported THEN removals.vanished_kind END
        """,
        (
            integer_array(repositories[name] for name, _ in written),
            digest_array(digest for _, digest in written),
            time_array(removal.at for removal in written.values()),
            [removal.doubtful for removal in written.values()],
            [removal.reported for removal in written.values()],
        ),
    )
    _execute_expecting(
        connection,
        len(difference.removed),
        """
        DELETE FROM removals r USING unnest(%s::int[], %b::bytea[]) d (repository_id, digest)
        WHERE r.repository_id = d.repository_id AND r.digest = d.digest
        """,
        (
            integer_array(repositories[name] for name, _ in difference.removed),
            digest_array(digest for _, digest in difference.removed),
        ),
    )


def add_counts(connection: Connection[Any], deltas: list[CountDelta]) -> None:
    """Add to counts, and change blobs' states accordingly; `deltas` sorted by blob.

    Rows are locked first and in order: an UPDATE alone promises no order, and two workers would deadlock.
    """
    if not deltas:
        return
    blobs = [delta.blob for delta in deltas]
    # After a blob was published as missing or unreferenced, its next change is published, too. A blob without a
    # published change is live.
    locked = _execute(
        connection,
        f"""
        SELECT array_agg(id) FILTER (WHERE state = {BlobState.MISSING:d}),
               array_agg(id) FILTER (WHERE state = {BlobState.UNREFERENCED:d}) FROM (
            SELECT b.id, b.state FROM unnest(%s::bigint[]) d (id) JOIN blobs b ON b.id = d.id
            ORDER BY b.id FOR NO KEY UPDATE OF b
        ) locked
        """,
        (integer_array(blobs),),
    ).fetchone()
    missing, unreferenced = (locked[0] or [], locked[1] or []) if locked is not None else ([], [])
    gone = "b.reference_count + d.refs = 0 AND b.link_count + d.links = 0"
    _execute_expecting(
        connection,
        len(deltas),
        f"""
        UPDATE blobs b
        SET reference_count = b.reference_count + d.refs,
            link_count = b.link_count + d.links,
            size = CASE WHEN b.size < 0 THEN d.size ELSE b.size END,
            unreferenced_since = CASE WHEN {gone} THEN coalesce(b.unreferenced_since, now()) END,
            state = CASE WHEN {gone} THEN {_counted_state(referenced=False)} ELSE {_counted_state(referenced=True)} END
        FROM unnest(%s::bigint[], %s::int[], %s::int[], %s::bigint[]) d (id, refs, links, size)
        WHERE b.id = d.id
        """,
        (
            integer_array(blobs),
            integer_array(delta.references for delta in deltas),
            integer_array(delta.links for delta in deltas),
            integer_array(-1 if delta.size is None else delta.size for delta in deltas),
        ),
    )
    before = set(unreferenced)
    fewer = [delta.blob for delta in deltas if (delta.references < 0 or delta.links < 0) and delta.blob not in before]
    _write_outbox(connection, sorted({*fewer, *missing}), BlobState.UNREFERENCED, "unreferenced")
    _write_outbox(connection, unreferenced, BlobState.LIVE, "live")


def lock_blob_state(connection: Connection[Any], digest: Digest) -> BlobState:
    """Return the state of a blob that has a row, and keep it until the transaction ends."""
    row = _execute(connection, "SELECT state FROM blobs WHERE digest = %b FOR NO KEY UPDATE", (digest,)).fetchone()
    assert row is not None
    return BlobState(row[0])


def _write_outbox(connection: Connection[Any], blobs: Sequence[int], state: BlobState, change: str) -> None:
    """Write the outbox for those of these blobs that a change of counts has brought to this state."""
    if blobs:
        _execute(
            connection,
            """
            INSERT INTO lifecycle_outbox (digest, change, reference_count, link_count)
            SELECT digest, %b::text, reference_count, link_count FROM blobs
            WHERE id = ANY(%s::bigint[]) AND state = %s::smallint ORDER BY id
            """,
            (change, integer_array(blobs), int(state)),
        )


def _counted_state(*, referenced: bool) -> str:
    """The rule of the domain (`counted`) as an expression over `b.state`."""
    rule = " ".join(f"WHEN {state:d} THEN {state_after_count(state, referenced=referenced):d}" for state in BlobState)
    return f"CASE b.state {rule} ELSE b.state END"


def count_rows(connection: Connection[Any], holdings: Sequence[int], links: Iterable[int] = (), *, by: int) -> None:
    """Add `by` (1 or -1) to the counts for each of these holdings of manifests and links of blobs."""
    references: Counter[int] = Counter()
    linked = Counter(links)
    listed = read_manifests(connection, list(holdings))
    for manifest in holdings:
        references.update([manifest, *(listed[manifest].refs or ())])
    add_counts(
        connection,
        [
            CountDelta(blob, by * references[blob], by * linked[blob])
            for blob in sorted(references.keys() | linked.keys())
        ],
    )
