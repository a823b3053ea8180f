"""Records of large appends in files beside bus.db: durable before they are named, gone once nobody names them."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.buses.embedded import EmbeddedBus, appending, files, restore, schema, store
from headwater.config import BusConfig
from headwater.errors import BusDamaged, BusError, BusFull
from headwater.model import Events, Mapped, Op
from headwater.teardown import _bus as bus_removed
from headwater.testing.buses import (
    OTHER,
    SOURCE,
    STREAM,
    Bench,
    commits_of,
    declaration,
    events,
    numbered,
    position,
    rows_of,
)

SIZE = 20_000
"""Bytes of one large append, about."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "FILE_BYTES", 10_000)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench("embedded", str(tmp_path)) as bench:
        yield bench


def opened(bench: Bench, **retention: Any) -> EmbeddedBus:
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration(STREAM, groups=["billing"], retention=retention), declaration(OTHER)])
    return bus


def noise(commit: int, stream: str = STREAM, size: int = SIZE) -> Events:
    """One event that does not compress."""
    return events([{"id": commit, "name": os.urandom(size // 2).hex(), "commit": commit}], stream)


def append(bus: EmbeddedBus, commit: int, *parts: Events) -> None:
    bus.append(Mapped(parts or [noise(commit)]), source=SOURCE, position=position(commit))


def reopened(bench: Bench) -> EmbeddedBus:
    closed(bench)
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    return bus


def closed(bench: Bench) -> None:
    bench.__exit__()
    bench._open.clear()


def upkeep(bus: EmbeddedBus) -> None:
    while bus.maintain():
        pass
    assert bus.check() == []


def everything(bus: EmbeddedBus, stream: str = STREAM) -> list[Any]:
    return rows_of(bus.read(stream, after=None, follow=False))


def sizes(bus: EmbeddedBus) -> list[int]:
    return [files.path_of(bus.path, number).stat().st_size for number in files.numbers(bus.path)]


def in_files(bus: EmbeddedBus) -> int:
    with bus._store.snapshot() as connection:
        return len(files.in_files(connection))


# appending


def test_large_appends_lie_in_a_file_and_small_ones_in_sqlite(bench: Bench) -> None:
    bus = opened(bench)
    append(bus, 0, numbered(0))
    assert sizes(bus) == []
    append(bus, 1, noise(1), noise(1, OTHER), numbered(1, stream=OTHER))
    append(bus, 2)
    (size,) = sizes(bus)
    assert size == sum(state.nbytes for state in bus.streams().values()) - _blob_bytes(bus)
    assert in_files(bus) == 3  # the piece of two events of the other stream is one segment
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [0, 1, 2]
    assert commits_of(bus.read(OTHER, after=None, follow=False)) == [1, 1]
    assert bus.check() == []


def _blob_bytes(bus: EmbeddedBus) -> int:
    with bus._store.snapshot() as connection:
        return int(connection.execute("SELECT sum(length(data)) FROM records").fetchone()[0])


def test_a_file_is_durable_before_it_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = opened(bench)
    seen: list[str] = []

    def recorded(what: str, call: Any) -> Any:
        def told(*arguments: Any) -> Any:
            seen.append(what)
            return call(*arguments)

        return told

    for what, name in {"write": "pwrite", "file": "fdatasync", "directory": "fsync"}.items():
        monkeypatch.setattr(os, name, recorded(what, getattr(os, name)))
    monkeypatch.setattr(store, "failpoint", seen.append)
    append(bus, 0)
    append(bus, 1, noise(1), noise(1, OTHER))
    append(bus, 2, numbered(2))
    commit = ["bus.write.before_commit", "bus.write.after_commit"]
    assert seen == ["directory", "write", "file", "directory", *commit, "write", "write", "file", *commit, *commit]


def test_an_append_may_need_several_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 2 * SIZE)
    monkeypatch.setattr("headwater.buses.embedded.segments.PIECE_BYTES", SIZE)
    bus = opened(bench)
    append(bus, 9, *(noise(commit) for commit in range(10)))
    assert len(sizes(bus)) > 3
    assert max(sizes(bus)) < 4 * SIZE
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(10))
    assert bus.check() == []


def test_a_new_appender_begins_a_new_file(bench: Bench) -> None:
    append(opened(bench), 0)
    bus = reopened(bench)
    append(bus, 1)
    assert len(sizes(bus)) == 2
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [0, 1]


def test_bytes_that_nothing_names_are_removed_at_the_start(bench: Bench) -> None:
    bus = opened(bench)
    append(bus, 0)
    before, size = everything(bus), sizes(bus)
    closed(bench)
    with open(files.path_of(bus.path, 1), "ab") as file:
        file.write(b"the end of an append that a crash cut off")
    files.path_of(bus.path, 2).write_bytes(b"a file that it had begun")
    bus = reopened(bench)
    assert sizes(bus) == size
    assert everything(bus) == before


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_beneath_a_file(bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    bus = opened(bench)
    append(bus, 0)
    before, size = everything(bus), sizes(bus)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        for _ in range(3):
            with pytest.raises(BusFull, match="segments/0.*No space left.*nothing of this step was kept") as error:
                append(bus, 1)
    assert "df -h" in error.value.hint
    assert everything(bus) == before
    assert sizes(bus) == size
    append(bus, 1)
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [0, 1]
    assert bus.check() == []


def test_an_append_beyond_a_limit_leaves_no_bytes(bench: Bench) -> None:
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration(retention={"max_bytes": 3 * SIZE})])
    append(bus, 0)
    size = sizes(bus)
    with pytest.raises(BusFull, match="has reached its limit"):
        append(bus, 9, *(noise(commit) for commit in range(1, 9)))
    assert sizes(bus) == size


# space comes back


def test_dropped_segments_give_their_space_back(bench: Bench) -> None:
    bus = opened(bench, until_consumed=True)
    for commit in range(5):
        append(bus, commit)
    bus = reopened(bench)
    (*_, last) = bus.read(STREAM, after=None, follow=False)
    assert last.cursor is not None
    bus.commit("billing", STREAM, last.cursor)
    upkeep(bus)
    assert bus.streams()[STREAM].nbytes == 0
    assert sizes(bus) == []


def test_a_dropped_stream_gives_its_space_back(bench: Bench) -> None:
    append(opened(bench), 0)
    bus = reopened(bench)
    bus.drop(STREAM)
    upkeep(bus)
    assert sizes(bus) == []


def test_compaction_gives_its_space_back(bench: Bench) -> None:
    bus = opened(bench, compacted=True)
    for commit in range(6):
        rows = [{"id": 1, "name": os.urandom(SIZE).hex(), "commit": commit, "op": Op.UPDATE}]
        append(bus, commit, events(rows))
    bus = reopened(bench)
    append(bus, 9, numbered(9))
    (*_, last) = bus.read(STREAM, after=None, follow=False)
    assert last.cursor is not None
    bus.commit("billing", STREAM, last.cursor)
    upkeep(bus)
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [5, 9]
    assert sizes(bus) == []


@pytest.mark.parametrize("comes_first", [True, False])
def test_a_little_of_one_stream_does_not_keep_much_of_another(bench: Bench, comes_first: bool) -> None:
    """What lies behind it is cut off; if much lies before it, it moves into SQLite."""
    bus = opened(bench, until_consumed=True)
    much, little = [noise(commit) for commit in range(3)], noise(0, OTHER)
    append(bus, 0, *([little, *much] if comes_first else [*much, little]))
    bus = reopened(bench)
    kept = everything(bus, OTHER)
    upkeep(bus)
    assert len(sizes(bus)) == 1
    (*_, last) = bus.read(STREAM, after=None, follow=False)
    assert last.cursor is not None
    bus.commit("billing", STREAM, last.cursor)
    upkeep(bus)
    assert sum(sizes(bus)) == (bus.streams()[OTHER].nbytes if comes_first else 0)
    assert everything(bus, OTHER) == kept


def test_a_file_stays_while_somebody_reads_an_older_state(bench: Bench) -> None:
    append(opened(bench), 0)
    bus = reopened(bench)
    other = bench.open(append=False)
    assert isinstance(other, EmbeddedBus)
    with other._store.snapshot() as connection:
        assert len(files.in_files(connection)) == 1
        bus.drop(STREAM)
        upkeep(bus)
        assert len(sizes(bus)) == 1
        found = connection.execute("SELECT file, place, nbytes FROM segment").fetchone()
        assert len(files.read(bus.path, files.Place(*found[:2]), found[2], "")) == found[2]
    upkeep(bus)
    assert sizes(bus) == []


def test_a_reader_goes_on_while_files_come_and_go(bench: Bench) -> None:
    bus = opened(bench, until_consumed=True)
    other = bench.open(append=False)
    seen: list[int] = []
    reading = other.read(STREAM, after=None, follow=True)
    for commit in range(5):
        append(bus, commit)
        part = next(reading)
        seen += commits_of([part])
        assert part.cursor is not None
        other.commit("billing", STREAM, part.cursor)
        upkeep(bus)
    reading.close()  # type: ignore[attr-defined]
    assert seen == list(range(5))


# damage


def _cut(path: Path) -> None:
    os.truncate(path, 5)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (_flip, "the checksum does not match"),
        (_cut, "the file ends at 5, before"),
        (Path.unlink, "the file is missing"),
    ],
)
def test_a_damaged_file_is_named(bench: Bench, harm: Any, found: str) -> None:
    bus = opened(bench)
    append(bus, 0)
    path = files.path_of(bus.path, 1)
    harm(path)
    with pytest.raises(BusDamaged, match=f"stream `{STREAM}`, offsets 0 to 0, {path}: {found}") as error:
        everything(bus)
    assert "headwater restore" in error.value.hint
    assert any(found in problem and str(path) in problem for problem in bus.check())
    bus.close()
    bench._open.clear()
    again = bench.open()  # it opens, so that the rest can be read
    with pytest.raises(BusDamaged, match=found):
        list(again.read(STREAM, after=None, follow=False))


