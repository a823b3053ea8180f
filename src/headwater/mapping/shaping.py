"""Changes whose fate is known, to the events of one type.

Two sets of values are made, each in one go: A, all fields of the rows that go on (create, update, read), and B, the
keys (or with `before: true` all fields) of the old rows. An event then is a choice of one row of A or B for each
column, so that key changes, which become two events, and deletes, which carry only their key, are a `take` like any
other; where each change is one event of A, even that falls away and columns pass as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping import unchanged
from headwater.mapping.findings import Findings
from headwater.mapping.program import Fault, Program, TypeProgram, Values
from headwater.mapping.side import Side
from headwater.model import ORDER_FIELDS, Op

Ops = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pending:
    """Changes under way: what each will be, its two states, and its row number in the batch."""

    ops: Ops
    after: Side
    before: Side
    has_before: Mask
    origin: Rows

    def take(self, rows: Rows) -> Pending:
        if len(rows) == len(self.ops):
            return self
        return Pending(
            self.ops[rows], self.after.take(rows), self.before.take(rows), self.has_before[rows], self.origin[rows]
        )

    def marked(self, *ops: Op) -> Mask:
        """Which rows have one of these ops."""
        found: Mask = self.ops == int(ops[0])
        for op in ops[1:]:
            found = found | (self.ops == int(op))
        return found


@dataclass(frozen=True, slots=True)
class Shaped:
    """Events of one type; `origin`: the row number in the batch that each comes from, rising."""

    data: pa.RecordBatch
    origin: Rows


@dataclass(frozen=True, slots=True)
class _Old:
    """B. `place`: the row in it of each pending row, or -1."""

    values: Values
    rows: Rows
    place: Rows


class Shaping:
    """Makes the events of one batch and one type; what breaks the contract goes to `findings` instead."""

    def __init__(self, program: Program, kind: TypeProgram, findings: Findings, *, before: bool) -> None:
        self._program = program
        self._kind = kind
        self._findings = findings
        self._before = before

    def events(self, data: pa.RecordBatch, pending: Pending) -> tuple[Shaped, Values]:
        """The events, and A, for checks across rows."""
        going_on = ~pending.marked(Op.DELETE, Op.TRUNCATE)
        live = np.flatnonzero(going_on)
        new = self._program.values(self._kind, pending.after.take(live))
        self._report(pending.origin[live], new.faults)
        self._report(pending.origin[live], self._program.check(self._kind, new))
        old = self._old(pending)
        choice = _Choice.of(pending, self._changed(pending, live, new, old), self._findings.good(pending.origin))
        choice.place(live, old.place)
        columns = self._columns(choice, new, old.values)
        marker = self._marker(choice, new)
        extra = {"_unchanged": marker} if marker is not None else {}
        if self._before:
            extra["before"] = self._before_column(choice, pending, old)
        origin = pending.origin[choice.rows]
        return Shaped(_assembled(data, choice, origin, {**columns, **extra}, self._kind.schema), origin), new

    def _report(self, origin: Rows, faults: list[Fault]) -> None:
        for fault in faults:
            self._findings.add(origin[fault.rows], fault.field, fault.expected, fault.got)

    def _old(self, pending: Pending) -> _Old:
        deleted = pending.marked(Op.DELETE)
        wanted = deleted
        if self._kind.key or self._before:
            wanted = deleted | (pending.marked(Op.UPDATE) & pending.has_before)
        rows = np.flatnonzero(wanted)
        place = _places(rows, len(pending.ops))
        if not len(rows):
            return _Old(Values({}, [], {}), rows, place)
        state = _told(pending, rows)
        values = self._program.values(self._kind, state, key_only=not self._before)
        self._report_deletes(pending, rows, deleted, values)
        return _Old(values, rows, place)

    def _report_deletes(self, pending: Pending, rows: Rows, deleted: Mask, values: Values) -> None:
        """Of an old row only a delete's key matters; whatever else was wrong in it was reported when it was new."""
        if not deleted.any():
            return
        faults = [f for f in values.faults if f.field in self._kind.key]
        for fault in faults + self._program.check_key(self._kind, values):
            matters = deleted[rows[fault.rows]]
            kept = fault.rows[matters]
            got = fault.got.filter(pa.array(matters))
            self._findings.add(pending.origin[rows[kept]], fault.field, fault.expected, got)

    def _changed(self, pending: Pending, live: Rows, new: Values, old: _Old) -> Mask | None:
        """The updates whose key is another than before; a key that was not told has not changed."""
        if not self._kind.key or not old.values.columns:
            return None
        updates = np.flatnonzero(pending.marked(Op.UPDATE) & pending.has_before)
        if not len(updates):
            return None
        at_new, at_old = _places(live, len(pending.ops))[updates], old.place[updates]
        changed = np.zeros(len(pending.ops), dtype=bool)
        known, differs = np.ones(len(updates), dtype=bool), np.zeros(len(updates), dtype=bool)
        for name in self._kind.key:
            now, then = _taken(new.columns[name], at_new), _taken(old.values.columns[name], at_old)
            unequal = pc.not_equal(now, then)
            if unequal.null_count:
                known &= unequal.is_valid().to_numpy(zero_copy_only=False)
                unequal = pc.fill_null(unequal, False)
            differs |= unequal.to_numpy(zero_copy_only=False)
        changed[updates] = differs & known
        return changed

    def _columns(self, choice: _Choice, new: Values, old: Values) -> dict[str, pa.Array]:
        if choice.straight:
            return dict(new.columns)
        columns = {}
        for name, column in new.columns.items():
            if name in self._kind.key and name in old.columns:
                both = pa.concat_arrays([column, old.columns[name]])
                columns[name] = both.take(choice.key_rows(len(column)))
            else:
                columns[name] = column.take(choice.new_rows)
        return columns

    def _marker(self, choice: _Choice, new: Values) -> pa.Array | None:
        if not new.unknown:
            return None
        names = [f.name for f in self._kind.fields]
        count = len(next(iter(new.columns.values())))
        rows = [np.flatnonzero(mask) for mask in new.unknown.values()]
        ordinals = [np.full(len(r), names.index(n), np.int16) for n, r in zip(new.unknown, rows, strict=True)]
        marker = unchanged.listed(rows, ordinals, count)
        if marker is None or choice.straight:
            return marker
        marker = marker.take(choice.new_rows)
        return marker if marker.null_count < len(marker) else None

    def _before_column(self, choice: _Choice, pending: Pending, old: _Old) -> pa.Array:
        fields = list(self._kind.schema)
        if not old.values.columns:
            return pa.nulls(len(choice.rows), pa.struct(fields))
        struct = pa.StructArray.from_arrays([old.values.columns[f.name] for f in fields], fields=fields)
        told = pending.has_before[choice.rows] & (choice.ops != int(Op.CREATE))
        places = np.where(told, old.place[choice.rows], -1)
        return struct.take(_nullable(places))


