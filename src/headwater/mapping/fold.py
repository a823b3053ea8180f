"""Many events to the newest one of each key: what compaction keeps, what sinks apply, what views show.

One idea: rows are chosen by their order triple, never by where they stand, and a column that the newest row does not
carry is chosen on its own. So a fold is a list of row numbers per column, and `take` does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping import unchanged as marks
from headwater.model import Op

Rows = npt.NDArray[np.int64]


def fold(data: pa.RecordBatch | pa.Table, key: Sequence[str]) -> pa.RecordBatch:
    """The newest row of each key by (`_epoch`, `_commit`, `_index`), in that order, with every column of `data`.

    A field that the newest row lists in `_unchanged` is taken from the newest earlier row of the key that has it; a
    create, read or delete in between ends the search. What stays unknown stays listed; `_unchanged` is left out when
    nothing is. Deletes stay as rows.

    A truncate makes everything older vanish, whatever its key, and stays itself, as the first row and with null keys:
    whoever applies the fold to a state of its own must empty that state first. Rows of equal order are deliveries of
    the same event; one of them is kept.
    """
    batch = _one_batch(data)
    ordered = _in_order(batch)
    ordered, truncate = _since_truncate(batch, ordered)
    newest = _newest(batch, key, ordered)
    if truncate is not None:
        newest = np.concatenate([truncate, newest])
    if "_unchanged" in batch.schema.names:
        return _filled(batch, key, ordered, newest)
    return _taken(batch, newest)


def _one_batch(data: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
    if isinstance(data, pa.RecordBatch):
        return data
    batches = data.combine_chunks().to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=data.schema)


def _taken(batch: pa.RecordBatch, rows: Rows) -> pa.RecordBatch:
    if len(rows) == batch.num_rows and _rising(rows):
        return batch
    return batch.take(pa.array(rows))


def _rising(values: npt.NDArray[Any]) -> bool:
    return bool(np.all(values[:-1] <= values[1:]))


def numbers(array: pa.Array) -> npt.NDArray[Any]:
    """The values of a column without nulls, without a copy where Arrow allows."""
    found: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return found


def _in_order(batch: pa.RecordBatch) -> Rows:
    """The row numbers by the order triple; sorted only where the rows are not in order already."""
    epoch, commit, index = (numbers(batch.column(name)) for name in ("_epoch", "_commit", "_index"))
    rows: Rows = np.arange(batch.num_rows, dtype=np.int64)
    if _triples_rise(epoch, commit, index):
        return rows
    return np.lexsort((index, commit, epoch)).astype(np.int64, copy=False)


def _triples_rise(epoch: npt.NDArray[Any], commit: npt.NDArray[Any], index: npt.NDArray[Any]) -> bool:
    if not _rising(epoch):
        return False
    same = epoch[:-1] == epoch[1:]
    if np.any(same & (commit[:-1] > commit[1:])):
        return False
    same &= commit[:-1] == commit[1:]
    return not np.any(same & (index[:-1] > index[1:]))


def _since_truncate(batch: pa.RecordBatch, ordered: Rows) -> tuple[Rows, Rows | None]:
    truncated = numbers(batch.column("_op"))[ordered] == int(Op.TRUNCATE)
    if not truncated.any():
        return ordered, None
    place = int(np.flatnonzero(truncated)[-1])
    return ordered[place + 1 :], ordered[place : place + 1]


def _newest(batch: pa.RecordBatch, key: Sequence[str], ordered: Rows) -> Rows:
    if not len(ordered):
        return ordered
    codes, size = key_codes(batch, key)
    last: Rows = np.full(size, -1, dtype=np.int64)
    last[codes[ordered]] = np.arange(len(ordered))  # of several assignments to one place the last one stays
    found = last[last >= 0]
    if len(found) == len(ordered):
        return ordered
    found.sort()
    return ordered[found]


def key_codes(batch: pa.RecordBatch, key: Sequence[str]) -> tuple[Rows, int]:
    """A small number for each row, equal exactly where the keys are, and one more than the highest."""
    if not key:
        return np.zeros(batch.num_rows, dtype=np.int64), 1
    codes, size = _column_codes(batch.column(key[0]))
    for name in key[1:]:
        more, width = _column_codes(batch.column(name))
        codes = codes * width + more  # each is at most about four times the rows: no overflow below 2^28 rows
        if size * width > 4 * batch.num_rows + 1024:
            codes, size = _dense(pa.array(codes))
        else:
            size *= width
    return codes, size


def _column_codes(array: pa.Array) -> tuple[Rows, int]:
    if pa.types.is_integer(array.type) and array.null_count == 0 and len(array):
        values = numbers(array)
        low, high = int(values.min()), int(values.max())
        if high - low <= 4 * len(array) + 1024:
            return (values - values.dtype.type(low)).astype(np.int64), high - low + 1
    return _dense(array)


def _dense(array: pa.Array) -> tuple[Rows, int]:
    encoded = pc.dictionary_encode(array, null_encoding="encode")
    return numbers(encoded.indices).astype(np.int64), max(1, len(encoded.dictionary))


@dataclass(frozen=True, slots=True)
class _History:
    """The rows of each key side by side, oldest first, cut wherever nothing earlier may be looked at.

    `place`: where in `rows` a row of the batch stands. `start`: the first place of the stretch that a place is in.
    """

    rows: Rows
    place: Rows
    start: Rows


def _history(batch: pa.RecordBatch, key: Sequence[str], ordered: Rows) -> _History:
    codes = key_codes(batch, key)[0][ordered]
    rows = ordered[np.argsort(codes, kind="stable")]
    codes = np.sort(codes, kind="stable")
    op = numbers(batch.column("_op"))[rows]
    cut = np.ones(len(rows), dtype=bool)
    cut[1:] = (codes[1:] != codes[:-1]) | (op[1:] != int(Op.UPDATE)) | (op[:-1] == int(Op.DELETE))
    start = np.maximum.accumulate(np.where(cut, np.arange(len(rows)), 0)) if len(rows) else rows
    place = np.full(batch.num_rows, -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    return _History(rows, place, start)


def _filled(batch: pa.RecordBatch, key: Sequence[str], ordered: Rows, newest: Rows) -> pa.RecordBatch:
    """Takes the newest rows, and for each column that they miss the newest rows that have it."""
    missing = marks.pairs(batch.column("_unchanged"))
    position = np.full(batch.num_rows, -1, dtype=np.int64)
    position[newest] = np.arange(len(newest))
    wanted = position[missing.rows] >= 0
    ordinals = np.unique(missing.ordinals[wanted])
    left_rows, left_ordinals = [], []
    taken: dict[int, Rows] = {}
    history = _history(batch, key, ordered) if len(ordinals) else None
    for ordinal in ordinals.tolist():
        assert history is not None
        lacking = missing.rows[missing.ordinals == ordinal]
        asked = lacking[position[lacking] >= 0]
        found = _earlier(history, lacking, asked, batch.num_rows)
        taken[ordinal] = newest.copy()
        taken[ordinal][position[asked[found >= 0]]] = found[found >= 0]
        left_rows.append(position[asked[found < 0]])
        left_ordinals.append(np.full(int((found < 0).sum()), ordinal, dtype=np.int16))
    left = marks.listed(left_rows, left_ordinals, len(newest))
    return _assembled(batch, newest, taken, left)


def _earlier(history: _History, lacking: Rows, asked: Rows, count: int) -> Rows:
    """For each row asked for, the newest earlier row of its stretch that is not lacking the column, or -1."""
    carries = np.ones(count, dtype=bool)
    carries[lacking] = False
    places = np.arange(len(history.rows))
    latest = np.maximum.accumulate(np.where(carries[history.rows], places, -1))
    at = history.place[asked]
    inside = at >= 0
    found = np.full(len(asked), -1, dtype=np.int64)
    known = latest[at[inside]]
    found[inside] = np.where(known >= history.start[at[inside]], history.rows[known], -1)
    return found


def _assembled(batch: pa.RecordBatch, newest: Rows, taken: dict[int, Rows], left: pa.Array | None) -> pa.RecordBatch:
    chosen = _taken(batch, newest)
    fields = [n for n in batch.schema.names if not n.startswith("_") and n != "before"]
    by_name = {fields[ordinal]: rows for ordinal, rows in taken.items()}
    columns, schema = [], []
    for place, spec in enumerate(batch.schema):
        if spec.name == "_unchanged":
            if left is None:
                continue
            columns.append(left)
        elif spec.name in by_name:
            columns.append(batch.column(place).take(pa.array(by_name[spec.name])))
        else:
            columns.append(chosen.column(place))
        schema.append(spec)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(schema, metadata=batch.schema.metadata))
