"""Advance the epoch of the mark with each change that an older state of the database would lack (gc/mark_table.py).

`ADVANCE_EPOCH` is the last statement of the transaction that makes such a change. `advancing` is such a transaction on
a connection, and `epoch_transaction` one on an engine. `epoch_transaction` does not wait for another transaction that
advances: a process that hangs in one must not prevent an operator from switching GC off. If the row is locked, it
advances the epoch in a second transaction, after the commit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import structlog
from sqlalchemy import Connection, Engine

from coordinator.db.session import write_transaction
from coordinator.errors import UnavailableError

log = structlog.get_logger()

ADVANCE_EPOCH: Final = "INSERT INTO gc_mark (epoch) VALUES (1) ON CONFLICT (id) DO UPDATE SET epoch = gc_mark.epoch + 1"
_TRY_ADVANCE_EPOCH = """
UPDATE gc_mark SET epoch = epoch + 1 WHERE id IN (SELECT id FROM gc_mark FOR UPDATE SKIP LOCKED)
"""


@contextmanager
def advancing(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Make a change in one transaction, which commits at the end and advances the epoch."""
    with connection.transaction():
        yield
        connection.execute(ADVANCE_EPOCH)


@contextmanager
def epoch_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in one transaction, which commits at the end and advances the epoch."""
    with write_transaction(engine) as connection:
        yield connection
        counted = connection.exec_driver_sql(_TRY_ADVANCE_EPOCH).rowcount > 0
    if not counted:
        try:
            with write_transaction(engine) as connection:
                connection.exec_driver_sql(ADVANCE_EPOCH)
        except UnavailableError as error:
            log.warning("the mark's epoch was not advanced for a change", reason=str(error))
