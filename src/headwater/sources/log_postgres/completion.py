"""Changes that do not carry their whole row: what is missing is read from the table by the row's key.

The log leaves out what was stored apart (TOAST) and did not change. Three kinds of changes cannot do without it:

* one that makes a key: a row that is moved to another key, or a create. If the row is gone, what it held cannot be
  known any more: what is left of the change is that the old key has ended, and the new one is without a row (`Lost`);
* one without a value that a `where`, a key or an expression reads (`protocols.Capture.whole`). If the row is gone,
  nobody can know the value: it is marked in `_invalid`;
* one of a row that the reader of the stream does not have, because a load has yet to bring it or because it was lost:
  then the whole row is a READ before it (F28), and if the row is gone the change is left out, for its end follows.

What is read may be newer than the change. It is then followed by the change that made it so.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.dialects.marks import Marks, invalid_column, marked, marks_in
from headwater.errors import SourceError
from headwater.mapping.fold import key_codes
from headwater.mapping.unchanged import Pairs, listed, pairs
from headwater.model import INVALID, UNCHANGED, Op
from headwater.sources.log_postgres.homes import Homes, Lost, places_of
from headwater.sources.log_postgres.reread import Found, Rereader, texts_of
from headwater.sources.log_postgres.rows import Shape, beside, reads_at
from headwater.sources.log_postgres.windows import key_of, merged, with_columns, without_side, xids_of

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

GONE = "what the log left out, and the row is gone"


def is_partial(data: pa.RecordBatch) -> bool:
    return "_unchanged" in data.schema.names and data.column("_unchanged").null_count < len(data)


def completed(
    data: pa.RecordBatch, shape: Shape, whole: Collection[str], homes: Homes, lost: Lost, reread: Rereader
) -> pa.RecordBatch:
    """Changes (`model.Changes.data`), as above. `shape`: of the columns of `after`. `lost` learns from them.

    Raises `SourceError` when the table or its columns are gone.
    """
    work = _Work(data, shape, frozenset(whole), homes, lost)
    if not work.concerned:
        return data
    work.look()
    asked = work.asked()
    found, until = None, 0
    if len(asked):
        taken = data.take(pa.array(asked))
        reread.await_visible(work.xids(asked))
        found = reread.find(shape, key_of(taken.column("after"), shape.key_names), homes.after)
        work.know(asked, found)
        until = reread.log_end() if work.gone.any() else 0
    work.settle(until)
    return data if found is None else work.result(found)


@dataclass(slots=True)
class _Work:
    data: pa.RecordBatch
    shape: Shape
    whole: frozenset[str]
    homes: Homes
    lost: Lost
    missing: Pairs = field(init=False)
    filled: Mask = field(init=False)
    """Of the pairs in `missing`: those that must be filled."""
    partial: Mask = field(init=False)
    made: Mask = field(init=False)
    """The changes that make a key."""
    suspect: Mask = field(init=False)
    """The partial changes whose row is neither in this batch before them nor known to be with the reader."""
    doubted: Mask = field(init=False)
    """Those of them whose key may be one that was lost."""
    there: tuple[Mask, Mask] = field(init=False)
    """Whether there is a state `before` and `after`."""
    codes: tuple[Rows, Rows] = field(init=False)
    """Of the keys of both sides."""
    size: int = 0
    place: Rows = field(init=False)
    """By code: the row that was found, or -1."""
    gone: Mask = field(init=False)
    """The changes without a row that they could change, or make."""

    def __post_init__(self) -> None:
        count = len(self.data)
        marker = "_unchanged" in self.data.schema.names
        self.missing = pairs(self.data.column("_unchanged") if marker else pa.nulls(count, UNCHANGED))
        op = self._op
        sides = [self.data.column(name).is_valid().to_numpy(zero_copy_only=False) for name in ("before", "after")]
        self.there = sides[0], sides[1]
        self.made = (op == Op.CREATE) | ((op == Op.UPDATE) & sides[0])
        self.partial = np.zeros(count, bool)
        self.partial[self.missing.rows] = True
        names = [f.name for f in self.data.schema.field("after").type]
        ordinals = [place for place, name in enumerate(names) if name in self.whole]
        self.filled = self.made[self.missing.rows] | np.isin(self.missing.ordinals, ordinals)
        self.suspect, self.doubted, self.gone = np.zeros((3, count), bool)
        self.place = np.zeros(0, np.int64)

    @property
    def _op(self) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self.data.column("_op").to_numpy()
        return found

    @property
    def concerned(self) -> bool:
        return bool(self.filled.any() or (self.homes.loading and self.partial.any()) or self.lost)

    # which rows must be read

    def look(self) -> None:
        count = len(self.data)
        names = list(map(str, range(len(self.shape.key_names))))
        sides = [key_of(self.data.column(side), self.shape.key_names) for side in ("before", "after")]
        for column, name in zip(sides[1], self.shape.key_names, strict=True):
            texts_of(column.slice(0, 0), name)  # whether rows can be found by it
        both = [pa.concat_arrays(pair) for pair in zip(*sides, strict=True)]
        codes, self.size = key_codes(pa.RecordBatch.from_arrays(both, names=names), names)
        self.codes = codes[:count], codes[count:]
        self.place = np.full(self.size, -1, np.int64)
        self._suspect(sides[1])

    def _suspect(self, keys: list[pa.Array]) -> None:
        """Changes behind a whole one of their key in this batch are not."""
        after = self.codes[1]
        first = np.full(self.size, len(self.data), np.int64)
        begins = np.flatnonzero(self.there[1] & (~self.partial | self.made))
        np.minimum.at(first, after[begins], begins)
        rows = np.flatnonzero(self.partial & ~self.made & (np.arange(len(self.data)) < first[after]))
        chosen = [column.take(pa.array(rows)) for column in keys]
        if not len(rows):
            return
        self.doubted[rows] = self.lost.among(chosen) if self.lost else False
        loading = np.full(len(rows), self.homes.loading)
        if self.homes.loading:
            loading &= ~self.homes.known(
                chosen, places_of(self.data.select(["_commit", "_index"]).take(pa.array(rows)))
            )
        self.suspect[rows] = self.doubted[rows] | loading

    def asked(self) -> Rows:
        """One row for each key that must be read: the first."""
        wanted = self.suspect.copy()
        wanted[self.missing.rows[self.filled]] = True
        return self._firsts(wanted)

    def xids(self, asked: Rows) -> npt.NDArray[np.uint32]:
        """The transactions that have written rows of these keys."""
        after = self.codes[1]
        chosen = np.zeros(self.size, bool)
        chosen[after[asked]] = True
        return np.unique(xids_of(self.data.filter(pa.array(chosen[after] & self.there[1]))))

    def _firsts(self, mask: Mask) -> Rows:
        rows = np.flatnonzero(mask)
        _, first = np.unique(self.codes[1][rows], return_index=True)
        return np.sort(rows[first])

    # what was found

    def know(self, asked: Rows, found: Found) -> None:
        """Which changes have no row."""
        after = self.codes[1]
        self.place[after[asked]] = found.place
        brought = np.zeros(self.size, bool)
        brought[after[asked]] = found.behind
        self.suspect &= self.doubted | ~brought[after]
        absent = self.place[after] < 0
        lost = self.made & self.partial & absent
        rows = np.flatnonzero(self.there[1] & absent)
        rows = rows[np.lexsort((rows, after[rows]))]
        begins = np.where(~self.partial[rows] | self.made[rows], np.arange(len(rows)), -1)
        last = np.maximum.accumulate(begins) if len(rows) else begins
        known = (last >= 0) & (after[rows[last]] == after[rows])
        goes_on = np.where(known, lost[rows[last]], self.suspect[rows])
        self.gone[rows[goes_on & self.partial[rows]]] = True
        self.filled &= ~self.gone[self.missing.rows]

    def settle(self, until: int) -> None:
        """Tell `lost` which of the keys in this batch have a row in the end: all that are neither `gone` nor ended.

        A partial change that is not `gone` is of a row that the reader has, or of one that is read for it.
        """
        if not (self.lost or self.gone.any()):
            return
        first = self._behind_truncates()
        last = np.full(self.size, -1, np.int64)
        for side in (0, 1):
            rows = np.flatnonzero(self.there[side])
            rows = rows[rows >= first]
            np.maximum.at(last, self.codes[side][rows], 2 * rows + side)
        touched = np.flatnonzero(last >= 0)
        rows, after = last[touched] // 2, last[touched] % 2 == 1
        missing = after & self.gone[rows]
        for side in (0, 1):
            mine = after == bool(side)
            chosen = self.data.column(("before", "after")[side]).take(pa.array(rows[mine]))
            keys = key_of(chosen, self.shape.key_names)
            self.lost.settle(keys, missing[mine], until)

    def _behind_truncates(self) -> int:
        truncates = np.flatnonzero(self._op == Op.TRUNCATE)
        if not len(truncates):
            return 0
        self.lost.forget()
        return int(truncates[-1])

    # what goes on

    def result(self, found: Found) -> pa.RecordBatch:
        data = self._with_values(found)
        reads = self._reads(found)
        ends = self.gone & self.there[0]
        data = without_side(data, "after", ends)
        dropped = self.gone & ~ends
        if dropped.any():
            data = data.filter(pa.array(~dropped))
        return data if reads is None else _merged(data, reads)

    def _reads(self, found: Found) -> pa.RecordBatch | None:
        """The rows that changes need before them."""
        rows = self._firsts(self.suspect & ~self.gone)
        if not len(rows):
            return None
        at = self.place[self.codes[1][rows]]
        epoch = self.data.column("_epoch")[0].as_py()
        commits = beside(self.data.column("_commit").to_numpy()[rows])
        indices = self.data.column("_index").to_numpy()[rows]
        return reads_at(found.rows.take(pa.array(at)), epoch, commits, indices)

    def _with_values(self, found: Found) -> pa.RecordBatch:
        """The values that had to be filled, marks where they cannot be, and the marker of what is left out still."""
        if not len(self.missing.rows):
            return self.data
        after = self.data.column("after")
        place = self.place[self.codes[1]]
        children = [after.field(n) for n in range(after.type.num_fields)]
        marks = [marks_in(self.data.column("_invalid"))] if "_invalid" in self.data.schema.names else []
        for ordinal in np.unique(self.missing.ordinals[self.filled]).tolist():
            rows = self.missing.rows[self.filled & (self.missing.ordinals == ordinal)]
            spec = after.type.field(ordinal)
            children[ordinal] = _filled(children[ordinal], found, spec, rows, place[rows])
            marks += _marks_of(found, spec.name, rows, place[rows])
            lost = rows[place[rows] < 0]
            marks.append(marked(spec.name, str(spec.type), lost, pa.array([GONE] * len(lost), pa.string())))
        mask = after.is_null() if after.null_count else None
        left = ~self.filled
        changed = {
            "after": pa.StructArray.from_arrays(children, fields=list(after.type), mask=mask),
            "_unchanged": listed([self.missing.rows[left]], [self.missing.ordinals[left]], len(self.data)),
            "_invalid": invalid_column(marks, len(self.data)) if any(len(m.rows) for m in marks) else None,
        }
        data = self.data
        if changed["_unchanged"] is None:
            data = data.drop_columns(["_unchanged"])
        return with_columns(data, {name: column for name, column in changed.items() if column is not None})


def _filled(column: pa.Array, found: Found, spec: pa.Field, rows: Rows, place: Rows) -> pa.Array:
    there = place >= 0
    if not there.any():
        return column
    source = found.rows.column(found.rows.schema.get_field_index(spec.name))
    try:
        source = source if source.type == spec.type else source.cast(spec.type)
    except pa.ArrowException as error:
        raise SourceError(
            f"column `{spec.name}` had the type {spec.type} when it was changed, and is {source.type} now: "
            "a value that the log left out cannot be read any more",
            hint="`headwater repair` compares the table with its stream",
        ) from error
    mask = np.zeros(len(column), bool)
    mask[rows[there]] = True
    taken = np.zeros(len(column), np.int64)
    taken[rows[there]] = place[there]
    return pc.if_else(pa.array(mask), source.take(pa.array(taken)), column)


def _marks_of(found: Found, name: str, rows: Rows, place: Rows) -> list[Marks]:
    """The marks of values that were read and are invalid themselves, for the rows that they went to."""
    if "_invalid" not in found.rows.schema.names:
        return []
    all_marks = marks_in(found.rows.column("_invalid"))
    mine = pc.equal(pc.struct_field(all_marks.marks, "column"), name)
    number = np.full(len(found.rows), -1, np.int64)
    owners = all_marks.rows.filter(mine).to_numpy(zero_copy_only=False)
    number[owners] = np.arange(len(owners))
    hit = (place >= 0) & (number[place] >= 0)
    marks = all_marks.marks.filter(mine).take(pa.array(number[place[hit]]))
    return [Marks(pa.array(rows[hit], pa.int64()), marks.cast(INVALID.value_type))]


def _merged(data: pa.RecordBatch, reads: pa.RecordBatch) -> pa.RecordBatch:
    """Both in the order of their places."""
    row = data.schema.field("after").type
    for side in ("before", "after"):
        reads = with_columns(reads, {side: reads.column(side).cast(row)}) if reads.column(side).type != row else reads
    return merged(data, reads)
