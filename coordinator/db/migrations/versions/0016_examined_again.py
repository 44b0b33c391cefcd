"""The scheduler's own visits to registry processes that began or came back, as far as they proved too little.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "failed_examinations",
        sa.Column("pod_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("why", sa.ARRAY(sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["pod_id"], ["pods.id"], name=op.f("fk_failed_examinations_pod_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("pod_id", name=op.f("pk_failed_examinations")),
    )


def downgrade() -> None:
    op.drop_table("failed_examinations")
