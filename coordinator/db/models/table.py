"""The reference table, with constraints and indexes beside the columns.

    pods ─< pod_prefixes
    pods ─< repositories ─< repository_manifests >─ manifests ── blobs
                         ─< repository_blobs     >──────────────── blobs
                         ─< removals                    (from delete events)
    pods ─< renames                                     (from rename events)
    pods ─< gaps    pods ─< dead_letters    partition_progress    api_tokens

Facts are rows of repository_manifests, manifests and repository_blobs; blobs.reference_count, link_count and state
are derived from them by the batch apply, and `check` recomputes them.

The table should fit in memory, so the hot tables have their columns in the order of alignment, a blob row has eight
columns (its null bitmap then costs nothing), and a manifest has what it lists as one array of blob ids, stored once for
all repositories that hold it.
Not here: SQL that changes them (table/), queries (lookup/), pods' processes (truth.py).
"""

import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.models.base import Base


class Pod(Base):
    """One registry deployment that owns repository name prefixes."""

    __tablename__ = "pods"
    __table_args__ = (
        CheckConstraint("mode IN ('manifest', 'link')", name="mode"),
        CheckConstraint("linker IN ('link', 'relay')", name="linker"),
        CheckConstraint("probe IN ('push', 'pull')", name="probe"),
        CheckConstraint("octet_length(event_token_sha256) = 32", name="event_token"),
        CheckConstraint(
            "num_nulls(token_url, token_issuer, token_service, token_keys, token_key_ids) IN (0, 5)",
            name="token_issuer",
        ),
        CheckConstraint(
            "num_nulls(unmanaged_why, unmanaged_by) = CASE WHEN managed THEN 2 ELSE 0 END", name="unmanaged"
        ),
    )

    id: Mapped[int] = mapped_column(SmallInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    mode: Mapped[str] = mapped_column(server_default="manifest")
    linker: Mapped[str] = mapped_column(server_default="link")
    registries: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    #: Hash of the bearer token of its notifications. The token has 256 random bits, so a plain hash is enough.
    event_token_sha256: Mapped[bytes]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: The issuer of the tokens for its registry, all set or none: URL, `iss`, `aud`, public keys and their ids.
    token_url: Mapped[str | None]
    token_issuer: Mapped[str | None]
    token_service: Mapped[str | None]
    token_keys: Mapped[str | None]
    token_key_ids: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: Its registry sends events. If not, only listings of its links show what it holds. With the reason, and the
    #: operator who declared it.
    managed: Mapped[bool] = mapped_column(server_default=text("true"))
    unmanaged_why: Mapped[str | None]
    unmanaged_by: Mapped[str | None]
    #: How its registry is probed.
    probe: Mapped[str] = mapped_column(server_default="push")


class PodPrefix(Base):
    """Prefix `team` owns `team` and `team/…`. That no two overlap is checked under a lock (pods.py)."""

    __tablename__ = "pod_prefixes"

    prefix: Mapped[str] = mapped_column(primary_key=True)
    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"), index=True)


class ApiToken(Base):
    __tablename__ = "api_tokens"
    __table_args__ = (
        CheckConstraint("role IN ('read', 'operate')", name="role"),
        CheckConstraint("octet_length(token_sha256) = 32", name="token"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    token_sha256: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Repository(Base):
    __tablename__ = "repositories"
    __table_args__ = (
        # text_pattern_ops serves both equality and `name LIKE 'team/%'`, whatever the collation.
        Index("uq_repositories_name", "name", unique=True, postgresql_ops={"name": "text_pattern_ops"}),
        Index("ix_repositories_pod_id", "pod_id", "id"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    name: Mapped[str]


class Blob(Base):
    """Any content by digest: layers, configs and manifests alike.

    `state`: see domain/lifecycle.py. `unreferenced_since` is set exactly while both counts are zero.
    """

    __tablename__ = "blobs"
    __table_args__ = (
        CheckConstraint("octet_length(digest) = 32", name="digest"),
        CheckConstraint("reference_count >= 0", name="reference_count"),
        CheckConstraint("link_count >= 0", name="link_count"),
        CheckConstraint(
            "(unreferenced_since IS NOT NULL) = (reference_count = 0 AND link_count = 0)", name="unreferenced"
        ),
        # Unique, and less than half of what a unique B-tree over 32 random bytes takes.
        ExcludeConstraint(("digest", "="), name="uq_blobs_digest", using="hash"),
        Index(
            "ix_blobs_unreferenced",
            "unreferenced_since",
            "id",
            postgresql_where=text("unreferenced_since IS NOT NULL"),
        ),
        # Candidates to hide: without hidden and purged blobs, of which there may be many more.
        Index("ix_blobs_collectable", "unreferenced_since", "id", postgresql_where=text("state = 1")),
        # Usually empty: blobs that are needed and not served are queried all the time.
        Index(
            "ix_blobs_concealed",
            "id",
            postgresql_where=text("unreferenced_since IS NULL AND state IN (2, 3, 5, 6)"),
        ),
        # Usually empty: missing blobs (state 4) are counted and read often.
        Index("ix_blobs_missing", "id", postgresql_where=text("state = 4")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    #: Bytes; -1 while it is not known.
    size: Mapped[int]
    first_seen: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    unreferenced_since: Mapped[datetime.datetime | None]
    #: Holdings that need it: holdings whose manifest lists it, plus holdings of itself.
    reference_count: Mapped[int] = mapped_column(Integer)
    #: Rows of repository_blobs.
    link_count: Mapped[int] = mapped_column(Integer)
    state: Mapped[int] = mapped_column(SmallInteger)
    digest: Mapped[bytes]


class Manifest(Base):
    """What a manifest lists, stored once. `refs` is NULL while its bytes were not read from storage."""

    __tablename__ = "manifests"
    __table_args__ = (
        # A short pending list: half the index work of none, and far less to scan and to flush than the default 4 MB.
        Index(
            "ix_manifests_refs",
            "refs",
            postgresql_using="gin",
            postgresql_with={"fastupdate": "on", "gin_pending_list_limit": 256},
        ),
        # Usually empty: what blocks GC is queried often.
        Index("ix_manifests_unread", "id", postgresql_where=text("refs IS NULL")),
        Index("ix_manifests_by_links", "id", postgresql_where=text("by_links")),
    )

    id: Mapped[int] = mapped_column(ForeignKey("blobs.id"), primary_key=True, autoincrement=False)
    kind: Mapped[int | None] = mapped_column(SmallInteger)
    #: blobs.id of each distinct reference, in the manifest's order; `kind` says what each position is.
    refs: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    #: The manifest's own bytes were read. Until then `refs` is what pods reported, which may be wrong.
    verified: Mapped[bool] = mapped_column(server_default=text("false"))
    #: `refs` may be incomplete, so the links of the repositories that hold it are kept, too (RepositoryBlob.kept).
    by_links: Mapped[bool] = mapped_column(server_default=text("false"))


class RepositoryManifest(Base):
    """A holding: this repository has this manifest.

    No foreign keys: they cost a tenth of the batch apply, and rows are written by it alone; `check` looks for orphans.
    """

    __tablename__ = "repository_manifests"
    __table_args__ = (
        PrimaryKeyConstraint("manifest_id", "repository_id"),
        Index("ix_repository_manifests_repository_id", "repository_id", "manifest_id"),
        # Usually empty: what blocks GC is queried often.
        Index(
            "ix_repository_manifests_links_pending",
            "repository_id",
            "manifest_id",
            postgresql_where=text("links_pending"),
        ),
    )

    manifest_id: Mapped[int]
    #: By the registry's clock: orders this addition against removals.
    pushed_at: Mapped[datetime.datetime]
    repository_id: Mapped[int] = mapped_column(Integer)
    #: The repository has no link of it: an index that it holds lists it (table/implied.py).
    implied: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Its manifest is marked `by_links`, and the links of the repository were not listed since the push.
    links_pending: Mapped[bool] = mapped_column(server_default=text("false"))


class RepositoryBlob(Base):
    """A direct link that still counts: the repository uploaded or mounted the blob.

    In a pod of mode `manifest` a sweep deletes the row once it is older than the link grace, unless it is `kept`.
    """

    __tablename__ = "repository_blobs"
    __table_args__ = (
        PrimaryKeyConstraint("blob_id", "repository_id"),
        Index("ix_repository_blobs_repository_id", "repository_id", "blob_id"),
        Index("ix_repository_blobs_linked_at", "linked_at"),
        Index("ix_repository_blobs_kept", "repository_id", "blob_id", postgresql_where=text("kept")),
    )

    blob_id: Mapped[int] = mapped_column(ForeignKey("blobs.id"))
    #: By the database's clock, when the link was applied: the grace counts from here.
    linked_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: By the registry's clock: orders this link against removals.
    event_at: Mapped[datetime.datetime]
    repository_id: Mapped[int] = mapped_column(Integer, ForeignKey("repositories.id"))
    #: The repository holds a manifest marked `by_links`, and storage has, or had, this link.
    kept: Mapped[bool] = mapped_column(server_default=text("false"))


class Mount(Base):
    """A mount that was made and its client, for audits; deleted after a while (mounts.py)."""

    __tablename__ = "mounts"
    __table_args__ = (Index("ix_mounts_blob_id", "blob_id", "id"), Index("ix_mounts_at", "at"))

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    blob_id: Mapped[int]
    repository: Mapped[str]
    source: Mapped[str]


class RemovalSeen(Base):
    """A delete event that was seen, to detect an older addition that arrives after it.

    `doubtful_since`: the removal is not proved; the holding or link stays until storage confirms that it is gone.
    """

    __tablename__ = "removals"
    __table_args__ = (
        PrimaryKeyConstraint("repository_id", "digest"),
        CheckConstraint("octet_length(digest) = 32", name="digest"),
        Index("ix_removals_seen_at", "seen_at"),
        Index("ix_removals_digest", "digest", postgresql_using="hash"),
        Index(
            "ix_removals_doubtful",
            "doubtful_since",
            postgresql_where=text("doubtful_since IS NOT NULL"),
        ),
        CheckConstraint(
            "num_nulls(vanished_since, vanished_added_at, vanished_kind) IN (0, 3)"
            " AND (vanished_since IS NULL OR NOT reported)",
            name="vanished",
        ),
        CheckConstraint("vanished_kind IN ('manifest', 'blob')", name="vanished_kind"),
        # Usually empty: what blocks GC is queried often.
        Index(
            "ix_removals_vanished",
            "repository_id",
            "digest",
            postgresql_where=text("vanished_since IS NOT NULL"),
        ),
    )

    repository_id: Mapped[int] = mapped_column(Integer, ForeignKey("repositories.id"))
    #: By the registry's clock.
    removed_at: Mapped[datetime.datetime]
    seen_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    doubtful_since: Mapped[datetime.datetime | None]
    digest: Mapped[bytes]
    #: A delete event or an operator explains it. False while only storage shows that the link is gone.
    reported: Mapped[bool] = mapped_column(server_default=text("true"))
    #: The link vanished without an event, and no operator has accepted that: blocks GC (table/vanished_links.py).
    vanished_since: Mapped[datetime.datetime | None]
    #: When the vanished link was added, by the registry's clock: an earlier delete event does not explain it.
    vanished_added_at: Mapped[datetime.datetime | None]
    vanished_kind: Mapped[str | None]


class RenameSeen(Base):
    """A rename that was applied, to detect events under the old name that arrive later and happened before."""

    __tablename__ = "renames"
    __table_args__ = (UniqueConstraint("source", "destination", "below", "at"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    source: Mapped[str]
    destination: Mapped[str]
    #: Repositories under `source/` moved, too.
    below: Mapped[bool]
    #: By the registry's clock.
    at: Mapped[datetime.datetime]
    seen_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class PartitionProgress(Base):
    """How far a partition is applied: written in the transaction that applies, so effect and offset always match."""

    __tablename__ = "partition_progress"
    __table_args__ = (PrimaryKeyConstraint("topic", "partition"),)

    topic: Mapped[str]
    partition: Mapped[int] = mapped_column(Integer)
    #: The first offset that is not applied.
    next_offset: Mapped[int]
    #: Of the record before `next_offset`: another record there means another log. NULL if none was applied.
    fingerprint: Mapped[int | None]
    #: The broker's id of the topic, if it gives one.
    topic_id: Mapped[str | None]
    updated_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Gap(Base):
    """Events that may have been lost. Blocks GC until a reconcile of the pod has resolved it."""

    __tablename__ = "gaps"
    __table_args__ = (
        CheckConstraint(
            "reason IN ('log-replaced', 'records-removed', 'log-cut', 'discarded', 'renamed', 'prefix-added',"
            " 'retired', 'restarted', 'letters-over-limit')",
            name="reason",
        ),
        Index("ix_gaps_open", "pod_id", postgresql_where=text("settled_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    pod_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("pods.id"))
    topic: Mapped[str]
    #: -1 for all partitions.
    partition: Mapped[int] = mapped_column(Integer)
    reason: Mapped[str]
    #: Offsets that may hold what was lost: from_offset <= lost < to_offset.
    from_offset: Mapped[int]
    to_offset: Mapped[int | None]
    noticed_at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    settled_at: Mapped[datetime.datetime | None]
    settled_why: Mapped[str | None]
    #: Only a reconcile that began at this time or later resolves it: a request under way may write until then.
    settles_from: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())
    #: What the lost events were about: it is resolved only while the pod owns all of these. None: anything of the pod.
    repositories: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: How many dead letters beyond the pod's limit it stands for.
    letters: Mapped[int | None]


class DeadLetterRow(Base):
    """A message of a pod that could not be understood. Blocks GC until it is resolved."""

    __tablename__ = "dead_letters"
    __table_args__ = (
        # One Kafka record makes one dead letter, however often it is read.
        UniqueConstraint(
            "origin_topic", "origin_partition", "origin_offset", "origin_log", name="uq_dead_letters_origin"
        ),
        CheckConstraint("(settled_at IS NULL) = (settlement IS NULL)", name="settled"),
        CheckConstraint("settlement IN ('retried', 'discarded', 'reconciled')", name="settlement"),
        Index("ix_dead_letters_open", "pod", "id", postgresql_where=text("settled_at IS NULL")),
        Index("ix_dead_letters_settled", "pod", "settled_at", postgresql_where=text("settled_at IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    #: A name, not a reference: the pod may have been removed since.
    pod: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    received_at: Mapped[datetime.datetime]
    payload: Mapped[str]
    payload_bytes: Mapped[int]
    content_type: Mapped[str]
    origin_topic: Mapped[str]
    origin_partition: Mapped[int] = mapped_column(Integer)
    origin_offset: Mapped[int]
    #: Distinguishes logs in which offsets began anew: the record's time in ms.
    origin_log: Mapped[int]
    settled_at: Mapped[datetime.datetime | None]
    settlement: Mapped[str | None]
    settled_why: Mapped[str | None]
    #: What it is about; None if that is not known.
    repositories: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: By the database's clock. A reconcile that begins later has seen what the letter is about.
    stored_at: Mapped[datetime.datetime] = mapped_column(server_default=func.clock_timestamp())


class FalseReports(Base):
    """How often a pod reported references of a manifest that its bytes contradict. For information only."""

    __tablename__ = "false_reports"

    pod_id: Mapped[int] = mapped_column(
        SmallInteger, ForeignKey("pods.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    count: Mapped[int]
    last_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    #: The manifest of the last one.
    manifest: Mapped[bytes]
