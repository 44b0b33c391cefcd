"""Accept links that vanished without a delete event; until then they block GC.

If storage shows that a link is gone, it is removed from the counts, so that these match storage.
`doubtful_removals.resolve` records in the same transaction that no event reported it. So a transaction that sees a blob
as unreferenced because of it also sees this record, and hides nothing (pods/view.py). The record ends when

- the registry pushes it again: the push deletes the removal, or makes it doubtful until storage confirms it
  (domain/fold.py)
- the delete event arrives late (domain/fold.py, repository_facts.py)
- an operator accepts it (`accept_vanished`)

Blobs of accepted links get a whole grace: in its transaction, `accept_vanished` sets the time of everything that is
unreferenced now and was listed by what vanished, through children of indexes. It works in pages; GC is blocked until
the last one.
Not here: reading them (pods/vanished_view.py).
"""

import datetime as dt
from typing import NamedTuple

from sqlalchemy import Engine

from coordinator.db.session import write_transaction
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.reasons import check_reason
from coordinator.errors import NotFoundError
from coordinator.table.ledger import Decision

BY_LIMIT = 255
#: Links that one transaction accepts, and that one call accepts.
BATCH_SIZE = 200
CALL_LIMIT = 2000

_POD = "SELECT id, clock_timestamp() AS now FROM pods WHERE name = %s"

_ACCEPT = """
WITH accepted AS MATERIALIZED (
    SELECT x.repository_id, x.digest, x.vanished_since, x.vanished_kind, r.name
    FROM removals x JOIN repositories r ON r.id = x.repository_id
    WHERE r.pod_id = %(pod)s AND x.vanished_since IS NOT NULL AND x.vanished_since <= %(before)s
      AND (%(repository)s::text IS NULL OR r.name = %(repository)s)
    ORDER BY x.repository_id, x.digest LIMIT %(limit)s FOR UPDATE OF x
), written AS (
    INSERT INTO gc_ledger (digest, decision, why, evidence)
    SELECT digest, %(decision)s, %(why)s, jsonb_build_object(
        'pod', %(name)s::text, 'repository', name, 'kind', vanished_kind, 'noticed_at', vanished_since,
        'by', %(by)s::text)
    FROM accepted
)
UPDATE removals x
SET reported = true, vanished_since = NULL, vanished_added_at = NULL, vanished_kind = NULL, seen_at = clock_timestamp()
FROM accepted a WHERE x.repository_id = a.repository_id AND x.digest = a.digest
RETURNING x.digest
"""

_RESTART_GRACE = f"""
WITH RECURSIVE needed (id) AS (
    SELECT b.id FROM unnest(%s::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest
    UNION
    SELECT u.id FROM needed n JOIN manifests m ON m.id = n.id CROSS JOIN LATERAL unnest(m.refs) u (id)
), locked AS MATERIALIZED (
    SELECT b.id FROM needed n JOIN blobs b ON b.id = n.id
    WHERE b.unreferenced_since IS NOT NULL AND b.state = {BlobState.UNREFERENCED:d}
    ORDER BY b.id FOR NO KEY UPDATE OF b
)
UPDATE blobs b SET unreferenced_since = clock_timestamp() FROM locked l
WHERE b.id = l.id AND b.unreferenced_since IS NOT NULL
"""


class AcceptResult(NamedTuple):
    accepted: int
    #: There are more that vanished up to `before`: call again.
    more: bool
    before: dt.datetime


def accept_vanished(
    engine: Engine,
    pod: PodName,
    why: str,
    by: str,
    repository: RepositoryName | None = None,
    before: dt.datetime | None = None,
    *,
    batch: int = BATCH_SIZE,
    call_limit: int = CALL_LIMIT,
) -> AcceptResult:
    """Accept that links of the pod are gone: up to `call_limit` of those noticed until `before` (default: now).

    Raises NotFoundError, and UsageError.
    """
    why, by = check_reason(why, "why they may be gone"), check_reason(by, "who accepts it", BY_LIMIT)
    accepted = 0
    while True:
        with write_transaction(engine) as connection:
            row = connection.exec_driver_sql(_POD, (pod,)).one_or_none()
            if row is None:
                raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
            before = row.now if before is None else min(before, row.now)
            found = connection.exec_driver_sql(
                _ACCEPT,
                {
                    "pod": row.id,
                    "name": pod,
                    "before": before,
                    "repository": repository,
                    "limit": batch,
                    "decision": Decision.ACCEPTED.value,
                    "why": why.strip(),
                    "by": by.strip(),
                },
            )
            digests = [each.digest for each in found]
            if digests:
                connection.exec_driver_sql(_RESTART_GRACE, (digests,))
        accepted += len(digests)
        if len(digests) < batch or accepted >= call_limit:
            return AcceptResult(accepted, len(digests) == batch, before)
