"""What tables have in common: the names of constraints, and the columns, checks and indexes that they repeat."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    func,
    text,
)
from sqlalchemy.schema import SchemaItem

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: When the transaction began, and the present time.
BEGIN, NOW = func.now(), func.clock_timestamp()
TRUE, ZERO = text("true"), text("0")


def table(name: str, *items: SchemaItem) -> Table:
    return Table(name, metadata, *items)


def column(
    name: str, kind: Any, *items: SchemaItem, null: bool = False, default: Any = None, key: bool = False
) -> Column[Any]:
    """Make a column; `key`: it is one of the primary key. A string as default is a literal of SQL."""
    return Column(name, kind, *items, nullable=null, server_default=default, primary_key=key)


def identity(kind: Any) -> Column[Any]:
    """Make the primary key `id`, which the database numbers."""
    return column("id", kind, Identity(), key=True)


def one_of(name: str, values: Collection[str]) -> str:
    """Return the SQL condition that a column has one of these values, which are words of our own."""
    quoted = ", ".join(f"'{value}'" for value in sorted(values))
    return f"{name} IN ({quoted})"


def derived(name: str, condition: str) -> Column[Any]:
    """Make a boolean column that PostgreSQL keeps equal to a condition on the row's others."""
    return Column(name, Boolean, Computed(condition, persisted=True), nullable=False)


def time(name: str, *, null: bool = False, default: Any = None) -> Column[Any]:
    return column(name, DateTime(timezone=True), null=null, default=default)


def flag(name: str) -> Column[Any]:
    """Make a boolean column that is false by default."""
    return column(name, Boolean, default=text("false"))


def digest(name: str = "digest", *, key: bool = False) -> Column[Any]:
    """Make a column of SHA-256 hashes."""
    return column(name, LargeBinary, check(name.removesuffix("_sha256"), f"octet_length({name}) = 32"), key=key)


def pod_id(*, key: bool = False, null: bool = False, ondelete: str | None = None) -> Column[Any]:
    return column("pod_id", SmallInteger, ForeignKey("pods.id", ondelete=ondelete), key=key, null=null)


def check(name: str, condition: str) -> CheckConstraint:
    return CheckConstraint(condition, name=name)


def index(name: str, *columns: str, where: str | None = None, unique: bool = False, **options: Any) -> Index:
    """Make an index; `where` makes it a partial one."""
    if where is not None:
        options["postgresql_where"] = text(where)
    return Index(name, *columns, unique=unique, **options)
