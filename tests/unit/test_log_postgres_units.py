"""Frames cut into transactions: what is small, what is large, what comes before its commit, and what is between."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headwater.sources.log_postgres import units
from headwater.sources.log_postgres.position import Place, Progress, place_of
from headwater.sources.log_postgres.snapshot import Snapshot
from headwater.sources.log_postgres.streamed import Streamed
from headwater.sources.log_postgres.units import Stored, Units, Whole
from headwater.wire.pgoutput import Malformed


def _frame(message: bytes, sent: int = 0) -> bytes:
    return b"w" + struct.pack(">QQq", 0, 0, sent) + message


def _keepalive(end: int, reply: bool = False) -> bytes:
    return b"k" + struct.pack(">QqB", end, 0, reply)


def _begin(xid: int, lsn: int) -> bytes:
    return _frame(b"B" + struct.pack(">QqI", lsn, 0, xid))


def _commit(lsn: int, sent: int = 0) -> bytes:
    return _frame(b"C" + struct.pack(">BQQq", 0, lsn, lsn + 8, 0), sent)


def _insert(prefix: bytes = b"", size: int = 10) -> bytes:
    return _frame(b"I" + prefix + struct.pack(">IcHcI", 7, b"N", 1, b"t", size) + b"x" * size)


def _relation(name: str, prefix: bytes = b"") -> bytes:
    columns = struct.pack(">cHB", b"d", 1, 1) + b"id\0" + struct.pack(">Ii", 23, -1)
    return _frame(b"R" + prefix + struct.pack(">I", 7) + b"public\0" + name.encode() + b"\0" + columns)


def _start(xid: int, first: bool = True) -> bytes:
    return _frame(b"S" + struct.pack(">IB", xid, first))


STOP = _frame(b"E")


def _stream_commit(xid: int, lsn: int) -> bytes:
    return _frame(b"c" + struct.pack(">IBQQq", xid, 0, lsn, lsn + 8, 0))


def _abort(xid: int, subxid: int) -> bytes:
    return _frame(b"A" + struct.pack(">II", xid, subxid))


def _add(cut: Units, *frames: bytes) -> None:
    cut.add(b"".join(frames), np.cumsum([len(frame) for frame in frames]).astype(np.int64))


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[Units]:
    made = Units(str(tmp_path))
    yield made
    made.close()


def _frames(unit: Whole | Stored | None) -> int:
    assert unit is not None
    return len(unit.frames) if isinstance(unit, Whole) else sum(len(ends) for _, ends in unit.spool.pieces())


def test_whole_transactions_are_one_unit_and_an_open_one_waits(cut: Units) -> None:
    _add(cut, _begin(1, 8), _insert(), _commit(8), _begin(2, 16), _commit(16), _begin(3, 24), _insert())
    assert _frames(cut.take()) == 5
    assert cut.take() is None
    _add(cut, _commit(24), _keepalive(32))
    assert _frames(cut.take()) == 3
    assert cut.reached == 32


def test_the_log_is_behind_while_its_commits_are_old_when_they_are_sent(cut: Units) -> None:
    _add(cut, _begin(1, 8), _commit(8, sent=units.OLD))
    assert not cut.behind
    _add(cut, _begin(2, 16), _commit(16, sent=units.OLD + 1), _begin(3, 24))
    assert cut.behind
    _add(cut, _insert())
    assert cut.behind
    _add(cut, _commit(24, sent=5))
    assert not cut.behind
    _add(cut, _keepalive(32), _begin(4, 40), _commit(40, sent=units.OLD + 1))
    assert cut.behind
    _add(cut, _keepalive(48))
    assert not cut.behind
    _add(cut, _begin(5, 56), _commit(56, sent=units.OLD + 1), _keepalive(64))
    assert not cut.behind
    _add(cut, _begin(6, 72), _commit(72, sent=units.OLD + 1))
    cut.caught_up()
    assert not cut.behind


def test_the_log_is_behind_within_what_is_large(cut: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(cut, _start(1), _insert(b"\0\0\0\1"))
    assert cut.behind
    _add(cut, STOP)
    assert not cut.behind
    monkeypatch.setattr(units, "LARGE", 100)
    _add(cut, _begin(2, 8), _insert(size=200))
    assert cut.behind
    _add(cut, _commit(8))
    assert not cut.behind


def test_what_is_between_transactions_is_not_kept(cut: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepalives come for as long as nothing happens; then a transaction may come before its commit."""
    monkeypatch.setattr(units, "LARGE", 100)
    for number in range(50):
        _add(cut, _keepalive(number, reply=number == 49))
    assert cut.take() is None
    assert (cut.nbytes, cut.rows, cut.reached, cut.pressed(), cut.pressed()) == (0, 0, 49, True, False)
    _add(cut, _start(5), _insert(struct.pack(">I", 5)), STOP, _stream_commit(5, 64))
    assert isinstance(cut.take(), Stored)


