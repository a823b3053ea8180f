"""One stream's mapping: changes of its table in, events of its contract out; what breaks the contract is set aside.

    changes -> whole rows -> function -> where -> type -> fields, key, contract -> events
                                                  and the original changes of rows that fit no contract

Pure: no I/O, no clock. The same changes give the same events whenever they are mapped, which is what makes replay,
resume and `verify` possible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.config import StreamConfig
from headwater.contracts.model import Contract
from headwater.errors import MappingError, StreamStopped
from headwater.mapping import functions, side
from headwater.mapping.engine import Engine
from headwater.mapping.expressions import Expression
from headwater.mapping.fields import (
    Origin,
    columns_identifying,
    columns_needed,
    columns_of,
    columns_whole,
    pii_findings,
    resolve,
    resolve_function,
)
from headwater.mapping.findings import Findings
from headwater.mapping.keys import canonical_keys
from headwater.mapping.program import Program, TypeProgram, Values
from headwater.mapping.projection import Projection, projection
from headwater.mapping.shaping import Pending, Shaped, Shaping
from headwater.mapping.side import Side
from headwater.mapping.visibility import DROPPED, transitions
from headwater.model import REASONS, Changes, Events, Op, Rejected, id_seed

__all__ = [
    "Mapping",
    "MappingPlan",
    "StreamMapping",
    "Unmappable",
    "columns_identifying",
    "columns_needed",
    "columns_whole",
    "fingerprint",
    "pii_findings",
]

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MappingPlan:
    """What a stream's mapping is made from. `columns`: the table's, as captured; `key`: those that identify a row.

    `source`: the capture's name; with `pipeline` it tells apart the ids of events. `function`: a callable instead of
    the configuration's `function`. `whole_before`: whether the old rows of updates and deletes are complete; None: by
    the pattern (triggers see whole rows; a log or a query may know no more than the key).
    """

    stream: str
    config: StreamConfig
    contract: Contract
    columns: pa.Schema
    key: tuple[str, ...] = ()
    pipeline: str = ""
    source: str = ""
    function: Callable[..., Any] | None = None
    whole_before: bool | None = None


class Mapping(Protocol):
    """What a router asks of a stream's mapping; see `StreamMapping`."""

    stream: str
    fingerprint: str

    @property
    def expands_truncate(self) -> bool: ...
    def apply(self, changes: Changes) -> tuple[list[Events], Rejected | None]: ...
    def close(self) -> None: ...


class Unmappable:
    """Of a stream that was mapped before its table changed: it stands still, and its changes are kept."""

    expands_truncate = False

    def __init__(self, stream: str, fingerprint: str, error: MappingError) -> None:
        self.stream = stream
        self.fingerprint = fingerprint
        self._error = error

    def apply(self, changes: Changes) -> tuple[list[Events], Rejected | None]:
        raise MappingError(self._error.message, hint=self._error.hint)

    def close(self) -> None:
        pass


