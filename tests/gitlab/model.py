"""A model of the tables of a GitLab registry's metadata database, and the rows that a real one had.

The tables are made from what the real one's catalog says of them (tests/fixtures/gitlab/types.csv); keys, and what goes
with what, are written here. Not here: how such a registry behaves.
"""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

CAPTURED = Path(__file__).parents[1] / "fixtures" / "gitlab"
#: Of a table that is partitioned; the real one has 64.
PARTITIONS = 4
KEYS = {
    "top_level_namespaces": "PRIMARY KEY (id), UNIQUE (name)",
    "repositories": "PRIMARY KEY (top_level_namespace_id, id), UNIQUE (path)",
    "blobs": "PRIMARY KEY (digest)",
    "repository_blobs": "PRIMARY KEY (top_level_namespace_id, repository_id, id),"
    " UNIQUE (top_level_namespace_id, repository_id, blob_digest),"
    " FOREIGN KEY (blob_digest) REFERENCES blobs (digest) ON DELETE CASCADE",
    "manifests": "PRIMARY KEY (top_level_namespace_id, repository_id, id),"
    " UNIQUE (top_level_namespace_id, repository_id, digest)",
    "layers": "PRIMARY KEY (top_level_namespace_id, repository_id, id),"
    " UNIQUE (top_level_namespace_id, repository_id, manifest_id, digest),"
    " FOREIGN KEY (top_level_namespace_id, repository_id, manifest_id)"
    " REFERENCES manifests (top_level_namespace_id, repository_id, id) ON DELETE CASCADE",
    "manifest_references": "PRIMARY KEY (top_level_namespace_id, repository_id, id),"
    " FOREIGN KEY (top_level_namespace_id, repository_id, parent_id)"
    " REFERENCES manifests (top_level_namespace_id, repository_id, id) ON DELETE CASCADE,"
    " FOREIGN KEY (top_level_namespace_id, repository_id, child_id)"
    " REFERENCES manifests (top_level_namespace_id, repository_id, id)",
    "tags": "PRIMARY KEY (top_level_namespace_id, repository_id, id),"
    " UNIQUE (top_level_namespace_id, repository_id, name),"
    " FOREIGN KEY (top_level_namespace_id, repository_id, manifest_id)"
    " REFERENCES manifests (top_level_namespace_id, repository_id, id) ON DELETE CASCADE",
    "media_types": "PRIMARY KEY (id), UNIQUE (media_type)",
    "schema_migrations": "PRIMARY KEY (id)",
}
#: Also a table of migrations, with the same columns.
POST_DEPLOYMENT = "post_deploy_schema_migrations"


def make_tables(connection: psycopg.Connection[Any]) -> None:
    with (CAPTURED / "types.csv").open() as file:
        columns = itertools.groupby(csv.DictReader(file), key=lambda row: row["table"])
        described = {table: list(rows) for table, rows in columns if table in KEYS}
    described[POST_DEPLOYMENT] = described["schema_migrations"]
    for table in [*KEYS, POST_DEPLOYMENT]:
        rows = described[table]
        body = ", ".join(
            [f"{row['column']} {row['data_type']}{' NOT NULL' * (row['nullable'] == 'NO')}" for row in rows]
            + [KEYS.get(table, "PRIMARY KEY (id)")]
        )
        key = ", ".join(row["column"] for row in rows if row["partition_key_position"])
        connection.execute(f"CREATE TABLE {table} ({body})" + (f" PARTITION BY HASH ({key})" if key else ""))
        for number in range(PARTITIONS if key else 0):
            connection.execute(
                f"CREATE TABLE {table}_p_{number} PARTITION OF {table}"
                f" FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
            )


def fill_tables(connection: psycopg.Connection[Any], folder: str = "tables") -> None:
    """Write the captured rows, and that the captured migrations were applied."""
    for table in KEYS:
        path = CAPTURED / folder / f"{table}.csv"
        if table == "schema_migrations":
            for name, last in _read_migrations(path):
                connection.execute(sql.SQL("INSERT INTO {} (id) VALUES (%s)").format(sql.Identifier(name)), (last,))
            continue
        with path.open() as file:
            header = next(csv.reader([file.readline()]))
            names = sql.SQL(", ").join(map(sql.Identifier, header))
            # Bytes are written as hexadecimal digits without the prefix that PostgreSQL wants.
            copied = sql.Identifier(f"captured_{table}")
            texts = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in header)
            connection.execute(sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(copied, texts))
            with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN CSV").format(copied)) as copy:
                copy.write(file.read())
        types = dict(
            connection.execute(
                "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute"
                " WHERE attrelid = %s::regclass AND attnum > 0",
                (table,),
            ).fetchall()
        )
        values = sql.SQL(", ").join(
            sql.SQL("decode({}, 'hex')" if types[name] == "bytea" else f"{{}}::{types[name]}").format(
                sql.Identifier(name)
            )
            for name in header
        )
        target = sql.Identifier(table)
        connection.execute(sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(target, names, values, copied))
        connection.execute(sql.SQL("DROP TABLE {}").format(copied))


def _read_migrations(path: Path) -> Iterator[tuple[str, str]]:
    with path.open() as file:
        for row in csv.DictReader(file):
            yield row["table"], row["max_id"]
