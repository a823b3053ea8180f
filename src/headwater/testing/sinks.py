"""What every sink must do, as tests to be inherited.

An adapter is done when this passes for it:

    class TestMine(SinkConformance):
        @pytest.fixture
        def target(self, tmp_path: Path) -> SinkTarget:
            return SinkTarget("mine:target", tmp_path)
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater import plugins
from headwater.config import SinkConfig
from headwater.contracts.model import Contract
from headwater.errors import CursorMismatch, RowRefused, SinkError
from headwater.faults import set_failpoints
from headwater.model import Cursor, Events, Op
from headwater.protocols import Sink
from headwater.schema import arrow_type, events_schema

Row = dict[str, Any]

BIG = decimal.Decimal("9" * 38)
TINY = decimal.Decimal("0." + "9" * 38)
UTC = datetime.UTC

HOSTILE: dict[str, list[Any]] = {
    "bool": [True, False],
    "int32": [0, -(2**31), 2**31 - 1],
    "int64": [0, -(2**63), 2**63 - 1, 2**53 + 1],
    "float32": [
        0.0,
        -0.0,
        float("nan"),
        float("inf"),
        float("-inf"),
        1.401298464324817e-45,
        3.4028234663852886e38,
        0.5,
    ],
    "float64": [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1.7976931348623157e308, 0.1, 1e22],
    "decimal(38,0)": [BIG, BIG.copy_negate(), decimal.Decimal(0)],
    "decimal(38,38)": [TINY, TINY.copy_negate(), decimal.Decimal("1E-38"), decimal.Decimal(0)],
    "decimal(10,2)": [decimal.Decimal("0.10"), decimal.Decimal("-99999999.99"), decimal.Decimal("0.00")],
    "decimal(18,9)": [decimal.Decimal("-0.000000001"), decimal.Decimal("0.000001230"), decimal.Decimal("1.5")],
    "decimal(76,20)": [decimal.Decimal("9" * 56 + "." + "9" * 20), decimal.Decimal("-1E-20"), decimal.Decimal(0)],
    "string": ["", " ", "NaN", "007", "a\0b", "\n\t\r\"'\\", "\U0001f409 Ärger ﷺ", "x" * 100_000, "NULL"],
    "bytes": [b"", b"\0", bytes(range(256)), b"\xff" * 100_000],
    "date": [0, -719_162, 2_932_896, 2_000_000_000, -2_000_000_000, 19_782],
    "time": [0, 86_399_999_999, 43_200_000_001],
    "timestamp": [0, -62_135_596_800_000_000, 253_402_300_799_999_999, 2**61, -(2**57), -1, 1_709_164_799_123_456],
    "local_timestamp": [0, -62_135_596_800_000_000, 253_402_300_799_999_999, 2**61, -(2**57), -1],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff"],
    "json": ["null", "{}", '{"a": 1.10, "b": [1e400, "\\u0000", "ß"]}', '"text"', "12345678901234567890123", " [ ] "],
    "list<int64>": [[], [None], [2**63 - 1, None, -1]],
    "list<list<string>>": [[], [[]], [["", None, "a,b", '"]'], None]],
    "map<string,decimal(20,10)>": [[], [("", None)], [('k"\\', decimal.Decimal("0.0000000001")), ("ü", None)]],
    "struct<sku: string, count: int32, at: timestamp>": [
        {"sku": None, "count": None, "at": None},
        {"sku": 'a\0"b', "count": -1, "at": datetime.datetime(1, 1, 1, tzinfo=UTC)},
        {"sku": "", "count": 2**31 - 1, "at": datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
    ],
    "list<struct<data: bytes, ratio: float64, tags: map<string,bool>, day: date>>": [
        [],
        [None, {"data": b"\0\xff", "ratio": float("nan"), "tags": [("on", True), ("off", None)], "day": None}],
        [{"data": b"", "ratio": float("-inf"), "tags": [], "day": datetime.date(1, 1, 1)}],
        [{"data": None, "ratio": 5e-324, "tags": None, "day": datetime.date(9999, 12, 31)}],
    ],
    "struct<wide: decimal(60,5), inner: struct<exact: float32, span: time>>": [
        {"wide": decimal.Decimal("9" * 55 + "." + "9" * 5), "inner": None},
        {"wide": None, "inner": {"exact": 0.10000000149011612, "span": datetime.time(23, 59, 59, 999999)}},
    ],
}
"""Values of every contract type that stores are known to spoil. Dates and times are numbers, as Arrow holds them."""

KEYS: dict[str, list[Any]] = {
    kind: HOSTILE[kind]
    for kind in ("bool", "int32", "int64", "decimal(18,9)", "string", "bytes", "date", "time", "timestamp", "uuid")
}


@dataclass(slots=True)
class SinkTarget:
    """A place that sinks are opened on, again and again."""

    url: str
    directory: Path
    opened: list[Sink] = field(default_factory=list)

    def open(self, *, name: str = "sink", pipeline: str = "tests", **options: Any) -> Sink:
        """`options` are those of `SinkConfig`."""
        config = SinkConfig.model_validate({"url": self.url, **options})
        factory = plugins.sink_factory(config.scheme)
        sink = factory(name=name, pipeline=pipeline, config=config, directory=str(self.directory))
        self.opened.append(sink)
        return sink

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


@dataclass(slots=True)
class Script:
    """Writes a stream's events by hand: rows to `Events`, with offsets that go on."""

    contract: Contract
    incarnation: str = "first"
    offset: int = 0

    def events(self, rows: Sequence[Row], *, kind: str | None = None, version: int | None = None) -> Events:
        unchanged = any(row.get("_unchanged") for row in rows)
        schema = events_schema(self.contract, kind, unchanged=unchanged)
        data = pa.RecordBatch.from_arrays([_array(rows, spec) for spec in schema], schema=schema)
        start, self.offset = self.offset, self.offset + len(rows)
        return Events(
            self.contract.stream,
            version or self.contract.version,
            data,
            kind,
            after=Cursor(self.incarnation, (start,)),
            cursor=Cursor(self.incarnation, (self.offset,)),
            offsets=pa.array(range(start, self.offset), pa.uint64()),
        )