def test_f40_a_large_transaction_goes_to_a_file_between_its_neighbours(
    cut: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "LARGE", 1000)
    _add(cut, _begin(1, 8), _relation("old"), _insert(), _commit(8), _begin(2, 16), _relation("new"), _insert())
    _add(cut, *[_insert(size=100)] * 20)
    _add(cut, _insert(), _commit(16), _begin(3, 24), _insert(), _commit(24))
    first, large, last = (cut.take() for _ in range(3))
    assert isinstance(first, Whole)
    assert isinstance(last, Whole)
    assert isinstance(large, Stored)
    assert (large.transaction.xid, large.transaction.commit_lsn, large.transaction.end_lsn) == (2, 16, 24)
    assert not large.transaction.streamed
    assert (_frames(first), _frames(large), _frames(last)) == (4, 25, 3)
    assert large.known == (_relation("old"),)
    assert large.told == (_relation("new"),)


def test_f40_streamed_transactions_and_what_they_tell_of_tables(cut: Units) -> None:
    """Of two descriptions of a table the one that arrived later holds, not the one whose transaction ended later."""
    one, two, sub = (struct.pack(">I", xid) for xid in (1, 2, 9))
    _add(cut, _start(1), _relation("first", one), _insert(one), STOP)
    _add(cut, _begin(3, 8), _relation("second"), _commit(8))
    _add(cut, _start(2), _relation("third", two), _insert(two), STOP)
    _add(cut, _start(1, first=False), _insert(sub), STOP, _abort(1, 9), _stream_commit(1, 16), _stream_commit(2, 24))
    whole, first, second = (cut.take() for _ in range(3))
    assert isinstance(whole, Whole)
    assert isinstance(first, Stored)
    assert isinstance(second, Stored)
    assert (first.transaction.commit_lsn, first.aborted, first.told) == (16, frozenset((9,)), ())
    assert (second.transaction.commit_lsn, second.aborted) == (24, frozenset())
    assert second.told == (_relation("third"),)
    assert first.transaction.streamed


def test_f40_a_later_commit_does_not_bring_back_an_earlier_description(cut: Units) -> None:
    one = struct.pack(">I", 1)
    _add(cut, _start(1), _relation("first", one), STOP, _begin(3, 8), _relation("second"), _commit(8))
    _add(cut, _stream_commit(1, 16))
    assert isinstance(cut.take(), Whole)
    stored = cut.take()
    assert isinstance(stored, Stored)
    assert stored.told == ()


def test_an_aborted_transaction_is_forgotten_with_its_file(cut: Units, tmp_path: Path) -> None:
    _add(cut, _start(1), _insert(struct.pack(">I", 1)), STOP, _abort(1, 1), _abort(4, 4))
    assert cut.take() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([STOP], "outside of a block"),
        ([_start(1), _start(2)], "within a block|begins within"),
        ([_begin(1, 8), _start(2)], "within another transaction"),
        ([_start(2, first=False)], "nothing came before"),
        ([_stream_commit(2, 8)], "nothing came before"),
    ],
)
def test_what_cannot_follow_is_refused(cut: Units, frames: list[bytes], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        _add(cut, *frames)


def test_f28_what_was_streamed_and_what_a_snapshot_shows() -> None:
    streamed = Streamed()
    streamed.add(np.array([10, 20, 2**32 - 5], np.uint32))
    high = 2**32
    assert streamed.xids_not_visible(Snapshot.parse(f"{high + 5}:{high + 15}:"))
    assert streamed.xids_not_visible(Snapshot.parse(f"{high + 5}:{high + 30}:{high + 20}"))
    assert not streamed.xids_not_visible(Snapshot.parse(f"{high + 21}:{high + 30}:"))
    streamed.watch(False)
    streamed.add(np.array([100], np.uint32))
    assert not streamed.xids_not_visible(Snapshot.parse(f"{high + 21}:{high + 30}:"))


def test_a_place_comes_back_from_its_position() -> None:
    place = Place(3, 99, 104, "7", 1, "slot", 40, publications={"p": 0})
    place = place.with_load("s", Progress("initial", "keys", after=("a", "1"), number=5))
    assert place_of(place.position(), "db/log") == place
    assert place.moved(60) == place
    assert (place.moved(112).commit, place.moved(112).lsn) == (111, 112)
