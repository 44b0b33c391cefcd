"""What is known of pods' processes, and the jobs that find out more.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
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
        sa.CheckConstraint("(dead_since IS NULL) = (dead_why IS NULL)", name=op.f("ck_sources_dead")),
        sa.CheckConstraint("(retired_at IS NULL) = (retired_why IS NULL)", name=op.f("ck_sources_retired")),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_sources_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sources")),
        sa.UniqueConstraint("pod_id", "instance_id", name=op.f("uq_sources_pod_id_instance_id")),
    )
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
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="waiting", nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("alive_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("taken", sa.Integer(), server_default="0", nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(state IN ('done', 'failed')) = (finished_at IS NOT NULL)", name=op.f("ck_jobs_finished")),
        sa.CheckConstraint("kind IN ('reconcile', 'doctor')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint("state IN ('waiting', 'running', 'done', 'failed')", name=op.f("ck_jobs_state")),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_jobs_pod_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_pod_id", "jobs", ["pod_id", "kind", "id"], unique=False)
    op.create_index(
        "uq_jobs_open",
        "jobs",
        ["kind", "pod_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
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
    op.create_index(
        "ix_dead_letters_settled",
        "dead_letters",
        ["pod", "settled_at"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NOT NULL"),
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
    op.add_column("manifests", sa.Column("verified", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.drop_constraint("ck_gaps_reason", "gaps")
    op.create_check_constraint(
        op.f("ck_gaps_reason"),
        "gaps",
        "reason IN ('log-replaced', 'records-removed', 'log-cut', 'discarded', 'renamed', 'prefix-added',"
        " 'retired', 'restarted')",
    )
    op.alter_column("gaps", "noticed_at", server_default=sa.text("clock_timestamp()"))
    op.add_column(
        "gaps",
        sa.Column(
            "settles_from", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
    )
    op.create_index("ix_blobs_missing", "blobs", ["id"], unique=False, postgresql_where=sa.text("state = 4"))


def downgrade() -> None:
    op.drop_index("ix_blobs_missing", "blobs")
    op.drop_column("gaps", "settles_from")
    op.alter_column("gaps", "noticed_at", server_default=sa.text("now()"))
    op.execute("DELETE FROM gaps WHERE reason IN ('discarded', 'renamed', 'prefix-added', 'retired', 'restarted')")
    op.drop_constraint("ck_gaps_reason", "gaps")
    op.create_check_constraint(
        op.f("ck_gaps_reason"), "gaps", "reason IN ('log-replaced', 'records-removed', 'log-cut')"
    )
    op.drop_column("manifests", "verified")
    op.drop_table("renames")
    op.drop_table("lifecycle_outbox")
    op.drop_table("findings")
    op.drop_index("ix_dead_letters_settled", "dead_letters")
    op.drop_table("job_repositories")
    op.drop_table("job_parts")
    op.drop_table("jobs")
    op.drop_table("probes")
    op.drop_table("endpoints")
    op.drop_table("watermarks")
    op.drop_table("sources")
