"""Who makes the tokens of each pod's registry.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = ("token_url", "token_issuer", "token_service", "token_keys")


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("pods", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("pods", sa.Column("token_key_ids", sa.ARRAY(sa.Text()), nullable=True))
    op.create_check_constraint(
        op.f("ck_pods_token_issuer"), "pods", f"num_nulls({', '.join(COLUMNS)}, token_key_ids) IN (0, 5)"
    )


def downgrade() -> None:
    for name in (*COLUMNS, "token_key_ids"):
        op.drop_column("pods", name)
