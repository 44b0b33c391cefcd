"""Of which pods events were refused for their token.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "token_refusals",
        sa.Column("pod_id", sa.SmallInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["pod_id"], ["pods.id"], name=op.f("fk_token_refusals_pod_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pod_id", name=op.f("pk_token_refusals")),
    )


def downgrade() -> None:
    op.drop_table("token_refusals")
