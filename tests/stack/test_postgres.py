"""The embedded PostgreSQL by itself: whom it runs as when we are root, and how it begins after it was killed."""

import os
import pwd
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from coordinator.stack import postgres
from coordinator.stack.ports import Ports
from coordinator.stack.postgres import EmbeddedPostgres
from tests.conftest import temporary_directory

NAME = "baleen-test-user"
DEADLINE_S = 60.0


@pytest.mark.lengthy
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users")
def test_made_by_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacks that start together on a new machine make one user, and none of them fails."""
    monkeypatch.setattr(postgres, "SYSTEM_USER", NAME)
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: postgres._make_system_user(), range(6)))
        assert pwd.getpwnam(NAME).pw_uid > 0
    finally:
        subprocess.run(["userdel", NAME], check=False, capture_output=True, timeout=30)


@pytest.mark.outage
def test_what_a_killed_server_has_left_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server refuses to begin beside a backend of the one before it, which may take a while to notice its end."""
    with temporary_directory() as directory:
        server = _server(directory)
        server.prepare()
        killed = server.process().start()
        with psycopg.connect(server.url, connect_timeout=10) as connection:
            backend = connection.info.backend_pid
            os.kill(backend, signal.SIGSTOP)
            killed.kill()
        waits = threading.Event()
        look = EmbeddedPostgres._is_worked_in

        def looked(self: EmbeddedPostgres) -> bool:
            found = look(self)
            if found:
                waits.set()
            return found

        monkeypatch.setattr(EmbeddedPostgres, "_is_worked_in", looked)
        with ThreadPoolExecutor(1) as pool:
            preparing = pool.submit(server.prepare)
            try:
                assert waits.wait(DEADLINE_S)
            finally:
                os.kill(backend, signal.SIGCONT)
            preparing.result(DEADLINE_S)
        again = server.process().start()
        try:
            psycopg.connect(server.url, connect_timeout=10).close()
        finally:
            again.stop()


def _server(directory: Path) -> EmbeddedPostgres:
    port = Ports(directory / "ports.json", "127.0.0.1").take("postgres")
    return EmbeddedPostgres(directory / "pg", directory / "pg.log", host="127.0.0.1", port=port)
