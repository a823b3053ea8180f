"""Windows: while rows that a load has just read are newer than the log, what the log brings of them is left out.

A chunk's rows stand in the order before everything that is streamed later. Until the stream has passed the LSN that was
read after the chunk's snapshot, changes of transactions which that snapshot sees are in the rows already. They are left
out by the key of the row, the old one and the new one each on its own: a change that moves a row from a key outside of
the chunk into it still has to take the old key away.

Where a stream chooses among rows, its reader learns nothing from a row of the chunk that is not chosen, but may know
an older state of it. The change that took it away is one of those that are left out. So the row as it was read is told
once more in the place of the last of them: a row that is not chosen then ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping.hashing import hash_rows
from headwater.model import Op
from headwater.sources.log_postgres.snapshot import Snapshot

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

_SEED = b"headwater windows"[:16]


class Keys:
    """The keys of rows, to be asked whether others are among them."""

    def __init__(self, parts: Sequence[Sequence[pa.Array]]) -> None:
        self._set(np.concatenate([words_of(columns) for columns in parts] or [np.empty((0, 2), np.uint64)]))

    @classmethod
    def of(cls, words: npt.NDArray[np.uint64]) -> Keys:
        """Of keys as `words_of` gives them."""
        made = cls([])
        made._set(words)
        return made

    def _set(self, words: npt.NDArray[np.uint64]) -> None:
        words = words[np.argsort(words[:, 0], kind="stable")]
        self._first, self._second = words[:, 0].copy(), words[:, 1].copy()

    def __len__(self) -> int:
        return len(self._first)

    def has(self, columns: Sequence[pa.Array]) -> Mask:
        """One answer a row. The 128-bit hashes that are compared have two halves; equal first ones stand together."""
        asked = words_of(columns)
        found = np.zeros(len(asked), bool)
        places = np.searchsorted(self._first, asked[:, 0])
        open_ = np.arange(len(asked))
        while len(open_):
            inside = places[open_] < len(self._first)
            open_ = open_[inside]
            open_ = open_[self._first[places[open_]] == asked[open_, 0]]
            found[open_] |= self._second[places[open_]] == asked[open_, 1]
            open_ = open_[~found[open_]]
            places[open_] += 1
        return found


def words_of(columns: Sequence[pa.Array]) -> npt.NDArray[np.uint64]:
    """The 128-bit hash of each key, as two numbers."""
    hashes = hash_rows(columns, _SEED)
    return np.frombuffer(hashes.buffers()[1], "<u8", count=2 * len(hashes)).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Window:
    """Open until the stream has passed `until`. `keys`: of the rows that were read, by the columns `key`; None: all."""

    snapshot: Snapshot
    until: int
    keys: Keys | None
    key: tuple[str, ...] = ()
    rows: Sequence[pa.RecordBatch] = ()
    """What was read, where the stream chooses among rows."""

    def trimmed(self, data: pa.RecordBatch) -> tuple[pa.RecordBatch, bool]:
        """The changes (`model.Changes.data`) that are not in the rows, and whether the window goes on.

        A TRUNCATE ends a window of keys: what was read had been written after it, and comes once more behind it.
        """
        seen = self.snapshot.sees(xids_of(data))
        if self.keys is None:
            return (data if not seen.any() else data.filter(pa.array(~seen))), True
        truncates = np.flatnonzero(_ops(data) == Op.TRUNCATE)
        if len(truncates):
            seen[truncates[0] :] = False
        before_in, after_in = self._inside(data, seen)
        kept = _trimmed(data, before_in, after_in)
        if self.rows and after_in.any():
            kept = self._with_repeated(kept, data, np.flatnonzero(after_in))
        return kept, not len(truncates)

    def _with_repeated(self, kept: pa.RecordBatch, data: pa.RecordBatch, left_out: Rows) -> pa.RecordBatch:
        """With an update to what was read behind the last of the changes `left_out` of each key."""
        keys = hash_rows(key_of(data.column("after").take(pa.array(left_out)), self.key), _SEED)
        parts = [pa.Table.from_batches([part]) for part in self.rows]
        read = pa.concat_tables(parts, promote_options="default").combine_chunks().to_batches()[0]
        places = pc.index_in(keys, value_set=hash_rows([read.column(name) for name in self.key], _SEED)).to_numpy()
        _, last = np.unique(places[::-1], return_index=True)
        last = np.sort(len(places) - 1 - last)
        changes, rows = data.take(pa.array(left_out[last])), read.take(pa.array(places[last]))
        state = changes.column("after")
        names = {field.name for field in state.type}
        if not names.issuperset(name for name in rows.schema.names if name != "_invalid"):
            return kept  # the table got a column since: an update without it would take its value away
        absent = pa.nulls(len(changes), state.type)
        changed = {
            "_op": pa.array(np.full(len(changes), Op.UPDATE, np.int8)),
            "_index": pc.add(changes.column("_index"), pa.scalar(1, pa.uint32())),
            "before": absent,
            "after": pa.StructArray.from_arrays([_column(rows, state, f) for f in state.type], fields=list(state.type)),
        }
        told = without_columns(with_columns(changes, changed), ("_unchanged", "_invalid"))
        if "_invalid" in rows.schema.names:
            told = with_columns(told, {"_invalid": rows.column("_invalid")})
        return merged(kept, told)

    def _inside(self, data: pa.RecordBatch, seen: Mask) -> tuple[Mask, Mask]:
        """Whether the old and the new state of each row is to be left out."""
        assert self.keys is not None
        sides = []
        for name in ("before", "after"):
            state = data.column(name)
            there = seen & state.is_valid().to_numpy(zero_copy_only=False)
            rows = np.flatnonzero(there)
            if len(rows):
                chosen = state.take(pa.array(rows))
                there[rows] = self.keys.has(key_of(chosen, self.key))
            sides.append(there)
        return sides[0], sides[1]


def _column(rows: pa.RecordBatch, state: pa.StructArray, spec: pa.Field) -> pa.Array:
    """As it was read; of a column that the table has no more, or in another type, as it was changed."""
    if spec.name not in rows.schema.names:
        return pc.struct_field(state, spec.name)
    found = rows.column(spec.name)
    try:
        return found if found.type == spec.type else found.cast(spec.type)
    except pa.ArrowException:
        return pc.struct_field(state, spec.name)


def merged(data: pa.RecordBatch, more: pa.RecordBatch) -> pa.RecordBatch:
    """Changes with the same columns of rows, in the order of their places."""
    both = pa.concat_tables([pa.Table.from_batches([part]) for part in (data, more)], promote_options="default")
    (found,) = both.combine_chunks().to_batches()
    order = np.lexsort((found.column("_index").to_numpy(), found.column("_commit").to_numpy()))
    return found.take(pa.array(order))


def _trimmed(data: pa.RecordBatch, before_in: Mask, after_in: Mask) -> pa.RecordBatch:
    if not (before_in.any() or after_in.any()):
        return data
    has_before, has_after = (data.column(name).is_valid().to_numpy(zero_copy_only=False) for name in _SIDES)
    gone = (before_in | ~has_before) & (after_in | ~has_after) & (has_before | has_after)
    leaves = after_in & ~gone
    comes = before_in & ~gone
    if leaves.any() or comes.any():
        data = without_side(without_side(data, "after", leaves), "before", comes)
    return data.filter(pa.array(~gone))


_SIDES = ("before", "after")


def without_side(data: pa.RecordBatch, side: str, rows: Mask) -> pa.RecordBatch:
    """Rows without their new state are deletes, rows without their old one creates."""
    if not rows.any():
        return data
    op = Op.DELETE if side == "after" else Op.CREATE
    state = data.column(side)
    absent = rows | state.is_null().to_numpy(zero_copy_only=False)
    children = [state.field(place) for place in range(state.type.num_fields)]
    changed = {
        "_op": pa.array(np.where(rows, np.int8(op), _ops(data)).astype(np.int8)),
        side: pa.StructArray.from_arrays(children, fields=list(state.type), mask=pa.array(absent)),
    }
    if side == "after" and "_unchanged" in data.schema.names:
        changed["_unchanged"] = replaced(data.column("_unchanged"), rows)
    return with_columns(data, changed)


def replaced(lists: pa.Array, rows: Mask) -> pa.Array:
    """A list column with null in these rows."""
    places = np.where(rows, -1, np.arange(len(lists)))
    return lists.take(pa.array(places, mask=rows))


def with_columns(data: pa.RecordBatch, changed: dict[str, pa.Array]) -> pa.RecordBatch:
    """The batch with columns replaced, or added at its end."""
    columns = dict(zip(data.schema.names, data.columns, strict=True)) | changed
    fields = [data.schema.field(n) if n in data.schema.names else pa.field(n, c.type) for n, c in columns.items()]
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields))


def without_columns(data: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    return data.select([name for name in data.schema.names if name not in names])


def xids_of(data: pa.RecordBatch) -> npt.NDArray[np.uint32]:
    found: npt.NDArray[np.uint32] = data.column("_transaction").cast(pa.uint32()).to_numpy(zero_copy_only=False)
    return found


def key_of(state: pa.StructArray, key: Sequence[str]) -> list[pa.Array]:
    """The key's columns of rows that are all there."""
    return [state.field(state.type.get_field_index(name)) for name in key]


def _ops(data: pa.RecordBatch) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = data.column("_op").to_numpy()
    return found
