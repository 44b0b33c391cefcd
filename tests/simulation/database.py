"""A real PostgreSQL whose clock is the history's, one connection for all actors, and a history that leaves nothing.

The tables are made while a schema `sim` stands before `pg_catalog` in the search path: its `now()` and
`clock_timestamp()` are what the columns' defaults and all statements call.
A history is one transaction that is rolled back; what actors take for transactions are savepoints in it. So a
statement costs little, and the next history begins where this one did. What that leaves out is two transactions at
once: each actor's goes on alone, from its beginning to its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row
from sqlalchemy.engine import make_url

from coordinator.db import migrate
from coordinator.db.engine import connect
from coordinator.errors import UnavailableError
from coordinator.table import statements
from tests.simulation.scheduler import Scheduler

#: Histories go on in copies of the database in which they begin, and each copy would count as restored from a dump.
#: Only a failover makes it another instance.
_INSTANCE = """
CREATE OR REPLACE FUNCTION gc_instance() RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT '1/' || current_setting('sim.timeline') || '/1/1' $$
"""
#: `public` first, so that tables are made there.
_CLOCK = """
CREATE SCHEMA sim;
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz STABLE LANGUAGE sql
    AS $$ SELECT current_setting('sim.now')::timestamptz $$;
CREATE FUNCTION sim.now() RETURNS timestamptz STABLE LANGUAGE sql
    AS $$ SELECT current_setting('sim.now')::timestamptz $$;
