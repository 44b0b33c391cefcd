"""The mark records which instance of the database wrote it, what the bucket had, and what a claim has left to verify.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

#: `?` for what the server does not tell. The timeline is that of the log that is written now: that of the last
#: checkpoint is the old one for a while after a promotion.
INSTANCE = """
CREATE FUNCTION gc_instance() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  system text := '?';
  timeline text := '?';
BEGIN
  BEGIN
    SELECT system_identifier::text INTO STRICT system FROM pg_catalog.pg_control_system();
  EXCEPTION WHEN OTHERS THEN system := '?';
  END;
  BEGIN
    timeline := ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int::text;
  EXCEPTION WHEN OTHERS THEN timeline := '?';
  END;
  RETURN concat_ws('/', coalesce(system, '?'), coalesce(timeline, '?'),
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
    coalesce(to_regclass('gc_mark')::oid::text, '?'));
END $$
"""
#: PostgreSQL 18 names such constraints by the column, and keeps the name.
RENAME = """
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_constraint
             WHERE conrelid = 'gc_mark'::regclass AND conname = 'gc_mark_{before}_not_null') THEN
    ALTER TABLE gc_mark RENAME CONSTRAINT gc_mark_{before}_not_null TO gc_mark_{after}_not_null;
  END IF;
END $$
"""


def upgrade() -> None:
    op.alter_column("gc_mark", "told", new_column_name="writing")
    op.execute(RENAME.format(before="told", after="writing"))
    op.add_column("gc_mark", sa.Column("written", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("gc_mark", sa.Column("writing_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("gc_mark", sa.Column("instance", sa.Text(), nullable=True))
    op.add_column("gc_mark", sa.Column("refused", sa.Text(), nullable=True))
    op.add_column("gc_mark", sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("gc_mark", sa.Column("claimed_why", sa.Text(), nullable=True))
    op.add_column("gc_mark", sa.Column("verify_from", sa.DateTime(timezone=True), nullable=True))
    # It was noted once the bucket had a mark: which one is not known.
    op.execute("UPDATE gc_mark SET written = least(writing, 1)")
    op.execute(INSTANCE)


def downgrade() -> None:
    op.execute("DROP FUNCTION gc_instance()")
    for name in ("verify_from", "claimed_why", "claimed_at", "refused", "instance", "writing_since", "written"):
        op.drop_column("gc_mark", name)
    op.alter_column("gc_mark", "writing", new_column_name="told")
    op.execute(RENAME.format(before="writing", after="told"))
