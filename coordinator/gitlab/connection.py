"""One connection to the metadata database of a GitLab Container Registry, of a pod.

A replica lags behind, and what it lacks may exist: each answer is refused unless its server is the primary. So is a
schema that was never compared with the statements of this package. Where it must be the database that the doctor has
proved, an answer of another one is refused, too: a copy says nothing of what the registry has written since.
Errors name the pod and never the URL, which has a password.
Not here: the statements (database.py, writer.py), where the URL comes from (databases.py).
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from coordinator.domain.names import PodName, RepositoryName
from coordinator.errors import BaleenError, UnavailableError
from coordinator.settings import Secret

CONNECT_TIMEOUT_S: Final = 5
#: Then the name is resolved and the schema checked anew: the database may have moved, and the old one still be up.
MAX_AGE_S: Final = 60.0
#: The last migrations, before and after the deployment, of the schemas that this package was compared with.
KNOWN_SCHEMAS: Final = frozenset(
    {("20251021070732_bbm_backfill_blobs_id_column", "20251015074500_post_create_blobs_null_id_index")}
)
#: The first byte of a stored digest.
SHA256: Final = b"\x01"

#: Called for each connection, so that a password may change.
ReadUrl = Callable[[], Secret]


class UnknownSchemaError(BaleenError):
    """The database's schema was never compared with what Baleen reads and writes there."""


class _ReplicaError(Exception):
    """The server is a replica."""


class _UnknownSchemaError(Exception):
    """The schema is none of those that Baleen was compared with; the message names it."""


class _OtherDatabaseError(Exception):
    """The database is not the one that may answer."""


class GitlabConnection:
    """Opened when it is first used, and again after it broke; for several threads, which wait for each other."""

    def __init__(
        self,
        pod: PodName,
        read_url: ReadUrl,
        options: str,
        *,
        per_s: float,
        wait_s: float = -1,
        schemas: Collection[tuple[str, str]] = KNOWN_SCHEMAS,
    ) -> None:
        """`options` are libpq's; `per_s` transactions begin a second; `wait_s`: for other threads, -1 is no limit."""
        self._pod = pod
        self._read_url = read_url
        self._options = options
        self._pause = 1 / per_s
        self._wait_s = wait_s
        self._schemas = schemas
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        #: The URL that it was opened with, and when.
        self._opened: tuple[str, float] = ("", 0.0)
        self._next = 0.0

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def ask(
        self, statement: str, values: dict[str, Any] | None = None, only: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a query. Raises UnavailableError and UnknownSchemaError, as `transaction` does.

        `only`: the identity of the one database that may answer.
        """
        # Both in one round trip: a server that was demoted meanwhile says so.
        with self._use() as connection:
            with connection.pipeline(), connection.transaction():
                asked = connection.execute(statement, values)
                answered = connection.execute(_WHO)
                found = asked.fetchall()
            self._check(answered.fetchone(), only)
        return found

    def _check(self, who: tuple[Any, ...] | None, only: str | None = None) -> str:
        """Return the identity of the database that has just answered; raises if it may not answer."""
        identity, *schema = who or (None, None, None)
        if identity is None:
            raise _ReplicaError
        if tuple(schema) not in self._schemas:
            raise _UnknownSchemaError(" and ".join(map(str, schema)))
        if only not in {None, identity}:
            raise _OtherDatabaseError
        return str(identity)

    def read_identity(self) -> str:
        """Return the identity of the database that answers now: the server's cluster, its timeline, and the OID.

        A copy has another one: a restored dump has another cluster, a promoted standby another timeline.
        """
        with self._use() as connection:
            return self._check(connection.execute(_WHO).fetchone())

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield the connection in a transaction, which is rolled back if the block raises."""
        with self._use() as connection, connection.transaction():
            self._check(connection.execute(_WHO).fetchone())
            yield connection

    @contextmanager
    def _use(self) -> Iterator[psycopg.Connection[Any]]:
        if not self._lock.acquire(timeout=self._wait_s):
            raise UnavailableError(f"{self._name} is in use by too many threads.")
        try:
            time.sleep(max(0.0, self._next - time.monotonic()))
            yield self._current()
        except psycopg.errors.InsufficientPrivilege as error:
            raise UnavailableError(f"{self._name} refuses: {error.diag.message_primary}.") from error
        except (_UnknownSchemaError, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            self._disconnect()
            found = str(error) if isinstance(error, _UnknownSchemaError) else "none that Baleen knows the tables of"
            raise UnknownSchemaError(
                f"{self._name} has a schema that Baleen was not compared with (last migrations: {found}). Baleen reads "
                "nothing there, and keeps what the pod holds."
            ) from None
        except psycopg.Error as error:
            self._disconnect()
            # Without the cause: its text may show the address and the user.
            why = next((why for part, why in _CAUSES.items() if part in str(error)), type(error).__name__)
            raise UnavailableError(
                f"{self._name} does not answer ({why}). Try the URL in its file with psql."
            ) from None
        except _OtherDatabaseError:
            self._disconnect()
            raise UnavailableError(
                f"{self._name} is not the one in which the doctor found what it pushed to this registry: correct its "
                f"URL; or, if the registry has moved there, run `baleen pods doctor {self._pod}`."
            ) from None
        except _ReplicaError:
            self._disconnect()
            raise UnavailableError(
                f"{self._name} is a replica, and what it lacks may exist: name its primary."
            ) from None
        finally:
            self._next = time.monotonic() + self._pause
            self._lock.release()

    @property
    def _name(self) -> str:
        return f"The registry database of pod {self._pod}"

    def _current(self) -> psycopg.Connection[Any]:
        """Return the connection; another one if the URL has changed, or it is old."""
        url, (opened_with, opened_at) = self._read_url().reveal(), self._opened
        if self._connection is not None and url == opened_with and time.monotonic() < opened_at + MAX_AGE_S:
            return self._connection
        self._disconnect()
        self._opened = (url, time.monotonic())
        return self._connect(url)

    def _connect(self, url: str) -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="baleen",
            options=f"{self._options} -c timezone=UTC",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30_000,
        )
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


#: The identity, or NULL of a replica, and the last migrations. Asked with each question: behind a pooler the server may
#: change while a connection lasts. A logical replica is not in recovery, but it has a subscription.
_WHO: Final = """
    SELECT CASE WHEN NOT pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_subscription s WHERE s.subdbid = d.oid)
           THEN format('%s/%s/%s', (SELECT system_identifier FROM pg_control_system()),
                       left(pg_walfile_name(pg_current_wal_lsn()), 8), d.oid) END,
           (SELECT max(id) FROM schema_migrations), (SELECT max(id) FROM post_deploy_schema_migrations)
    FROM pg_database d WHERE d.datname = current_database()
"""
#: Parts of libpq's messages, and what is shown instead of them: they have the address and the user.
_CAUSES: Final = {
    "authentication failed": "it refuses the user or the password",
    "does not exist": "there is no such database or user",
    "Connection refused": "nothing listens there",
    "resolve host": "its host name is not known",
    "could not translate host name": "its host name is not known",
    "certificate": "its certificate is refused",
    "SSL": "TLS fails",
    "timeout": "it took too long",
}


def first_part(path: RepositoryName) -> str:
    """Return the name of a repository's namespace."""
    return path.partition("/")[0]
