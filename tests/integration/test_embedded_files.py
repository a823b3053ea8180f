"""The bus as files of a host: damage, formats, copies, a full disk, and other processes."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.buses.embedded import EmbeddedBus, lock, open_bus, restore, schema, store
from headwater.config import BusConfig
from headwater.errors import AppenderBusy, BusDamaged, BusError, Busy, ConfigError, CursorMismatch
from headwater.model import Cursor, Mapped, Parked
from headwater.testing.buses import (
    SOURCE,
    STREAM,
    WAIT,
    Bench,
    changes,
    commits_of,
    declaration,
    events,
    finished,
    in_thread,
    numbered,
    position,
    rejected,
    rows_of,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench("embedded", str(tmp_path)) as bench:
        yield bench


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bus" / "bus.db"


def filled(bench: Bench) -> EmbeddedBus:
    """Ten appends of ten events, something parked and something in quarantine."""
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration(groups=["billing"])])
    for commit in range(0, 100, 10):
        rows = [{"id": n, "name": f"name {n} " * 40, "commit": n} for n in range(commit, commit + 10)]
        bus.append(Mapped([events(rows)]), source=SOURCE, position=position(commit))
    bus.append(
        Mapped(parked=(Parked(STREAM, changes(*range(50))),), rejected=(rejected(7, 8),)),
        source=SOURCE,
        position=position(100),
    )
    assert bus.check() == []
    return bus


def closed(bench: Bench) -> None:
    """As another process finds it: folded into one file."""
    bench.__exit__()
    bench._open.clear()


def everything(bus: EmbeddedBus) -> list[Any]:
    return [rows_of(bus.read(STREAM, after=None, follow=False)), list(bus.rejected()), bus.positions()]


# damage


@pytest.mark.parametrize("where", range(1, 20))
def test_a_flipped_bit_is_found_or_harmless(bench: Bench, file: Path, where: int) -> None:
    bus = filled(bench)
    before = everything(bus)
    closed(bench)
    data = bytearray(file.read_bytes())
    data[len(data) * where // 20] ^= 0x10
    file.write_bytes(data)
    try:
        damaged = bench.open()
        assert isinstance(damaged, EmbeddedBus)
        found: list[Any] = everything(damaged)
        problems = damaged.check()
    except BusDamaged as error:
        found, problems = [], [error.message]
    assert found == before or any(str(file) in problem or STREAM in problem for problem in problems)


def _altered(file: Path, sql: str, *values: Any) -> None:
    connection = sqlite3.connect(file)
    with connection:
        assert connection.execute(sql, values).rowcount == 1
    connection.close()


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("UPDATE records SET data = zeroblob(length(data)) WHERE segment = 4", "the checksum does not match"),
        ("DELETE FROM records WHERE segment = 4", "the records are missing"),
        ("UPDATE segment SET next = next + 1, count = count + 1 WHERE id = 4", "the checksum does not match"),
        ("DELETE FROM shape", "cannot be decoded: schema 1 is missing"),
    ],
)
def test_a_damaged_segment_is_named(bench: Bench, file: Path, sql: str, found: str) -> None:
    filled(bench)
    closed(bench)
    _altered(file, sql)
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    with pytest.raises(BusDamaged, match=f"stream `{STREAM}`, offsets .*: {found}") as damage:
        list(bus.read(STREAM, after=None, follow=False, limit=10))
    assert "headwater restore" in damage.value.hint
    assert any(found in problem for problem in bus.check())


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("DELETE FROM segment WHERE base = 30", "a segment begins at offset 40, and 30 is expected"),
        ("DELETE FROM segment WHERE base = 90", "it ends at offset 90, and 100 is expected"),
        ("UPDATE stream SET nbytes = 5", "5 are expected"),
        ("UPDATE segment SET max_time = max_time + 1 WHERE base = 20", "are not those that are noted beside it"),
        ("UPDATE parked SET data = zeroblob(9)", "parked changes 1: the checksum does not match"),
        ("UPDATE refused SET data = zeroblob(9)", "refused changes 1: the checksum does not match"),
        ("UPDATE stream SET rejected = 3", "1 parked and 3 rejected changes are expected, found 1 and 2"),
    ],
)
def test_the_deep_check_compares_what_is_stored_twice(bench: Bench, file: Path, sql: str, found: str) -> None:
    filled(bench)
    closed(bench)
    _altered(file, sql)
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    assert any(found in problem for problem in bus.check()), bus.check()


def test_damaged_waiting_changes_are_refused(bench: Bench, file: Path) -> None:
    filled(bench)
    closed(bench)
    _altered(file, "UPDATE parked SET data = zeroblob(9)")
    _altered(file, "UPDATE refused SET data = zeroblob(9)")
    bus = bench.open()
    with pytest.raises(BusDamaged, match="waiting changes 1"):
        list(bus.parked(STREAM))
    with pytest.raises(BusDamaged, match="waiting changes 1"):
        bus.rejected_changes([1])


@pytest.mark.parametrize("left", [0, 50, 5_000, 0.5, 0.9])
def test_a_file_cut_short_is_refused(bench: Bench, file: Path, left: float) -> None:
    filled(bench)
    closed(bench)
    size = file.stat().st_size
    with open(file, "r+b") as handle:
        handle.truncate(int(left if left > 1 else left * size))
    with pytest.raises(BusDamaged, match=str(file)):
        list(bench.open().read(STREAM, after=None, follow=False))


def test_another_sqlite_file_is_refused(bench: Bench, file: Path) -> None:
    file.parent.mkdir()
    sqlite3.connect(file).execute("CREATE TABLE t (a)").connection.close()
    with pytest.raises(BusDamaged, match="not a Headwater bus"):
        bench.open()


def test_a_missing_file_beside_its_log_is_refused(bench: Bench, file: Path) -> None:
    filled(bench)
    log = file.with_name("bus.db-wal").read_bytes()
    assert log
    closed(bench)
    file.unlink()
    file.with_name("bus.db-wal").write_bytes(log)
    with pytest.raises(BusDamaged, match="its write-ahead log bus.db-wal is there"):
        bench.open()


# formats


def test_a_newer_format_says_upgrade(bench: Bench, file: Path) -> None:
    filled(bench)
    closed(bench)
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version={schema.FORMAT + 1}")
    connection.close()
    with pytest.raises(BusDamaged, match="has format 3, and this Headwater knows formats up to 2") as newer:
        bench.open()
    assert "pip install -U headwater" in newer.value.hint


def test_an_older_format_is_brought_up_to_date(bench: Bench, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(filled(bench))
    closed(bench)
    steps = {2: ("ALTER TABLE note ADD COLUMN author TEXT", "UPDATE note SET author = ''"), 3: ("CREATE TABLE x (a)",)}
    monkeypatch.setattr(schema, "FORMAT", 4)
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    with pytest.raises(BusDamaged, match="older format 2, and 4 is expected"):
        bench.open(append=False)
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    assert everything(bus) == before
    with bus._store.snapshot() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
        assert connection.execute("SELECT count(*) FROM x").fetchone() == (0,)


def test_a_failed_migration_changes_nothing(bench: Bench, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(filled(bench))
    closed(bench)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FORMAT", 3)
        patch.setattr(schema, "MIGRATIONS", {2: ("CREATE TABLE x (a)", "SELECT nonsense FROM nowhere")})
        with pytest.raises(BusError, match="nowhere"):
            bench.open()
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    assert everything(bus) == before


# copies


def test_a_backup_is_one_state_and_comes_back(bench: Bench, tmp_path: Path) -> None:
    bus = filled(bench)
    before = everything(bus)
    copy = tmp_path / "copies" / "one.bus"
    bus.backup(copy)
    bus.append(Mapped([numbered(500)]), source=SOURCE, position=position(500))
    assert [path.name for path in copy.parent.iterdir()] == ["one.bus"]
    with pytest.raises(BusError, match="exists already"):
        bus.backup(copy)
    with pytest.raises(BusError, match="exists already"):
        restore(copy, bus.directory)
    restore(copy, tmp_path / "elsewhere")
    with Bench("embedded", str(tmp_path)) as other:
        again = other._factory(
            config=BusConfig(url="embedded:elsewhere"), pipeline="p", directory=str(tmp_path), append=True
        )
        assert isinstance(again, EmbeddedBus)
        assert everything(again) == before
        assert again.check() == []
        again.close()


def test_a_backup_taken_while_appending_is_whole(bench: Bench, tmp_path: Path) -> None:
    bus = filled(bench)
    stop = threading.Event()

    def work() -> int:
        commit = 1000
        while not stop.is_set():
            bus.append(Mapped([numbered(commit, commit)]), source=SOURCE, position=position(commit))
            commit += 1
        return commit

    thread, result = in_thread(work)
    for number in range(5):
        bus.backup(tmp_path / f"{number}.bus")
    stop.set()
    finished(thread)
    assert isinstance(result[0], int)
    for number in range(5):
        restore(tmp_path / f"{number}.bus", tmp_path / str(number))
        config = BusConfig(url=f"embedded:{number}")
        again = open_bus(config=config, pipeline="p", directory=str(tmp_path), append=True)
        try:
            assert again.check() == []
            last = again.position(SOURCE)
            assert last is not None
            found = commits_of(again.read(STREAM, after=None, follow=False))[100:]
            assert found == [commit for commit in range(1000, last.commit + 1) for _ in range(2)]
        finally:
            again.close()


def test_f83_a_restored_bus_refuses_readers_that_were_ahead(bench: Bench, tmp_path: Path, file: Path) -> None:
    """However far the restored stream has grown by then: offsets beyond the backup mean other events now."""
    bus = filled(bench)
    incarnation = bus.streams()[STREAM].incarnation
    bus.commit("billing", STREAM, Cursor(incarnation, (60,)))
    bus.backup(tmp_path / "copy")
    bus.append(Mapped([numbered(*range(200, 220))]), source=SOURCE, position=position(200))
    closed(bench)
    shutil.rmtree(file.parent)
    restore(tmp_path / "copy", file.parent)
    bus = bench.open()  # type: ignore[assignment]
    bus.append(Mapped([numbered(*range(300, 350))]), source=SOURCE, position=position(300))
    ahead = Cursor(incarnation, (120,))
    with pytest.raises(CursorMismatch, match="120 is ahead .* restored from a backup that ends at 100") as mismatch:
        bus.read(STREAM, after=ahead, follow=False)
    assert "headwater sink rebuild" in mismatch.value.hint
    with pytest.raises(CursorMismatch):
        bus.commit("billing", STREAM, ahead)
    within = Cursor(incarnation, (90,))
    (first, *_) = bus.read(STREAM, after=within, follow=False)
    assert first.after == within
    assert first.cursor is not None
    assert first.cursor.incarnation == bus.streams()[STREAM].incarnation != incarnation
    cursor = bus.cursor("billing", STREAM)
    assert cursor == Cursor(first.cursor.incarnation, (60,))


def test_a_damaged_backup_is_not_restored(bench: Bench, tmp_path: Path) -> None:
    filled(bench).backup(tmp_path / "copy")
    with open(tmp_path / "copy", "r+b") as handle:
        handle.truncate(40_000)
    with pytest.raises(BusDamaged, match="copy"):
        restore(tmp_path / "copy", tmp_path / "new")
    assert not (tmp_path / "new" / "bus.db").exists()
    (tmp_path / "text").write_text("not a backup, but long enough to be looked at" * 30)
    with pytest.raises(BusDamaged, match="text"):
        restore(tmp_path / "text", tmp_path / "new")
    with pytest.raises(BusError, match="there is no backup"):
        restore(tmp_path / "nothing", tmp_path / "new")


# other processes


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_second_appender_is_told_who_the_first_is(bench: Bench, tmp_path: Path) -> None:
    holder = _python(
        """
        import sys
        from headwater.testing.buses import Bench
        with Bench("embedded", sys.argv[1]) as bench:
            bench.open()
            print("open", flush=True)
            sys.stdin.read()
        """,
        str(tmp_path),
    )
    assert _line(holder) == "open"
    with pytest.raises(AppenderBusy, match=f"process {holder.pid} on .* already appends") as busy:
        bench.open()
    assert f"ps -fp {holder.pid}" in busy.value.hint
    assert bench.open(append=False).streams() == {}
    holder.kill()
    holder.communicate()
    bench.open()


def test_f82_a_reader_in_another_process_follows(bench: Bench, tmp_path: Path) -> None:
    bus = bench.open()
    bus.declare([declaration(groups=["billing"])])
    reader = _python(
        """
        import sys
        from headwater.testing.buses import STREAM, Bench, commits_of
        with Bench("embedded", sys.argv[1]) as bench:
            bus = bench.open(append=False)
            for part in bus.read(STREAM, after=bus.cursor("billing", STREAM), follow=True):
                bus.commit("billing", STREAM, part.cursor)
                print(*commits_of([part]), flush=True)
                if 99 in commits_of([part]):
                    break
        """,
        str(tmp_path),
    )
    seen: list[int] = []
    for commit in range(100):
        bus.append(Mapped([numbered(commit)]), source=SOURCE, position=position(commit))
        if commit % 10 == 0:
            while commit not in seen:
                seen += map(int, _line(reader).split())
    while 99 not in seen:
        seen += map(int, _line(reader).split())
    reader.communicate(timeout=WAIT)
    assert seen == list(range(100))
    cursor = bus.cursor("billing", STREAM)
    assert cursor is not None
    assert cursor.offset == 100


def test_any_process_may_pause_resume_release_and_empty_the_quarantine(bench: Bench) -> None:
    bus = filled(bench)
    other = bench.open(append=False)
    other.pause(STREAM, "by hand")
    assert bus.streams()[STREAM].paused == "by hand"
    other.resume(STREAM)
    assert bus.streams()[STREAM].resuming
    other.release("billing", STREAM)
    assert bus.streams()[STREAM].groups == ()
    other.settle(Mapped(), rejected=[row.number for row in other.rejected()])
    assert list(bus.rejected()) == []
    with pytest.raises(BusError, match="not opened for appending"):
        other.declare([declaration()])


# where it lies


def test_nothing_to_read_yet(bench: Bench) -> None:
    with pytest.raises(BusError, match="there is no bus in") as nothing:
        bench.open(append=False)
    assert "headwater run" in nothing.value.hint


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "bus").write_text("a file is in the way")
    with pytest.raises(BusError, match="cannot write in"), Bench("embedded", str(tmp_path)) as bench:
        bench.open()


MOUNTS = """\
21 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
36 21 0:30 / /mnt/share\\040one rw,relatime shared:2 - nfs4 server:/export rw
37 21 0:31 / /mnt/share rw - fuse.sshfs me@host:/ rw
38 36 0:32 / /mnt/share\\040one/local rw - xfs /dev/vdb rw
"""


def test_network_file_systems_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    kinds = {
        path: lock.filesystem(Path(path), str(mounts))
        for path in ("/srv/bus", "/mnt/share one/bus", "/mnt/share/x", "/mnt/share one/local/bus", "/mnt/shared")
    }
    assert list(kinds.values()) == ["ext4", "nfs4", "fuse.sshfs", "xfs", "ext4"]
    assert lock.filesystem(tmp_path, str(tmp_path / "none")) == ""
    monkeypatch.setattr(lock, "filesystem", lambda directory: "nfs4")
    with pytest.raises(BusError, match=r"network file system \(nfs4\)"), Bench("embedded", str(tmp_path)) as bench:
        bench.open()


@pytest.mark.parametrize(
    ("url", "options", "wrong"),
    [
        ("embedded:", {}, "needs a directory"),
        ("embedded:bus", {"codecs": "lz4"}, "unknown option `codecs`"),
        ("embedded:bus", {"codec": "gzip"}, "no codec `gzip`"),
    ],
)
def test_wrong_configuration(tmp_path: Path, url: str, options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        open_bus(config=BusConfig(url=url, options=options), pipeline="p", directory=str(tmp_path), append=True)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_codecs_give_the_same_events(bench: Bench, codec: str) -> None:
    bus = bench.open(options={"codec": codec})
    bus.declare([declaration()])
    bus.append(Mapped([numbered(*range(2_000))]), source=SOURCE, position=position(1))
    (found,) = bus.read(STREAM, after=None, follow=False)
    assert found.data.equals(numbered(*range(2_000)).data)


def test_the_write_lock_held_too_long(bench: Bench, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SETTINGS", ("PRAGMA busy_timeout=50", *store._SETTINGS[1:]))
    bus = filled(bench)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy, match="another process has held the write lock"):
        bus.append(Mapped(), source=SOURCE, position=position(200))
    other.execute("ROLLBACK")
    other.close()
    bus.append(Mapped(), source=SOURCE, position=position(200))


def test_a_large_append_stays_within_bounded_memory(tmp_path: Path) -> None:
    """Far more than its bound is appended in one step from a generator, in a process of its own."""
    process = _python(
        """
        import resource, sys
        import numpy as np, pyarrow as pa
        from headwater.model import Events, Mapped
        from headwater.testing.buses import SOURCE, STREAM, Bench, declaration, numbered, position
        rows, width = 50_000, 100
        schema = numbered(1).data.schema
        def large():
            dice = np.random.default_rng(1)
            for part in range(30):
                letters = pa.py_buffer(dice.integers(33, 127, rows * width, dtype=np.uint8))
                ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * width)
                one, none = pa.array(np.ones(rows)), pa.nulls(rows)
                place = pa.array(np.arange(part * rows, (part + 1) * rows))
                columns = [one, one, place, one, none, none, place, pa.StringArray.from_buffers(rows, ends, letters)]
                arrays = [column.cast(f.type, safe=False) for column, f in zip(columns, schema)]
                yield Events(STREAM, 1, pa.RecordBatch.from_arrays(arrays, schema=schema), source=SOURCE)
        with Bench("embedded", sys.argv[1]) as bench:
            bus = bench.open()
            bus.declare([declaration()])
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            bus.append(Mapped(large()), source=SOURCE, position=position(1))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            state = bus.streams()[STREAM]
            print(state.head, state.nbytes // 2**20, (after - before) // 1024, flush=True)
        """,
        str(tmp_path),
    )
    head, stored, grown = map(int, _line(process).split())
    process.communicate(timeout=WAIT)
    assert head == 30 * 50_000
    assert stored > 150
    assert grown < 140, "megabytes"
