"""kill -9 between any two durable steps: what is found afterwards is a whole number of appends, each exactly once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.buses.embedded import EmbeddedBus, appending, files
from headwater.faults import set_failpoints
from headwater.model import Events, Mapped, Op
from headwater.testing.buses import OTHER, SOURCE, STREAM, position, rows_of
from tests.integration import embedded_writer as writer

FAILPOINTS = {
    "bus.append.*": 0.02,
    "bus.settle.*": 0.2,
    "bus.write.*": 0.02,
    "bus.rewrite.*": 0.1,
    "bus.file.*": 0.02,
    "bus.purge.*": 0.7,
    "bus.create.*": 0.7,
    "bus.*": 0.02,
}
"""How probable death is at each; fitting to how often they are passed."""


class Nursery:
    """Runs writers in processes of their own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, writer.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, directory: Path, failpoints: str, seed: int) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{directory}\t{failpoints}\t{seed}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.mark.crash
@pytest.mark.parametrize("failpoints", FAILPOINTS)
def test_f1_f6_a_killed_appender_leaves_whole_appends(nursery: Nursery, tmp_path: Path, failpoints: str) -> None:
    kills = 0
    directory = tmp_path / "0"
    for seed in range(1, 100):
        probability = FAILPOINTS[failpoints] if seed < 25 else 0
        status = nursery.run(directory, f"{failpoints}=kill:{probability}", seed)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        if (directory / "bus" / "bus.db").exists():
            found = writer.opened(str(directory))
            try:
                check(found)
            finally:
                found.close()
        if status == 0 and kills:
            return
        if status == 0:
            directory = tmp_path / str(seed)
    pytest.fail(f"{kills} kills, and it never came to its end")


def check(bus: EmbeddedBus) -> None:
    assert bus.check() == []
    if STREAM not in bus.streams():
        return
    last = bus.position(SOURCE)
    done = range(last.commit + 1 if last else 0)
    expected = [row for number in done for part in writer.batch(number) for row in part.data.to_pylist()]
    found = rows_of(bus.read(STREAM, after=None, follow=False))
    assert found == list(enumerate(expected))
    assert [(placed.note.text) for placed in bus.notes(STREAM)] == [str(n) for n in done if n % 11 == 0]
    assert [row.got for row in bus.rejected()] == [str(n) for n in done if n % 9 == 0]
    mapped = [row["_commit"] for _, row in rows_of(bus.read(OTHER, after=None, follow=False))]
    parked = [part.data.column("_commit")[0].as_py() for _, part in bus.parked(OTHER)]
    assert mapped + parked == [n for n in done if writer.is_parked(n)]
    check_stock(bus, done)


def check_stock(bus: EmbeddedBus, done: range) -> None:
    """The compacted stream folds to the state that the whole of it would."""
    state = {}
    for number in done:
        (row,) = writer.stock(number).data.to_pylist()
        state[row["id"]] = row
    found = {}
    for _, row in rows_of(bus.read(writer.COMPACTED, after=None, follow=False)):
        found[row["id"]] = row
    live = {key: row for key, row in state.items() if row["_op"] != Op.DELETE}
    assert {key: row for key, row in found.items() if row["_op"] != Op.DELETE} == live
    assert bus.streams()[writer.COMPACTED].head == len(done)


@pytest.mark.crash
def test_a_failpoint_that_raises_leaves_nothing_of_the_append(tmp_path: Path) -> None:
    bus = writer.opened(str(tmp_path))
    try:
        writer.write(bus)
        for point in ("append.encoded", "append.heads_moved", "append.before_position", "append.before_commit"):
            set_failpoints(f"bus.{point}=error:1:1")
            with pytest.raises(OSError, match=point):
                bus.append(writer.mapped(writer.BATCHES), source=SOURCE, position=position(writer.BATCHES))
            check(bus)
    finally:
        set_failpoints("")
        bus.close()


@pytest.mark.parametrize(
    "point", ["file.made", "file.written", "file.synced", "append.before_commit", "write.before_commit"]
)
def test_what_a_failed_large_append_wrote_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(appending, "FILE_BYTES", 500)
    monkeypatch.setattr(files, "MOST_BYTES", 3_000)
    bus = writer.opened(str(tmp_path))
    try:
        writer.write(bus)
        before = files_of(bus)
        assert before
        for left in (1, 3):
            set_failpoints(f"bus.{point}=error:{1 / left}:1", seed=left)
            with pytest.raises(OSError, match=point):
                bus.append(Mapped(large()), source=SOURCE, position=position(200))
            set_failpoints("")
            check(bus)
        while bus.maintain():
            pass
        assert named(bus) == files_of(bus)
        bus.append(writer.mapped(writer.BATCHES), source=SOURCE, position=position(writer.BATCHES))
        check(bus)
    finally:
        set_failpoints("")
        bus.close()


def test_a_source_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "FILE_BYTES", 500)
    monkeypatch.setattr(files, "MOST_BYTES", 3_000)
    bus = writer.opened(str(tmp_path))
    try:
        writer.write(bus)
        before = sizes(bus)

        def broken() -> Iterator[Events]:
            yield from large()
            assert sizes(bus) != before
            raise OSError("the source went away")

        with pytest.raises(OSError, match="went away"):
            bus.append(Mapped(broken()), source=SOURCE, position=position(200))
        assert sizes(bus) == before
        check(bus)
    finally:
        bus.close()


def large() -> Iterator[Events]:
    for number in range(100, 140):
        yield from writer.batch(number)
        yield writer.stock(number)


def sizes(bus: EmbeddedBus) -> dict[int, int]:
    return {number: files.path_of(bus.path, number).stat().st_size for number in files.numbers(bus.path)}


def files_of(bus: EmbeddedBus) -> list[int]:
    return files.numbers(bus.path)


def named(bus: EmbeddedBus) -> list[int]:
    with bus._store.snapshot() as connection:
        rows = connection.execute("SELECT DISTINCT file FROM segment WHERE file IS NOT NULL ORDER BY file").fetchall()
    return [number for (number,) in rows]
