"""Every stream of a bus as a DuckDB view, and its current state as another.

    learning.enrollment             each event, `_offset` upwards (also "learning.enrollment")
    learning.enrollment_current     the newest state of each key (also current."learning.enrollment")

Columns of an event: `_offset`, `_id` (hexadecimal), `_op` (c u d r t), `_epoch`, `_commit`, `_index`, `_time`,
`_transaction`, `_version`; `type`, in contracts that have several; the contract's fields; `_unchanged` (the names of
fields that the event does not carry); `before`, filled where the mapping asks for it.
The current state has the fields, the order triple, and `_offset` and `_time` of the newest event.

One idea: a stream is a pyarrow dataset whose scanner reads the bus, so that a query reads each stream anew, batch by
batch, and builds only the columns that it asks for. Decimals of more than 38 digits, which DuckDB lacks, are text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from headwater.contracts.model import Contract
from headwater.mapping.evolve import conform
from headwater.mapping.hashing import event_ids
from headwater.model import TIMESTAMP, UNCHANGED, Events, Op
from headwater.protocols import Bus
from headwater.schema import table_schema

MEMORY_LIMIT = "1GB"
_TAKEN = {"main", "current", "information_schema", "pg_catalog", "temp", "system", "memory"}
"""Names that mean something else to DuckDB, or here: streams below them are reached by their quoted name alone."""

_HEAD = (
    ("_offset", pa.uint64()),
    ("_id", pa.string()),
    ("_op", pa.string()),
    ("_epoch", pa.uint32()),
    ("_commit", pa.uint64()),
    ("_index", pa.uint32()),
    ("_time", TIMESTAMP),
    ("_transaction", pa.string()),
    ("_version", pa.int32()),
)
_LETTERS = pa.array(["", *(op.letter for op in Op)])


def connect(
    bus: Bus, contracts: Mapping[str, Contract], *, memory_limit: str = MEMORY_LIMIT
) -> duckdb.DuckDBPyConnection:
    """A connection with the views of these streams. The caller closes it, before it closes the bus."""
    connection = duckdb.connect(config={"memory_limit": memory_limit})
    connection.execute("CREATE SCHEMA current")
    for stream, contract in contracts.items():
        _add(connection, bus, stream, contract, frozenset(contracts))
    return connection


def _add(
    connection: duckdb.DuckDBPyConnection, bus: Bus, stream: str, contract: Contract, others: frozenset[str]
) -> None:
    raw = f"headwater events of {stream}"
    schema = _schema(contract)
    connection.register(raw, _Stream(schema, lambda ids: _rows(bus, contract, schema, ids)))
    events = _events_sql(contract, raw)
    names = [_quoted(stream), *_qualified(connection, stream)]
    _make(connection, names, events)
    if contract.key:
        state = f"{stream}_current"
        spellings = [] if state in others else [_quoted(state), *_qualified(connection, state)]
        _make(connection, [f"current.{_quoted(stream)}", *spellings], _current_sql(contract, f"main.{_quoted(stream)}"))


def _make(connection: duckdb.DuckDBPyConnection, names: Sequence[str], sql: str) -> None:
    for name in dict.fromkeys(names):
        connection.execute(f"CREATE VIEW {name} AS {sql}")


def _qualified(connection: duckdb.DuckDBPyConnection, stream: str) -> list[str]:
    schema, _, name = stream.rpartition(".")
    if not schema or schema in _TAKEN:
        return []
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}")
    return [f"{_quoted(schema)}.{_quoted(name)}"]


class _Stream(ds.InMemoryDataset):  # type: ignore[misc]
    """A dataset that is read from the bus each time it is scanned."""

    def __init__(self, schema: pa.Schema, rows: Callable[[bool], Iterator[pa.RecordBatch]]) -> None:
        super().__init__(schema.empty_table())
        self._rows = rows

    def scanner(self, columns: list[str] | None = None, filter: ds.Expression | None = None, **_: Any) -> ds.Scanner:  # noqa: A002
        ids = columns is None or "_id" in columns or "_id" in str(filter)
        return ds.Scanner.from_batches(self._rows(ids), schema=self.schema, columns=columns, filter=filter)


def _schema(contract: Contract) -> pa.Schema:
    fields = [pa.field(f.name, _held(f.type)) for f in table_schema(contract)]
    before = [] if contract.types else [pa.field("before", pa.struct(fields))]
    return pa.schema([*_HEAD, *fields, pa.field("_unchanged", UNCHANGED), *before])


def _rows(bus: Bus, contract: Contract, schema: pa.Schema, ids: bool) -> Iterator[pa.RecordBatch]:
    if contract.stream not in bus.streams():
        return
    for events in bus.read(contract.stream, after=None, follow=False):
        yield _shaped(events, contract, schema, ids)


def _shaped(events: Events, contract: Contract, schema: pa.Schema, ids: bool) -> pa.RecordBatch:
    """Event ids cost more than all the rest: they are made only where a query asks for them."""
    data, count = conform(events.data, contract, events.type), len(events)
    made: dict[str, pa.Array] = {
        "_offset": events.offsets,
        "_id": _hexadecimal(event_ids(events)) if ids else pa.nulls(count, pa.string()),
        "_op": _LETTERS.take(data.column("_op").cast(pa.int32())),
        "_version": pa.repeat(pa.scalar(events.version, pa.int32()), count),
    }
    if contract.types:
        made["type"] = pa.repeat(events.type or "", count)
    arrays = [
        made[field.name]
        if field.name in made
        else data.column(field.name).cast(field.type)
        if field.name in data.schema.names
        else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _hexadecimal(ids: pa.Array) -> pa.Array:
    """16-byte values as text, without a Python object for each."""
    start = ids.offset * 16
    text = ids.buffers()[1].slice(start, len(ids) * 16).to_pybytes().hex().encode()
    offsets = pa.array(range(0, len(text) + 1, 32), pa.int32())
    return pa.StringArray.from_buffers(len(ids), offsets.buffers()[1], pa.py_buffer(text))


def _held(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_decimal256(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_held(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(pa.string(), _held(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _held(f.type)) for f in kind])
    return kind


# the views' SQL


def _events_sql(contract: Contract, raw: str) -> str:
    return f"SELECT * REPLACE ({_names_of_unchanged(contract)} AS _unchanged) FROM {_quoted(raw)}"


def _names_of_unchanged(contract: Contract) -> str:
    """`_unchanged` holds ordinals of the event type's fields; people read names."""

    def names(type_name: str | None) -> str:
        listed = ", ".join(f"'{name}'" for name in contract.shape(type_name))
        return f"list_transform(_unchanged, lambda i: [{listed}][i + 1])"

    if not contract.types:
        return names(None)
    return "CASE type " + " ".join(f"WHEN '{name}' THEN {names(name)}" for name in contract.types) + " END"


