"""All tables, as coordinator/db/models describes them, and the function that names this instance of the database.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: `?` for what the server does not report. The timeline is that of the log that is written now: that of the last
#: checkpoint is the old one for a while after a promotion.
INSTANCE = """
CREATE FUNCTION gc_instance() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  system text := '?';
  timeline text := '?';
BEGIN
  BEGIN
    SELECT system_identifier::text INTO STRICT system FROM pg_catalog.pg_control_system();
  EXCEPTION WHEN OTHERS THEN system := '?';
  END;
  BEGIN
    timeline := ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int::text;
  EXCEPTION WHEN OTHERS THEN timeline := '?';
  END;
  RETURN concat_ws('/', coalesce(system, '?'), coalesce(timeline, '?'),
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
    coalesce(to_regclass('gc_mark')::oid::text, '?'));
END $$
"""

#: In the order in which they are made.
TABLES = (
    "api_tokens",
    "blobs",
    "dead_letters",
    "gc_ledger",
    "gc_leftovers",
    "gc_mark",
    "gc_switch",
    "gc_unlinks",
    "holds",
    "lifecycle_outbox",
    "mounts",
    "partition_progress",
    "pins",
    "pods",
    "repository_manifests",
    "root_listing",
    "failed_examinations",
    "false_reports",
    "findings",
    "gaps",
    "hides",
    "jobs",
    "manifests",
    "pod_prefixes",
    "probes",
    "renames",
    "repositories",
    "sources",
    "token_refusals",
    "endpoints",
    "job_parts",
    "job_repositories",
    "removals",
    "repository_blobs",
    "watermarks",
)


def upgrade() -> None:  # noqa: PLR0915 - all tables
    op.create_table(
        "api_tokens",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('read', 'operate')", name=op.f("ck_api_tokens_role")),
        sa.CheckConstraint("octet_length(token_sha256) = 32", name=op.f("ck_api_tokens_token")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_api_tokens_token_sha256")),
    )
    op.create_table(
        "blobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("unreferenced_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reference_count", sa.Integer(), nullable=False),
        sa.Column("link_count", sa.Integer(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        postgresql.ExcludeConstraint((sa.column("digest"), "="), using="hash", name="uq_blobs_digest"),
        sa.CheckConstraint(
            "(unreferenced_since IS NOT NULL) = (reference_count = 0 AND link_count = 0)",
            name=op.f("ck_blobs_unreferenced"),
        ),
        sa.CheckConstraint("link_count >= 0", name=op.f("ck_blobs_link_count")),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("ck_blobs_digest")),
        sa.CheckConstraint("reference_count >= 0", name=op.f("ck_blobs_reference_count")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blobs")),
    )
    op.create_index(
        "ix_blobs_collectable",
        "blobs",
        ["unreferenced_since", "id"],
        unique=False,
        postgresql_where=sa.text("state = 1"),
    )
    op.create_index(
        "ix_blobs_concealed",
        "blobs",
        ["id"],
        unique=False,
        postgresql_where=sa.text("unreferenced_since IS NULL AND state IN (2, 3, 5, 6)"),
    )
    op.create_index("ix_blobs_missing", "blobs", ["id"], unique=False, postgresql_where=sa.text("state = 4"))
    op.create_index(
        "ix_blobs_unreferenced",
        "blobs",
        ["unreferenced_since", "id"],
        unique=False,
        postgresql_where=sa.text("unreferenced_since IS NOT NULL"),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pod", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("payload_bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("origin_topic", sa.Text(), nullable=False),
        sa.Column("origin_partition", sa.Integer(), nullable=False),
        sa.Column("origin_offset", sa.BigInteger(), nullable=False),
        sa.Column("origin_log", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settlement", sa.Text(), nullable=True),
        sa.Column("settled_why", sa.Text(), nullable=True),
        sa.Column("repositories", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint(
            "settlement IN ('retried', 'discarded', 'reconciled')", name=op.f("ck_dead_letters_settlement")
        ),
        sa.CheckConstraint("(settled_at IS NULL) = (settlement IS NULL)", name=op.f("ck_dead_letters_settled")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint(
            "origin_topic", "origin_partition", "origin_offset", "origin_log", name="uq_dead_letters_origin"
        ),
    )
    op.create_index(
        "ix_dead_letters_open",
        "dead_letters",
        ["pod", "id"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_index(
        "ix_dead_letters_settled",
        "dead_letters",
        ["pod", "settled_at"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NOT NULL"),
    )
    op.create_table(
        "gc_ledger",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("hide_id", sa.BigInteger(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("ck_gc_ledger_digest")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gc_ledger")),
    )
    op.create_index("ix_gc_ledger_digest", "gc_ledger", ["digest", "id"], unique=False)
    op.create_index("ix_gc_ledger_run_id", "gc_ledger", ["run_id", "id"], unique=False)
    op.create_index(
        "ix_gc_ledger_shown",
        "gc_ledger",
        ["id"],
        unique=False,
        postgresql_where=sa.text("decision = 'shown-by-others'"),
    )
    op.create_table(
        "gc_leftovers",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("run_id", "kind", name=op.f("pk_gc_leftovers")),
    )
    op.create_index(
        "ix_gc_leftovers_ended_at",
        "gc_leftovers",
        ["kind", "ended_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    op.create_table(
        "gc_mark",
        sa.Column("id", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("database", sa.UUID(as_uuid=False), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("writing", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("written", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("writing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claimed_why", sa.Text(), nullable=True),
        sa.Column("verify_from", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("id", name=op.f("ck_gc_mark_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gc_mark")),
    )
    op.create_table(
        "gc_switch",
        sa.Column("id", sa.SmallInteger(), server_default="1", autoincrement=False, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_gc_switch_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gc_switch")),
    )
    op.create_table(
        "gc_unlinks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column(
            "intended_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("permitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("ck_gc_unlinks_digest")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gc_unlinks")),
    )
    op.create_table(
        "holds",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("held_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_holds")),
    )
    op.create_table(
        "lifecycle_outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("change", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("reference_count", sa.Integer(), nullable=False),
        sa.Column("link_count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lifecycle_outbox")),
    )
    op.create_table(
        "mounts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("blob_id", sa.BigInteger(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mounts")),
    )
    op.create_index("ix_mounts_at", "mounts", ["at"], unique=False)
    op.create_index("ix_mounts_blob_id", "mounts", ["blob_id", "id"], unique=False)
    op.create_table(
        "partition_progress",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.BigInteger(), nullable=True),
        sa.Column("topic_id", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_partition_progress")),
    )
    op.create_table(
        "pins",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("pinned_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("ck_pins_digest")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_pins")),
    )
    op.create_table(
        "pods",
        sa.Column("id", sa.SmallInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), server_default="manifest", nullable=False),
        sa.Column("linker", sa.Text(), server_default="link", nullable=False),
        sa.Column("registries", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("event_token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("token_url", sa.Text(), nullable=True),
        sa.Column("token_issuer", sa.Text(), nullable=True),
        sa.Column("token_service", sa.Text(), nullable=True),
        sa.Column("token_keys", sa.Text(), nullable=True),
        sa.Column("token_key_ids", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("managed", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("unmanaged_why", sa.Text(), nullable=True),
        sa.Column("unmanaged_by", sa.Text(), nullable=True),
        sa.Column("probe", sa.Text(), server_default="push", nullable=False),
        sa.CheckConstraint("linker IN ('link', 'relay')", name=op.f("ck_pods_linker")),
        sa.CheckConstraint("mode IN ('manifest', 'link')", name=op.f("ck_pods_mode")),
        sa.CheckConstraint("probe IN ('push', 'pull')", name=op.f("ck_pods_probe")),
        sa.CheckConstraint(
            "num_nulls(token_url, token_issuer, token_service, token_keys, token_key_ids) IN (0, 5)",
            name=op.f("ck_pods_token_issuer"),
        ),
        sa.CheckConstraint(
            "num_nulls(unmanaged_why, unmanaged_by) = CASE WHEN managed THEN 2 ELSE 0 END",
            name=op.f("ck_pods_unmanaged"),
        ),
        sa.CheckConstraint("octet_length(event_token_sha256) = 32", name=op.f("ck_pods_event_token")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pods")),
        sa.UniqueConstraint("name", name=op.f("uq_pods_name")),
    )
    op.create_table(
        "repository_manifests",
        sa.Column("manifest_id", sa.BigInteger(), nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("repository_id", sa.Integer(), nullable=False),
        sa.Column("implied", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("links_pending", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("manifest_id", "repository_id", name=op.f("pk_repository_manifests")),
    )
    op.create_index(
        "ix_repository_manifests_links_pending",
        "repository_manifests",
        ["repository_id", "manifest_id"],
        unique=False,
        postgresql_where=sa.text("links_pending"),
    )
    op.create_index(
        "ix_repository_manifests_repository_id", "repository_manifests", ["repository_id", "manifest_id"], unique=False
    )
    op.create_table(
        "root_listing",
        sa.Column("id", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("prefixes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("unowned", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.CheckConstraint("id", name=op.f("ck_root_listing_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_root_listing")),
    )
    op.create_table(
        "failed_examinations",
        sa.Column("pod_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("why", sa.ARRAY(sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["pod_id"], ["pods.id"], name=op.f("fk_failed_examinations_pod_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("pod_id", name=op.f("pk_failed_examinations")),
    )
    op.create_table(
        "false_reports",
        sa.Column("pod_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_false_reports_pod_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pod_id", name=op.f("pk_false_reports")),
    )
    op.create_table(
        "findings",
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("check", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("meaning", sa.Text(), nullable=False),
        sa.Column("proof", sa.Text(), nullable=False),
        sa.Column("mend", sa.Text(), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("verdict IN ('proved', 'refuted', 'unproved')", name=op.f("ck_findings_verdict")),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_findings_pod_id")),
        sa.PrimaryKeyConstraint("pod_id", "check", name=op.f("pk_findings")),
    )
    op.create_table(
        "gaps",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("from_offset", sa.BigInteger(), nullable=False),
        sa.Column("to_offset", sa.BigInteger(), nullable=True),
        sa.Column(
            "noticed_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_why", sa.Text(), nullable=True),
        sa.Column(
            "settles_from", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("repositories", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("letters", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "reason IN ('log-replaced', 'records-removed', 'log-cut', 'discarded', 'renamed', 'prefix-added', 'retired', 'restarted', 'letters-over-limit')",  # noqa: E501
            name=op.f("ck_gaps_reason"),
        ),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_gaps_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gaps")),
    )
    op.create_index("ix_gaps_open", "gaps", ["pod_id"], unique=False, postgresql_where=sa.text("settled_at IS NULL"))
    op.create_table(
        "hides",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("blob_id", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("unreferenced_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "intended_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("permitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("hidden_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("marker", sa.Text(), nullable=True),
        sa.Column("versions", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("purging_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("asked_why", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("fk_hides_blob_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hides")),
    )
    op.create_index("ix_hides_asked", "hides", ["id"], unique=False, postgresql_where=sa.text("asked_at IS NOT NULL"))
    op.create_index(
        "ix_hides_hidden_at",
        "hides",
        ["hidden_at", "id"],
        unique=False,
        postgresql_where=sa.text("hidden_at IS NOT NULL AND purging_at IS NULL"),
    )
    op.create_index(
        "ix_hides_unfinished",
        "hides",
        ["id"],
        unique=False,
        postgresql_where=sa.text("hidden_at IS NULL OR purging_at IS NOT NULL"),
    )
    op.create_index("uq_hides_blob_id", "hides", ["blob_id"], unique=True)
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="waiting", nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("alive_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("taken", sa.Integer(), server_default="0", nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("options", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.CheckConstraint("(pod_id IS NULL) = (kind = 'gc')", name=op.f("ck_jobs_pod")),
        sa.CheckConstraint("(state IN ('done', 'failed')) = (finished_at IS NOT NULL)", name=op.f("ck_jobs_finished")),
        sa.CheckConstraint("kind IN ('reconcile', 'doctor', 'gc')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint("state IN ('waiting', 'running', 'done', 'failed')", name=op.f("ck_jobs_state")),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_jobs_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_gc", "jobs", ["id"], unique=False, postgresql_where=sa.text("kind = 'gc'"))
    op.create_index("ix_jobs_pod_id", "jobs", ["pod_id", "kind", "id"], unique=False)
    op.create_index(
        "uq_jobs_open",
        "jobs",
        ["kind", "pod_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_index(
        "uq_jobs_open_gc",
        "jobs",
        ["kind"],
        unique=True,
        postgresql_where=sa.text("pod_id IS NULL AND state IN ('waiting', 'running')"),
    )
    op.create_table(
        "manifests",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=True),
        sa.Column("refs", sa.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("verified", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("by_links", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["blobs.id"], name=op.f("fk_manifests_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_manifests")),
    )
    op.create_index("ix_manifests_by_links", "manifests", ["id"], unique=False, postgresql_where=sa.text("by_links"))
    op.create_index(
        "ix_manifests_refs",
        "manifests",
        ["refs"],
        unique=False,
        postgresql_using="gin",
        postgresql_with={"fastupdate": "on", "gin_pending_list_limit": 256},
    )
    op.create_index("ix_manifests_unread", "manifests", ["id"], unique=False, postgresql_where=sa.text("refs IS NULL"))
    op.create_table(
        "pod_prefixes",
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_pod_prefixes_pod_id")),
        sa.PrimaryKeyConstraint("prefix", name=op.f("pk_pod_prefixes")),
    )
    op.create_index(op.f("ix_pod_prefixes_pod_id"), "pod_prefixes", ["pod_id"], unique=False)
    op.create_table(
        "probes",
        sa.Column("nonce", sa.Uuid(), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("known_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("echoed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_probes_pod_id")),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_probes")),
    )
    op.create_index("ix_probes_sent_at", "probes", ["sent_at"], unique=False)
    op.create_index(
        "ix_probes_unheard",
        "probes",
        ["pod_id", "url", "address"],
        unique=False,
        postgresql_where=sa.text("answered_at IS NOT NULL AND NOT echoed"),
    )
    op.create_table(
        "renames",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("below", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_renames_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_renames")),
        sa.UniqueConstraint(
            "source", "destination", "below", "at", name=op.f("uq_renames_source_destination_below_at")
        ),
    )
    op.create_table(
        "repositories",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_repositories_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repositories")),
    )
    op.create_index("ix_repositories_pod_id", "repositories", ["pod_id", "id"], unique=False)
    op.create_index(
        "uq_repositories_name", "repositories", ["name"], unique=True, postgresql_ops={"name": "text_pattern_ops"}
    )
    op.create_table(
        "sources",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dead_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dead_why", sa.Text(), nullable=True),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retired_why", sa.Text(), nullable=True),
        sa.Column("life", sa.Integer(), server_default="1", nullable=False),
        sa.Column("examined_life", sa.Integer(), nullable=True),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(dead_since IS NULL) = (dead_why IS NULL)", name=op.f("ck_sources_dead")),
        sa.CheckConstraint("(retired_at IS NULL) = (retired_why IS NULL)", name=op.f("ck_sources_retired")),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_sources_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sources")),
        sa.UniqueConstraint("pod_id", "instance_id", name=op.f("uq_sources_pod_id_instance_id")),
    )
    op.create_table(
        "token_refusals",
        sa.Column("pod_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_token_refusals_pod_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pod_id", name=op.f("pk_token_refusals")),
    )
    op.create_table(
        "endpoints",
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("refused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("source_id", sa.BigInteger(), nullable=True),
        sa.Column("echoed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("shared", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_endpoints_pod_id")),
        sa.ForeignKeyConstraint(
            ["source_id"], ["sources.id"], name=op.f("fk_endpoints_source_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("pod_id", "url", "address", name=op.f("pk_endpoints")),
    )
    op.create_table(
        "job_parts",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_parts_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "name", name=op.f("pk_job_parts")),
    )
    op.create_table(
        "job_repositories",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("repository_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_repositories_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "repository_id", "kind", name=op.f("pk_job_repositories")),
    )
    op.create_table(
        "removals",
        sa.Column("repository_id", sa.Integer(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("doubtful_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("reported", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("vanished_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("vanished_added_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("vanished_kind", sa.Text(), nullable=True),
        sa.CheckConstraint("vanished_kind IN ('manifest', 'blob')", name=op.f("ck_removals_vanished_kind")),
        sa.CheckConstraint(
            "num_nulls(vanished_since, vanished_added_at, vanished_kind) IN (0, 3) AND (vanished_since IS NULL OR NOT reported)",  # noqa: E501
            name=op.f("ck_removals_vanished"),
        ),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("ck_removals_digest")),
        sa.ForeignKeyConstraint(["repository_id"], ["repositories.id"], name=op.f("fk_removals_repository_id")),
        sa.PrimaryKeyConstraint("repository_id", "digest", name=op.f("pk_removals")),
    )
    op.create_index("ix_removals_digest", "removals", ["digest"], unique=False, postgresql_using="hash")
    op.create_index(
        "ix_removals_doubtful",
        "removals",
        ["doubtful_since"],
        unique=False,
        postgresql_where=sa.text("doubtful_since IS NOT NULL"),
    )
    op.create_index("ix_removals_seen_at", "removals", ["seen_at"], unique=False)
    op.create_index(
        "ix_removals_vanished",
        "removals",
        ["repository_id", "digest"],
        unique=False,
        postgresql_where=sa.text("vanished_since IS NOT NULL"),
    )
    op.create_table(
        "repository_blobs",
        sa.Column("blob_id", sa.BigInteger(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("event_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("repository_id", sa.Integer(), nullable=False),
        sa.Column("kept", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("fk_repository_blobs_blob_id")),
        sa.ForeignKeyConstraint(["repository_id"], ["repositories.id"], name=op.f("fk_repository_blobs_repository_id")),
        sa.PrimaryKeyConstraint("blob_id", "repository_id", name=op.f("pk_repository_blobs")),
    )
    op.create_index(
        "ix_repository_blobs_kept",
        "repository_blobs",
        ["repository_id", "blob_id"],
        unique=False,
        postgresql_where=sa.text("kept"),
    )
    op.create_index("ix_repository_blobs_linked_at", "repository_blobs", ["linked_at"], unique=False)
    op.create_index("ix_repository_blobs_repository_id", "repository_blobs", ["repository_id", "blob_id"], unique=False)
    op.create_table(
        "watermarks",
        sa.Column("source_id", sa.BigInteger(), nullable=False),
        sa.Column("topic", sa.Text(), server_default="registry.events", nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["source_id"], ["sources.id"], name=op.f("fk_watermarks_source_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("source_id", "topic", "partition", name=op.f("pk_watermarks")),
    )
    op.execute(INSTANCE)


def downgrade() -> None:
    op.execute("DROP FUNCTION gc_instance()")
    for table in reversed(TABLES):
        op.drop_table(table)
