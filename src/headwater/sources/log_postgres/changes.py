"""From what the decoder found to `Changes`: columns by the names that the log gives, values by the one type mapper.

The log says with each session, and after each ALTER, what a table's columns are (a Relation message). Those that are
captured are found by name, never by place; what type they have is the log's word too, not today's catalog's (F50).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headwater.dialects.marks import Marks, invalid_column
from headwater.dialects.postgres_types import PRINTED, Kind, PgTypes
from headwater.dialects.postgres_values import from_text, from_wire, moments_of
from headwater.errors import HeadwaterError
from headwater.model import TIMESTAMP, UNCHANGED, Changes, Op, changes_schema
from headwater.sources.log_postgres.identities import Identities
from headwater.sources.log_postgres.targets import Target
from headwater.wire.pgoutput import ReadyRows, Relation, Segment, TableRows, Transactions, WireColumn
from headwater.wire.pgoutput_ready import Recipe


class TextNeeded(HeadwaterError):
    """A captured column has a type that binary does not carry: the session must be one of text. Never leaves us."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What a description of a captured table comes to. `named`: the captured columns; `types`: of all, in words."""

    relation: Relation
    named: list[tuple[str, Kind]]
    columns: pa.Schema
    types: dict[str, str]


class Shaper:
    """Makes `Changes` for the captured tables. `binary`: how the session's values travel. `identities` hears of every
    table that the log describes, and says whose changes are left out. `learn`: load the types again.
    """

    def __init__(
        self,
        targets: Mapping[int, Target],
        types: PgTypes,
        epoch: int,
        *,
        binary: bool,
        identities: Identities | None = None,
        learn: Callable[[], None] | None = None,
    ) -> None:
        self._targets = targets
        self._types = types
        self._epoch = epoch
        self._identities = identities or Identities(targets)
        self._learn = learn
        self._asked: set[int] = set()
        self._convert = from_wire if binary else from_text
        self._seen: dict[int, _Seen] = {}
        self.binary = binary

    def wanted(self, relation: Relation) -> list[tuple[int, str]] | None:
        """For the decoder: which columns, and how they travel. Raises `TextNeeded`."""
        self._identities.heard(relation)
        if relation.oid not in self._targets:
            return None
        self._know_types(relation)
        found = []
        for ordinal, kind in self._kinds(relation):
            if self.binary and not kind.wire:
                raise TextNeeded(
                    f"column {relation.columns[ordinal].name} of {relation} has a type without binary form"
                )
            found.append((ordinal, kind.wire if self.binary else ""))
        return found

    def recipe(self, relation: Relation) -> Recipe | None:
        """For the decoder, likewise: how rows become `Changes.data` at once."""
        if not self.binary or relation.oid not in self._targets:
            return None
        seen = self._of(relation)
        columns = [(kind.wire, kind.type, moments_of(kind)) for _, kind in seen.named]
        return Recipe.of(columns, _schema(seen.columns, False, False), self._epoch)

    def _know_types(self, relation: Relation) -> None:
        """A type that was made since is loaded, once: one that is gone again stays unknown, and is printed."""
        new = {column.oid for column in relation.columns if not self._types.knows(column.oid)} - self._asked
        if new and self._learn is not None:
            self._asked |= new
            self._learn()

    def types_of(self, relation: Relation) -> dict[str, str]:
        """Every column with its type in words, as it is stored with the position (F52)."""
        return self._of(relation).types

    def _of(self, relation: Relation) -> _Seen:
        """Worked out once for each description of a table, which counts in batches of one row."""
        seen = self._seen.get(relation.oid)
        if seen is None or seen.relation is not relation:
            named = [(relation.columns[ordinal].name, kind) for ordinal, kind in self._kinds(relation)]
            types = {column.name: self._type_of(column) for column in relation.columns}
            columns = pa.schema([pa.field(name, kind.type) for name, kind in named])
            seen = self._seen[relation.oid] = _Seen(relation, named, columns, types)
        return seen

    def _type_of(self, column: WireColumn) -> str:
        kind, (base, _) = self._types.kind(column.oid, column.typmod), self._types.base(column.oid)
        return base.name if kind is PRINTED and base is not None else kind.name

    def target(self, relation: Relation) -> Target | None:
        return self._targets.get(relation.oid)

    def changes(self, segment: Segment, keep: NDArray[np.bool_]) -> Iterator[tuple[Relation, Changes]]:
        """`keep`: which of the segment's transactions count."""
        everything = bool(keep.all())
        tables: list[TableRows | ReadyRows] = [*segment.ready, *segment.tables]
        for rows in tables:
            target = self._targets.get(rows.relation.oid)
            if target is None or not len(rows) or rows.relation.oid in self._identities.untold:
                continue
            chosen = None if everything else np.flatnonzero(keep[rows.transaction])
            if chosen is not None and not len(chosen):
                continue
            data = rows.data if isinstance(rows, ReadyRows) else self._batch(rows, target, segment.transactions)
            yield rows.relation, Changes(target.id, data if chosen is None else data.take(pa.array(chosen)))

    def _kinds(self, relation: Relation) -> list[tuple[int, Kind]]:
        """The ordinals of the captured columns that are there, and their kinds; in the target's sequence."""
        target = self._targets.get(relation.oid)
        if target is None:
            return []
        places = {column.name: ordinal for ordinal, column in enumerate(relation.columns)}
        found = []
        for name in target.columns:
            if (ordinal := places.get(name)) is not None:
                column = relation.columns[ordinal]
                printed = name in target.as_text
                found.append((ordinal, PRINTED if printed else self._types.kind(column.oid, column.typmod)))
        return found

    def _batch(self, rows: TableRows, target: Target, transactions: Transactions) -> pa.RecordBatch:
        seen = self._of(rows.relation)
        named, columns = seen.named, seen.columns
        after, marks = self._converted(rows.after, named, lambda name: True)
        unchanged = rows.unchanged
        before = None
        if rows.before is not None:
            before, more = self._converted(rows.before, named, target.identifying.__contains__)
            marks += more
            after, unchanged = _filled(after, before, unchanged)
        lists = _unchanged_lists(unchanged, len(rows))
        return _assembled(
            columns,
            _heads(rows, transactions, self._epoch),
            (_side(before, columns, rows.before_kind == 0), _side(after, columns, rows.op >= int(Op.DELETE))),
            lists,
            invalid_column(marks, len(rows)) if marks else None,
        )

    def _converted(
        self, batch: pa.RecordBatch, named: Sequence[tuple[str, Kind]], marked: Callable[[str], bool]
    ) -> tuple[list[pa.Array], list[Marks]]:
        arrays, marks = [], []
        for values, (name, kind) in zip(batch.columns, named, strict=True):
            array, found = self._convert(values, kind, name)
            arrays.append(array)
            if found is not None and marked(name):
                marks.append(found)
        return arrays, marks