@pytest.mark.parametrize("remover", [restore, None])
def test_files_without_their_bus_are_not_swept_away(bench: Bench, tmp_path: Path, remover: Any) -> None:
    bus = opened(bench)
    append(bus, 0)
    bus.backup(tmp_path / "copy")
    closed(bench)
    bus.path.unlink()
    with pytest.raises(BusDamaged, match=r"bus\.db is missing, but its events are in segments"):
        remover(tmp_path / "copy", bus.directory) if remover else bench.open()
    assert len(sizes(bus)) == 1


# copies and formats


def test_a_backup_is_one_file(bench: Bench, tmp_path: Path) -> None:
    bus = opened(bench)
    append(bus, 0)
    append(bus, 1, numbered(1))
    before = everything(bus)
    bus.backup(tmp_path / "copies" / "one")
    assert os.listdir(tmp_path / "copies") == ["one"]
    restored(tmp_path / "copies" / "one", tmp_path, before)


def test_a_bus_that_was_copied_as_it_lay_is_restored_from_its_files(bench: Bench, tmp_path: Path) -> None:
    bus = opened(bench)
    append(bus, 0)
    before = everything(bus)
    closed(bench)
    restored(bus.path, tmp_path, before)
    shutil.rmtree(bus.directory / store.DIRECTORY)
    with pytest.raises(BusDamaged, match="the file is missing"):
        restore(bus.path, tmp_path / "third")
    assert not (tmp_path / "third" / "bus.db").exists()


