"""What tests write into sinks: values that stores are known to spoil, events by hand, and a place to open sinks on."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from headwater import plugins
from headwater.config import SinkConfig
from headwater.contracts.model import Contract
from headwater.faults import set_failpoints
from headwater.model import Cursor, Events, Op
from headwater.protocols import Sink
from headwater.schema import events_schema

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
    refuses: dict[str, list[Any]] = field(default_factory=dict)
    """The values of `HOSTILE` that the store has no place for, by type: it must refuse their rows by name."""
    options: dict[str, Any] = field(default_factory=dict)
    """The sink's own `options`."""
    opened: list[Sink] = field(default_factory=list)

    def open(self, *, name: str = "sink", pipeline: str = "tests", **options: Any) -> Sink:
        """`options` are those of `SinkConfig`."""
        config = SinkConfig.model_validate({"url": self.url, "options": self.options, **options})
        factory = plugins.sink_factory(config.scheme)
        sink = factory(name=name, pipeline=pipeline, config=config, directory=str(self.directory))
        self.opened.append(sink)
        return sink

    def holds(self, kind: str, values: Sequence[Any]) -> list[Any]:
        """The values without those that the store refuses."""
        return [value for value in values if value not in self.refuses.get(kind, [])]

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


def sink_target(scheme: str, directory: Path, database: Callable[[], str]) -> SinkTarget:
    """A new target of one of our own sinks. `database` gives the URL of an empty database, where one is needed."""
    if scheme == "postgresql":
        return SinkTarget(database(), directory, {"string": ["a\0b"], "date": [-2_000_000_000]})
    return SinkTarget(f"{scheme}:target", directory)


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
