"""The schema of record: every table with its columns, constraints and indexes, and what a row means.

Migrations make these tables (db/migrations), and queries may name them. A column is NOT NULL unless it says `null`.
Tables are grouped by subject; foreign keys cross the files.
"""

from coordinator.db.schema import gc, jobs, pods, table
from coordinator.db.schema.columns import metadata

__all__ = ["gc", "jobs", "metadata", "pods", "table"]
