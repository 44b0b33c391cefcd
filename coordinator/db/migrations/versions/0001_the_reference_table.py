"""The reference table.

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


def upgrade() -> None:
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
        sa.CheckConstraint("settlement IN ('retried', 'discarded')", name=op.f("ck_dead_letters_settlement")),
        sa.CheckConstraint("(settled_at IS NULL) = (settlement IS NULL)", name=op.f("ck_dead_letters_settled")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint(
            "origin_topic",
            "origin_partition",
            "origin_offset",
            "origin_log",
            name="uq_dead_letters_origin",
        ),
    )
    op.create_index(
        "ix_dead_letters_open",
        "dead_letters",
        ["pod", "id"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NULL"),
    )
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
        "pods",
        sa.Column("id", sa.SmallInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), server_default="manifest", nullable=False),
        sa.Column("linker", sa.Text(), server_default="link", nullable=False),
        sa.Column("registries", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("event_token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("linker IN ('link', 'relay')", name=op.f("ck_pods_linker")),
        sa.CheckConstraint("mode IN ('manifest', 'link')", name=op.f("ck_pods_mode")),
        sa.CheckConstraint("octet_length(event_token_sha256) = 32", name=op.f("ck_pods_event_token")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pods")),
        sa.UniqueConstraint("name", name=op.f("uq_pods_name")),
    )
    op.create_table(
        "repository_manifests",
        sa.Column("manifest_id", sa.BigInteger(), nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("repository_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("manifest_id", "repository_id", name=op.f("pk_repository_manifests")),
    )
    op.create_index(
        "ix_repository_manifests_repository_id", "repository_manifests", ["repository_id", "manifest_id"], unique=False
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
        sa.Column("noticed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_why", sa.Text(), nullable=True),
        sa.CheckConstraint("reason IN ('log-replaced', 'records-removed', 'log-cut')", name=op.f("ck_gaps_reason")),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_gaps_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gaps")),
    )
    op.create_index("ix_gaps_open", "gaps", ["pod_id"], unique=False, postgresql_where=sa.text("settled_at IS NULL"))
    op.create_table(
        "manifests",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=True),
        sa.Column("refs", sa.ARRAY(sa.BigInteger()), nullable=True),
        sa.ForeignKeyConstraint(["id"], ["blobs.id"], name=op.f("fk_manifests_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_manifests")),
    )
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
        "removals",
        sa.Column("repository_id", sa.Integer(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("doubtful_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("ck_removals_digest")),
        sa.ForeignKeyConstraint(["repository_id"], ["repositories.id"], name=op.f("fk_removals_repository_id")),
        sa.PrimaryKeyConstraint("repository_id", "digest", name=op.f("pk_removals")),
    )
    op.create_index(
        "ix_removals_doubtful",
        "removals",
        ["doubtful_since"],
        unique=False,
        postgresql_where=sa.text("doubtful_since IS NOT NULL"),
    )
    op.create_index("ix_removals_seen_at", "removals", ["seen_at"], unique=False)
    op.create_table(
        "repository_blobs",
        sa.Column("blob_id", sa.BigInteger(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("event_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("repository_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("fk_repository_blobs_blob_id")),
        sa.ForeignKeyConstraint(["repository_id"], ["repositories.id"], name=op.f("fk_repository_blobs_repository_id")),
        sa.PrimaryKeyConstraint("blob_id", "repository_id", name=op.f("pk_repository_blobs")),
    )
    op.create_index("ix_repository_blobs_linked_at", "repository_blobs", ["linked_at"], unique=False)
    op.create_index("ix_repository_blobs_repository_id", "repository_blobs", ["repository_id", "blob_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_repository_blobs_repository_id", table_name="repository_blobs")
    op.drop_index("ix_repository_blobs_linked_at", table_name="repository_blobs")
    op.drop_table("repository_blobs")
    op.drop_index("ix_removals_seen_at", table_name="removals")
    op.drop_index("ix_removals_doubtful", table_name="removals", postgresql_where=sa.text("doubtful_since IS NOT NULL"))
    op.drop_table("removals")
    op.drop_index("uq_repositories_name", table_name="repositories", postgresql_ops={"name": "text_pattern_ops"})
    op.drop_index("ix_repositories_pod_id", table_name="repositories")
    op.drop_table("repositories")
    op.drop_index(op.f("ix_pod_prefixes_pod_id"), table_name="pod_prefixes")
    op.drop_table("pod_prefixes")
    op.drop_index("ix_manifests_unread", table_name="manifests", postgresql_where=sa.text("refs IS NULL"))
    op.drop_index(
        "ix_manifests_refs",
        table_name="manifests",
        postgresql_using="gin",
        postgresql_with={"fastupdate": "on", "gin_pending_list_limit": 256},
    )
    op.drop_table("manifests")
    op.drop_index("ix_gaps_open", table_name="gaps", postgresql_where=sa.text("settled_at IS NULL"))
    op.drop_table("gaps")
    op.drop_index("ix_repository_manifests_repository_id", table_name="repository_manifests")
    op.drop_table("repository_manifests")
    op.drop_table("pods")
    op.drop_table("partition_progress")
    op.drop_index("ix_dead_letters_open", table_name="dead_letters", postgresql_where=sa.text("settled_at IS NULL"))
    op.drop_table("dead_letters")
    op.drop_index(
        "ix_blobs_unreferenced", table_name="blobs", postgresql_where=sa.text("unreferenced_since IS NOT NULL")
    )
    op.drop_table("blobs")
    op.drop_table("api_tokens")