class _Choice:
    """Which pending rows become which events, and from where each takes its values.

    `rows`: the pending row of each event; `second`: the create of a changed key. `straight`: each pending row becomes
    one event whose values are A's, row by row.
    """

    def __init__(self, rows: Rows, ops: Ops, second: Mask, *, straight: bool) -> None:
        self.rows = rows
        self.ops = ops
        self.second = second
        self.straight = straight
        self._new = rows
        self._old = rows

    @classmethod
    def of(cls, pending: Pending, changed: Mask | None, kept: Mask | None) -> _Choice:
        """`changed`: whose key is another; `kept`: what broke no rule. None: none, and all."""
        count = len(pending.ops)
        changed = np.zeros(count, dtype=bool) if changed is None else changed
        if kept is None and not changed.any():
            rows = np.arange(count, dtype=np.int64)
            straight = not pending.marked(Op.DELETE, Op.TRUNCATE).any()
            return cls(rows, pending.ops, np.zeros(count, dtype=bool), straight=straight)
        events = 1 + changed.astype(np.int64)
        rows = np.repeat(np.arange(count, dtype=np.int64), events if kept is None else events * kept)
        second = np.zeros(len(rows), dtype=bool)
        second[1:] = rows[1:] == rows[:-1]
        ops = pending.ops[rows]
        ops[changed[rows]] = int(Op.DELETE)
        ops[second] = int(Op.CREATE)
        return cls(rows, ops, second, straight=False)

    def place(self, live: Rows, old: Rows) -> None:
        """Where A and B have the values of each event."""
        if self.straight:
            return
        deleted = self.ops == int(Op.DELETE)
        carries = ~deleted & (self.ops != int(Op.TRUNCATE))
        count = len(old)
        self._new = np.where(carries, _places(live, count)[self.rows], -1)
        self._old = np.where(deleted, old[self.rows], -1)

    @property
    def new_rows(self) -> pa.Array:
        return _nullable(self._new)

    def key_rows(self, new_count: int) -> pa.Array:
        return _nullable(np.where(self._old >= 0, self._old + new_count, self._new))


def _told(pending: Pending, rows: Rows) -> Side:
    """The old rows; of a change whose old row was not told, the new one, for then its key is the same."""
    before = pending.before.take(rows)
    told = pending.has_before[rows]
    if told.all():
        return before
    after, mask = pending.after.take(rows), pa.array(told)
    columns = {name: pc.if_else(mask, old, after.columns[name]) for name, old in before.columns.items()}
    unknown = {name: there & ~told for name, there in after.unknown.items()}
    return Side(columns, len(rows), {name: there for name, there in unknown.items() if there.any()})


def _places(rows: Rows, count: int) -> Rows:
    """The place in `rows` of each number below `count`, or -1."""
    places = np.full(count, -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return places


def _nullable(places: Rows) -> pa.Array:
    missing = places < 0
    return pa.array(places, mask=missing) if missing.any() else pa.array(places)


def _taken(array: pa.Array, rows: Rows) -> pa.Array:
    """The rows with these numbers, which rise."""
    if len(rows) == len(array):
        return array
    return array.take(pa.array(rows))


def _assembled(
    data: pa.RecordBatch, choice: _Choice, origin: Rows, columns: dict[str, pa.Array], schema: pa.Schema
) -> pa.RecordBatch:
    """The order columns of the changes, with the events' own op and index, beside the fields."""
    whole = len(origin) == data.num_rows and not choice.second.any()
    indices = None if whole else pa.array(origin)
    order = []
    for spec in ORDER_FIELDS:
        column = data.column(spec.name)
        order.append(column if indices is None else column.take(indices))
    order[0] = pa.array(choice.ops, pa.int8())
    if choice.second.any():
        order[3] = pc.add(order[3], pa.array(choice.second.astype(np.uint32)))
    fields = [schema.field(n) if n in schema.names else pa.field(n, c.type) for n, c in columns.items()]
    return pa.RecordBatch.from_arrays([*order, *columns.values()], schema=pa.schema([*ORDER_FIELDS, *fields]))