def _array(rows: Sequence[Row], spec: pa.Field) -> pa.Array:
    return typed([row.get(spec.name) for row in rows], spec.type)


def typed(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as an array; whole numbers stand for dates and times."""
    whole = next((v for v in values if v is not None), None)
    if pa.types.is_temporal(kind) and isinstance(whole, int):
        return pa.array(values, pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    return pa.array(values, kind)


def row(op: Op, commit: int, index: int = 0, *, epoch: int = 1, **values: Any) -> Row:
    """One event. `unchanged`: names of fields it does not carry are given as ordinals in `_unchanged`."""
    return {"_op": int(op), "_epoch": epoch, "_commit": commit, "_index": index, **values}


def contract_of(stream: str = "shop.item", version: int = 1, **changes: Any) -> Contract:
    """id, name, price, note; `id` is the key."""
    fields = {
        "id": {"type": "int64"},
        "name": {"type": "string", "optional": True},
        "price": {"type": "decimal(10,2)", "optional": True},
        "note": {"type": "json", "optional": True},
    }
    base: Row = {"stream": stream, "version": version, "key": ["id"], "fields": fields}
    return Contract.model_validate({**base, **changes})


def rows_in(sink: Sink, stream: str = "shop.item", key: Sequence[str] = ("id",)) -> dict[Any, Row]:
    """The state by key, orders left out."""
    found: dict[Any, Row] = {}
    for values in all_rows(sink, stream):
        name = values[key[0]] if len(key) == 1 else tuple(values[k] for k in key)
        assert name not in found, f"the key {name} is there twice"
        found[name] = {n: v for n, v in values.items() if not n.startswith("_")}
    return found


def all_rows(sink: Sink, stream: str) -> list[Row]:
    return [values for batch in sink.state(stream).rows for values in batch.to_pylist()]


def exact(array: pa.Array | pa.ChunkedArray) -> list[str]:
    """Each value so that equal text is the same value: NaN is itself, -0.0 is not 0.0."""
    if pa.types.is_date32(array.type):
        array = array.cast(pa.int32())
    elif pa.types.is_timestamp(array.type) or pa.types.is_time(array.type):
        array = array.cast(pa.int64())
    return [repr(value) for value in array.to_pylist()]


@contextmanager
def failing(points: str, seed: int = 0) -> Iterator[None]:
    set_failpoints(points, seed)
    try:
        yield
    finally:
        set_failpoints("")


C, U, D, R, T = Op.CREATE, Op.UPDATE, Op.DELETE, Op.READ, Op.TRUNCATE

_FAULTS = (OSError, SinkError)


class SinkConformance:
    """Inherit, and give `target`."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> SinkTarget:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _closing(self, target: SinkTarget) -> Iterator[None]:
        yield
        target.close()

    # cursors

    def test_a_new_target_has_no_cursor(self, target: SinkTarget) -> None:
        sink = target.open()
        assert sink.cursor("shop.item") is None
        sink.prepare(contract_of())
        assert sink.cursor("shop.item") is None
        assert rows_in(sink) == {}

    def test_rows_and_cursor_are_there_for_the_next_who_opens(self, target: SinkTarget) -> None:
        script = Script(contract_of())
        sink = target.open()
        sink.prepare(script.contract)
        sink.write(script.events([row(C, 1, id=1, name="a", price=decimal.Decimal("1.50"), note='{"x": 1}')]))
        sink.close()
        again = target.open()
        assert again.cursor("shop.item") == Cursor("first", (1,))
        again.prepare(script.contract)
        state = again.state("shop.item")
        assert state.cursor == Cursor("first", (1,))
        assert [r for b in state.rows for r in b.to_pylist()] == [
            {"_epoch": 1, "_commit": 1, "_index": 0, "id": 1, "name": "a", "price": decimal.Decimal("1.50"),
             "note": '{"x": 1}'}
        ]  # fmt: skip

    def test_the_same_batch_again_changes_nothing(self, target: SinkTarget) -> None:
        script = Script(contract_of())
        sink = _prepared(target, script)
        batch = script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b"), row(D, 2, id=2)])
        sink.write(batch)
        before = all_rows(sink, "shop.item")
        sink.write(batch)
        assert all_rows(sink, "shop.item") == before
        assert sink.cursor("shop.item") == Cursor("first", (3,))

    def test_f83_a_zombie_writer_is_stopped(self, target: SinkTarget) -> None:
        script = Script(contract_of())
        zombie = _prepared(target, script)
        first = script.events([row(C, 1, id=1, name="a")])
        zombie.write(first)
        heir = _prepared(target, script)
        heir.write(script.events([row(U, 2, id=1, name="b")]))
        late = replace(first, after=Cursor("first", (1,)), cursor=Cursor("first", (5,)))
        with pytest.raises(CursorMismatch, match=r"shop\.item"):
            zombie.write(late)
        assert rows_in(heir)[1]["name"] == "b"
        assert heir.cursor("shop.item") == Cursor("first", (2,))

    def test_f83_a_cursor_of_another_incarnation_is_an_error(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        other = Script(contract_of(), incarnation="second", offset=1)
        with pytest.raises(CursorMismatch, match="incarnation"):
            sink.write(other.events([row(C, 9, id=2, name="b")]))
        assert list(rows_in(sink)) == [1]

    def test_a_gap_is_an_error(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        script.events([row(C, 2, id=2, name="lost")])
        with pytest.raises(CursorMismatch, match="expected to be 2"):
            sink.write(script.events([row(C, 3, id=3, name="c")]))

    def test_f83_a_cursor_that_vanished_stops_the_writer(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        _prepared(target, script).clear("shop.item")
        with pytest.raises(CursorMismatch):
            sink.write(script.events([row(C, 2, id=2, name="b")]))
        assert rows_in(_prepared(target, script)) == {}

    def test_move_sets_and_forgets(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a"), row(U, 2, id=1, name="b")]))
        sink.move("shop.item", Cursor("first", (1,)))
        assert target.open().cursor("shop.item") == Cursor("first", (1,))
        script.offset = 1
        sink.write(script.events([row(U, 2, id=1, name="b")]))
        assert rows_in(sink)[1]["name"] == "b"
        sink.move("shop.item", None)
        assert sink.cursor("shop.item") is None
        assert list(rows_in(sink)) == [1]

    def test_events_without_a_cursor_leave_it_alone(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(replace(script.events([row(R, 1, id=1, name="a")]), after=None, cursor=None, offsets=None))
        assert sink.cursor("shop.item") is None
        sink.move("shop.item", Cursor("first", (1,)))
        sink.write(script.events([row(U, 2, id=1, name="b")]))
        assert rows_in(sink)[1]["name"] == "b"

    def test_clear_starts_again(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 5, id=1, name="a"), row(D, 6, id=2)]))
        sink.clear("shop.item")
        assert (sink.cursor("shop.item"), rows_in(sink)) == (None, {})
        again = Script(contract_of())
        sink.write(again.events([row(R, 1, id=1, name="x"), row(R, 1, 2, id=2, name="y")]))
        assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "x", 2: "y"}

    # the current state

    def test_a_row_is_never_overwritten_by_an_earlier_one(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 10, 4, epoch=2, id=n, name="new") for n in range(1, 6)]))
        late = [
            row(U, 99, 99, epoch=1, id=1, name="old epoch"),
            row(U, 9, 99, epoch=2, id=2, name="old commit"),
            row(U, 10, 2, epoch=2, id=3, name="old index"),
            row(U, 10, 6, epoch=2, id=4, name="newer"),
            row(D, 9, epoch=2, id=5),
        ]
        sink.write(script.events(late))
        assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "new", 2: "new", 3: "new", 4: "newer", 5: "new"}

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_a_deleted_row_stays_deleted(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b")]))
        sink.write(script.events([row(D, 5, id=1), row(D, 5, 2, id=3)]))
        sink.write(script.events([row(U, 4, id=1, name="late"), row(C, 4, 2, id=3, name="later than its delete")]))
        assert list(rows_in(sink)) == [2]
        sink.write(script.events([row(C, 6, id=1, name="again")]))
        sink.write(script.events([row(D, 5, 4, id=1)]))
        assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "again", 2: "b"}

    def test_a_delete_in_the_batch_of_its_create(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a"), row(D, 1, 2, id=1), row(C, 1, 4, id=2, name="b")]))
        sink.write(script.events([row(U, 1, 1, id=1, name="late")]))
        assert list(rows_in(sink)) == [2]

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_f30_unchanged_columns_are_left_alone(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        price = decimal.Decimal("7.00")
        sink.write(script.events([row(C, 1, n, id=n, name=f"n{n}", price=price, note="[1]") for n in (1, 2, 3)]))
        sink.write(
            script.events(
                [
                    row(U, 2, id=1, name="changed", _unchanged=[2, 3]),
                    row(U, 2, 2, id=2, name=None, price=None, _unchanged=[3]),
                    row(U, 2, 4, id=3, price=price + 1, note="2"),
                    row(C, 2, 6, id=4, name="whole"),
                    row(U, 2, 8, id=4, note="3", _unchanged=[1]),
                ]
            )
        )
        assert rows_in(sink) == {
            1: {"id": 1, "name": "changed", "price": price, "note": "[1]"},
            2: {"id": 2, "name": None, "price": None, "note": "[1]"},
            3: {"id": 3, "name": None, "price": price + 1, "note": "2"},
            4: {"id": 4, "name": "whole", "price": None, "note": "3"},
        }

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_f30_a_stale_partial_row_changes_nothing(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        sink.write(script.events([row(C, 5, id=1, name="a", note="1"), row(C, 5, 2, id=2, name="b"), row(D, 6, id=2)]))
        sink.write(
            script.events([row(U, 4, id=1, name="x", _unchanged=[3]), row(U, 5, 4, id=2, name="y", _unchanged=[3])])
        )
        assert rows_in(sink) == {1: {"id": 1, "name": "a", "price": None, "note": "1"}}

    def test_f30_an_unchanged_column_of_no_row_is_refused_by_name(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        with pytest.raises(RowRefused, match=r'\{"id":77\}.*note'):
            sink.write(script.events([row(C, 2, id=2, name="b"), row(U, 3, id=77, name="x", _unchanged=[3])]))
        assert list(rows_in(sink)) == [1]
        assert sink.cursor("shop.item") == Cursor("first", (1,))

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_truncate_empties_what_is_older(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 9, id=2, name="younger than the truncate")]))
        sink.write(script.events([row(C, 2, id=3, name="c"), row(T, 3), row(C, 4, id=4, name="d")]))
        sink.close()
        sink = _prepared(target, script, deletes=deletes)
        sink.write(script.events([row(U, 2, 2, id=1, name="late")]))
        assert sorted(rows_in(sink)) == [2, 4]

    def test_a_changed_key_is_a_delete_and_a_create(self, target: SinkTarget) -> None:
        contract = contract_of(key=["id", "name"], fields={"id": {"type": "int64"}, "name": {"type": "string"}})
        sink = _prepared(target, script := Script(contract))
        sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=1, name="b")]))
        sink.write(script.events([row(D, 2, id=1, name="a"), row(C, 2, 1, id=2, name="a")]))
        assert sorted(rows_in(sink, key=("id", "name"))) == [(1, "b"), (2, "a")]

    # values

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_f31_every_value_comes_back_the_same(self, target: SinkTarget, kind: str) -> None:
        contract = contract_of(fields={"id": {"type": "int64"}, "value": {"type": kind, "optional": True}}, kind="fact")
        values = [*HOSTILE[kind], None]
        sink = _prepared(target, script := Script(contract))
        sink.write(script.events([row(C, 1, 2 * n, id=n, value=v) for n, v in enumerate(values)]))
        found = pa.Table.from_batches(sink.state("shop.item").rows).sort_by("id").column("value")
        assert found.type == arrow_type(contract.fields["value"].parsed)
        assert exact(found) == exact(typed(values, found.type))

    @pytest.mark.parametrize("kind", KEYS)
    def test_every_key_finds_its_row(self, target: SinkTarget, kind: str) -> None:
        contract = contract_of(key=["k"], fields={"k": {"type": kind}, "n": {"type": "int64", "optional": True}})
        sink = _prepared(target, script := Script(contract))
        keys = KEYS[kind]
        sink.write(script.events([row(C, 1, 2 * n, k=k, n=n) for n, k in enumerate(keys)]))
        sink.write(script.events([row(U, 2, 2 * n, k=k, n=100 + n) for n, k in enumerate(keys)]))
        sink.write(script.events([row(D, 3, k=keys[0])]))
        sink.write(script.events([row(U, 2, 99, k=keys[0], n=-1)]))
        found = pa.Table.from_batches(sink.state("shop.item").rows).sort_by("n")
        assert found.column("n").to_pylist() == [100 + n for n in range(1, len(keys))]
        assert exact(found.column("k")) == exact(typed(keys[1:], found.schema.field("k").type))

    # history

    def test_history_keeps_every_event(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()), mode="history")
        at = datetime.datetime(2024, 2, 29, 12, tzinfo=UTC)
        batch = script.events([row(C, 1, id=1, name="a", _time=at), row(U, 2, id=1, note="5", _unchanged=[1, 2])])
        sink.write(batch)
        sink.write(batch)
        sink.close()
        sink = _prepared(target, script, mode="history")
        sink.write(script.events([row(D, 3, id=1), row(T, 4)]))
        found = sorted(all_rows(sink, "shop.item"), key=lambda r: r["_offset"])
        names = ("_op", "_epoch", "_commit", "_index", "_time", "_offset", "_unchanged", "id", "name", "note")
        assert [tuple(r[n] for n in names) for r in found] == [
            (1, 1, 1, 0, at, 0, None, 1, "a", None),
            (2, 1, 2, 0, None, 1, "name,price", 1, None, "5"),
            (3, 1, 3, 0, None, 2, None, 1, None, None),
            (5, 1, 4, 0, None, 3, None, None, None, None),
        ]

    def test_history_holds_several_event_types(self, target: SinkTarget) -> None:
        types = {
            "placed": {"fields": {"id": {"type": "int64"}, "total": {"type": "decimal(10,2)"}}},
            "paid": {"fields": {"id": {"type": "int64"}, "method": {"type": "string"}}},
        }
        contract = contract_of(kind="event", key=[], fields={}, types=types)
        sink = _prepared(target, script := Script(contract), mode="history")
        sink.write(script.events([row(C, 1, id=1, total=decimal.Decimal("9.90"))], kind="placed"))
        sink.write(script.events([row(C, 2, id=1, method="card")], kind="paid"))
        found = sorted(all_rows(sink, "shop.item"), key=lambda r: r["_offset"])
        assert [(r["type"], r["id"], r["total"], r["method"]) for r in found] == [
            ("placed", 1, decimal.Decimal("9.90"), None),
            ("paid", 1, None, "card"),
        ]

    def test_a_stream_without_a_current_state_is_refused(self, target: SinkTarget) -> None:
        sink = target.open()
        with pytest.raises(SinkError, match="history"):
            sink.prepare(contract_of(kind="event", key=[]))

    # contracts that change

    @pytest.mark.parametrize("mode", ["current", "history"])
    def test_a_new_version_adds_and_widens(self, target: SinkTarget, mode: str) -> None:
        fields = {"id": {"type": "int64"}, "n": {"type": "int32", "optional": True}, "f": {"type": "float32"}}
        old = contract_of(fields=fields)
        sink = _prepared(target, script := Script(old), mode=mode)
        sink.write(script.events([row(C, 1, id=1, n=5, f=0.5), row(C, 1, 2, id=2, n=6, f=1.5)]))
        added = {
            "n": {"type": "int64", "optional": True},
            "f": {"type": "float64"},
            "label": {"type": "string", "default": "none"},
            "extra": {"type": "list<int64>", "optional": True},
        }
        new = contract_of(version=2, fields={**fields, **added})
        older = script.events([row(U, 2, id=2, n=7, f=2.5)])
        sink.prepare(new)
        sink.write(older)
        script.contract = new
        sink.write(script.events([row(C, 3, id=3, n=2**40, f=0.1, label="x", extra=[1])]))
        rows = sorted(all_rows(sink, "shop.item"), key=lambda r: (r["id"], r["_commit"]))
        found = [(r["id"], r["n"], r["f"], r["label"], r["extra"]) for r in rows if (r["id"], r["_commit"]) != (2, 1)]
        assert found == [(1, 5, 0.5, "none", None), (2, 7, 2.5, "none", None), (3, 2**40, 0.1, "x", [1])]

    def test_a_type_that_cannot_widen_is_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        fields = {**contract_of().fields, "price": contract_of().fields["price"].model_copy(update={"type": "int64"})}
        with pytest.raises(SinkError, match=r"`price`.*decimal\(10,2\).*int64"):
            sink.prepare(contract_of(version=2, fields=fields))

    def test_events_of_an_unknown_version_are_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        with pytest.raises(SinkError, match="version 2"):
            sink.write(script.events([row(C, 1, id=1)], version=2))

    def test_another_mode_is_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        with pytest.raises(SinkError, match="history"):
            target.open(mode="history").prepare(script.contract)

    # neighbours

    def test_streams_of_one_table_name_are_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of("shop.item")))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        with pytest.raises(SinkError, match=r"shop_item.*shop\.item"):
            sink.prepare(contract_of("shop_item"))

    def test_f84_pipelines_share_a_target_but_no_table(self, target: SinkTarget) -> None:
        mine = _prepared(target, script := Script(contract_of()))
        mine.write(script.events([row(C, 1, id=1, name="a")]))
        theirs = target.open(pipeline="other")
        with pytest.raises(SinkError, match="tests"):
            theirs.prepare(contract_of())
        theirs.prepare(contract_of("shop.order"))
        theirs.write(Script(contract_of("shop.order")).events([row(C, 1, id=9, name="z")]))
        assert theirs.cursor("shop.item") is None
        theirs.clear("shop.item")
        mine.clear("shop.order")
        assert list(rows_in(mine)) == [1]
        assert list(rows_in(theirs, "shop.order")) == [9]

    def test_an_unprepared_stream_is_named(self, target: SinkTarget) -> None:
        with pytest.raises(SinkError, match=r"shop\.item was not prepared"):
            target.open().write(Script(contract_of()).events([row(C, 1, id=1)]))

    # crashes

    @pytest.mark.parametrize("mode", ["current", "history"])
    def test_a_fault_at_any_step_neither_loses_nor_repeats(self, target: SinkTarget, mode: str) -> None:
        contract = contract_of()
        history = _history(40)
        sink = _prepared(target, Script(contract), mode=mode)
        faults = 0
        for seed in range(400):
            try:
                with failing("sink.*=error:0.15", seed):
                    _deliver(sink, contract, history, step=5)
                break
            except _FAULTS:
                faults += 1
            except Exception as error:
                if "failpoint" not in str(error):
                    raise
                faults += 1
            sink = _prepared(target, Script(contract), mode=mode)
        assert sink.cursor(contract.stream) == Cursor("first", (len(history),))
        assert _seen(sink, mode) == _expected(history, mode)


