"""Children that a held index keeps, and links that vanished without a delete event.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "repository_manifests", sa.Column("implied", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("removals", sa.Column("reported", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.add_column("removals", sa.Column("vanished_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("removals", sa.Column("vanished_added_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("removals", sa.Column("vanished_kind", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_removals_vanished"),
        "removals",
        "num_nulls(vanished_since, vanished_added_at, vanished_kind) IN (0, 3)"
        " AND (vanished_since IS NULL OR NOT reported)",
    )
    op.create_check_constraint(op.f("ck_removals_vanished_kind"), "removals", "vanished_kind IN ('manifest', 'blob')")
    op.create_index(
        "ix_removals_vanished",
        "removals",
        ["repository_id", "digest"],
        postgresql_where=sa.text("vanished_since IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_removals_vanished", "removals")
    op.drop_constraint(op.f("ck_removals_vanished_kind"), "removals")
    op.drop_constraint(op.f("ck_removals_vanished"), "removals")
    for column in ("vanished_kind", "vanished_added_at", "vanished_since", "reported"):
        op.drop_column("removals", column)
    # Counts include what implied holdings need: without the column they are holdings as any other.
    op.drop_column("repository_manifests", "implied")
