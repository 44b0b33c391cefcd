"""The reference table, what is applied to it and what is not, and what it publishes.

    pods ─< repositories ─< repository_manifests >─ manifests ── blobs
                         ─< repository_blobs     >──────────────── blobs
                         ─< removals                    (from delete events)
    pods ─< renames                                     (from rename events)
    partition_progress    pods ─< gaps    dead_letters    mounts    lifecycle_outbox

Facts are rows of repository_manifests, manifests and repository_blobs; blobs.reference_count, link_count and state
are derived from them by the batch apply, and `check` recomputes them.

The table should fit in memory, so the hot tables have their columns in the order of alignment, a blob row has eight
columns (its null bitmap then costs nothing), and a manifest has what it lists as one array of blob ids, stored once for
all repositories that hold it.
Not here: SQL that changes them (table/), queries (lookup/), pods' processes (pods.py).
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ARRAY, ExcludeConstraint

from coordinator.db.schema.columns import (
    BEGIN,
    NOW,
    TRUE,
    check,
    column,
    digest,
    flag,
    identity,
    index,
    pod_id,
    table,
    time,
)

#: A repository that a pod has reported.
repositories = table(
    "repositories",
    identity(Integer),
    pod_id(),
    column("name", Text),
    # text_pattern_ops serves both equality and `name LIKE 'team/%'`, whatever the collation.
    index("uq_repositories_name", "name", unique=True, postgresql_ops={"name": "text_pattern_ops"}),
    index("ix_repositories_pod_id", "pod_id", "id"),
)

#: Any content by digest: layers, configs and manifests alike.
#: `state`: see domain/lifecycle.py. `unreferenced_since` is set exactly while both counts are zero.
blobs = table(
    "blobs",
    identity(BigInteger),
    # Bytes; -1 while it is not known.
    column("size", BigInteger),
    time("first_seen", default=BEGIN),
    time("unreferenced_since", null=True),
    # Holdings that need it: holdings whose manifest lists it, plus holdings of itself.
    column("reference_count", Integer),
    # Rows of repository_blobs.
    column("link_count", Integer),
    column("state", SmallInteger),
    digest(),
    check("reference_count", "reference_count >= 0"),
    check("link_count", "link_count >= 0"),
    check("unreferenced", "(unreferenced_since IS NOT NULL) = (reference_count = 0 AND link_count = 0)"),
    # Unique, and less than half of what a unique B-tree over 32 random bytes takes.
    ExcludeConstraint(("digest", "="), name="uq_blobs_digest", using="hash"),
    index("ix_blobs_unreferenced", "unreferenced_since", "id", where="unreferenced_since IS NOT NULL"),
    # Candidates to hide: without hidden and purged blobs, of which there may be many more.
    index("ix_blobs_collectable", "unreferenced_since", "id", where="state = 1"),
    # Usually empty: blobs that are needed and not served are queried all the time.
    index("ix_blobs_concealed", "id", where="unreferenced_since IS NULL AND state IN (2, 3, 5, 6)"),
    # Usually empty: missing blobs (state 4) are counted and read often.
    index("ix_blobs_missing", "id", where="state = 4"),
)

#: What a manifest lists, stored once. `refs` is NULL while its bytes were not read from storage.
manifests = table(
    "manifests",
    column("id", BigInteger, ForeignKey("blobs.id"), key=True),
    column("kind", SmallInteger, null=True),
    # blobs.id of each distinct reference, in the manifest's order; `kind` says what each position is.
    column("refs", ARRAY(BigInteger), null=True),
    # The manifest's own bytes were read. Until then `refs` is what pods reported, which may be wrong.
    flag("verified"),
    # `refs` may be incomplete, so the links of the repositories that hold it are kept, too (repository_blobs.kept).
    flag("by_links"),
    # A short pending list: half the index work of none, and far less to scan and to flush than the default 4 MB.
    index(
        "ix_manifests_refs",
        "refs",
        postgresql_using="gin",
        postgresql_with={"fastupdate": "on", "gin_pending_list_limit": 256},
    ),
    # Usually empty: what blocks GC is queried often.
    index("ix_manifests_unread", "id", where="refs IS NULL"),
    index("ix_manifests_by_links", "id", where="by_links"),
)

#: A holding: this repository has this manifest.
#: No foreign keys: they cost a tenth of the batch apply, and rows are written by it alone; `check` looks for orphans.
repository_manifests = table(
    "repository_manifests",
    column("manifest_id", BigInteger, key=True),
    # By the registry's clock: orders this addition against removals.
    time("pushed_at"),
    column("repository_id", Integer, key=True),
    # The repository has no link of it: an index that it holds lists it (table/implied.py).
    flag("implied"),
    # Its manifest is marked `by_links`, and the links of the repository were not listed since the push.
    flag("links_pending"),
    index("ix_repository_manifests_repository_id", "repository_id", "manifest_id"),
    # Usually empty: what blocks GC is queried often.
    index("ix_repository_manifests_links_pending", "repository_id", "manifest_id", where="links_pending"),
)

#: A direct link that still counts: the repository uploaded or mounted the blob.
#: In a pod of mode `manifest` a sweep deletes the row once it is older than the link grace, unless it is `kept`.
repository_blobs = table(
    "repository_blobs",
    column("blob_id", BigInteger, ForeignKey("blobs.id"), key=True),
    # By the database's clock, when the link was applied: the grace counts from here.
    time("linked_at", default=BEGIN),
    # By the registry's clock: orders this link against removals.
    time("event_at"),
    column("repository_id", Integer, ForeignKey("repositories.id"), key=True),
    # The repository holds a manifest marked `by_links`, and storage has, or had, this link.
    flag("kept"),
    index("ix_repository_blobs_repository_id", "repository_id", "blob_id"),
    index("ix_repository_blobs_linked_at", "linked_at"),
    index("ix_repository_blobs_kept", "repository_id", "blob_id", where="kept"),
)

#: A mount that was made and its client, for audits; deleted after a while (mounts/table.py).
mounts = table(
    "mounts",
    identity(BigInteger),
    time("at", default=NOW),
    column("blob_id", BigInteger),
    column("repository", Text),
    column("source", Text),
    index("ix_mounts_blob_id", "blob_id", "id"),
    index("ix_mounts_at", "at"),
)

#: A delete event that was seen, to detect an older addition that arrives after it.
#: `doubtful_since`: the removal is not proved; the holding or link stays until storage confirms that it is gone.
removals = table(
    "removals",
    column("repository_id", Integer, ForeignKey("repositories.id"), key=True),
    # By the registry's clock.
    time("removed_at"),
    time("seen_at", default=BEGIN),
    time("doubtful_since", null=True),
    digest(key=True),
    # A delete event or an operator explains it. False while only storage shows that the link is gone.
    column("reported", Boolean, default=TRUE),
    # The link vanished without an event, and no operator has accepted that: blocks GC (table/vanished_links.py).
    time("vanished_since", null=True),
    # When the vanished link was added, by the registry's clock: an earlier delete event does not explain it.
    time("vanished_added_at", null=True),
    column("vanished_kind", Text, null=True),
    check(
        "vanished",
        "num_nulls(vanished_since, vanished_added_at, vanished_kind) IN (0, 3)"
        " AND (vanished_since IS NULL OR NOT reported)",
    ),
    check("vanished_kind", "vanished_kind IN ('manifest', 'blob')"),
    index("ix_removals_seen_at", "seen_at"),
    index("ix_removals_digest", "digest", postgresql_using="hash"),
    index("ix_removals_doubtful", "doubtful_since", where="doubtful_since IS NOT NULL"),
    # Usually empty: what blocks GC is queried often.
    index("ix_removals_vanished", "repository_id", "digest", where="vanished_since IS NOT NULL"),
)

#: A rename that was applied, to detect events under the old name that arrive later and happened before.
renames = table(
    "renames",
    identity(BigInteger),
    pod_id(),
    column("source", Text),
    column("destination", Text),
    # Repositories under `source/` moved, too.
    column("below", Boolean),
    # By the registry's clock.
    time("at"),
    time("seen_at", default=BEGIN),
    UniqueConstraint("source", "destination", "below", "at"),
)

#: How far a partition is applied: written in the transaction that applies, so effect and offset always match.
partition_progress = table(
    "partition_progress",
    column("topic", Text, key=True),
    column("partition", Integer, key=True),
    # The first offset that is not applied.
    column("next_offset", BigInteger),
    # Of the record before `next_offset`: another record there means another log. NULL if none was applied.
    column("fingerprint", BigInteger, null=True),
    # The broker's id of the topic, if it gives one.
    column("topic_id", Text, null=True),
    time("updated_at", default=BEGIN),
)

#: Events that may have been lost. Blocks GC until a reconcile of the pod has resolved it.
gaps = table(
    "gaps",
    identity(BigInteger),
    pod_id(),
    column("topic", Text),
    # -1 for all partitions.
    column("partition", Integer),
    column("reason", Text),
    # Offsets that may hold what was lost: from_offset <= lost < to_offset.
    column("from_offset", BigInteger),
    column("to_offset", BigInteger, null=True),
    time("noticed_at", default=NOW),
    time("resolved_at", null=True),
    column("resolved_why", Text, null=True),
    # Only a reconcile that began at this time or later resolves it: a request under way may write until then.
    time("resolves_from", default=NOW),
    # What the lost events were about: it is resolved only while the pod owns all of these. NULL: anything of the pod.
    column("repositories", ARRAY(Text), null=True),
    # How many dead letters beyond the pod's limit it stands for.
    column("dead_letters", BigInteger, null=True),
    check(
        "reason",
        "reason IN ('log-replaced', 'records-removed', 'log-cut', 'discarded', 'renamed', 'prefix-added',"
        " 'retired', 'restarted', 'dead-letters-over-limit')",
    ),
    index("ix_gaps_open", "pod_id", where="resolved_at IS NULL"),
)

#: A message of a pod that could not be understood. Blocks GC until it is resolved.
dead_letters = table(
    "dead_letters",
    identity(BigInteger),
    # A name, not a reference: the pod may have been removed since.
    column("pod", Text),
    column("reason", Text),
    column("detail", Text),
    time("received_at"),
    column("payload", Text),
    column("payload_bytes", BigInteger),
    column("content_type", Text),
    column("origin_topic", Text),
    column("origin_partition", Integer),
    column("origin_offset", BigInteger),
    # Distinguishes logs in which offsets began anew: the record's time in ms.
    column("origin_log", BigInteger),
    time("resolved_at", null=True),
    column("resolution", Text, null=True),
    column("resolved_why", Text, null=True),
    # What it is about; NULL if that is not known.
    column("repositories", ARRAY(Text), null=True),
    # By the database's clock. A reconcile that begins later has seen what the letter is about.
    time("stored_at", default=NOW),
    # One Kafka record makes one dead letter, however often it is read.
    UniqueConstraint("origin_topic", "origin_partition", "origin_offset", "origin_log", name="uq_dead_letters_origin"),
    check("resolved", "(resolved_at IS NULL) = (resolution IS NULL)"),
    check("resolution", "resolution IN ('retried', 'discarded', 'reconciled')"),
    index("ix_dead_letters_open", "pod", "id", where="resolved_at IS NULL"),
    index("ix_dead_letters_resolved", "pod", "resolved_at", where="resolved_at IS NOT NULL"),
)

#: A change of a blob's state that is not in blob.lifecycle yet: written with the change, published in order.
lifecycle_outbox = table(
    "lifecycle_outbox",
    identity(BigInteger),
    column("digest", LargeBinary),
    column("change", Text),
    time("at", default=NOW),
    column("reference_count", Integer),
    column("link_count", Integer),
)