def restored(path: Path, tmp_path: Path, before: list[Any]) -> None:
    restore(path, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / store.DIRECTORY).exists()
    with Bench("embedded", str(tmp_path)) as other:
        again = other._factory(
            config=BusConfig(url="embedded:elsewhere"), pipeline="p", directory=str(tmp_path), append=True
        )
        assert isinstance(again, EmbeddedBus)
        assert everything(again) == before
        assert again.check() == []
        append(again, 7)
        assert len(everything(again)) == len(before) + 1
        again.close()


def _as_format_1(path: Path) -> None:
    """As the format was before there were files; with a piece of a large append that a crash cut off."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DROP INDEX segment_file")
        for column in ("file", "place"):
            connection.execute(f"ALTER TABLE segment DROP COLUMN {column}")
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(segment)")]
        others = ", ".join(name for name in columns if name not in ("id", "base", "next"))
        connection.execute(
            f"INSERT INTO segment (base, next, {others}) SELECT base + 100, next + 100, {others} FROM segment LIMIT 1"
        )
        connection.execute("INSERT INTO records SELECT max(segment) + 1, data FROM records")
        connection.execute("PRAGMA user_version=1")
    connection.close()


@pytest.mark.parametrize("way", ["opened", "restored"])
def test_a_bus_of_format_1_goes_on(bench: Bench, tmp_path: Path, way: str) -> None:
    bus = opened(bench)
    append(bus, 0, numbered(0))
    append(bus, 1, numbered(1))
    before = everything(bus)
    closed(bench)
    _as_format_1(bus.path)
    if way == "restored":
        return restored(bus.path, tmp_path, before)
    with pytest.raises(BusDamaged, match=f"older format 1, and {schema.FORMAT} is expected"):
        bench.open(append=False)
    bus = reopened(bench)
    assert everything(bus) == before
    assert bus.check() == []
    append(bus, 2)
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == [0, 1, 2]
    assert len(sizes(bus)) == 1
    return None


def test_destroying_a_bus_removes_its_files(bench: Bench) -> None:
    bus = opened(bench)
    append(bus, 0)
    closed(bench)
    bus_removed(bus.directory)
    assert not bus.directory.exists()
    with pytest.raises(BusError, match="there is no bus"):
        bench.open(append=False)
