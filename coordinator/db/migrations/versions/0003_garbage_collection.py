"""What garbage collection has under way, what stops it, and what it did.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
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
    op.create_index("uq_hides_blob_id", "hides", ["blob_id"], unique=True)
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
    op.create_index(
        "ix_hides_asked",
        "hides",
        ["id"],
        unique=False,
        postgresql_where=sa.text("asked_at IS NOT NULL"),
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
        "holds",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("held_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_holds")),
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

    op.create_table(
        "gc_leavings",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("run_id", "kind", name=op.f("pk_gc_leavings")),
    )
    op.create_index(
        "ix_gc_leavings_ended_at",
        "gc_leavings",
        ["kind", "ended_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL"),
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

    # Indexes of tables that are there already may have been built CONCURRENTLY before (see CHANGELOG.md).
    # A collection is a job of no pod.
    op.alter_column("jobs", "pod_id", nullable=True)
    op.add_column(
        "jobs",
        sa.Column("options", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
    )
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", "kind IN ('reconcile', 'doctor', 'gc')")
    op.create_check_constraint(op.f("ck_jobs_pod"), "jobs", "(pod_id IS NULL) = (kind = 'gc')")
    op.create_index(
        "uq_jobs_open_gc",
        "jobs",
        ["kind"],
        unique=True,
        postgresql_where=sa.text("pod_id IS NULL AND state IN ('waiting', 'running')"),
        if_not_exists=True,
    )
    op.create_index(
        "ix_jobs_gc", "jobs", ["id"], unique=False, postgresql_where=sa.text("kind = 'gc'"), if_not_exists=True
    )

    # What may be hidden: hidden and purged blobs, of which there may be many more, are not among them.
    op.create_index(
        "ix_blobs_collectable",
        "blobs",
        ["unreferenced_since", "id"],
        unique=False,
        postgresql_where=sa.text("state = 1"),
        if_not_exists=True,
    )
    # Empty as a rule: blobs that are needed and not served.
    op.create_index(
        "ix_blobs_concealed",
        "blobs",
        ["id"],
        unique=False,
        postgresql_where=sa.text("unreferenced_since IS NULL AND state IN (2, 3, 5, 6)"),
        if_not_exists=True,
    )
    # Who had removed a blob's referrers.
    op.create_index(
        "ix_removals_digest", "removals", ["digest"], unique=False, postgresql_using="hash", if_not_exists=True
    )


def downgrade() -> None:
    op.drop_index("ix_removals_digest", "removals")
    op.drop_index("ix_blobs_concealed", "blobs")
    op.drop_index("ix_blobs_collectable", "blobs")
    op.execute("DELETE FROM jobs WHERE kind = 'gc'")
    op.drop_index("ix_jobs_gc", "jobs")
    op.drop_index("uq_jobs_open_gc", "jobs")
    op.drop_constraint(op.f("ck_jobs_pod"), "jobs")
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", "kind IN ('reconcile', 'doctor')")
    op.drop_column("jobs", "options")
    op.alter_column("jobs", "pod_id", nullable=False)
    op.drop_table("gc_unlinks")
    op.drop_table("gc_leavings")
    op.drop_table("gc_ledger")
    op.drop_table("gc_switch")
    op.drop_table("holds")
    op.drop_table("pins")
    op.drop_table("hides")
