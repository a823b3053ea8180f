"""The `pgoutput` decoder on what a real server sends, compiled and not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.model import Op
from headwater.testing.postgres import PostgresServer
from headwater.wire.pgoutput import (
    KEY_ONLY,
    WHOLE_ROW,
    Decoder,
    Loops,
    Segment,
    TableRows,
    Transaction,
    begin,
    commit,
    frame_end,
    frame_start,
    kinds,
    message,
    stream_abort,
    stream_commit,
    stream_start,
    subtransaction,
)
from tests.pgoutput_messages import Recording, everything, joined, outcome, wire
from tests.pgoutput_recordings import NUMBERS, record

pytestmark = pytest.mark.needs("postgres")

WAYS = [pytest.param("compiled", marks=pytest.mark.needs("native")), "uncompiled"]


@pytest.fixture(scope="module")
def recordings(postgres_server: PostgresServer) -> Iterator[dict[str, Recording]]:
    url = postgres_server.create_database("pgoutput_recorded")
    yield record(postgres_server, url)
    postgres_server.drop_database("pgoutput_recorded")


@pytest.fixture(params=WAYS)
def loops(request: pytest.FixtureRequest) -> Loops:
    if request.param == "uncompiled":
        return Loops.uncompiled()
    return Loops.chosen()


def decoded(loops: Loops, recording: Recording) -> list[Segment]:
    decoder = Decoder(binary=recording.binary, wanted=everything(wire), loops=loops)
    return list(decoder.decode(*joined(recording.frames)))


def rows_of(segments: list[Segment], table: str) -> list[dict[str, Any]]:
    """One per change, with `op`, `after`, `before`, `kind` and the names of unchanged columns."""
    tables = [rows for segment in segments for rows in segment.tables if rows.relation.name == table]
    return [row for rows in tables for row in _rows(rows)]


def _rows(rows: TableRows) -> Iterator[dict[str, Any]]:
    after = rows.after.to_pylist()
    before = rows.before.to_pylist() if rows.before is not None else [None] * len(rows)
    for n in range(len(rows)):
        unchanged = [name for name, mask in zip(rows.after.schema.names, rows.unchanged, strict=True) if _is(mask, n)]
        kind = int(rows.before_kind[n])
        yield {"op": Op(rows.op[n]), "after": after[n], "before": before[n] if kind else None, "kind": kind,
               "unchanged": unchanged}  # fmt: skip


def _is(mask: Any, n: int) -> bool:
    return mask is not None and bool(mask[n])


def test_f31_texts_are_what_the_server_prints(recordings: dict[str, Recording], loops: Loops) -> None:
    first, second, third = rows_of(decoded(loops, recordings["text"]), 'every "type')[:3]
    assert first["after"] == {
        "id": "1", "i2": "-32768", "i4": "-2147483648", "o": "4294967295", "f4": "NaN", "f8": "-Infinity", "b": "t",
        "n": "NaN", "n2": "12.30", "t": "é", "v": "v", "y": "\\x00ff", "u": "00112233-4455-6677-8899-aabbccddeeff",
        "j": '{"a": 1}', "jb": '{"a": 1}', "d": "0044-03-15 BC", "ti": "24:00:00", "ts": "infinity", "tz": "-infinity",
    }  # fmt: skip
    assert second["after"]["n"] == "-0.000001230"
    assert second["after"]["tz"] == "1999-12-31 23:59:59.999999+00"
    assert third["after"] == {"id": "9223372036854775807", **dict.fromkeys(list(first["after"])[1:])}


def test_f31_binary_values_lose_nothing(recordings: dict[str, Recording], loops: Loops) -> None:
    segments = decoded(loops, recordings["binary"])
    first, second, third = rows_of(segments, 'every "type')[:3]
    assert np.isnan(first["after"].pop("f4"))
    assert first["after"] == {
        "id": 1, "i2": -32768, "i4": -2147483648, "o": 4294967295, "f8": float("-inf"), "b": True, "n": "NaN",
        "n2": "12.30", "t": "é", "v": "v", "y": b"\0\xff", "u": bytes.fromhex("00112233445566778899aabbccddeeff"),
        "j": '{"a": 1}', "jb": '{"a": 1}', "d": -746_117, "ti": 86_400_000_000, "ts": 2**63 - 1, "tz": -(2**63),
    }  # fmt: skip
    assert second["after"] == {
        "id": 2, "i2": 32767, "i4": 2147483647, "o": 0, "f4": 1.5, "f8": 1e300, "b": False, "n": "-0.000001230",
        "n2": "-0.07", "t": "", "v": "", "y": b"", "u": None, "j": "null", "jb": "[]", "d": 0, "ti": 0, "ts": 1,
        "tz": -1,
    }  # fmt: skip
    assert third["after"] == {"id": 9223372036854775807, **dict.fromkeys(list(second["after"])[1:])}
    assert [field.type for field in segments[0].tables[0].after.schema][:5] == [
        pa.int64(), pa.int16(), pa.int32(), pa.int64(), pa.float32(),
    ]  # fmt: skip


def test_f34_numbers_in_binary_are_the_text_that_the_server_prints(
    recordings: dict[str, Recording], loops: Loops
) -> None:
    binary, text = (rows_of(decoded(loops, recordings[way]), 'every "type') for way in ("binary", "text"))
    exact = [row["after"]["n"] for row in binary]
    assert exact == [row["after"]["n"] for row in text]
    assert len([n for n in exact if n]) >= len(NUMBERS)


@pytest.mark.parametrize("way", ["text", "binary"])
def test_old_rows_keys_and_unchanged_values(recordings: dict[str, Recording], loops: Loops, way: str) -> None:
    segments = decoded(loops, recordings[way])
    number = (lambda n: str(n)) if way == "text" else (lambda n: n)
    long = "0123456789" * 1000
    big = rows_of(segments, "big")[:7]
    assert [row["op"] for row in big] == [Op.CREATE] * 2 + [Op.UPDATE] * 4 + [Op.DELETE]
    assert big[0]["after"] == {"id": number(1), "name": "a", "big": long}
    assert [(row["unchanged"], row["kind"]) for row in big[2:4]] == [(["big"], 0), ([], 0)]
    assert big[4]["before"] == {"id": number(1), "name": None, "big": None}  # the new row comes without the value
    assert (big[4]["kind"], big[4]["unchanged"], big[4]["after"]["big"]) == (KEY_ONLY, ["big"], None)
    assert big[6]["after"] == {"id": None, "name": None, "big": None}
    whole = rows_of(segments, "whole")
    assert (whole[2]["kind"], whole[2]["unchanged"]) == (WHOLE_ROW, ["big"])
    assert whole[2]["before"] == {"id": number(1), "name": "a", "big": long}
    assert whole[6]["before"] == {"id": number(12), "name": "c", "big": None}
    keyed = rows_of(segments, "by_index")
    assert [row["before"] for row in keyed] == [
        None, None, {"id": None, "code": "x", "name": None}, None, {"id": None, "code": "y", "name": None},
    ]  # fmt: skip


def test_f33_partitions_come_as_their_root_and_truncate_tells_every_table(
    recordings: dict[str, Recording], loops: Loops
) -> None:
    segments = decoded(loops, recordings["binary"])
    assert [row["op"] for row in rows_of(segments, "part")] == [Op.CREATE, Op.CREATE, Op.DELETE, Op.CREATE]
    assert not rows_of(segments, "part_1")
    parent, child = (rows_of(segments, name) for name in ("parent", "child"))
    assert [row["op"] for row in parent[:2]] == [Op.CREATE, Op.TRUNCATE]
    assert [row["op"] for row in child] == [Op.CREATE, Op.TRUNCATE]
    (cut,) = [(s, t) for s in segments for t in s.tables if t.relation.name == "child"]
    both = [t.ordinal[t.op == Op.TRUNCATE].tolist() for t in cut[0].tables if Op.TRUNCATE in t.op]
    assert sorted(both) == [[0], [1]]


def test_f50_a_relation_that_changes_ends_the_segment(recordings: dict[str, Recording], loops: Loops) -> None:
    segments = decoded(loops, recordings["text"])
    before, after = next((one, two) for one, two in itertools.pairwise(segments) if not one.complete)
    assert [c.name for c in _table(before, "parent").relation.columns] == ["id"]
    assert [c.name for c in _table(after, "parent").relation.columns] == ["id", "note"]
    assert before.transactions.commit_lsn[-1] == after.transactions.commit_lsn[0]
    assert before.transactions.end_lsn[-1] == after.transactions.end_lsn[0] > after.transactions.commit_lsn[0]
    assert _table(before, "parent").ordinal[-1] == 0
    assert _table(after, "parent").ordinal[0] == 1
    assert next(row["after"] for row in rows_of([after], "parent")) == {"id": "6", "note": "new"}


def _table(segment: Segment, name: str) -> TableRows:
    (found,) = [rows for rows in segment.tables if rows.relation.name == name]
    return found


def test_transactions_messages_and_origin(recordings: dict[str, Recording], loops: Loops) -> None:
    recording = recordings["text"]
    segments = decoded(loops, recording)
    last = segments[-1]
    assert last.complete
    assert "elsewhere" in last.transactions.origin.tolist()
    assert np.all(np.diff(last.transactions.commit_lsn.astype(np.int64)) > 0)
    frames = [memoryview(frame) for frame in recording.frames]
    letters = kinds(*joined(recording.frames))
    begun = [begin(frames[n]) for n in np.flatnonzero(letters == ord("B"))]
    ended = [commit(frames[n]) for n in np.flatnonzero(letters == ord("C"))]
    assert [one.lsn for one in begun] == [one.lsn for one in ended]
    assert [one.time for one in begun] == [one.time for one in ended]
    assert ended[-1].end_lsn == frame_end(frames[int(np.flatnonzero(letters == ord("C"))[-1])])
    assert frame_start(frames[0]) > 0
    found = [message(frames[n]) for n in np.flatnonzero(letters == ord("M"))]
    assert [(m.transactional, m.prefix, m.content) for m in found] == [
        (True, "app", b"inside"),
        (False, "app", b"alone"),
    ]
    assert int(last.transactions.time[-1]) == ended[-1].time
    assert (last.transactions.xid[-1], last.transactions.end_lsn[-1]) == (begun[-1].xid, ended[-1].end_lsn)


def test_a_table_without_identity_sends_its_inserts(recordings: dict[str, Recording], loops: Loops) -> None:
    rows = rows_of(decoded(loops, recordings["inserts"]), "only_inserts")
    assert [(row["op"], row["after"]) for row in rows] == [(Op.CREATE, {"name": "a"}), (Op.CREATE, {"name": None})]


def test_streamed_transactions_without_what_was_rolled_back(
    recordings: dict[str, Recording], loops: Loops, postgres_server: PostgresServer
) -> None:
    parts, aborted, committed = _streams(recordings["streamed"])
    assert set("SEcA") <= set(recordings["streamed"].kinds())
    ((xid, end),) = committed.items()
    (other,) = [gone for gone in aborted if gone != xid]
    assert aborted[other] == {other}
    assert xid not in aborted[xid]
    transaction = Transaction(xid, end.lsn, end.end_lsn, end.time)
    decoder = Decoder(binary=True, wanted=everything(wire), loops=loops)
    segments = [
        segment
        for part in parts[xid]
        for segment in decoder.decode(*joined(part), transaction=transaction, aborted=aborted.get(xid, ()))
    ]
    assert not any(segment.complete for segment in segments)
    ordinals = np.concatenate([rows.ordinal for segment in segments for rows in segment.tables])
    assert ordinals.tolist() == list(range(511))
    rows = rows_of(segments, "big")
    assert [row["after"]["id"] for row in rows[:500]] == list(range(1000, 1500))
    assert sorted(row["after"]["id"] for row in rows[500:510]) == list(range(1000, 1010))
    assert rows[510]["before"] == {"id": 1499, "name": None, "big": None}
    assert {int(x) for segment in segments for x in segment.transactions.xid} == {xid}


def _streams(recording: Recording) -> tuple[dict[int, list[list[bytes]]], dict[int, set[int]], dict[int, Any]]:
    """Of each streamed transaction: its parts, its aborted subtransactions; and the commits."""
    parts: dict[int, list[list[bytes]]] = {}
    aborted: dict[int, set[int]] = {}
    committed: dict[int, Any] = {}
    current = 0
    for frame in recording.frames:
        view, letter = memoryview(frame), frame[25:26]
        if letter == b"S":
            current = stream_start(view).xid
            parts.setdefault(current, []).append([])
            assert stream_start(view).first == (len(parts[current]) == 1)
        if current:
            parts[current][-1].append(frame)
            if letter in b"IUDT":
                assert subtransaction(view) >= current
        if letter == b"E":
            current = 0
        if letter == b"A":
            gone = stream_abort(view)
            aborted.setdefault(gone.xid, set()).add(gone.subxid)
        if letter == b"c":
            committed[stream_commit(view).xid] = stream_commit(view)
    return parts, aborted, committed


def test_compiled_and_uncompiled_agree_on_every_recording(recordings: dict[str, Recording]) -> None:
    for name in ("text", "binary", "inserts"):
        recording = recordings[name]
        one, two = (
            outcome(loops, joined(recording.frames), binary=recording.binary, wanted=everything(wire))
            for loops in (Loops.chosen(), Loops.uncompiled())
        )
        assert one == two
        assert not one.error