class StreamMapping:
    """Used by one thread. Raises `MappingError` at once for what cannot be mapped, whatever the rows."""

    def __init__(self, plan: MappingPlan) -> None:
        self.stream = plan.stream
        self.fingerprint = fingerprint(plan.config, plan.contract, plan.function)
        self._plan = plan
        self._engine = Engine()
        self._seed = id_seed(plan.pipeline, plan.source, plan.stream)
        pattern = plan.config.pattern
        self._whole_before = pattern == "trigger" if plan.whole_before is None else plan.whole_before
        self._function = self._load_function()
        self._row = pa.struct(list(plan.columns))
        self._schema: pa.Schema | None = None
        """Of the changes for which the projection was worked out."""
        self._projection: Projection | None = None
        self._program = self._prepare(plan.columns)

    @property
    def expands_truncate(self) -> bool:
        """Whether a TRUNCATE event, which `apply` passes on as it is, stands for the deletes of all keys."""
        return self._plan.config.on_truncate == "expand"

    def close(self) -> None:
        self._engine.close()

    def apply(self, changes: Changes) -> tuple[list[Events], Rejected | None]:
        """Events in the order of the changes, and the changes that broke the contract.

        Each `Events` holds one event type: a new one begins wherever the type changes. The events of one change are
        all appended or all rejected. TRUNCATE passes through (policies `expand` and `event`).
        Raises `StreamStopped` (policies `stop`) and `MappingError`; then nothing of `changes` has been mapped.
        """
        if not len(changes):
            return [], None
        program = self._program_for(changes.data.schema)
        if self._projection is not None and (data := self._projection.events(changes.data)) is not None:
            return [self._as_events(program.types[0], data, changes)], None
        findings = Findings(len(changes))
        pending = self._pending(program, changes, findings)
        self._refuse_truncate(pending)
        pending = self._visible(program, changes, pending, findings)
        shaped, kinds = self._shape(program, changes, pending, findings)
        rejected = self._rejected(program, changes, kinds, findings) if findings else None
        return list(self._events(program, shaped, changes)), rejected

    # made once, and again when the table's columns change

    def _load_function(self) -> functions.FunctionMapping | None:
        config = self._plan.config
        function = self._plan.function
        if function is None and config.function is not None:
            function = functions.load(config.function)
        if function is None:
            return None
        return functions.FunctionMapping(function, self._plan.contract, rows=config.rows)

    def _prepare(self, columns: pa.Schema) -> Program:
        contract = self._plan.contract
        if self._function is None:
            return Program(contract, resolve(self._plan.config, contract, columns.names), columns, self._engine)
        resolved = resolve_function(self._plan.config, contract, self._function.produced)
        produced = pa.schema([pa.field(name, pa.null()) for name in self._function.produced])
        return Program(contract, resolved, produced, self._engine)

    def _program_for(self, schema: pa.Schema) -> Program:
        """Schemas that are the same object, as a source's are from batch to batch, are known without a comparison."""
        if self._schema is None or not schema.equals(self._schema):
            row = schema.field("after").type
            if row != self._row:
                self._program = self._prepare(pa.schema(list(row)))
                self._row = row
            self._projection = self._project(schema)
            self._schema = schema
        return self._program

    def _project(self, schema: pa.Schema) -> Projection | None:
        if self._function is not None or self._plan.config.before or self._looks_for_duplicates(self._program.types[0]):
            return None
        return projection(self._program, schema)

    # which changes, and what becomes of each

    def _pending(self, program: Program, changes: Changes, findings: Findings) -> Pending:
        data = changes.data
        names = program.reads if self._function is None else tuple(f.name for f in self._row)
        after, before = (side.side_of(data.column(state), names) for state in ("after", "before"))
        has_before = data.column("before").is_valid().to_numpy(zero_copy_only=False)
        if "_unchanged" in data.schema.names and data.column("_unchanged").null_count < len(changes):
            marker = data.column("_unchanged")
            after = side.whole(after, before, marker, self._row, before_is_whole=self._whole_before)
        ops = data.column("_op").to_numpy()
        return Pending(ops, after, before, has_before, np.arange(len(changes), dtype=np.int64))

    def _refuse_truncate(self, pending: Pending) -> None:
        if self._plan.config.on_truncate == "stop" and pending.marked(Op.TRUNCATE).any():
            raise StreamStopped(
                self.stream,
                f"stream `{self.stream}`: its table was truncated, and `on_truncate: stop` says to stop there",
                hint=f"set `on_truncate: expand` or `event`, then `headwater resume {self.stream}`",
            )

    def _visible(self, program: Program, changes: Changes, pending: Pending, findings: Findings) -> Pending:
        """What the function and `where` leave, each with the op that its event will have."""
        where = program.resolved.where
        if self._function is not None:
            readers = {f.name: f.name for f in self._row}
            self._note_invalid(changes, findings, readers, np.ones(len(changes), dtype=bool))
            pending = self._through_function(self._function, pending, findings)
        if where is None:
            return pending
        readers = dict.fromkeys(columns_of(where), "where")
        told = self._told(pending, where) & ~_invalid_rows(changes, readers)
        self._note_invalid(changes, findings, readers, ~pending.marked(Op.DELETE))
        ops = self._transitions(program, where, pending, (told, findings))
        rows = np.flatnonzero((ops != DROPPED) & ~findings.bad)
        return replace(pending, ops=ops).take(rows)

    def _through_function(self, function: functions.FunctionMapping, pending: Pending, findings: Findings) -> Pending:
        present = np.flatnonzero(~pending.marked(Op.DELETE, Op.TRUNCATE) & ~findings.bad)
        if pending.after.unknown:
            raise MappingError(
                f"stream `{self.stream}`: its function reads whole rows, and the log did not carry the values of "
                f"{', '.join(pending.after.unknown)}",
                hint="make the log carry whole rows: PostgreSQL: ALTER TABLE ... REPLICA IDENTITY FULL",
            )
        after = function(pending.after, pending.ops, present)
        findings.add(after.failed, "function", "the function returns", after.errors)
        old = np.flatnonzero(pending.marked(Op.UPDATE, Op.DELETE) & pending.has_before & ~findings.bad)
        before = function(pending.before, pending.ops, old)
        deletes = pending.marked(Op.DELETE)[before.failed]
        findings.add(
            before.failed[deletes], "function", "the function returns", before.errors.filter(pa.array(deletes))
        )
        return replace(pending, after=after.side, before=before.side)

    def _transitions(
        self, program: Program, where: Origin, pending: Pending, context: tuple[Mask, Findings]
    ) -> npt.NDArray[np.int8]:
        told, findings = context
        going_on = np.flatnonzero(~pending.marked(Op.DELETE, Op.TRUNCATE) & ~findings.bad)
        after = _condition(program, where, pending.after, going_on, (pending, findings))
        old = np.flatnonzero(pending.marked(Op.UPDATE, Op.DELETE) & pending.has_before & told)
        before, known = np.zeros_like(after), np.zeros_like(after)
        if len(old):
            truth = program.truth(where, pending.before.take(old))
            before[old], known[old] = truth.mask, True
            known[old[truth.failed]] = False
        return transitions(pending.ops, after, before, known)

    def _told(self, pending: Pending, where: Origin) -> Mask:
        """Whether the old row says anything of what `where` reads; a key alone does not."""
        count = len(pending.ops)
        if self._whole_before:
            return np.ones(count, dtype=bool)
        told = np.zeros(count, dtype=bool)
        if self._function is None:
            for name in columns_of(where):
                told |= pending.before.columns[name].is_valid().to_numpy(zero_copy_only=False)
        return told

    def _note_invalid(self, changes: Changes, findings: Findings, readers: dict[str, str], rows: Mask) -> None:
        """Values that the column's own type cannot hold, where somebody reads them."""
        found = _invalid(changes, readers)
        if found is None:
            return
        owner, items = found
        hit = rows[owner]
        if hit.any():
            chosen = items.filter(pa.array(hit))
            place = pc.index_in(pc.struct_field(chosen, [0]), pa.array(list(readers), pa.string()))
            fields = pa.array(list(readers.values()), pa.string()).take(place)
            findings.add(owner[hit], fields, pc.struct_field(chosen, [1]), pc.struct_field(chosen, [2]))

    # events

    def _shape(
        self, program: Program, changes: Changes, pending: Pending, findings: Findings
    ) -> tuple[list[Shaped | None], npt.NDArray[np.int16]]:
        """The events of each type, and the type of each change (-1: none)."""
        kinds = np.zeros(len(changes), dtype=np.int16)
        if len(program.types) == 1 and program.types[0].shape.type is None:
            return [self._shape_type(program, program.types[0], changes, pending, findings)], kinds
        chosen = self._choose(program, changes, pending, findings)
        kinds[pending.origin] = chosen
        parts: list[Shaped | None] = []
        for number, kind in enumerate(program.types):
            rows = np.flatnonzero(chosen == number)
            part = self._shape_type(program, kind, changes, pending.take(rows), findings) if len(rows) else None
            parts.append(part)
        return parts, kinds

    def _choose(
        self, program: Program, changes: Changes, pending: Pending, findings: Findings
    ) -> npt.NDArray[np.int16]:
        """The first type whose ops and `where` fit each change; -1 where none does. A truncate is of the first."""
        chosen = np.full(len(pending.ops), -1, dtype=np.int16)
        chosen[pending.marked(Op.TRUNCATE)] = 0
        for number, kind in enumerate(program.types):
            fits = (chosen < 0) & np.isin(pending.ops, [_OPS[letter] for letter in kind.shape.ops])
            fits &= ~findings.bad[pending.origin]
            if kind.shape.where is not None:
                fits &= self._fits(program, kind.shape.where, changes, pending, (fits, findings))
            chosen[fits] = number
        return chosen

    def _fits(
        self,
        program: Program,
        where: Origin,
        changes: Changes,
        pending: Pending,
        candidates: tuple[Mask, Findings],
    ) -> Mask:
        asked, findings = candidates
        rows = np.zeros(len(changes), dtype=bool)
        rows[pending.origin[asked]] = True
        self._note_invalid(changes, findings, dict.fromkeys(columns_of(where), "where"), rows)
        asked = asked & ~findings.bad[pending.origin]
        deleted = pending.marked(Op.DELETE)
        context = (pending, findings)
        mask = _condition(program, where, pending.after, np.flatnonzero(asked & ~deleted), context)
        return mask | _condition(program, where, pending.before, np.flatnonzero(asked & deleted), context)

    def _shape_type(
        self, program: Program, kind: TypeProgram, changes: Changes, pending: Pending, findings: Findings
    ) -> Shaped:
        if self._function is None:
            self._note_invalid_fields(kind, changes, pending, findings)
            if (good := findings.good(pending.origin)) is not None:
                pending = pending.take(np.flatnonzero(good))
        shaping = Shaping(program, kind, findings, before=self._plan.config.before)
        shaped, new = shaping.events(changes.data, pending)
        self._refuse_duplicates(kind, changes, pending, new)
        return shaped

    def _note_invalid_fields(self, kind: TypeProgram, changes: Changes, pending: Pending, findings: Findings) -> None:
        if "_invalid" not in changes.data.schema.names:
            return
        deleted = pending.marked(Op.DELETE)
        for rows, readers in ((~deleted, kind.reads), (deleted, kind.at_delete)):
            mask = np.zeros(len(changes), dtype=bool)
            mask[pending.origin[rows]] = True
            self._note_invalid(changes, findings, readers, mask)

    def _refuse_duplicates(self, kind: TypeProgram, changes: Changes, pending: Pending, new: Values) -> None:
        """Keys of a fact stream must be unique in the source: looked at where a reading shows many rows at once."""
        contract = self._plan.contract
        if not self._looks_for_duplicates(kind):
            return
        live = ~pending.marked(Op.DELETE, Op.TRUNCATE)
        read = np.flatnonzero(pending.ops[live] == int(Op.READ))
        if len(read) < 2:
            return
        keys = pa.table([new.columns[name] for name in contract.key], names=list(contract.key)).take(pa.array(read))
        rows = changes.data.column("after").take(pa.array(pending.origin[live][read]))
        own = [name for name in self._plan.key if rows.type.get_field_index(name) >= 0]
        for number, name in enumerate(own):
            keys = keys.append_column(f"_{number}", pc.struct_field(rows, [rows.type.get_field_index(name)]))
        if own:  # the same row twice is no harm
            keys = keys.group_by(keys.column_names).aggregate([])
        twice = _twice(keys, list(contract.key))
        if twice.num_rows:
            named = canonical_keys(twice.slice(0, 1).combine_chunks().to_batches()[0], contract.key)[0]
            raise MappingError(
                f"stream `{self.stream}`: the key {named} is that of {twice.column('count_all')[0]} rows of "
                f"`{changes.table}`, and the keys of a fact must be unique in the source",
                hint="key the stream by what identifies a row of the table, or filter with `where`",
            )

    def _looks_for_duplicates(self, kind: TypeProgram) -> bool:
        """An event key that holds the table's own key is unique without a look."""
        if self._plan.contract.kind != "fact":
            return False
        if self._function is not None or not self._plan.key:
            return True
        return not set(self._plan.key) <= {f.origin for f in kind.key_fields if isinstance(f.origin, str)}

    def _events(self, program: Program, parts: list[Shaped | None], changes: Changes) -> Iterator[Events]:
        if len(parts) == 1:
            if parts[0] is not None and len(parts[0].origin):
                yield self._as_events(program.types[0], parts[0].data, changes)
            return
        for number, start, count in _runs(parts):
            part = parts[number]
            assert part is not None
            yield self._as_events(program.types[number], part.data.slice(start, count), changes)

    def _as_events(self, kind: TypeProgram, data: pa.RecordBatch, changes: Changes) -> Events:
        return Events(
            stream=self.stream,
            version=self._plan.contract.version,
            data=data,
            type=kind.shape.type,
            source=self._plan.source,
            seed=self._seed,
            content_ids=self._plan.config.pattern == "query",
            reading=changes.reading,
        )

    # what broke the contract

    def _rejected(
        self, program: Program, changes: Changes, kinds: npt.NDArray[np.int16], findings: Findings
    ) -> Rejected:
        rows = findings.rows()
        chosen = changes.data.take(pa.array(rows))
        keys = self._keys(program, replace(changes, data=chosen), kinds[rows])
        table = findings.reasons().append_column("key", keys)
        reasons = table.cast(REASONS).combine_chunks().to_batches()[0]
        rejected = Rejected(self.stream, replace(changes, data=chosen, stream=self.stream, reading=None), reasons)
        if self._plan.config.on_invalid == "stop":
            raise self._stopped(rejected)
        return rejected

    def _keys(self, program: Program, changes: Changes, kinds: npt.NDArray[np.int16]) -> pa.Array:
        """The event keys of rejected changes, null where a key cannot be had."""
        if not self._plan.contract.key:
            return pa.nulls(len(changes), pa.string())
        ignored = Findings(len(changes))
        pending = self._pending(program, changes, ignored)
        if self._function is not None:
            pending = self._through_function(self._function, pending, ignored)
        deleted = pending.marked(Op.DELETE)
        keys = np.full(len(changes), None, dtype=object)
        for number, kind in enumerate(program.types):
            for rows, state in ((~deleted, pending.after), (deleted, pending.before)):
                places = np.flatnonzero(rows & (np.maximum(kinds, 0) == number))
                if len(places):
                    values = program.values(kind, state.take(places), key_only=True)
                    batch = pa.record_batch(values.columns)
                    keys[places] = canonical_keys(batch, kind.key).to_numpy(zero_copy_only=False)
        return pa.array(keys, pa.string())

    def _stopped(self, rejected: Rejected) -> StreamStopped:
        reason = {name: _brief(rejected.reasons.column(name)[0].as_py()) for name in REASONS.names}
        epoch, commit, index = (rejected.changes.data.column(n)[0].as_py() for n in ("_epoch", "_commit", "_index"))
        return StreamStopped(
            self.stream,
            f"stream `{self.stream}`, field `{reason['field']}`: expected {reason['expected']}, got {reason['got']} "
            f"for key {reason['key']}, at epoch {epoch}, commit {commit}, index {index} of `{rejected.changes.table}`",
            hint=f"mend the row, the mapping or the contract, then `headwater resume {self.stream}`; "
            "or set `on_invalid: quarantine`",
        )


