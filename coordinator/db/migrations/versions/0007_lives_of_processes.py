"""Which life of a registry process a doctor has examined.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Who was back from the dead after a visit is not known of what is there: each pod is to be examined anew.
    op.add_column("sources", sa.Column("life", sa.Integer(), server_default="1", nullable=False))
    op.add_column("sources", sa.Column("examined_life", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("sources", "examined_life")
    op.drop_column("sources", "life")
