"""Manifests that are kept by links, and pods that reported what bytes contradict.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

#: Table, column, and the key of its index.
_FLAGS = (
    ("manifests", "by_links", ["id"]),
    ("repository_manifests", "links_pending", ["repository_id", "manifest_id"]),
    ("repository_blobs", "kept", ["repository_id", "blob_id"]),
)


def upgrade() -> None:
    for table, column, key in _FLAGS:
        op.add_column(table, sa.Column(column, sa.Boolean(), server_default=sa.text("false"), nullable=False))
        op.create_index(f"ix_{table}_{column}", table, key, postgresql_where=sa.text(column))
    op.create_table(
        "false_reports",
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_false_reports_pod_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pod_id", name=op.f("pk_false_reports")),
    )


def downgrade() -> None:
    op.drop_table("false_reports")
    for table, column, _ in reversed(_FLAGS):
        op.drop_index(f"ix_{table}_{column}", table)
        op.drop_column(table, column)
