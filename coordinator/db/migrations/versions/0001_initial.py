"""All tables of coordinator/db/schema, and the function that names this instance of the database.

Until the first release this migration makes what the schema says, and a database of an earlier commit is made anew. At
the first release it is frozen as SQL. From then on, each change of the schema is a migration of its own.

Revision ID: 0001
Revises:
"""

from alembic import op

from coordinator.db.schema import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: `?` for what the server does not report. The timeline is that of the log that is written now: that of the last
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


def upgrade() -> None:
    # checkfirst would take a table of another program for ours.
    metadata.create_all(op.get_bind(), checkfirst=False)
    op.execute(INSTANCE)


def downgrade() -> None:
    op.execute("DROP FUNCTION gc_instance()")
    metadata.drop_all(op.get_bind(), checkfirst=False)
