"""Which repositories no pod owns, by the last listing, and pods whose registries send no events.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "root_listing",
        sa.Column("id", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("prefixes", ARRAY(sa.Text()), nullable=False),
        sa.Column("unowned", ARRAY(sa.Text()), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.CheckConstraint("id", name=op.f("ck_root_listing_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_root_listing")),
    )
    op.add_column("pods", sa.Column("managed", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.add_column("pods", sa.Column("unmanaged_why", sa.Text(), nullable=True))
    op.add_column("pods", sa.Column("unmanaged_by", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_pods_unmanaged"),
        "pods",
        "num_nulls(unmanaged_why, unmanaged_by) = CASE WHEN managed THEN 2 ELSE 0 END",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_pods_unmanaged"), "pods")
    for column in ("unmanaged_by", "unmanaged_why", "managed"):
        op.drop_column("pods", column)
    op.drop_table("root_listing")
