"""Databases of their own for tests on one server: empty ones, and copies of one that was migrated once.

Route: `DatabaseServer`, one for a test process -> `Databases`, for the tests of a module: they go with it, as each is
of hundreds of files, and hundreds are made.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.db import migrate


class DatabaseServer:
    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = itertools.count(1)
        # What is on it outlives no machine.
        self._execute("ALTER SYSTEM SET fsync = off")
        self._execute("SELECT pg_reload_conf()")

    @contextmanager
    def databases(self) -> Iterator["Databases"]:
        made = Databases(self)
        try:
            yield made
        finally:
            for name in made.names:
                self._execute("DROP DATABASE {} WITH (FORCE)", name)

    @cached_property
    def template(self) -> str:
        """The name of a migrated database that nobody is connected to."""
        name = self.create("template0")
        migrate.upgrade(self.url(name))
        return name

    def create(self, template: str) -> str:
        name = f"tests_{next(self._numbers)}"
        # Copied as files, and not page by page through the log.
        self._execute("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)
        return name

    def url(self, name: str) -> str:
        return make_url(self._url).set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: LiteralString, *names: str) -> None:
        connection: psycopg.Connection[Any]
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


class Databases:
    def __init__(self, server: DatabaseServer) -> None:
        self._server = server
        self.names: list[str] = []

    def empty(self) -> str:
        return self._create("template0")

    def migrated(self) -> str:
        return self._create(self._server.template)

    def _create(self, template: str) -> str:
        self.names.append(self._server.create(template))
        return self._server.url(self.names[-1])
