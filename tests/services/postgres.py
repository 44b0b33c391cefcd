"""PostgreSQL servers of a test's own: a primary, standbys, old copies of its files, and dumps of its databases.

Route: `Servers.primary` -> `standby` (`pg_basebackup`, streaming) -> `promote`; or `copy_of_files` of a stopped server,
which is what a restore of a volume's snapshot gives; or `dump_database` and `restore_dump` (`pg_dump`, `pg_restore`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.stack.guard import Guard
from coordinator.stack.ports import Ports
from coordinator.stack.postgres import EmbeddedPostgres, require_binaries
from coordinator.stack.process import ManagedProcess
from tests.support.wait import eventually

HOST = "127.0.0.1"
PROGRAM_SECONDS = 120.0


class Server(NamedTuple):
    directory: Path
    process: ManagedProcess
    #: Of its first database.
    url: str

    def execute(self, statement: str, *values: Any) -> list[Any]:
        connection: psycopg.Connection[Any]
        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute(statement, values or None)  # type: ignore[arg-type] # ours
            return found.fetchall() if found.description else []

    def database(self, name: str) -> str:
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)


class Servers:
    """Starts servers, and stops all of them at the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._guard = Guard()
        self._running: list[ManagedProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for process in self._running:
                process.discard()
        finally:
            self._guard.close()

    def primary(self, name: str = "primary") -> Server:
        return self._start(name)

    def standby(self, of: Server, name: str = "standby") -> Server:
        """Return a standby that follows the server, and has all that it has now."""
        directory = self._beside(of, name)
        run_program("pg_basebackup", "-d", of.url, "-D", str(directory / "data"), "-R", "-X", "stream", "-c", "fast")
        give_to_owner_of(directory, of.directory)
        standby = self._start(name)
        self.catch_up(standby, of)
        return standby

    def catch_up(self, standby: Server, primary: Server) -> None:
        """Wait until the standby has replayed what the primary has written."""
        ((wanted,),) = primary.execute("SELECT pg_current_wal_flush_lsn()::text")
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        eventually(lambda: standby.execute(replayed, wanted)[0][0], "the standby follows")

    def cut_off(self, standby: Server) -> None:
        """Have the standby lose every commit that follows: nothing more reaches it."""
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        standby.execute("SELECT pg_reload_conf()")
        eventually(lambda: not standby.execute("SELECT FROM pg_stat_wal_receiver"), "the standby follows no more")

    def promote(self, standby: Server) -> None:
        assert standby.execute("SELECT pg_promote()")[0][0]

    def base_backup(self, of: Server, name: str = "restored") -> Path:
        """Back the server up; `recover` starts what this returns."""
        directory = self._beside(of, name)
        run_program("pg_basebackup", "-d", of.url, "-D", str(directory / "data"), "-X", "stream", "-c", "fast")
        return directory

    def recover(self, backup: Path, stopped: Server, point: str) -> Server:
        """Start a base backup at a restore point that came after it, by the log of the server, which was stopped;
        return once it takes writes.
        """
        data = backup / "data"
        archive = backup / "archive"
        shutil.copytree(stopped.directory / "data" / "pg_wal", archive, symlinks=True)
        (data / "recovery.signal").touch()
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f'restore_command = \'cp "{archive}/%f" "%p"\'\n')
            settings.write(f"recovery_target_name = '{point}'\nrecovery_target_action = 'promote'\n")
        give_to_owner_of(backup, stopped.directory)
        recovered = self._start(backup.name)
        eventually(lambda: not recovered.execute("SELECT pg_is_in_recovery()")[0][0], "the recovery ends")
        return recovered

    def stop(self, server: Server) -> None:
        server.process.stop()
        self._running.remove(server.process)

    def copy_of_files(self, of: Server, name: str = "copy") -> Path:
        """Copy the files of a server that was stopped; `start_copy` starts them."""
        directory = self._beside(of, name)
        shutil.copytree(of.directory / "data", directory / "data", symlinks=True)
        give_to_owner_of(directory, of.directory)
        return directory

    def start_copy(self, directory: Path) -> Server:
        return self._start(directory.name)

    def restart(self, server: Server) -> Server:
        return self._start(server.directory.name)

    def _beside(self, of: Server, name: str) -> Path:
        directory = self._directory / name
        directory.mkdir(mode=0o700)
        shutil.copy2(of.directory / "password", directory / "password")
        return directory

    def _start(self, name: str) -> Server:
        directory = self._directory / name
        port = Ports(self._directory / "ports.json", HOST).take(name)
        server = EmbeddedPostgres(directory, self._directory / f"{name}.log", host=HOST, port=port)
        server.prepare()
        process = server.process()
        process.start()
        self._guard.add_pid(process.pid, process.stop_signal)
        self._running.append(process)
        return Server(directory, process, server.url)


def dump_database(url: str, file: Path) -> None:
    run_program("pg_dump", "-d", url, "-Fc", "-f", str(file))


def restore_dump(file: Path, url: str, *options: str) -> None:
    run_program("pg_restore", "-d", url, "--exit-on-error", *options, str(file))


def create_database(server: Server, name: str) -> str:
    connection: psycopg.Connection[Any]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    return server.database(name)


def run_program(program: str, *arguments: str) -> None:
    words: Sequence[str] = (str(require_binaries() / program), *arguments)
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=PROGRAM_SECONDS)
    assert done.returncode == 0, done.stderr


def give_to_owner_of(directory: Path, like: Path) -> None:
    """Give a directory, with all that is in it, to the owner of another."""
    owner = like.stat()
    for path in (directory, *directory.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
