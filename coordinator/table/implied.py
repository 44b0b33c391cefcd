"""Maintain implied holdings: the children of an index are held as long as the index is, even if their links are gone.

An index is useless without its children. A registry's own garbage collection removes links of untagged children first,
and a client may delete a child by its digest. So a repository that holds an index also holds each child that the table
knows as a manifest, and what the child lists. Such a row without a link of its own is `implied`. It is removed with the
last index of the repository that lists it.

Invariant: (repository, child) has a row if the repository holds an index that lists the child, and the child is a
known manifest; an implied row is listed by an index that the repository holds. `check` compares both.

Route: digest_facts.py and doubtful_removals.py, after they have written -> `remove_unlinked`, `add_implied`,
`add_implied_everywhere`
Order: after the counts of the run are written. Two runs, one that adds an index and one that learns what its child is,
both count the child's blob; the second finds what the first has committed.
Removals need all other writers excluded (db/locks.py): an index that is being added may list what is removed.
Not here: children that are not yet known to be manifests (reconcile/linked_manifests.py reads them).
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from psycopg import Connection

from coordinator.db.arrays import integer_array
from coordinator.domain.references import PARENTS
from coordinator.table import statements

#: Ids of a repository and of a manifest.
Holding = tuple[int, int]
_PARENTS = ", ".join(str(kind.value) for kind in PARENTS)
#: No index that the repository holds lists the manifest of a holding `d`.
IS_NOT_LISTED = f"""NOT EXISTS (
                SELECT FROM manifests m JOIN repository_manifests i ON i.manifest_id = m.id
                WHERE m.refs @> ARRAY[d.id] AND m.kind IN ({_PARENTS}) AND i.repository_id = d.repository_id)"""


def add_implied(connection: Connection[Any], holdings: Collection[Holding]) -> int:
    """Add implied holdings for all descendants of the indexes among these holdings; return how many were added."""
    added = 0
    while holdings:
        found = connection.execute(
            f"""
            INSERT INTO repository_manifests (repository_id, manifest_id, pushed_at, implied, links_pending)
            SELECT d.repository_id, u.id, max(h.pushed_at), true, bool_or(c.by_links)
            FROM unnest(%s::int[], %s::bigint[]) d (repository_id, id)
            JOIN repository_manifests h ON h.manifest_id = d.id AND h.repository_id = d.repository_id
            JOIN manifests m ON m.id = h.manifest_id AND m.kind IN ({_PARENTS})
            CROSS JOIN LATERAL unnest(m.refs) u (id)
            JOIN manifests c ON c.id = u.id
            WHERE NOT EXISTS (SELECT FROM repository_manifests x
                              WHERE x.manifest_id = u.id AND x.repository_id = d.repository_id)
            GROUP BY 1, 2 ORDER BY 2, 1
            ON CONFLICT DO NOTHING RETURNING repository_id, manifest_id
            """,
            _as_arrays(holdings),
        ).fetchall()
        statements.count_rows(connection, [manifest for _, manifest in found], by=1)
        added += len(found)
        # Children may be indexes; digests allow no cycle, so this ends.
        holdings = found
    return added


def add_implied_everywhere(
    connection: Connection[Any], *, listed: Collection[int] = (), indexes: Collection[int] = ()
) -> int:
    """Complete all repositories that hold one of `indexes`, or an index that lists one of `listed`."""
    found: list[Holding] = []
    if listed:
        found += connection.execute(
            f"""
            SELECT DISTINCT h.repository_id, m.id
            FROM unnest(%s::bigint[]) d (id)
            JOIN manifests m ON m.refs @> ARRAY[d.id] AND m.kind IN ({_PARENTS})
            JOIN repository_manifests h ON h.manifest_id = m.id
            """,
            (integer_array(sorted(listed)),),
        ).fetchall()
    if indexes:
        found += connection.execute(
            "SELECT repository_id, manifest_id FROM repository_manifests WHERE manifest_id = ANY(%s::bigint[])",
            (integer_array(sorted(indexes)),),
        ).fetchall()
    return add_implied(connection, found)


def remove_unlinked(connection: Connection[Any], holdings: Sequence[Holding]) -> None:
    """Remove holdings whose links are gone; those that a held index lists become implied.

    All other writers must be excluded.
    """
    if not holdings:
        return
    connection.execute(
        """
        UPDATE repository_manifests h SET implied = true
        FROM unnest(%s::int[], %s::bigint[]) d (repository_id, id)
        WHERE h.manifest_id = d.id AND h.repository_id = d.repository_id AND NOT h.implied
        """,
        _as_arrays(holdings),
    )
    remove_implied(connection, holdings)


def remove_implied(connection: Connection[Any], holdings: Collection[Holding]) -> int:
    """Remove the implied holdings among these that no held index lists, and their descendants; return how many.

    All other writers must be excluded.
    """
    removed = 0
    while holdings:
        gone = connection.execute(
            f"""
            DELETE FROM repository_manifests h USING unnest(%s::int[], %s::bigint[]) d (repository_id, id)
            WHERE h.manifest_id = d.id AND h.repository_id = d.repository_id AND h.implied AND {IS_NOT_LISTED}
            RETURNING h.repository_id, h.manifest_id
            """,
            _as_arrays(holdings),
        ).fetchall()
        statements.count_rows(connection, [manifest for _, manifest in gone], by=-1)
        removed += len(gone)
        holdings = _find_implied_children(connection, gone)
    return removed


def remove_former_children(connection: Connection[Any], index: int, children: Collection[int]) -> int:
    """Release former children of an index that lists less than was known, wherever it is held; return how many.

    All other writers must be excluded.
    """
    found = connection.execute(
        """
        SELECT h.repository_id, x.manifest_id FROM repository_manifests h
        JOIN repository_manifests x ON x.repository_id = h.repository_id AND x.implied
        WHERE h.manifest_id = %s AND x.manifest_id = ANY(%s::bigint[])
        """,
        (index, integer_array(sorted(children))),
    ).fetchall()
    return remove_implied(connection, found)


def repair_repositories(connection: Connection[Any], repositories: Sequence[int]) -> None:
    """Restore the invariant in repositories whose holdings have moved. All other writers must be excluded."""
    found = connection.execute(
        "SELECT repository_id, manifest_id, implied FROM repository_manifests WHERE repository_id = ANY(%s::int[])",
        (integer_array(repositories),),
    ).fetchall()
    remove_implied(connection, [(repository, manifest) for repository, manifest, implied in found if implied])
    add_implied(connection, [(repository, manifest) for repository, manifest, _ in found])


def _find_implied_children(connection: Connection[Any], indexes: Sequence[Holding]) -> list[Holding]:
    if not indexes:
        return []
    return connection.execute(
        f"""
        SELECT DISTINCT d.repository_id, u.id
        FROM unnest(%s::int[], %s::bigint[]) d (repository_id, id)
        JOIN manifests m ON m.id = d.id AND m.kind IN ({_PARENTS})
        CROSS JOIN LATERAL unnest(m.refs) u (id)
        JOIN repository_manifests h ON h.manifest_id = u.id AND h.repository_id = d.repository_id AND h.implied
        """,
        _as_arrays(indexes),
    ).fetchall()


def _as_arrays(holdings: Iterable[Holding]) -> tuple[str, str]:
    pairs = list(holdings)
    return integer_array(repository for repository, _ in pairs), integer_array(manifest for _, manifest in pairs)
