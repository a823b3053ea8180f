"""The `pgoutput` decoder on messages written here: what is refused, with which words; what a server seldom does."""

from __future__ import annotations

import builtins
import importlib.util
import struct
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from headwater import native
from headwater.errors import MissingExtra
from headwater.model import Op
from headwater.wire.pgoutput import Decoder, Loops, Malformed, Segment, Transaction, keepalive, kinds, message
from headwater.wire.pgoutput_messages import begin, relation_of, stream_abort
from tests import pgoutput_messages as m
from tests.pgoutput_messages import UNCHANGED, everything, framed, joined, wire

TABLE = m.relation(7, "t", [("id", 23), ("name", 25)])
ROW = m.insert(7, [b"\0\0\0\1", "a"])


@pytest.fixture(params=["compiled", "uncompiled"])
def loops(request: pytest.FixtureRequest) -> Loops:
    return Loops.uncompiled() if request.param == "uncompiled" else Loops.chosen()


def decode(loops: Loops, *messages: bytes, wanted: Any = None, **given: Any) -> list[Segment]:
    decoder = Decoder(binary=True, wanted=wanted or everything(wire), loops=loops)
    return list(decoder.decode(*joined(map(framed, messages)), **given))


def whole(*messages: bytes) -> list[bytes]:
    return [m.begin(1, 8), TABLE, *messages, m.commit(8, 16)]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([b"B" + bytes(19)], "message 'B', frame 0 of 45 bytes, ends within a field"),
        ([b"B" + bytes(21)], "goes on behind its end"),
        ([m.begin(1, 8)], "end within a transaction"),
        ([m.begin(1, 8), m.begin(2, 16)], "message 'B', frame 1 of 46 bytes, begins a transaction within another one"),
        ([m.commit(8, 16)], "message 'C', frame 0 of 51 bytes, is not within a transaction"),
        ([m.begin(1, 8), m.commit(9, 16)], "ends another transaction"),
        ([m.begin(1, 8, 2**63 - 1), m.commit(8, 16)], "has a time that 64 bits do not hold"),
        ([TABLE, ROW], "message 'I', frame 1 of 48 bytes, is not within a transaction"),
        ([m.origin("o")], "message 'O', frame 0 of 36 bytes, is not within a transaction"),
        (whole(m.insert(8, ["1"])), "is of a relation that the server has not described"),
        (whole(m.truncate(7, 8)), "is of a relation that the server has not described"),
        (whole(m.truncate(7) + b"x"), "goes on behind its end"),
        (whole(m.truncate(7)[:-1]), "ends within a field"),
        (whole(m.insert(7, ["1"])), "has another number of columns than its relation"),
        (whole(ROW[:-1]), "ends within a field (at byte 47)"),
        (whole(ROW + b"x"), "goes on behind its end"),
        (whole(ROW[:8] + b"?" + ROW[9:]), "has a value of an unknown kind"),
        (whole(m.insert(7, ["1", "a"])), "has a value in another format"),
        (whole(m.delete(7, [None, UNCHANGED])), "says that a value of an old row is unchanged"),
        (whole(b"I" + struct.pack(">I", 7) + b"K" + m.row([None, None])), "neither a new row nor an old one"),
        (whole(b"D" + struct.pack(">I", 7) + b"N" + m.row([None, None])), "neither a new row nor an old one"),
        (whole(m.insert(7, [b"\0\0\1", None])), "public.t.id: a value 'i4' has 3 bytes, 4 are expected"),
        (whole(m.insert(7, [None, b"\xff"])), "public.t.name: a text is not UTF-8"),
        ([b"S" + bytes(5)], "belongs to a streamed transaction, among whole ones"),
        ([b"P" + bytes(30)], "belongs to a prepared transaction"),
        ([b"b" + bytes(30)], "belongs to a prepared transaction"),
        ([b"?"], "is of an unknown kind"),
        ([b""], "is neither `w` with a message nor a keepalive"),
        ([TABLE[:-1]], "ends within a field"),
        ([TABLE + b"\0"], "message 'R' is over after"),
        ([m.relation(7, "t", [], identity="x")], "replica identity 'x'"),
        ([m.begin(1, 8), m.origin("o")[:-1], m.commit(8, 16)], "message 'O' ends within a field"),
    ],
)
def test_f50_what_does_not_add_up_is_refused(loops: Loops, messages: list[bytes], said: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode(loops, *messages)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("oid", "value", "said"),
    [
        (1700, b"\0\0\0\0\0\0", "a value of 6 bytes is no `numeric`"),
        (1700, struct.pack(">HhHH", 1, 0, 0, 0), "is no `numeric`"),
        (1700, struct.pack(">HhHHH", 1, 0, 0, 0, 10_000), "is no `numeric`"),
        (1700, struct.pack(">HhHH", 0, 0, 1, 0), "is no `numeric`"),
        (1700, struct.pack(">HhHH", 0, 0, 0, 16_384), "is no `numeric`"),
        (3802, b"\2{}", "a value of 3 bytes does not begin with its version, 1"),
        (3802, b"", "a value of 0 bytes does not begin with its version, 1"),
        (2950, bytes(15), "a value 'uuid' has 15 bytes, 16 are expected"),
        (16, b"", "a value 'bool' has 0 bytes, 1 are expected"),
    ],
)
def test_f31_values_that_cannot_be_of_their_type_are_refused(loops: Loops, oid: int, value: bytes, said: str) -> None:
    table = m.relation(7, "t", [("id", 23), ("v", oid)])
    rows = [m.insert(7, [b"\0\0\0\1", None]), m.insert(7, [None, value])]
    with pytest.raises(Malformed, match="public.t.v: ") as caught:
        decode(loops, m.begin(1, 8), table, *rows, m.commit(8, 16))
    assert said in str(caught.value)


