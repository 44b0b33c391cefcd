"""Databases of their own for tests on one server: empty ones, and copies of one that was migrated once."""

import itertools
from functools import cached_property

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.db import migrate


class Databases:
    def __init__(self, server: str) -> None:
        self._server = server
        self._numbers = itertools.count(1)

    def empty(self) -> str:
        """Return the URL of a new database without tables."""
        return self._create("template0")

    def migrated(self) -> str:
        """Return the URL of a new database with this release's tables."""
        return self._create(self._template)

    @cached_property
    def _template(self) -> str:
        """The name of a migrated database that nobody is connected to."""
        url = self.empty()
        migrate.upgrade(url)
        name = make_url(url).database
        assert name is not None
        return name

    def _create(self, template: str) -> str:
        name = f"tests_{next(self._numbers)}"
        with psycopg.connect(self._server, autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return make_url(self._server).set(database=name).render_as_string(hide_password=False)
