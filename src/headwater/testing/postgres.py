"""A private PostgreSQL: its own data directory and port, and gone at the end. For tests, of ours and everybody else's.

    with PostgresServer(directory) as server:
        server.execute("CREATE TABLE t (id int PRIMARY KEY)")
        source = server.url

PostgreSQL refuses to run as root; then it runs as the user `postgres` or `nobody`, to whom the directory is given. A
directory that this user cannot reach, as pytest's are, is replaced by one in the system's, removed at the end.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from headwater.drivers.postgres import connect, execute

SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "40",
    "max_prepared_transactions": "20",
    "max_connections": "120",
    "shared_buffers": "128MB",
    "logical_decoding_work_mem": "64MB",
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # a test stops the server, or kills it; not the machine
    "timezone": "Asia/Qatar",  # +03:00: who mixes up zones is found out (F24)
    "log_min_messages": "warning",
}

PORTS = range(20_000, 32_000)


OLDEST = 13
"""The first major version that log capture knows."""


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are: where `HEADWATER_TEST_POSTGRES` says, or else the newest of Debian's places,
    or else on the search path. Raises `FileNotFoundError` where the variable names a directory without them."""
    if named := os.environ.get("HEADWATER_TEST_POSTGRES"):
        if not _version(Path(named)):
            raise FileNotFoundError(f"HEADWATER_TEST_POSTGRES is {named}, which holds no `initdb` that runs")
        return Path(named)
    on_path = shutil.which("initdb")
    places = sorted(map(Path, glob.glob("/usr/lib/postgresql/*/bin")), key=_version, reverse=True)
    places += [Path(on_path).parent] if on_path else []
    return next((place for place in places if _version(place) >= OLDEST), None)


@functools.cache
def _version(place: Path) -> int:
    """The major version of the `initdb` there; 0 where none runs."""
    try:
        said = subprocess.run([str(place / "initdb"), "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return 0
    found = re.match(r"initdb \(PostgreSQL\) (\d+)", said)
    return int(found[1]) if found else 0


class PostgresServer:
    """Made by `initdb` in `directory`, started by `with` or `start`. `settings` go over `SETTINGS`."""

    def __init__(
        self, directory: Path, *, settings: Mapping[str, str] | None = None, initdb: Sequence[str] = ()
    ) -> None:
        found = binaries()
        if found is None:
            raise FileNotFoundError(f"no PostgreSQL server, {OLDEST} or newer, is installed: Debian's is `postgresql`")
        self.binaries = found
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.port = _free_port()
        self._settings = {**SETTINGS, **(settings or {})}
        self._user = _unprivileged()
        self.directory = self._reachable(directory)
        self._process: subprocess.Popen[bytes] | None = None
        self._make(initdb)

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str, *, port: int | None = None, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Each in a transaction of its own; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with connect(self.url_of(database), application="headwater tests") as connection:
            for statement in statements:
                rows = execute(connection, statement)
        return rows

    def create_database(self, name: str) -> str:
        """The URL of a new, empty database."""
        with connect(self.url, application="headwater tests") as connection:
            copied = " STRATEGY file_copy" if connection.info.server_version >= 150000 else ""
            execute(connection, f'CREATE DATABASE "{name}"{copied}')
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """With its sessions, prepared transactions and replication slots."""
        for (gid,) in self.execute(f"SELECT gid FROM pg_prepared_xacts WHERE database = '{name}'"):
            self.execute(f"ROLLBACK PREPARED '{gid}'", database=name)
        active = f"FROM pg_replication_slots WHERE database = '{name}' AND active_pid IS NOT NULL"
        deadline = time.monotonic() + 10
        while self.execute(f"SELECT pg_terminate_backend(active_pid) {active}") and time.monotonic() < deadline:
            time.sleep(0.01)
        self.execute(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}'",
            f'DROP DATABASE "{name}" WITH (FORCE)',
        )

    def start(self) -> None:
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        self._process = subprocess.Popen(
            [str(self.binaries / "postgres"), "-D", str(self.directory), "-p", str(self.port), "-k", "", *options],
            stdout=subprocess.DEVNULL,
            stderr=(self.directory.parent / f"{self.directory.name}.log").open("ab"),
            **self._user,
        )
        self._await()

    def stop(self, how: str = "fast") -> None:
        """`fast` ends sessions, `immediate` is a crash; both wait for the end."""
        if self._process is not None:
            self._process.send_signal(
                {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how]
            )
            self._process.wait(60)
            self._process = None

    def restart(self, how: str = "fast") -> None:
        self.stop(how)
        self.start()

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        if self._temporary is not None:
            self._temporary.cleanup()

    def _reachable(self, directory: Path) -> Path:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if not self._user or all(above.stat().st_mode & 0o001 for above in directory.resolve().parents):
            return directory
        self._temporary = tempfile.TemporaryDirectory(prefix="headwater-postgres-", ignore_cleanup_errors=True)
        Path(self._temporary.name).chmod(0o755)
        return Path(self._temporary.name) / "data"

    def _make(self, more: Sequence[str]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._user:
            os.chown(self.directory, self._user["user"], self._user["group"])
        command = ["initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        made = subprocess.run(
            [str(self.binaries / command[0]), *command[1:], "-D", str(self.directory), *more],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            **self._user,
        )
        if made.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed:\n{made.stderr}")

    def _await(self) -> None:
        deadline = time.monotonic() + 60
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        while subprocess.run(ready, check=False).returncode != 0:
            process = self._process
            if process is None or process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory.parent / f"{self.directory.name}.log").read_text(errors="replace")
                raise RuntimeError(f"PostgreSQL did not start:\n{log[-2000:]}")
            time.sleep(0.02)


def _free_port() -> int:
    """Below those that systems give to whoever asks for any (`ip_local_port_range`): it is still free when the server
    starts, and when it starts again."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port of {PORTS.start} to {PORTS.stop - 1} is free")


def _unprivileged() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")