"""
_PATH = "public, sim, pg_catalog"
_SOME_TIME = "2026-11-01 00:00:00+00"
_TEMPLATE = "simulation"


class Server:
    """Makes databases on a server that nobody needs to outlive."""

    def __init__(self, url: str) -> None:
        self.url = url

    def prepare(self) -> None:
        """Make the template of all databases."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            # Nothing is kept, and statistics that change would change plans.
            for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "autovacuum = off"):
                connection.execute(sql.SQL(f"ALTER SYSTEM SET {setting}"))
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
            _set_up(connection, _TEMPLATE)
        url = self._of(_TEMPLATE)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_CLOCK)
        migrate.upgrade(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_INSTANCE)

    def database(self, name: str, template: str = _TEMPLATE) -> str:
        """Make a database, and return its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            _set_up(connection, name)
        return self._of(name)

    def drop(self, name: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} (FORCE)")

    def _of(self, database: str) -> str:
        return make_url(self.url).set(database=database).render_as_string(hide_password=False)


def _set_up(connection: psycopg.Connection[Any], database: str) -> None:
    for setting, value in (("search_path", _PATH), ("sim.now", f"'{_SOME_TIME}'"), ("sim.timeline", "'1'")):
        connection.execute(f"ALTER DATABASE {database} SET {setting} = {value}")


class Session:
    """The one connection, as actors see theirs: each statement or transaction is a place where others may go on."""

    def __init__(self, url: str) -> None:
        self.raw = connect(url, name="simulation")
        # All statements of all actors pass here, again and again: each is planned once.
        self.raw.prepared_max = None
        self.raw.execute("SET plan_cache_mode = force_generic_plan")
        statements.prepare_connection(self.raw)
        self.scheduler: Scheduler | None = None
        #: How probably a transaction finds the database away.
        self.away = 0.0
        #: Called after each transaction.
        self.after: Callable[[], None] = lambda: None
        self._depth = 0
        self._open = False
        self._noted: int | None = None
        self._timeline = 1
        #: What each sequence gave next when a standby got its last commits; None while there is none.
        self._standby: list[int] | None = None
        #: Advisory locks of sessions, by key: which actor has it.
        self._locks: dict[int, Any] = {}
        self.closed = self.broken = False
        self._sequences = [
            row[0]
            for row in self.raw.execute("SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences ORDER BY 1")
        ]
        self._starts = self._read_sequences()

    # A history

    def begin(self, scheduler: Scheduler) -> None:
        self.scheduler, self._noted, self._depth, self._open = scheduler, None, 0, False
        self._timeline, self._standby = 1, None
        self._locks.clear()
        self._command(f"BEGIN; SELECT {self._set(self._starts)}; SET sim.now = '{scheduler.time().isoformat()}'")

    def forget(self) -> None:
        """Let everything since `begin` not have been."""
        self._command("ROLLBACK")
        self.scheduler = None

    def keep(self) -> None:
        """Let every later history begin here."""
        self._command("COMMIT")
        self.scheduler = None
        self._starts = self._read_sequences()

    def replicate(self) -> None:
        """Let a standby have all that was committed until now. No transaction may be open."""
        assert self._scheduler.holder is None
        self._command(("RELEASE SAVEPOINT own; " if self._open else "") + "SAVEPOINT standby")
        self._open, self._standby = False, self._read_sequences()

    @property
    def has_standby(self) -> bool:
        return self._standby is not None

    def fail_over(self) -> None:
        """Go on with the standby: what was committed since `replicate` is lost. No transaction may be open."""
        assert self._scheduler.holder is None
        assert self._standby is not None
        self._timeline += 1
        self._command(
            f"ROLLBACK TO SAVEPOINT standby; SELECT {self._set(self._standby)}; SET sim.timeline = '{self._timeline}'"
        )
        self._open, self._noted, self._standby = False, None, None
        self._locks.clear()

    def close(self) -> None:
        self.raw.close()

    def _set(self, starts: Sequence[int]) -> str:
        """Set all sequences: they are not rolled back."""
        return ", ".join(
            f"setval('{name}', {start}, false)" for name, start in zip(self._sequences, starts, strict=True)
        )

    def _read_sequences(self) -> list[int]:
        """What each sequence gives next."""
        asked = ", ".join(f"(SELECT last_value + is_called::int FROM {name})" for name in self._sequences)
        return list(self.now(f"SELECT {asked}")[0])

    def vacuum(self) -> None:
        """Take away what forgotten histories left in the tables."""
        self.raw.execute("VACUUM")

    # A connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._in_transaction:
            with self._nested_transaction():
                yield
            return
        self._enter("begins a transaction")
        scheduler = self._scheduler
        scheduler.holder, self._depth = scheduler.current, 1
        try:
            yield
        except BaseException:
            self._command("ROLLBACK TO SAVEPOINT own; RELEASE SAVEPOINT own")
            self._open, self._noted = False, None
            raise
        finally:
            scheduler.holder, self._depth = None, 0
        self.after()

    @contextmanager
    def _nested_transaction(self) -> Iterator[None]:
        name = f"nested_{self._depth}"
        self._command(f"SAVEPOINT {name}")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._command(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
            raise
        else:
            self._command(f"RELEASE SAVEPOINT {name}")
        finally:
            self._depth -= 1

    def execute(self, statement: Any, values: Any = None, **more: Any) -> psycopg.Cursor[Any]:
        if statement.startswith("SET LOCAL enable_"):
            # How to plan for millions of rows: here there are ten.
            return self.raw.cursor()
        if not self._in_transaction:
            self._enter(_first_words(statement), alone=True)
        if statement.startswith("SELECT pg_advisory_lock("):
            self._lock(values[0])
        elif statement.startswith("SELECT pg_advisory_unlock("):
            self._locks.pop(values[0], None)
        if self._timeline == 1 or self._in_transaction:
            return self.raw.execute(statement, values, **more)
        # What goes on after a failover may be about rows that are not there: such a statement fails alone.
        self._command("SAVEPOINT statement")
        try:
            return self.raw.execute(statement, values, **more)
        except psycopg.Error:
            self._command("ROLLBACK TO SAVEPOINT statement")
            raise
        finally:
            self._command("RELEASE SAVEPOINT statement")

    def _lock(self, key: int) -> None:
        """Give a lock to one actor at a time, as connections of their own would: to PostgreSQL all are one."""
        owner = self._locks.get(key)
        if owner is not None and owner is not self._scheduler.current and owner in self._scheduler.actors:
            raise UnavailableError("Another connection holds the lock: try again.")
        self._locks[key] = self._scheduler.current

    def cursor(self, name: str | None = None, *, binary: bool = False, withhold: bool = False) -> Any:
        """Give a cursor. One that outlives its transaction has all rows from the beginning."""
        if not self._in_transaction:
            self._enter("opens a cursor", alone=True)
        assert withhold or name is None
        return self.raw.cursor(binary=binary)

    def now(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Ask beside all actors, as nobody in a history could."""
        return self.raw.execute(statement, values).fetchall()

    @property
    def _in_transaction(self) -> bool:
        """Whether whoever asks has a transaction open."""
        return self._depth > 0 and self._scheduler.holder is self._scheduler.current

    @property
    def _scheduler(self) -> Scheduler:
        assert self.scheduler is not None, "no history is under way"
        return self.scheduler

    def _enter(self, what: str, *, alone: bool = False) -> None:
        scheduler = self._scheduler
        scheduler.pause("db", what)
        if scheduler.roll(self.away) and scheduler.current is not None and not scheduler.current.dying:
            raise UnavailableError("The database does not answer: try again.")
        scheduler.now += 1
        steps = []
        if not alone:
            steps += ["RELEASE SAVEPOINT own"] if self._open else []
            steps.append("SAVEPOINT own")
            self._open = True
        # To a question what it is by a few microseconds does not matter.
        slack = 1000 if alone and what.startswith("SELECT") else 0
        if self._noted is None or scheduler.now - self._noted > slack:
            steps.append(f"SET sim.now = '{scheduler.time().isoformat()}'")
            self._noted = scheduler.now
        if steps:
            self._command("; ".join(steps))

    def _command(self, command: str) -> None:
        result = self.raw.pgconn.exec_(command.encode())
        if result.error_message:
            raise psycopg.OperationalError(result.error_message.decode())