def _filled(
    after: list[pa.Array], before: list[pa.Array], unchanged: Sequence[NDArray[np.bool_] | None]
) -> tuple[list[pa.Array], list[NDArray[np.bool_] | None]]:
    """Under REPLICA IDENTITY FULL the old row has the value that the new one leaves out (F30)."""
    values, masks = list(after), list(unchanged)
    for place, mask in enumerate(unchanged):
        if mask is not None and mask.any():
            known = mask & before[place].is_valid().to_numpy(zero_copy_only=False)
            values[place] = pc.if_else(pa.array(known), before[place], after[place])
            masks[place] = mask & ~known
    return values, masks


def _unchanged_lists(masks: Sequence[NDArray[np.bool_] | None], rows: int) -> pa.Array | None:
    """Per row the ordinals of its unchanged columns, null where there are none; None if no row has any."""
    present = {place: mask for place, mask in enumerate(masks) if mask is not None and mask.any()}
    if not present:
        return None
    table = np.stack(list(present.values()), axis=1)
    _, which = np.nonzero(table)
    counts = table.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = pa.array(np.array(list(present), np.int16)[which])
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=UNCHANGED, mask=pa.array(counts == 0))


def _heads(rows: TableRows, transactions: Transactions, epoch: int) -> list[pa.Array]:
    which = rows.transaction
    texts = pa.array(transactions.xid).cast(pa.string())
    return [
        pa.array(rows.op),
        pa.array(np.full(len(rows), epoch, np.uint32)),
        pa.array(transactions.commit_lsn[which]),
        pa.array(rows.ordinal * np.uint32(2)),
        pa.array(transactions.time[which]).view(TIMESTAMP),
        texts.take(pa.array(which)),
    ]


def _side(arrays: list[pa.Array] | None, columns: pa.Schema, absent: NDArray[np.bool_]) -> pa.StructArray:
    row = _schema(columns, False, False).field("after").type
    if arrays is None:
        return pa.nulls(len(absent), row)
    if not arrays:
        return pa.array([None if gone else {} for gone in absent], row)
    mask = pa.array(absent) if absent.any() else None
    return pa.StructArray.from_arrays(arrays, fields=list(row), mask=mask)


@lru_cache(maxsize=256)
def _schema(columns: pa.Schema, unchanged: bool, invalid: bool) -> pa.Schema:
    """Made once, which counts in batches of one row."""
    return changes_schema(columns, unchanged=unchanged, invalid=invalid)


def _assembled(
    columns: pa.Schema,
    heads: list[pa.Array],
    sides: tuple[pa.StructArray, pa.StructArray],
    unchanged: pa.Array | None,
    invalid: pa.Array | None,
) -> pa.RecordBatch:
    more = [array for array in (unchanged, invalid) if array is not None]
    schema = _schema(columns, unchanged is not None, invalid is not None)
    return pa.RecordBatch.from_arrays([*heads, *sides, *more], schema=schema)