_PLACE = "(_epoch::UHUGEINT << 96) + (_commit::UHUGEINT << 32) + _index::UHUGEINT"


def _current_sql(contract: Contract, events: str) -> str:
    """Newest is by the order triple. Fields that the newest event does not carry are looked up behind it, in the same
    life of the key; where no event is partial, that part of the query reads nothing.
    """
    columns = table_schema(contract).names
    key = ", ".join(map(_quoted, contract.key))
    values = [_quoted(n) if n in contract.key else _filled(n) for n in columns]
    carried = [_newest_carried(n) for n in columns if n not in contract.key]
    return f"""
        WITH told AS (SELECT *, {_PLACE} AS _place FROM {events}),
        heads AS MATERIALIZED (
            SELECT {key}, max(_place) AS _place, arg_max(_offset, _place) AS _offset, arg_max(_op, _place) AS _op,
                coalesce(bool_or(len(_unchanged) > 0), false) AS _partial,
                max(_place) FILTER (WHERE _op IN ('d', 't')) AS _ended
            FROM told GROUP BY {key}),
        emptied AS (SELECT coalesce(max(_place), 0) AS _emptied FROM heads WHERE _op = 't'),
        alive AS MATERIALIZED (SELECT heads.* FROM heads, emptied WHERE _op NOT IN ('d', 't') AND _place > _emptied),
        filled AS (
            SELECT {", ".join([key, *carried])}
            FROM told JOIN (SELECT {key}, _ended FROM alive WHERE _partial) partial USING ({key}), emptied
            WHERE _place > greatest(_ended, _emptied) GROUP BY {key})
        SELECT {", ".join(values)}, _epoch, _commit, _index, _offset, _time
        FROM {events} newest SEMI JOIN alive USING (_offset) LEFT JOIN filled USING ({key})
    """


def _filled(name: str) -> str:
    ours = _quoted(name)
    return f"CASE WHEN list_contains(newest._unchanged, '{name}') THEN filled.{ours} ELSE newest.{ours} END AS {ours}"


def _newest_carried(name: str) -> str:
    if name == "type":
        return "arg_max(type, _place) AS type"
    carried = f"NOT coalesce(list_contains(_unchanged, '{name}'), false)"
    return f"arg_max_null({_quoted(name)}, _place) FILTER (WHERE {carried}) AS {_quoted(name)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
