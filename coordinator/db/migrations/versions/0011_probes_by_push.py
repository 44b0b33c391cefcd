"""How Baleen probes each pod's registry, by a push or by a pull, and when a registry process was paused.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Pods that there are have registries that send pull events, and perhaps keys that may not push.
    op.add_column("pods", sa.Column("probe", sa.Text(), server_default="pull", nullable=False))
    op.alter_column("pods", "probe", server_default="push")
    op.create_check_constraint(op.f("ck_pods_probe"), "pods", "probe IN ('push', 'pull')")
    op.add_column("sources", sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True))
    op.execute("""UPDATE findings SET "check" = 'probes-arrive' WHERE "check" = 'pulls-arrive'""")


def downgrade() -> None:
    op.execute("""UPDATE findings SET "check" = 'pulls-arrive' WHERE "check" = 'probes-arrive'""")
    op.drop_column("sources", "paused_until")
    op.drop_column("pods", "probe")
