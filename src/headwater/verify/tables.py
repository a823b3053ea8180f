"""Two sides as tables of a temporary DuckDB database, which moves to disk what its memory cannot hold, folded and
compared in SQL.

One idea: the fold is said again here, as one aggregate over the events of a key, and shares nothing with the code that
writes streams and sinks; an oracle that reuses what it checks would agree with its mistakes. What needs memory by the
key is done for a part of the keys at a time.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.model import Contract
from headwater.mapping.evolve import conform
from headwater.model import Cursor, Events, Op, Order
from headwater.protocols import Bus
from headwater.schema import table_schema

TRIPLE = ("_epoch", "_commit", "_index")
_TRIPLE_TYPES = [("_epoch", pa.uint32()), ("_commit", pa.uint64()), ("_index", pa.uint32())]
_PLACE = "(_epoch::UHUGEINT << 96) + (_commit::UHUGEINT << 32) + _index::UHUGEINT"
_EMPTIES = f"_op = {Op.TRUNCATE.value}"
_BUCKETS = 256
_CHUNK_ROWS = 100_000
_CHUNK_BYTES = 16 * 2**20
_PART_ROWS = 500_000
_PART_BYTES = 96 * 2**20


@dataclasses.dataclass(slots=True)
class Workspace:
    """Where comparisons keep their files, and how much memory they may take; a context manager.

    `keep`: the events of one stream stay for the comparison after it, which then reads only what came since. A stream
    that is compared with its source and with three sinks is read once.
    """

    directory: Path | None = None
    memory_limit: str = "512MB"
    keep: bool = False
    _kept: Tables | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    @contextmanager
    def tables(self, contract: Contract, *, history: bool = False) -> Iterator[Tables]:
        """Tables for one comparison; they may hold events of the stream already."""
        if history or not self.keep:
            with Tables(contract, self, history=history) as tables:
                yield tables
            return
        if self._kept is None or self._kept.contract != contract:
            self._drop()
            self._kept = Tables(contract, self)
        self._kept.begin()
        yield self._kept

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = None


class Tables:
    """`events` of a stream, and `rows` of the other side; a context manager.

    `history` compares event by event, identified by the order triple; else rows are compared by key. `below`: only
    events before this offset count; `upto`: only those up to this order.
    """

    def __init__(self, contract: Contract, workspace: Workspace, *, history: bool = False) -> None:
        self.contract = contract
        self.history = history
        self.below: int | None = None
        self.upto: Order | None = None
        self._nbytes = {"events": 0, "rows": 0}
        self._read: Cursor | None = None
        self._folded_as: object = None
        self.columns = pa.schema([pa.field(f.name, holdable(f.type)) for f in table_schema(contract)])
        self.identity = TRIPLE if history else contract.key
        extra = [pa.field("_op", pa.int8())] if history else []
        self._event_schema = pa.schema(
            [
                pa.field("_op", pa.int8()),
                *_TRIPLE_TYPES,
                pa.field("_offset", pa.uint64()),
                *self.columns,
                pa.field("_unchanged", pa.list_(pa.string())),
            ]
        )
        self._row_schema = pa.schema([*extra, *_TRIPLE_TYPES, *self.columns])
        self._directory = Path(tempfile.mkdtemp(prefix="headwater-verify-", dir=workspace.directory))
        config: dict[str, Any] = {
            "memory_limit": workspace.memory_limit,
            "temp_directory": str(self._directory / "spill"),
            "threads": 2,
        }
        self.db = duckdb.connect(":memory:", config=config)
        self._make("events", self._event_schema)
        self._make("rows", self._row_schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.db.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    # filling

    def begin(self) -> None:
        """Another comparison of the same stream: its events stay."""
        self.below = self.upto = None
        self.forget_rows()

    def read(self, bus: Bus, stream: str) -> None:
        """The stream's events to its head, beyond those that are here."""
        self.load_events(self._noted(bus.read(stream, after=self._read, follow=False)))

    def _noted(self, stream: Iterable[Events]) -> Iterator[Events]:
        for events in stream:
            yield events
            self._read = events.cursor

    def load_events(self, stream: Iterable[Events]) -> None:
        """Events as their stream has them; older versions in the contract's shape."""
        self._load("events", self._event_schema, (self._event_rows(part) for part in stream))

    def load_rows(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Rows with the order triple and the contract's fields (and `_op`, of a history)."""
        self._load("rows", self._row_schema, (self._shaped(batch, self._row_schema) for batch in rows))

    def forget_rows(self) -> None:
        self.db.execute("TRUNCATE rows")
        self._nbytes["rows"] = 0

    def count(self, table: str) -> int:
        return int(self.one(f"SELECT count(*) FROM {table}"))

    def one(self, query: str) -> Any:
        ((value,),) = self.db.sql(query).fetchall()
        return value

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        yield from self.db.sql(query).to_arrow_reader(5_000)

    def _make(self, table: str, schema: pa.Schema) -> None:
        self.db.register("empty", schema.empty_table())
        self.db.execute(f"CREATE TABLE {table} AS SELECT *, 0::USMALLINT AS _bucket FROM empty")
        self.db.unregister("empty")

    def _load(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Chunk by chunk, each in a transaction of its own: one large transaction would be held in memory.

        Once there will be several parts, a chunk's rows of a bucket lie together, so that reading a part of the keys
        passes over most of the rest.
        """
        bucket = f"(hash({', '.join(map(quoted, self.identity))}) % {_BUCKETS})::USMALLINT"
        for chunk in _chunks(batches):
            self._nbytes[table] += sum(batch.nbytes for batch in chunk)
            together = " ORDER BY _bucket" if self._nbytes[table] > _PART_BYTES else ""
            self.db.register("chunk", pa.Table.from_batches(chunk, schema))
            self.db.execute(f"INSERT INTO {table} SELECT *, {bucket} AS _bucket FROM chunk{together}")
            self.db.unregister("chunk")

    def _event_rows(self, events: Events) -> pa.RecordBatch:
        data = conform(events.data, self.contract, events.type)
        columns = {name: data.column(name) for name in data.schema.names if name != "_unchanged"}
        if events.offsets is not None:
            columns["_offset"] = events.offsets
        if "_unchanged" in data.schema.names:
            fields = list(self.contract.shape(events.type))
            columns["_unchanged"] = named_marks(data.column("_unchanged"), fields)
        return self._shaped(pa.RecordBatch.from_pydict(columns), self._event_schema, type_name=events.type)

    def _shaped(self, data: pa.RecordBatch, schema: pa.Schema, type_name: str | None = None) -> pa.RecordBatch:
        arrays = []
        for wanted in schema:
            if wanted.name == "type" and type_name is not None:
                arrays.append(pa.repeat(type_name, len(data)))
            elif wanted.name in data.schema.names:
                arrays.append(data.column(wanted.name).cast(wanted.type))
            else:
                arrays.append(pa.nulls(len(data), wanted.type))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    # folding

    def parts(self) -> Iterator[str]:
        """Conditions that part the keys so that each part's rows fit into memory; `true` alone for a small stream."""
        rows = max(self.count("events"), self.count("rows"))
        number = min(max(rows // _PART_ROWS, max(self._nbytes.values()) // _PART_BYTES) + 1, _BUCKETS)
        if number == 1:
            yield "true"
            return
        ends = [_BUCKETS * part // number for part in range(number + 1)]
        yield from (f"_bucket >= {start} AND _bucket < {end}" for start, end in pairwise(ends))

    def tell(self, part: str) -> int:
        """Make table `told`, what the events of one part of the keys amount to; returns its number of rows."""
        wanted = (part, self.below, self.upto, self._read, self.count("events"))
        if wanted != self._folded_as:
            query = self._events_of(part) if self.history else self._folded(part)
            self.db.execute(f"CREATE OR REPLACE TABLE told AS {query}")
            self._folded_as = wanted
        return self.count("told")

    @property
    def counted(self) -> str:
        """The events that count, as a relation."""
        return self.known if self.below is None else f"(FROM {self.known} WHERE _offset < {self.below})"

    @property
    def known(self) -> str:
        """The events up to `upto`. A change's odd index, which a mapping gives, belongs to the even one below it."""
        if self.upto is None:
            return "events"
        epoch, commit, index = self.upto.epoch, self.upto.commit, self.upto.index | 1
        later = f"_commit < {commit} OR _commit = {commit} AND _index <= {index}"
        return f"(FROM events WHERE _epoch < {epoch} OR _epoch = {epoch} AND ({later}))"

    def _events_of(self, part: str) -> str:
        """Each event once: one that was appended twice is the business of `gaps`."""
        columns = ", ".join(map(quoted, ["_op", *TRIPLE, *self.columns.names]))
        return f"SELECT DISTINCT ON (_epoch, _commit, _index) {columns} FROM {self.counted} WHERE {part}"

    def _folded(self, part: str) -> str:
        """Every live key: the newest event by the order triple, unless the key, or everything, was deleted since.

        Where an event of the key did not carry all fields, each field is that of the newest event since the last delete
        that did; a field that none of them carried is null.
        """
        keys = ", ".join(map(quoted, self.contract.key))
        fields = [name for name in self.columns.names if name not in self.contract.key]
        whole, carried = (", ".join([keys, *map(how, fields)]) for how in (quoted, _newest_carried))
        return (
            f"WITH told AS (SELECT *, {_PLACE} AS _place FROM {self.counted} WHERE NOT {_EMPTIES} AND {part}),"
            f" emptied AS (SELECT coalesce(max({_PLACE}) + 1, 0) AS _emptied FROM {self.counted} WHERE {_EMPTIES}),"
            f" lives AS (SELECT {keys}, max(_place) AS _top, arg_max(_offset, _place) AS _newest,"
            f" greatest(coalesce(max(_place) FILTER (WHERE _op = {Op.DELETE.value}) + 1, 0), any_value(_emptied))"
            f" AS _since, coalesce(bool_or(len(_unchanged) > 0), false) AS _partial"
            f" FROM told CROSS JOIN emptied GROUP BY {keys}),"
            f" living AS (FROM lives WHERE _top >= _since)"
            f" SELECT {whole} FROM told JOIN (FROM living WHERE NOT _partial) USING ({keys}) WHERE _offset = _newest"
            f" UNION ALL"
            f" SELECT {carried} FROM told JOIN (FROM living WHERE _partial) USING ({keys}) WHERE _place >= _since"
            f" GROUP BY {keys}"
        )


def _newest_carried(name: str) -> str:
    carried = f"NOT coalesce(list_contains(_unchanged, '{name}'), false)"
    return f"arg_max_null({quoted(name)}, _place) FILTER (WHERE {carried}) AS {quoted(name)}"


def holdable(kind: pa.DataType) -> pa.DataType:
    """The type in which DuckDB holds it: decimals beyond 38 digits as text, at any depth."""
    if pa.types.is_decimal256(kind):
        return pa.string()
    if pa.types.is_map(kind):
        return pa.map_(pa.string(), holdable(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(holdable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(child.name, holdable(child.type)) for child in kind])
    return kind


def named_marks(marks: pa.Array, fields: list[str]) -> pa.Array:
    """Ordinals of fields as their names: what is compared must not depend on the fields' sequence."""
    if not len(marks):
        return pa.nulls(0, pa.list_(pa.string()))
    rows = pc.list_parent_indices(marks)
    names = pc.take(pa.array(fields), pc.list_flatten(marks))
    per_row = pa.table({"row": rows, "name": names}).group_by("row").aggregate([("name", "list")])
    at = pc.index_in(pa.array(range(len(marks)), pa.int64()), per_row.column("row").combine_chunks().cast(pa.int64()))
    return per_row.column("name_list").combine_chunks().cast(pa.list_(pa.string())).take(at)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    chunk: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        chunk.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
        if rows >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, rows, size = [], 0, 0
    if rows:
        yield chunk