def test_ends_that_do_not_add_up_are_refused() -> None:
    for ends in ([10], [3, 3], [5, 2], [-1]):
        with pytest.raises(Malformed, match="do not ascend within 9 bytes"):
            kinds(bytes(9), np.array(ends))


def test_single_messages_that_do_not_add_up_are_refused() -> None:
    frame = memoryview(framed(b"M" + struct.pack(">BQ", 0, 1) + m.text("p") + struct.pack(">I", 5) + b"four"))
    with pytest.raises(Malformed, match="a content of 4 bytes, it says 5"):
        message(frame)
    for cut in range(1, len(frame)):
        with pytest.raises(Malformed):
            message(frame[:cut])
    with pytest.raises(Malformed, match="not UTF-8"):
        relation_of(memoryview(framed(m.relation(1, "t", []).replace(b"public", b"\xff\xff"))))
    with pytest.raises(Malformed, match="64 bits do not hold"):
        begin(memoryview(framed(m.begin(1, 2, 2**63 - 1))))
    with pytest.raises(Malformed, match="message 'A' is over after 34 bytes, and there are 35"):
        stream_abort(memoryview(framed(b"A" + bytes(9))))
    with pytest.raises(Malformed, match="message 'k' ends within a field"):
        keepalive(memoryview(b"k" + bytes(8)))
    with pytest.raises(Malformed, match="a frame 'x' of 1 bytes"):
        kinds(*joined([b"x"]))


def test_keepalives_are_passed_over(loops: Loops) -> None:
    alive = b"k" + struct.pack(">QqB", 2**64 - 1, 5, 1)
    frames = [alive, *map(framed, whole(ROW)), alive]
    (segment,) = Decoder(binary=True, wanted=everything(wire), loops=loops).decode(*joined(frames))
    assert segment.tables[0].after.to_pydict() == {"id": [1], "name": ["a"]}
    assert kinds(*joined(frames)).tolist() == [0, *b"BRIC", 0]
    assert keepalive(memoryview(alive)) == (2**64 - 1, 946_684_800_000_005, True)


def test_f12_the_largest_numbers_stay_what_they_are(loops: Loops) -> None:
    last = 2**64 - 1
    (segment,) = decode(loops, m.begin(2**32 - 1, last, -(2**63)), m.commit(last, last))
    assert (segment.transactions.xid[0], segment.transactions.commit_lsn[0]) == (2**32 - 1, last)
    assert segment.transactions.end_lsn[0] == last
    assert segment.transactions.time[0] == -(2**63) + 946_684_800_000_000
    assert not segment.tables


def test_rows_of_other_tables_count_but_are_not_there(loops: Loops) -> None:
    other = m.relation(9, "other", [("id", 23)])
    rows = [m.insert(9, [None]), ROW, m.truncate(9, 7), ROW]
    (segment,) = decode(loops, m.begin(1, 8), TABLE, other, *rows, m.commit(8, 16), wanted=_only("t"))
    (table,) = segment.tables
    assert table.ordinal.tolist() == [1, 3, 4]
    assert table.op.tolist() == [Op.CREATE, Op.TRUNCATE, Op.CREATE]
    assert table.after.to_pydict() == {"name": ["a", None, "a"]}


def _only(name: str) -> Any:
    return lambda relation: [(1, "text")] if relation.name == name else None


def test_a_relation_that_is_told_again_changes_nothing(loops: Loops) -> None:
    asked: list[str] = []

    def wanted(relation: Any) -> list[tuple[int, str]]:
        asked.append(relation.name)
        return [(0, "i4")]

    (segment,) = decode(loops, *whole(ROW, TABLE, ROW), wanted=wanted)
    assert len(segment.tables[0]) == 2
    assert asked == ["t"]


