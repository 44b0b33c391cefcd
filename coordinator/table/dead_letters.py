"""Store dead letters up to a limit, and resolve them at the end of a reconcile.

Route: apply.py -> `store_dead_letters` -> rows of dead_letters, and beyond a pod's limits rows of gaps. A reconcile
calls `read_unlisted_repositories` to know what to look for in storage, and ends with `resolve_covered`.

Invariants: a letter that is not kept leaves a gap in each pod that it may concern, which only a reconcile that begins
later closes; the limits of a pod apply to its open letters, and again to those that reconciles have resolved. Letters
that operators retried or discarded are not deleted.
Not here: what a letter is about (domain/dead_letters.py), retrying and discarding (dead_letters/resolve.py).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import Connection

from coordinator.db.arrays import integer_array
from coordinator.domain.dead_letters import REPOSITORIES_LIMIT, Concern, DeadLetterPod, find_concern, is_covered
from coordinator.domain.names import RepositoryName
from coordinator.domain.pods import prefixes_of
from coordinator.domain.progress import GapReason
from coordinator.jobs.table import Job
from coordinator.kafka.topics import DEAD_LETTERS
from coordinator.table.batch import DeadLetterFound, DeadLetterLimits, Item, Slice

#: SQL: everything that the gap `g` is about belongs to its pod. Only such a gap may be resolved.
GAP_FITS_POD: Final = """
(g.repositories IS NULL OR NOT EXISTS (
    SELECT FROM unnest(g.repositories) d (name) WHERE NOT EXISTS (
        SELECT FROM pod_prefixes x WHERE x.pod_id = g.pod_id
          AND (d.name = x.prefix OR starts_with(d.name, x.prefix || '/')))))
"""
#: Letters that one statement reads.
PAGE_SIZE: Final = 1000
#: Repositories that one reconcile looks for in storage. If there are more, later reconciles look for the others.
CHECKS_LIMIT: Final = 100


class _DeadLetter(NamedTuple):
    id: int
    pod: str
    stored_at: datetime
    repositories: list[RepositoryName] | None


def store_dead_letters(
    connection: Connection[Any], found: Sequence[tuple[Slice, Item]], limits: DeadLetterLimits
) -> int:
    """Insert dead letters, and gaps for those beyond the limits; return how many these were.

    A letter that is stored already from the same record does not change.
    """
    if not found:
        return 0
    opened = _count_open(connection, {dead_letter.pod for dead_letter in _dead_letters_in(found)})
    kept: list[tuple[Slice, Item]] = []
    beyond: list[DeadLetterFound] = []
    for piece, item in found:
        dead_letter = item.dead_letter
        if dead_letter is None:
            continue
        count, size = opened.get(dead_letter.pod, (0, 0))
        count, size = count + 1, size + len(dead_letter.payload.encode())
        if count > limits.number or size > limits.bytes:
            beyond.append(dead_letter)
        else:
            opened[dead_letter.pod] = count, size
            kept.append((piece, item))
    _insert_dead_letters(connection, kept)
    if beyond:
        _open_dead_letter_gaps(connection, beyond)
    return len(beyond)


def _dead_letters_in(found: Iterable[tuple[Slice, Item]]) -> Iterable[DeadLetterFound]:
    return (item.dead_letter for _, item in found if item.dead_letter is not None)


def _count_open(connection: Connection[Any], pods: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return how many letters of each of these pods are open, and the bytes of their payloads."""
    rows = connection.execute(
        """
        SELECT pod, count(*), sum(octet_length(payload)) FROM dead_letters
        WHERE resolved_at IS NULL AND pod = ANY(%s::text[]) GROUP BY pod
        """,
        (list(pods),),
    )
    return {row[0]: (row[1], int(row[2])) for row in rows}


def _insert_dead_letters(connection: Connection[Any], found: Sequence[tuple[Slice, Item]]) -> None:
    if not found:
        return
    dead_letters = list(_dead_letters_in(found))
    connection.execute(
        """
        INSERT INTO dead_letters (pod, reason, detail, received_at, payload, payload_bytes, content_type,
                                  origin_topic, origin_partition, origin_offset, origin_log, repositories)
        SELECT pod, reason, detail, to_timestamp(received / 1000.0), payload, bytes, content_type,
               topic, number, at, log,
               CASE WHEN repositories IS NOT NULL
                    THEN ARRAY(SELECT jsonb_array_elements_text(repositories::jsonb)) END
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::text[],
                    %s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::text[])
             d (pod, reason, detail, received, payload, bytes, content_type, topic, number, at, log, repositories)
        ON CONFLICT DO NOTHING
        """,
        (
            [dead_letter.pod for dead_letter in dead_letters],
            [dead_letter.reason for dead_letter in dead_letters],
            [dead_letter.detail for dead_letter in dead_letters],
            integer_array(dead_letter.received_at_ms for dead_letter in dead_letters),
            [dead_letter.payload for dead_letter in dead_letters],
            integer_array(dead_letter.payload_bytes for dead_letter in dead_letters),
            [dead_letter.content_type for dead_letter in dead_letters],
            [piece.topic for piece, _ in found],
            integer_array(piece.partition for piece, _ in found),
            integer_array(item.offset for _, item in found),
            integer_array(item.timestamp_ms for _, item in found),
            # Rows of an array of arrays would all have to be of one length.
            [None if each.repositories is None else _names_as_json(each.repositories) for each in dead_letters],
        ),
    )


