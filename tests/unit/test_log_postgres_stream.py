"""What wakes the thread that waits for the log, and how much of the log it waits for."""

from __future__ import annotations

import os
import select
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from headwater.sources.log_postgres import log, units
from headwater.sources.log_postgres.log import Log
from headwater.sources.log_postgres.stream import Bell, Chunk
from headwater.sources.log_postgres.units import Whole
from headwater.testing.buses import finished, in_thread


def _rings(bell: Bell) -> bool:
    poll = select.poll()
    poll.register(bell.fileno, select.POLLIN)
    return bool(poll.poll(0))


def test_a_bell_wakes_whoever_polls_it_until_it_was_heard() -> None:
    bell = Bell()
    assert not _rings(bell)
    assert not bell.heard()
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    assert _rings(bell)
    assert bell.heard()
    assert not _rings(bell)
    bell.ring()
    assert bell.heard()
    bell.close()


def test_a_bell_that_is_closed_writes_nothing_into_the_files_that_have_its_numbers_now(tmp_path: Path) -> None:
    bell = Bell()
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    bell.close()
    files = [os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY) for number in range(8)]
    try:
        assert not before or before & set(map(str, files)), "the numbers were not given anew: this shows nothing"
        bell.ring()
        assert [path.stat().st_size for path in tmp_path.iterdir()] == [0] * len(files)
    finally:
        for file in files:
            os.close(file)


def test_a_signal_handler_may_ring_within_a_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    bell, write = Bell(), os.write

    def interrupted(file: int, data: bytes) -> int:
        bell.ring()
        return write(file, data)

    monkeypatch.setattr(os, "write", interrupted)
    finished(in_thread(bell.ring)[0])
    assert bell.heard()
    bell.close()


class _Stream:
    """Gives what it is told to; `waits` of each call."""

    def __init__(self, *chunks: Chunk | None) -> None:
        self.hurried = True
        self.waits: list[tuple[float, int]] = []
        self._chunks = list(chunks)

    def take(self, timeout: float, least: int = 0) -> Chunk | None:
        self.waits.append((timeout, least))
        return self._chunks.pop(0) if self._chunks else None

    def close(self) -> None:
        pass


def _chunk(*messages: bytes, sent: int = 0) -> Chunk:
    frames = [b"w" + struct.pack(">QQq", 0, 0, sent) + message for message in messages]
    return memoryview(b"".join(frames)), np.cumsum([len(frame) for frame in frames]).astype(np.int64)


def _transaction(lsn: int, sent: int = 0) -> Chunk:
    return _chunk(struct.pack(">cQqI", b"B", lsn, 0, 1), struct.pack(">cBQQq", b"C", 0, lsn, lsn + 8, 0), sent=sent)


def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *chunks: Chunk | None) -> tuple[Log, _Stream]:
    stream = _Stream(*chunks)
    monkeypatch.setattr(log, "start", lambda *_, **__: stream)
    monkeypatch.setattr(Log, "_new_decoder", lambda _: None)
    setting = SimpleNamespace(options=SimpleNamespace(origin="any"), directory=str(tmp_path))
    nothing = cast("Any", None)
    return Log(nothing, cast("Any", setting), nothing, (), cast("Any", SimpleNamespace(binary=True))), stream


def _frames(unit: object) -> int:
    assert isinstance(unit, Whole)
    return len(unit.frames)


def test_what_is_new_is_handed_on_at_once_however_densely_more_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stream = _log(tmp_path, monkeypatch, *(_transaction(lsn) for lsn in (8, 16, 24)))
    assert [_frames(made.next(5.0)) for _ in range(3)] == [2, 2, 2]
    assert stream.waits == [(5.0, 0)] * 3


def test_a_transaction_that_is_not_complete_is_not_waited_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, commit = struct.pack(">cQqI", b"B", 8, 0, 1), struct.pack(">cBQQq", b"C", 0, 8, 16, 0)
    made, stream = _log(tmp_path, monkeypatch, _chunk(begin), None, _chunk(commit))
    assert made.next(5.0) is None
    assert _frames(made.next(5.0)) == 2
    assert stream.waits == [(5.0, 0), (0.0, 0), (5.0, 0)]


def test_a_backlog_is_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = units.OLD + 1
    made, stream = _log(tmp_path, monkeypatch, *(_transaction(lsn, old) for lsn in (8, 16)), None)
    assert _frames(made.next(5.0)) == 4
    assert [least for _, least in stream.waits] == [0, log.BATCH_BYTES, log.BATCH_BYTES]
    assert not stream.hurried