def test_a_column_that_nobody_wants_ends_no_segment(loops: Loops) -> None:
    """Columns of others come and go with each transaction: what is captured looks as it did."""
    more = m.relation(7, "t", [("id", 23), ("name", 25), ("more", 25)])
    fewer = m.relation(7, "t", [("id", 23), ("name", 25)])
    long = m.insert(7, [b"\0\0\0\2", b"b", b"x"])
    wanted = lambda relation: [(0, "i4"), (1, "text")]  # noqa: E731
    parts = decode(loops, *whole(fewer, m.insert(7, [b"\0\0\0\1", b"a"]), more, long, fewer), wanted=wanted)
    (segment,) = parts
    assert segment.tables[0].after.to_pydict() == {"id": [1, 2], "name": ["a", "b"]}
    other = m.relation(7, "t", [("id", 23), ("label", 25)])
    row = m.insert(7, [b"\0\0\0\1", b"a"])
    assert len(decode(loops, *whole(fewer, row, other, row), wanted=wanted)) == 2, "one that is wanted does"


def test_what_is_wanted_must_be_there(loops: Loops) -> None:
    for columns in ([(2, "i4")], [(0, "i4"), (0, "i4")], [(0, "i5")]):
        with pytest.raises(ValueError, match=r"public\.t"):
            decode(loops, *whole(ROW), wanted=lambda _, columns=columns: columns)


def test_f40_a_transaction_in_parts_goes_on_where_it_was(loops: Loops) -> None:
    decoder = Decoder(binary=True, wanted=everything(wire), loops=loops)
    transaction = Transaction(5, 8, 16, 1_000, origin="there", streamed=False)
    parts = [[m.begin(5, 8), TABLE, ROW, ROW], [ROW], [m.commit(8, 16)]]
    found = [list(decoder.decode(*joined(map(framed, part)), transaction=transaction)) for part in parts]
    assert [[s.tables[0].ordinal.tolist() for s in segments] for segments in found] == [[[0, 1]], [[2]], []]
    described = found[1][0].transactions
    assert (described.xid[0], described.commit_lsn[0], described.end_lsn[0], described.time[0]) == (5, 8, 16, 1_000)
    assert described.origin.tolist() == ["there"]
    again = Transaction(5, 8, 16, 1_000, streamed=False)
    (segment,) = decoder.decode(*joined([framed(ROW)]), transaction=again)
    assert segment.tables[0].ordinal.tolist() == [0]


def test_streamed_rows_of_aborted_subtransactions_are_left_out(loops: Loops) -> None:
    rows = [m.with_xid(xid, message) for xid, message in [(5, TABLE), (6, ROW), (5, ROW), (6, m.truncate(7)), (7, ROW)]]
    messages = [b"S" + bytes(5), *rows, b"E", b"A" + bytes(8)]
    transaction = Transaction(5, 8, 16, 0)
    (segment,) = decode(loops, *messages, transaction=transaction, aborted={6, 99})
    assert segment.tables[0].ordinal.tolist() == [0, 1]
    assert segment.tables[0].op.tolist() == [Op.CREATE, Op.CREATE]
    with pytest.raises(Malformed, match="ends within a field"):
        decode(loops, b"I\0\0", transaction=transaction)


def test_many_rows_and_many_columns(loops: Loops) -> None:
    """More than the first guess has room for."""
    columns = [(f"c{n}", 23) for n in range(300)]
    values = [[struct.pack(">i", n * r) for n in range(300)] for r in range(5)]
    rows = [m.update(7, new, new, b"O") for new in values]
    (segment,) = decode(
        loops, m.begin(1, 8), m.relation(7, "t", columns), *rows, m.truncate(*[7] * 50), m.commit(8, 16)
    )
    (table,) = segment.tables
    assert table.after.column(299).to_pylist() == [0, 299, 598, 897, 1196, *[None] * 50]
    assert table.before is not None
    assert table.before.column(299).to_pylist() == [0, 299, 598, 897, 1196, *[None] * 50]


def test_no_frames_are_no_segments(loops: Loops) -> None:
    assert decode(loops) == []
    assert len(kinds(b"", np.empty(0, np.int64))) == 0


def test_the_loops_run_without_cython(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "cython":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.delitem(sys.modules, "cython", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    found = Loops(*(_loaded(name) for name in ("pgoutput_cy", "pgoutput_values_cy")))
    assert found.messages.cython.__name__ == "headwater.wire.uncompiled"
    assert decode(found, *whole(ROW))[0].tables[0].after.to_pydict() == {"id": [1], "name": ["a"]}


def _loaded(name: str) -> ModuleType:
    path = native.uncompiled(f"headwater.wire.{name}").__file__
    spec = importlib.util.spec_from_file_location(f"{name}_alone", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_switch_chooses_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "headwater.wire.pgoutput_cy"
    monkeypatch.setenv(native.VARIABLE, "off")
    assert not native.is_compiled(native.either(name))
    monkeypatch.setenv(native.VARIABLE, "require")
    if native.is_compiled(importlib.import_module(name)):
        assert native.is_compiled(native.either(name))
    else:
        with pytest.raises(MissingExtra, match=name):
            native.either(name)
