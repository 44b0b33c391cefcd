"""An index of the ledger's alarms.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_gc_ledger_shown",
        "gc_ledger",
        ["id"],
        unique=False,
        postgresql_where=sa.text("decision = 'shown-by-others'"),
    )


def downgrade() -> None:
    op.drop_index("ix_gc_ledger_shown", table_name="gc_ledger")