def _names_as_json(names: Sequence[RepositoryName]) -> str:
    return "[" + ",".join(f'"{name}"' for name in names) + "]"


def _open_dead_letter_gaps(connection: Connection[Any], dead_letters: Sequence[DeadLetterFound]) -> None:
    """Record that these letters are not kept, as one open gap of each pod that they may concern."""
    pods, owners = read_owners(connection, {name for each in dead_letters for name in each.repositories or ()})
    counts: Counter[int] = Counter()
    about: dict[int, Collection[RepositoryName] | None] = {}
    for dead_letter in dead_letters:
        concerned = find_concern(dead_letter.repositories, dead_letter.pod, pods, owners)
        gaps = dict(concerned.pods)
        if concerned.unlisted:
            # No reconcile lists these: the hold for unowned repositories covers them. The gap of the sender shows that
            # there was a letter.
            gaps |= dict.fromkeys([pod for pod in pods if dead_letter.pod == pod.name] or pods)
        for pod, repositories in gaps.items():
            counts[pod.id] += 1
            known = about.get(pod.id, ())
            about[pod.id] = None if known is None or repositories is None else {*known, *repositories}
    open_gaps(connection, GapReason.DEAD_LETTERS_OVER_LIMIT, about, counts)


def open_gaps(
    connection: Connection[Any],
    reason: GapReason,
    about: Mapping[int, Collection[RepositoryName] | None],
    dead_letters: Mapping[int, int] | None = None,
) -> None:
    """Record that events may be lost. `about`: by pod, the repositories concerned; None for any of the pod.

    A pod has one open gap for a reason: it widens, and a reconcile that is already running does not resolve it.
    """
    pods = sorted(about)
    values = {
        "reason": reason.value,
        "topic": DEAD_LETTERS,
        "pods": pods,
        "dead_letters": [None if dead_letters is None else dead_letters[pod] for pod in pods],
        "about": [_bounded_names_as_json(about[pod]) for pod in pods],
        "limit": REPOSITORIES_LIMIT,
    }
    # Open gaps first, then missing ones: a gap that is resolved in between is recorded anew.
    for statement in (_LOCK_GAPS, _WIDEN_GAPS, _INSERT_GAPS):
        connection.execute(statement, values)


_PARAMETERS = "unnest(%(pods)s::int[], %(dead_letters)s::bigint[], %(about)s::text[]) d (pod_id, dead_letters, about)"
_NAMES = "SELECT jsonb_array_elements_text(d.about::jsonb)"
_LOCK_GAPS: Final = """
SELECT FROM gaps WHERE pod_id = ANY(%(pods)s::int[]) AND reason = %(reason)s AND resolved_at IS NULL
ORDER BY id FOR UPDATE
"""
_WIDEN_GAPS: Final = f"""
UPDATE gaps g
SET resolves_from = greatest(g.resolves_from, clock_timestamp()),
    dead_letters = CASE WHEN d.dead_letters IS NOT NULL THEN coalesce(g.dead_letters, 0) + d.dead_letters ELSE
    g.dead_letters END, repositories = (
        SELECT CASE WHEN g.repositories IS NOT NULL AND d.about IS NOT NULL AND count(*) <= %(limit)s
                    THEN array_agg(u.name ORDER BY u.name) END
        FROM (SELECT unnest(g.repositories) UNION {_NAMES}) u (name))
FROM {_PARAMETERS}
WHERE g.pod_id = d.pod_id AND g.reason = %(reason)s AND g.resolved_at IS NULL
"""
_INSERT_GAPS: Final = f"""
INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, repositories, dead_letters)
SELECT d.pod_id, %(topic)s, -1, %(reason)s, 0, CASE WHEN d.about IS NOT NULL THEN ARRAY({_NAMES}) END, d.dead_letters
FROM {_PARAMETERS}
WHERE NOT EXISTS (SELECT FROM gaps g WHERE g.pod_id = d.pod_id AND g.reason = %(reason)s AND g.resolved_at IS NULL)
"""


