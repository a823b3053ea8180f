"""The embedded bus on a disk that is full: nothing of the append is kept, and it goes on once there is space."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headwater.buses.embedded import EmbeddedBus, files
from headwater.errors import BusError
from headwater.faults import set_failpoints
from headwater.model import Mapped
from headwater.testing.buses import SOURCE, STREAM, Bench, commits_of, declaration, events, position


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench("embedded", str(tmp_path)) as bench:
        yield bench


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six megabytes."""
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


def _noise(commit: int, size: int) -> Mapped:
    """Events that do not compress."""
    return Mapped([events([{"id": commit, "name": os.urandom(size // 2).hex(), "commit": commit}])])


def _fill_up(bus: EmbeddedBus, free: Callable[[], object]) -> None:
    def forever() -> None:
        for commit in range(1000):
            bus.append(_noise(commit, 200_000), source=SOURCE, position=position(commit))

    with pytest.raises(BusError, match=r"bus\.db.*nothing of this step was kept") as full:
        forever()
    assert "df -h" in full.value.hint
    last = bus.position(SOURCE)
    assert last is not None
    commit = last.commit + 1
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(commit))
    free()
    bus.append(_noise(commit, 200_000), source=SOURCE, position=position(commit))
    assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(commit + 1))
    assert bus.check() == []


@pytest.mark.needs("root")
def test_a_full_disk_keeps_nothing_of_the_append_and_goes_on(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 2**21)
    with Bench("embedded", str(small_disk)) as bench:
        bus = bench.open()
        assert isinstance(bus, EmbeddedBus)
        bus.declare([declaration()])
        _fill_up(bus, ballast.unlink)


@pytest.mark.needs("root")
def test_a_full_disk_in_the_middle_of_a_large_append(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.buses.embedded.appending.FILE_BYTES", 300_000)
    with Bench("embedded", str(small_disk)) as bench:
        bus = bench.open()
        assert isinstance(bus, EmbeddedBus)
        bus.declare([declaration()])
        bus.append(_noise(0, 1000), source=SOURCE, position=position(0))
        large = (part for commit in range(1, 200) for part in _noise(commit, 100_000).events)
        with pytest.raises(BusError, match="nothing of this step was kept"):
            bus.append(Mapped(large), source=SOURCE, position=position(199))
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [0]
        bus.append(_noise(1, 1000), source=SOURCE, position=position(1))
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == [0, 1]
        assert bus.position(SOURCE) == position(1)
        assert bus.check() == []


@pytest.mark.needs("root")
def test_bytes_that_nothing_names_wait_until_there_is_space(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing them needs SQLite's log folded back, and that may need space."""
    monkeypatch.setattr("headwater.buses.embedded.appending.FILE_BYTES", 300_000)
    with Bench("embedded", str(small_disk)) as bench:
        bus = bench.open()
        assert isinstance(bus, EmbeddedBus)
        bus.declare([declaration()])
        for commit in range(8):
            bus.append(_noise(commit, 200_000), source=SOURCE, position=position(commit))
        with pytest.raises(OSError, match="before_commit"), failing("bus.write.before_commit"):
            bus.append(_noise(8, 400_000), source=SOURCE, position=position(8))
        (left,) = files.numbers(bus.path)
        ballast = small_disk / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            while (free := shutil.disk_usage(small_disk).free) > 0:
                file.write(bytes(min(free, 2**16)))
        while bus.maintain():
            pass
        assert files.numbers(bus.path) == [left]
        ballast.unlink()
        while bus.maintain():
            pass
        assert files.numbers(bus.path) == []
        assert commits_of(bus.read(STREAM, after=None, follow=False)) == list(range(8))


@contextlib.contextmanager
def failing(point: str) -> Iterator[None]:
    set_failpoints(f"{point}=error:1:1")
    try:
        yield
    finally:
        set_failpoints("")


def test_a_file_that_may_grow_no_more(bench: Bench) -> None:
    """The same for everybody: SQLite's own limit on pages makes it answer as a full disk does (SQLITE_FULL)."""
    bus = bench.open()
    assert isinstance(bus, EmbeddedBus)
    bus.declare([declaration()])
    bus._store._writer.execute("PRAGMA max_page_count=150")
    _fill_up(bus, lambda: bus._store._writer.execute("PRAGMA max_page_count=100000"))