def _brief(text: str | None) -> str | None:
    """For a message; the quarantine has the whole value."""
    return text if text is None or len(text) <= 200 else text[:200] + "..."


def _twice(keys: pa.Table, names: list[str]) -> pa.Table:
    """The keys that stand there more than once, and how often; a key with a null is none."""
    counts = keys.select(names).drop_null().group_by(names).aggregate([([], "count_all")])
    return counts.filter(pc.greater(counts.column("count_all"), 1))


_OPS = {"c": int(Op.CREATE), "u": int(Op.UPDATE), "d": int(Op.DELETE), "r": int(Op.READ)}


def _invalid(changes: Changes, columns: Collection[str]) -> tuple[Rows, pa.Array] | None:
    """The entries of `_invalid` for these columns, and the row of each."""
    if "_invalid" not in changes.data.schema.names or changes.data.column("_invalid").null_count == len(changes):
        return None
    marker = changes.data.column("_invalid")
    items = marker.flatten()
    owner = np.repeat(np.arange(len(marker)), marker.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    read = pc.is_in(pc.struct_field(items, [0]), pa.array(list(columns), pa.string()))
    return owner[read.to_numpy(zero_copy_only=False)], items.filter(read)


def _invalid_rows(changes: Changes, columns: Collection[str]) -> Mask:
    rows = np.zeros(len(changes), dtype=bool)
    found = _invalid(changes, columns)
    if found is not None:
        rows[found[0]] = True
    return rows


def _condition(program: Program, where: Origin, state: Side, rows: Rows, context: tuple[Pending, Findings]) -> Mask:
    """Whether `where` is true, for the pending rows asked for; false for all others. Failures become findings."""
    pending, findings = context
    mask = np.zeros(len(pending.ops), dtype=bool)
    if not len(rows):
        return mask
    truth = program.truth(where, state.take(rows))
    mask[rows] = truth.mask
    if len(truth.failed):
        text = where.text if isinstance(where, Expression) else where
        findings.add(pending.origin[rows[truth.failed]], "where", f"`{text}` can be evaluated", truth.errors)
    return mask


def _runs(parts: list[Shaped | None]) -> Iterator[tuple[int, int, int]]:
    """Stretches of one type in the order of the changes: type number, first row in its part, rows."""
    present = [(number, part) for number, part in enumerate(parts) if part is not None and len(part.origin)]
    if not present:
        return
    numbers = np.concatenate([np.full(len(part.origin), number) for number, part in present])
    places = np.concatenate([np.arange(len(part.origin)) for _, part in present])
    order = np.argsort(np.concatenate([part.origin for _, part in present]), kind="stable")
    numbers, places = numbers[order], places[order]
    edges = np.flatnonzero(np.diff(numbers)) + 1
    starts = [0, *edges.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
        yield int(numbers[start]), int(places[start]), int(stop - start)


def fingerprint(config: StreamConfig, contract: Contract, function: Callable[..., Any] | None = None) -> str:
    """Of all that decides which events a change becomes: the mapping as it is written, and the contract's version."""
    wanted = {"table", "query", "fields", "types", "where", "function", "rows", "before", "key"}
    written = config.model_dump(mode="json", include=wanted)
    if function is not None:
        written["function"] = f"{function.__module__}:{function.__qualname__}"
    text = json.dumps([written, contract.version], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