def _first_words(statement: Any) -> str:
    return " ".join(str(statement).split()[:6])


class Connections:
    """As coordinator.db.connection.Connections, for actors."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def use(self) -> Iterator[Any]:
        yield self._session

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


class Engine:
    """The engine that changes are made with (`write_transaction`, coordinator/db/session.py)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def begin(self) -> Iterator[Engine]:
        with self._session.transaction():
            yield self

    def exec_driver_sql(self, statement: str, values: Any = None) -> _Answer:
        cursor = self._session.raw.cursor(row_factory=namedtuple_row).execute(statement, values)
        return _Answer(cursor.fetchall() if cursor.description else [])


class _Answer:
    """An answer, as those who ask through SQLAlchemy read it."""

    def __init__(self, found: Sequence[Any]) -> None:
        self._found = found

    def __iter__(self) -> Iterator[Any]:
        return iter(self._found)

    def all(self) -> Sequence[Any]:
        return self._found

    def first(self) -> Any:
        return self._found[0] if self._found else None

    def one(self) -> Any:
        assert len(self._found) == 1
        return self._found[0]

    def one_or_none(self) -> Any:
        assert len(self._found) <= 1
        return self._found[0] if self._found else None


class Asking:
    """The connection that questions of the views are asked on."""

    _statements: dict[str, str] = {}  # noqa: RUF012 - one for all

    def __init__(self, session: Session) -> None:
        self._session = session

    def execute(self, statement: Any, values: Mapping[str, Any] | None = None) -> _Answer:
        text = str(statement)
        asked = self._statements.get(text)
        if asked is None:
            asked = re.sub(r"(?<![:\w]):(\w+)", r"%(\1)s", text.replace("%", "%%"))
            self._statements[text] = asked
        self._session._enter(_first_words(text), alone=True)
        cursor = self._session.raw.cursor(row_factory=namedtuple_row)
        return _Answer(cursor.execute(asked, values or {}).fetchall())

    def scalar(self, statement: Any, values: Mapping[str, Any] | None = None) -> Any:
        found = self.execute(statement, values).one_or_none()
        return None if found is None else found[0]
