"""SQLite connections: the only way in which Headwater's sources and sinks touch a SQLite file.

One library per process: closing a file through another copy of SQLite drops this process's locks on it (POSIX,
fcntl(2)), so both engines behind `Connection` call the very library that Python's `sqlite3` is linked to.
Transactions are explicit. A missing file is an error unless `create` is given.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa

from headwater.drivers.sqlite_errors import ConstraintError, Interrupted, StatementError
from headwater.drivers.sqlite_library import engine_module
from headwater.drivers.sqlite_stdlib import Parameters, StdlibEngine
from headwater.drivers.sqlite_values import VARIANT, check_physical
from headwater.errors import ConfigError, SourceError

__all__ = [
    "VARIANT",
    "Connection",
    "ConstraintError",
    "Interrupted",
    "StatementError",
    "path_of",
    "quoted",
]

Mode = Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"]


class Rows(Protocol):
    """One running statement."""

    def fetch(self, rows: int) -> pa.RecordBatch | None: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """What `Connection` needs of a binding to the library. Errors are those of `sqlite_errors.error_of`."""

    native: bool

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, sql: str, parameters: Parameters) -> list[tuple[Any, ...]]: ...
    def open(self, sql: str, parameters: Parameters, columns: pa.Schema) -> Rows: ...
    def write(self, sql: str, batch: pa.RecordBatch) -> int: ...
    def limit(self, seconds: float | None) -> None: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...


class Connection:
    """One connection; used by one thread at a time, but for `interrupt`.

    `busy_timeout` and `statement_timeout` are seconds. The latter bounds the time that SQLite itself works on one
    statement, not the time that the caller takes between two batches. `readonly` refuses every statement that writes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        readonly: bool = False,
        create: bool = False,
        busy_timeout: float = 5.0,
        statement_timeout: float | None = None,
    ) -> None:
        self.path = path_of(path)
        self._statement_timeout = statement_timeout
        self._closing = threading.Lock()
        self._closed = False
        if not create:
            _must_exist(self.path)
        mode = (
            "rwc" if create else "rw"
        )  # `ro` could neither roll back a crashed writer's journal nor make a WAL's -shm
        self._engine = _engine(f"file:{quote(str(self.path))}?mode={mode}", str(self.path), busy_timeout)
        try:
            self.schema_version()  # the file is first looked at here: locked, not a database
            if readonly:
                self.execute("PRAGMA query_only = ON")
        except BaseException:
            self.close()
            raise

    @property
    def in_transaction(self) -> bool:
        return self._engine.in_transaction

    def execute(self, sql: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return all its rows: for small results. TEXT that is not UTF-8 comes as bytes."""
        with self._limited(_Budget(self._statement_timeout)):
            return self._engine.execute(sql, parameters)

    @contextmanager
    def transaction(self, mode: Mode = "DEFERRED") -> Iterator[None]:
        """Commit at the end, roll back on any exception. A commit that fails is rolled back, too."""
        self.execute(f"BEGIN {mode}")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self.in_transaction:  # some errors (disk full) have rolled back already
                self._engine.limit(None)
                self._engine.execute("ROLLBACK", ())
            raise

    def read(self, sql: str, parameters: Parameters, columns: pa.Schema, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Rows as record batches of `columns`, which are physical types; see `sqlite_values`.

        At most `rows` rows each, fewer when they are wide. A batch in which a value does not fit its column has a
        trailing `_invalid`. Until the iterator is exhausted or closed the statement keeps its read lock.
        """
        check_physical(columns)
        budget = _Budget(self._statement_timeout)
        with self._limited(budget):
            running = self._engine.open(sql, parameters, columns)
        with closing(running):
            while True:
                with self._limited(budget):
                    batch = running.fetch(rows)
                if batch is None:
                    return
                yield batch

    def write_batch(self, sql: str, batch: pa.RecordBatch) -> int:
        """Run `sql` once for each row, its parameters bound to the row's columns in order; return the rows changed.

        Columns are of integer, boolean, floating point, string or binary types; convert others first. Belongs inside a
        `transaction`: on an exception some rows have been written.
        """
        with self._limited(_Budget(self._statement_timeout)):
            return self._engine.write(sql, batch)

    def data_version(self) -> int:
        """Differs from an earlier value if, and only if, another connection has committed since."""
        return int(self.execute("PRAGMA data_version")[0][0])

    def schema_version(self) -> int:
        return int(self.execute("PRAGMA schema_version")[0][0])

    def interrupt(self) -> None:
        """Make the running statement raise `Interrupted`; from any thread."""
        with self._closing:
            if not self._closed:
                self._engine.interrupt()

    def close(self) -> None:
        with self._closing:
            if not self._closed:
                self._closed = True
                self._engine.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _limited(self, budget: _Budget) -> Iterator[None]:
        if budget.left is None:
            yield
            return
        started = time.monotonic()
        self._engine.limit(budget.left)
        try:
            yield
        except Interrupted as error:
            if time.monotonic() - started < budget.left:
                raise
            raise StatementError(
                f"{self.path}: a statement took longer than its statement timeout of {self._statement_timeout:g} s",
                code=error.code,
                hint="raise `statement_timeout`, lower `page_size`, or index the columns that it compares",
            ) from error
        finally:
            budget.left = max(0.0, budget.left - (time.monotonic() - started))
            self._engine.limit(None)


class _Budget:
    """What is left of one statement's time."""

    def __init__(self, left: float | None) -> None:
        self.left = left


def _engine(uri: str, path: str, busy_timeout: float) -> Engine:
    module = engine_module()
    if module is None:
        return StdlibEngine(uri, path, busy_timeout)
    engine: Engine = module.NativeEngine(uri, path, busy_timeout)
    return engine


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    if "\0" in name:
        raise SourceError(f"name {name!r}: SQLite names cannot hold a NUL")
    return '"' + name.replace('"', '""') + '"'


def path_of(url: str | Path, directory: str | Path | None = None) -> Path:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`, or a plain path; relative ones start at `directory`."""
    text = str(url)
    if text.lower().startswith("sqlite:"):
        text = _path_in(text)
    path = Path(text).expanduser()
    return (Path(directory) / path if directory is not None else path).absolute()


def _path_in(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or len(parts.path) < 2 or parts.query or parts.fragment:
        raise ConfigError(
            f"`{url}` is no SQLite URL",
            hint="write sqlite:///file.db for a relative path, sqlite:////path/to/file.db for an absolute one",
        )
    return unquote(parts.path[1:])


def _must_exist(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise SourceError(f"{path} is a directory; a SQLite database file is expected")
    raise SourceError(f"there is no database file {path}", hint=_near(path))


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"its folder {path.parent} does not exist either"
    files = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    near = difflib.get_close_matches(path.name, files, 1, 0.4)
    databases = [name for name in files if name.endswith((".db", ".sqlite", ".sqlite3"))][:5]
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"databases in {path.parent}: {', '.join(databases)}" if databases else "check the path in the source's URL"
