"""What dead letters are about, and gaps in the place of those beyond a pod's limit.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_REASONS = (
    "'log-replaced', 'records-removed', 'log-cut', 'discarded', 'renamed', 'prefix-added', 'retired', 'restarted'"
)


def upgrade() -> None:
    op.add_column("dead_letters", sa.Column("repositories", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column(
        "dead_letters",
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    )
    op.drop_constraint(op.f("ck_dead_letters_settlement"), "dead_letters")
    op.create_check_constraint(
        op.f("ck_dead_letters_settlement"), "dead_letters", "settlement IN ('retried', 'discarded', 'reconciled')"
    )
    op.add_column("gaps", sa.Column("repositories", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("gaps", sa.Column("letters", sa.BigInteger(), nullable=True))
    op.drop_constraint(op.f("ck_gaps_reason"), "gaps")
    op.create_check_constraint(op.f("ck_gaps_reason"), "gaps", f"reason IN ({_REASONS}, 'letters-over-limit')")


def downgrade() -> None:
    op.execute("UPDATE gaps SET reason = 'discarded' WHERE reason = 'letters-over-limit'")
    op.drop_constraint(op.f("ck_gaps_reason"), "gaps")
    op.create_check_constraint(op.f("ck_gaps_reason"), "gaps", f"reason IN ({_REASONS})")
    op.drop_column("gaps", "letters")
    op.drop_column("gaps", "repositories")
    op.execute("DELETE FROM dead_letters WHERE settlement = 'reconciled'")
    op.drop_constraint(op.f("ck_dead_letters_settlement"), "dead_letters")
    op.create_check_constraint(
        op.f("ck_dead_letters_settlement"), "dead_letters", "settlement IN ('retried', 'discarded')"
    )
    op.drop_column("dead_letters", "stored_at")
    op.drop_column("dead_letters", "repositories")
