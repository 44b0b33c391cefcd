"""Recompute every derived number of the table from its facts, and compare.

Derived: blobs.reference_count, link_count, state and unreferenced_since. Facts: repository_manifests, manifests,
repository_blobs. Also finds rows that point at nothing, where no foreign key forbids them.

The recomputation is one aggregate over all references, in one snapshot, so that workers may go on meanwhile.
PostgreSQL spills it to disk beyond work_mem, so memory stays bounded.
Not here: comparing the facts with storage (reconcile).
"""

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection, Engine, text

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.references import ManifestKind

#: Differences that the report lists; all are counted.
DIFFERENCES_SHOWN = 100

#: Gets each step as it begins: what it does, its number, and how many there are.
OnProgress = Callable[[str, int, int], None]


class Difference(NamedTuple):
    """One row that differs from what the facts say."""

    what: str
    #: A digest, or the ids of a row that points at nothing.
    subject: str
    stored: str
    recomputed: str


class CheckReport(NamedTuple):
    blobs: int
    #: References by holdings to blobs, as recomputed.
    references: int
    differences_count: int
    differences: list[Difference]

    @property
    def is_healthy(self) -> bool:
        return self.differences_count == 0


_RECOMPUTED = """
    CREATE TEMPORARY TABLE recomputed ON COMMIT DROP AS
    SELECT id, sum(refs)::bigint AS refs, sum(links)::bigint AS links FROM (
        SELECT unnest(m.refs) AS id, h.holders AS refs, 0 AS links
        FROM (SELECT manifest_id, count(*) AS holders FROM repository_manifests GROUP BY manifest_id) h
        JOIN manifests m ON m.id = h.manifest_id
        UNION ALL SELECT manifest_id, count(*), 0 FROM repository_manifests GROUP BY manifest_id
        UNION ALL SELECT blob_id, 0, count(*) FROM repository_blobs GROUP BY blob_id
    ) facts GROUP BY id
"""

_SELECT_COUNTS = f"""
    SELECT encode(b.digest, 'hex') AS digest, b.reference_count, b.link_count, b.state,
           b.unreferenced_since IS NOT NULL AS dated, coalesce(r.refs, 0) AS refs, coalesce(r.links, 0) AS links
    FROM blobs b LEFT JOIN recomputed r ON r.id = b.id
    WHERE b.reference_count <> coalesce(r.refs, 0) OR b.link_count <> coalesce(r.links, 0)
       OR (b.unreferenced_since IS NOT NULL) <> (coalesce(r.refs, 0) = 0 AND coalesce(r.links, 0) = 0)
       OR (b.state IN ({BlobState.LIVE:d}, {BlobState.MISSING:d})
           AND coalesce(r.refs, 0) = 0 AND coalesce(r.links, 0) = 0)
       OR (b.state = {BlobState.UNREFERENCED:d} AND (coalesce(r.refs, 0) > 0 OR coalesce(r.links, 0) > 0))
       OR b.state NOT IN ({", ".join(str(state.value) for state in BlobState)})
"""

_STATES = {state.value: state.name for state in BlobState}

_HIDDEN = f"{BlobState.HIDING:d}, {BlobState.HIDDEN:d}, {BlobState.PURGING:d}"

#: Rows that must not exist: a name, and a query that gives the rows' ids as text.
_ORPHANS = (
    (
        "reference to no blob",
        "SELECT r.id::text FROM recomputed r LEFT JOIN blobs b USING (id) WHERE b.id IS NULL",
    ),
    (
        "holding of no manifest",
        """
        SELECT format('repository %s, manifest %s', h.repository_id, h.manifest_id) FROM repository_manifests h
        LEFT JOIN manifests m ON m.id = h.manifest_id WHERE m.id IS NULL
        """,
    ),
    (
        "holding of no repository",
        """
        SELECT format('repository %s, manifest %s', h.repository_id, h.manifest_id) FROM repository_manifests h
        LEFT JOIN repositories r ON r.id = h.repository_id WHERE r.id IS NULL
        """,
    ),
    (
        "implied holding that no held index lists",
        f"""
        SELECT format('repository %s, manifest %s', h.repository_id, h.manifest_id) FROM repository_manifests h
        WHERE h.implied AND NOT EXISTS (
            SELECT FROM manifests m JOIN repository_manifests i ON i.manifest_id = m.id
            WHERE m.refs @> ARRAY[h.manifest_id] AND m.kind IN ({ManifestKind.INDEX:d}, {ManifestKind.NAMED:d})
              AND i.repository_id = h.repository_id)
        """,
    ),
    (
        "child of a held index without a holding",
        f"""
        SELECT format('repository %s, manifest %s', h.repository_id, u.id) FROM repository_manifests h
        JOIN manifests m ON m.id = h.manifest_id AND m.kind IN ({ManifestKind.INDEX:d}, {ManifestKind.NAMED:d})
        CROSS JOIN LATERAL unnest(m.refs) u (id) JOIN manifests c ON c.id = u.id
        LEFT JOIN repository_manifests x ON x.manifest_id = u.id AND x.repository_id = h.repository_id
        WHERE x.manifest_id IS NULL
        """,
    ),
    (
        "hide of a blob that is not hidden",
        f"SELECT h.id::text FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE b.state NOT IN ({_HIDDEN})",
    ),
    (
        "hidden blob without a hide",
        f"""
        SELECT 'sha256:' || encode(b.digest, 'hex') FROM blobs b LEFT JOIN hides h ON h.blob_id = b.id
        WHERE b.state IN ({_HIDDEN}) AND h.id IS NULL
        """,
    ),
)


def check_counts(engine: Engine, progress: OnProgress = lambda what, number, total: None) -> CheckReport:
    """Compare all derived numbers with the facts. Takes long on a large table, and changes nothing."""
    total = 2 + len(_ORPHANS)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        progress("recomputing counts from the facts", 1, total)
        connection.execute(text(_RECOMPUTED))
        blobs = connection.execute(text("SELECT count(*) FROM blobs")).scalar_one()
        references = connection.execute(text("SELECT coalesce(sum(refs), 0) FROM recomputed")).scalar_one()
        progress("comparing counts", 2, total)
        count, shown = _compare_counts(connection)
        for number, (what, query) in enumerate(_ORPHANS, 3):
            progress(f"looking for a {what}", number, total)
            for subject in connection.execute(text(query)).yield_per(1000).scalars():
                count += 1
                if len(shown) < DIFFERENCES_SHOWN:
                    shown.append(Difference(what, subject, "a row", "none"))
    return CheckReport(blobs, int(references), count, shown)


def _compare_counts(connection: Connection) -> tuple[int, list[Difference]]:
    count = 0
    shown: list[Difference] = []
    for row in connection.execute(text(_SELECT_COUNTS)).yield_per(1000):
        count += 1
        if len(shown) < DIFFERENCES_SHOWN:
            stored = (
                f"references={row.reference_count} links={row.link_count} state={_STATES.get(row.state, row.state)}"
            )
            recomputed = f"references={row.refs} links={row.links}"
            shown.append(Difference("blob", f"sha256:{row.digest}", stored, recomputed))
    return count, shown
