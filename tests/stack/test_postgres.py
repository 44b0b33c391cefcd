"""The embedded PostgreSQL: its user when it runs as root, and its start after it was killed."""

import os
import pwd
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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
def test_made_by_several_at_once() -> None:
    """Stacks that start together on a new machine make one user, and none of them fails."""
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(postgres._make_system_user, [NAME] * 6))
        assert pwd.getpwnam(NAME).pw_uid > 0
    finally:
        subprocess.run(["userdel", NAME], check=False, capture_output=True, timeout=30)


@pytest.mark.outage
def test_what_a_killed_server_has_left_is_waited_for() -> None:
    """A new server waits until the backends of a killed one have ended."""
    waits = threading.Event()

    def pause(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    with temporary_directory() as directory:
        port = Ports(directory / "ports.json", "127.0.0.1").take("postgres")
        server = EmbeddedPostgres(directory / "pg", directory / "pg.log", host="127.0.0.1", port=port, pause=pause)
        server.prepare()
        killed = server.process().start()
        with psycopg.connect(server.url, connect_timeout=10) as connection:
            backend = connection.info.backend_pid
            os.kill(backend, signal.SIGSTOP)
            killed.kill()
        assert not waits.is_set()
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