def _prepared(target: SinkTarget, script: Script, **options: Any) -> Sink:
    sink = target.open(**options)
    sink.prepare(script.contract)
    return sink


def _history(count: int) -> list[Row]:
    """Creates, updates and deletes of seven keys."""
    rows: list[Row] = []
    alive: set[int] = set()
    for n in range(count):
        key = (n * 5) % 7
        if key not in alive:
            rows.append(row(C, n, id=key, name=f"c{n}", note=str(n)))
            alive.add(key)
        elif n % 3:
            rows.append(row(U, n, id=key, name=f"u{n}", _unchanged=[3]))
        else:
            rows.append(row(D, n, id=key))
            alive.discard(key)
    return rows


def _deliver(sink: Sink, contract: Contract, history: Sequence[Row], step: int) -> None:
    cursor = sink.cursor(contract.stream)
    script = Script(contract, offset=cursor.offset if cursor else 0)
    while script.offset < len(history):
        sink.write(script.events(history[script.offset : script.offset + step]))


def _seen(sink: Sink, mode: str) -> list[tuple[Any, ...]]:
    names = ("_commit", "id", "name", *(["_op"] if mode == "history" else ["note"]))
    return sorted(tuple(r[n] for n in names) for r in all_rows(sink, "shop.item"))


def _expected(history: Iterable[Row], mode: str) -> list[tuple[Any, ...]]:
    if mode == "history":
        return sorted((r["_commit"], r["id"], r.get("name"), r["_op"]) for r in history)
    state: dict[int, Row] = {}
    for event in history:
        key = event["id"]
        if event["_op"] == D:
            state.pop(key)
        else:
            state[key] = {**state.get(key, {}), **event}
    return sorted((r["_commit"], r["id"], r["name"], r["note"]) for r in state.values())