def _bounded_names_as_json(names: Collection[RepositoryName] | None) -> str | None:
    return None if names is None or len(names) > REPOSITORIES_LIMIT else _names_as_json(sorted(names))


def read_owners(
    connection: Connection[Any], repositories: Collection[RepositoryName]
) -> tuple[list[DeadLetterPod], dict[str, DeadLetterPod]]:
    """Return all pods, and by prefix the owners of these repositories."""
    pods = {
        row[0]: DeadLetterPod(row[0], row[1], row[2])
        for row in connection.execute("SELECT id, name, is_reconcilable FROM pods ORDER BY id")
    }
    prefixes = {prefix for repository in repositories for prefix in prefixes_of(repository)}
    rows = connection.execute(
        "SELECT prefix, pod_id FROM pod_prefixes WHERE prefix = ANY(%(prefixes)s::text[])", {"prefixes": list(prefixes)}
    )
    # A pod that was added between the two statements is read the next time.
    return list(pods.values()), {row[0]: pods[row[1]] for row in rows if row[1] in pods}


# Called by a reconcile


def read_unlisted_repositories(connection: Connection[Any], job: Job) -> list[RepositoryName]:
    """Return repositories that open letters are about and that no reconcile lists, at most CHECKS_LIMIT."""
    found = sorted(
        {
            repository
            for dead_letters in _read_open_dead_letters(connection, job)
            for _, concerned in _read_concerns(connection, dead_letters)
            for repository in concerned.unlisted
        }
    )
    if len(found) <= CHECKS_LIMIT:
        return found
    first = job.id * CHECKS_LIMIT % len(found)
    return (found + found)[first : first + CHECKS_LIMIT]


def resolve_covered(connection: Connection[Any], job: Job, absent: Collection[RepositoryName], why: str) -> int:
    """Resolve the letters that this reconcile and the last ones of other pods cover; return how many.

    `absent`: repositories of which storage had nothing after the reconcile began.
    """
    reconciled = _read_reconcile_times(connection) | {job.required_pod_id: job.began_at}
    total = 0
    for dead_letters in _read_open_dead_letters(connection, job):
        covered = [
            dead_letter.id
            for dead_letter, concerned in _read_concerns(connection, dead_letters)
            if is_covered(concerned, dead_letter.stored_at, reconciled, absent)
        ]
        total += connection.execute(
            """
            UPDATE dead_letters SET resolved_at = clock_timestamp(), resolution = 'reconciled', resolved_why = %s
            WHERE id = ANY(%s::bigint[]) AND resolved_at IS NULL
            """,
            (why, integer_array(covered)),
        ).rowcount
    return total


def _read_open_dead_letters(connection: Connection[Any], job: Job) -> Iterable[list[_DeadLetter]]:
    """Give the open letters that were stored before the job began, in pages."""
    after = 0
    while True:
        rows = connection.execute(
            """
            SELECT id, pod, stored_at, repositories FROM dead_letters
            WHERE resolved_at IS NULL AND stored_at <= %s AND id > %s ORDER BY id LIMIT %s
            """,
            (job.began_at, after, PAGE_SIZE),
        ).fetchall()
        if rows:
            yield [_DeadLetter(*row) for row in rows]
        if len(rows) < PAGE_SIZE:
            return
        after = rows[-1][0]


def _read_concerns(
    connection: Connection[Any], dead_letters: Sequence[_DeadLetter]
) -> list[tuple[_DeadLetter, Concern]]:
    pods, owners = read_owners(
        connection, {name for dead_letter in dead_letters for name in dead_letter.repositories or ()}
    )
    return [
        (dead_letter, find_concern(dead_letter.repositories, dead_letter.pod, pods, owners))
        for dead_letter in dead_letters
    ]


def _read_reconcile_times(connection: Connection[Any]) -> dict[int, datetime]:
    """Return the begin of the last reconcile that was done, for each pod."""
    rows = connection.execute(
        """
        SELECT pod_id, max(began_at) FROM jobs
        WHERE kind = 'reconcile' AND state = 'done' AND began_at <= clock_timestamp() GROUP BY pod_id
        """
    )
    return dict(rows.fetchall())


def delete_resolved(connection: Connection[Any], limits: DeadLetterLimits) -> int:
    """Delete the oldest letters that reconciles have resolved, beyond each pod's limits; return how many."""
    return connection.execute(
        """
        DELETE FROM dead_letters d USING (
            SELECT id, row_number() OVER newest AS nth, sum(octet_length(payload)) OVER newest AS bytes
            FROM dead_letters WHERE resolution = 'reconciled'
            WINDOW newest AS (PARTITION BY pod ORDER BY resolved_at DESC, id DESC)
        ) old
        WHERE d.id = old.id AND (old.nth > %s OR old.bytes > %s)
        """,
        (limits.number, limits.bytes),
    ).rowcount
