"""Files of one stream's table, on a local disk or on any `pyarrow.fs`: written whole or not at all.

A local file appears by `rename` after `fsync`. An object store's file appears when its upload ends. On other file
systems it is moved into place.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import fs

from headwater.errors import Busy, ConfigError, NotConnected
from headwater.faults import failpoint

OBJECT_STORES = ("s3", "gcs", "abfs")

Fill = Callable[[Any], None]
"""Writes a file's content to a stream."""


def place_of(url: str, directory: str) -> tuple[fs.FileSystem, str]:
    """`parquet:folder` (relative to the configuration), or `parquet:URL` and `parquet+URL` with a `pyarrow.fs` URL."""
    text = url[len("parquet") :].lstrip(":+")
    if not text:
        raise ConfigError(f"`{url}` names no folder", hint="write parquet:lake, or parquet:s3://bucket/lake")
    if "://" not in text:
        return fs.LocalFileSystem(), str((Path(directory) / os.path.expanduser(text)).absolute())
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"`{text}` is no place that pyarrow.fs knows: {error}", hint="file://, s3://, gs://"
        ) from error
    return found


class Store:
    """One folder. Names are relative to it."""

    def __init__(self, system: fs.FileSystem, root: str) -> None:
        self._system = system
        self._root = root
        self.local = isinstance(system, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def bytes(self, name: str) -> bytes | None:
        """The file's content; None if there is no such file."""
        with self._errors():
            try:
                with self._system.open_input_stream(self.path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """The file, to be read at any place; `FileNotFoundError` if there is none."""
        with self._errors():
            stream = self._system.open_input_file(self.path(name))
        with closing(stream):
            yield stream

    def write(self, name: str, fill: Fill) -> None:
        with self._errors():
            if self.local:
                self._write_local(Path(self.path(name)), fill)
            elif self._system.type_name in OBJECT_STORES:
                self._write_at(self.path(name), fill)
            else:
                self._write_at(f"{self.path(name)}.tmp", fill)
                self._system.move(f"{self.path(name)}.tmp", self.path(name))

    def _write_local(self, path: Path, fill: Fill) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            failpoint("sink.parquet.before_rename")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def _write_at(self, path: str, fill: Fill) -> None:
        self._system.create_dir(path.rsplit("/", 1)[0], recursive=True)
        stream = self._system.open_output_stream(path)
        try:
            fill(stream)
        except BaseException:
            stream.abort() if hasattr(stream, "abort") else stream.close()
            raise
        stream.close()

    def remove(self, name: str) -> None:
        with self._errors():
            try:
                self._system.delete_file(self.path(name))
            except FileNotFoundError:
                return

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted."""
        selector = fs.FileSelector(self.path(folder) if folder else self._root, allow_not_found=True)
        with self._errors():
            return sorted(found.base_name for found in self._system.get_file_info(selector) if found.is_file)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """No other writer of this machine within. Elsewhere the manifest's cursor is the only guard."""
        if not self.local:
            yield
            return
        path = Path(self.path(name))
        with self._errors(), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = opened.enter_context(path.open("ab"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"{self._root} is being written by another process", hint="it is tried again") from error
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise NotConnected(
                f"{self._root}: {error}",
                hint="check the place, its permissions and the space left; nothing was written by half",
            ) from error


class Held:
    """A store's files as they were when they were opened: on a local disk they stay so, whatever a writer does."""

    def __init__(self, store: Store, names: Iterable[str], stack: ExitStack) -> None:
        self._store = store
        self._streams = {name: stack.enter_context(store.opened(name)) for name in names}

    def path(self, name: str) -> str:
        return self._store.path(name)

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        self._streams[name].seek(0)
        yield self._streams[name]


class Readable(Protocol):
    """What reading a table needs."""

    def path(self, name: str) -> str: ...
    def opened(self, name: str) -> AbstractContextManager[Any]: ...


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
