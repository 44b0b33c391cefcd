"""The migrations make exactly the tables of the schema, in one go or not at all."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from coordinator.db import migrate
from coordinator.db.engine import open_engine
from coordinator.db.schema import metadata
from coordinator.errors import UnavailableError
from tests.services.databases import Databases

#: What autogenerate cannot compare: constraints other than foreign keys and unique ones, and options of indexes.
DEFINITIONS = """
SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
  AND conrelid IS DISTINCT FROM to_regclass('alembic_version')
UNION ALL
SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
UNION ALL
SELECT concat_ws(' ', relname, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                 pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef d ON adrelid = attrelid AND adnum = attnum
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version' AND attnum > 0
"""


def definitions(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute(DEFINITIONS)}


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_migrations_make_the_schema(databases: Databases) -> None:
    """Every table, column, constraint and index of the migrated database is as the schema says."""
    migrated, made = databases.empty(), databases.empty()
    migrate.upgrade(migrated)
    engine = open_engine(migrated, name="test")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert migrate.read_revision(connection) == migrate.wanted_revision()
    engine.dispose()
    engine = open_engine(made, name="test")
    metadata.create_all(engine)
    engine.dispose()
    assert definitions(migrated) == definitions(made)
    assert "blobs uq_blobs_digest EXCLUDE USING hash (digest WITH =)" in definitions(migrated)


def test_again_changes_nothing(databases: Databases) -> None:
    """A database that is up to date stays as it is, rows and all."""
    url = databases.empty()
    migrate.upgrade(url)
    before = definitions(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO partition_progress (topic, partition, next_offset) VALUES ('t', 0, 7)")
        migrate.upgrade(url)
        assert connection.execute("SELECT next_offset FROM partition_progress").fetchall() == [(7,)]
    assert definitions(url) == before


def test_two_at_once(databases: Databases) -> None:
    """Of two migrations that begin together, one waits for the other, and both end well."""
    url = databases.empty()
    together = threading.Barrier(2)

    def upgrade() -> None:
        together.wait(10)
        migrate.upgrade(url)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(upgrade) for _ in range(2)]:
            done.result(60)
    assert "blobs" in tables(url)


def test_gives_up_waiting_for_a_lock(databases: Databases) -> None:
    """A migration that cannot get a lock in time says so, and leaves nothing behind."""
    url = databases.empty()
    with psycopg.connect(url) as other:
        # Whoever makes a table of this name waits for the one that made it first.
        other.execute("CREATE TABLE removals (id int)")
        with pytest.raises(UnavailableError, match="lock"):
            migrate.upgrade(url, lock_timeout="300ms")
        other.rollback()
    assert tables(url) == set()
    migrate.upgrade(url)
    assert "removals" in tables(url)
