"""Rows read once more by their keys, for what the log does not carry of them.

Keys go to the database as texts in array literals and are compared there, under the column's own collation (F27).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.drivers.postgres import literal
from headwater.errors import NotConnected, SourceError
from headwater.sources.log_postgres.chunks import key_sql
from headwater.sources.log_postgres.position import lsn_of
from headwater.sources.log_postgres.rows import ALIAS, Connector, Shape, asked, batches_of
from headwater.sources.log_postgres.snapshot import Snapshot

if TYPE_CHECKING:
    from adbc_driver_manager import dbapi

_AT_ONCE = 5_000
_KEYS = "headwater_keys"


@dataclass(frozen=True, slots=True)
class Found:
    """`rows`: of the shape's schema, perhaps with `_invalid`. `place`: the row of each key that was asked for, or -1.

    `behind`: whether the key is not behind the place that was asked about.
    """

    rows: pa.RecordBatch
    place: npt.NDArray[np.int64]
    behind: npt.NDArray[np.bool_]


class Rereader:
    """A connection, made when it is first needed. `stopped`: waits so many seconds, and says whether to end."""

    def __init__(self, connector: Connector, stopped: Callable[[float], bool]) -> None:
        self._connector = connector
        self._stopped = stopped
        self._made: dbapi.Connection | None = None

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    def await_visible(self, xids: npt.NDArray[np.uint32]) -> None:
        """Until readers see what these transactions, whose commits were streamed, have done (F28)."""
        pause = 0.001
        while not Snapshot.parse(self._ask("SELECT pg_catalog.pg_current_snapshot()::text")[0]).sees_all(xids):
            if self._stopped(pause):
                raise NotConnected("stopped while a transaction was not visible yet")
            pause = min(2 * pause, 0.1)

    def _ask(self, sql: str) -> tuple[Any, ...]:
        return asked(self._connection, sql)

    def log_end(self) -> int:
        """Every commit that was visible is below this LSN."""
        return lsn_of(self._ask("SELECT pg_catalog.pg_current_wal_insert_lsn()::text")[0])

    def find(self, shape: Shape, keys: Sequence[pa.Array], after: Sequence[str] | None) -> Found:
        """The rows that have these keys now. `after`: the key (as texts) that `Found.behind` compares with."""
        texts = [texts_of(column, name) for column, name in zip(keys, shape.key_names, strict=True)]
        place = np.full(len(texts[0]), -1, np.int64)
        behind = np.zeros(len(place), bool)
        parts: list[pa.RecordBatch] = []
        count = 0
        for batch, offset in self._batches(shape, texts, after):
            rows = shape.rows(batch)
            ordinal, there, reached = (_numpy(column) for column in batch.columns[shape.width :])
            asked_for = ordinal + offset
            place[asked_for[there]] = count + np.flatnonzero(there)
            behind[asked_for] = reached
            parts.append(rows)
            count += len(rows)
        return Found(_joined(parts, shape), place, behind)

    def _batches(
        self, shape: Shape, texts: Sequence[pa.Array], after: Sequence[str] | None
    ) -> Iterator[tuple[pa.RecordBatch, int]]:
        for start in range(0, len(texts[0]), _AT_ONCE):
            sql = _find_sql(shape, [column.slice(start, _AT_ONCE) for column in texts], after)
            for batch in batches_of(self._connection, sql):
                if len(batch):
                    yield batch, start

    @property
    def _connection(self) -> dbapi.Connection:
        if self._made is None:
            self._made = self._connector.arrow()
        return self._made


def _find_sql(shape: Shape, texts: Sequence[pa.Array], after: Sequence[str] | None) -> str:
    given = [shape.types.parsed(f"{_KEYS}.k{n}", oid) for n, (_, oid) in enumerate(shape.key)]
    stored = [name for name, _ in key_sql(shape)]
    same = " AND ".join(f"{name} = {value}" for name, value in zip(stored, given, strict=True))
    reached = "false"
    if after is not None:  # with the column beside it the value is compared under the column's collation
        values = ", ".join(f"coalesce({name}, {value})" for name, value in zip(stored, given, strict=True))
        reached = f"({values}) <= ({', '.join(map(literal, after))})"
    names = ", ".join(f"k{n}" for n in range(len(texts)))
    return (
        f"SELECT {shape.selection.sql}, {_KEYS}.o - 1 AS headwater_o, {ALIAS}.tableoid IS NOT NULL AS headwater_there,"
        f" {reached} AS headwater_reached"
        f" FROM unnest({', '.join(map(_array_literal, texts))}) WITH ORDINALITY AS {_KEYS}({names}, o)"
        f" LEFT JOIN {shape.source} AS {ALIAS} ON {same}"
    )


def _array_literal(texts: pa.Array) -> str:
    escaped = pc.replace_substring(pc.replace_substring(texts, "\\", "\\\\"), '"', '\\"')
    items = pc.binary_join_element_wise('"', escaped, '"', "")
    return literal("{" + pc.binary_join(_one_list(items), ",")[0].as_py() + "}") + "::text[]"


def _one_list(items: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(items)], pa.int32()), items)


def texts_of(column: pa.Array, name: str) -> pa.Array:
    """Values of a key as texts that the server reads. Raises `SourceError` for types that make no key."""
    if pa.types.is_binary(column.type):
        return _hex(column)
    try:
        return pc.cast(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"key column `{name}`: rows cannot be found by values of type {column.type}",
            hint="make the log carry whole rows: ALTER TABLE ... REPLICA IDENTITY FULL;",
        ) from error


def _hex(column: pa.Array) -> pa.Array:
    """Bytes as `bytea` is written."""
    ends = np.concatenate([[0], np.cumsum(pc.binary_length(column).to_numpy())])
    raw = np.frombuffer(pc.binary_join(_one_list(column), b"")[0].as_py(), np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = pa.py_buffer(np.stack([digits[raw >> 4], digits[raw & 15]], axis=1).tobytes())
    offsets = pa.py_buffer((2 * ends).astype(np.int32))
    return pc.binary_join_element_wise("\\x", pa.StringArray.from_buffers(len(column), offsets, text), "")


def _joined(parts: list[pa.RecordBatch], shape: Shape) -> pa.RecordBatch:
    table = pa.concat_tables([pa.Table.from_batches([part]) for part in parts], promote_options="default")
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else shape.selection.columns.empty_table().to_batches()[0]


def _numpy(column: pa.Array) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return found
