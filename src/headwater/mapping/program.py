"""A mapping worked out against one row schema: origins found, casts chosen, expressions prepared, rules compiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.model import Contract, FieldSpec
from headwater.errors import MappingError
from headwater.mapping import check
from headwater.mapping.casts import Cast, cast_all, cast_found, find_cast
from headwater.mapping.engine import Engine
from headwater.mapping.expressions import Expression
from headwater.mapping.fields import Origin, Resolved, Shape, columns_of
from headwater.mapping.findings import as_text
from headwater.mapping.side import Side
from headwater.model import ORDER_FIELDS
from headwater.schema import arrow_field

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fault:
    """Rows whose value for a field cannot be had, or breaks the contract; `got` has one text a row."""

    rows: Rows
    field: str
    expected: str
    got: pa.Array


@dataclass(frozen=True, slots=True)
class Values:
    """Columns of fields, in the fields' types. `unknown`: where the source did not carry a plain field's value."""

    columns: dict[str, pa.Array]
    faults: list[Fault]
    unknown: dict[str, Mask]


@dataclass(frozen=True, slots=True)
class Truth:
    """Whether a condition is true for each row; `failed` rows have no answer."""

    mask: Mask
    failed: Rows
    errors: pa.Array


@dataclass(frozen=True)
class Field:
    """One field of one event type. `expected` describes a value that fits."""

    name: str
    spec: FieldSpec
    origin: Origin
    cast: Cast
    arrow: pa.Field
    expected: str


@dataclass(frozen=True)
class TypeProgram:
    """One event type. `at_delete`: the columns that its deletes need."""

    shape: Shape
    fields: tuple[Field, ...]
    key: tuple[str, ...]
    rules: tuple[check.Rule, ...]
    schema: pa.Schema
    required: tuple[str, ...] = field(default=())

    @cached_property
    def events(self) -> pa.Schema:
        """Of events without any column beside order and fields: one object, by which others know it again."""
        return pa.schema([*ORDER_FIELDS, *self.schema])

    @cached_property
    def key_fields(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if f.name in self.key)

    @cached_property
    def reads(self) -> dict[str, str]:
        """Column -> the first field that reads it."""
        return _readers(self.fields)

    @cached_property
    def at_delete(self) -> dict[str, str]:
        return _readers(self.key_fields)


def _readers(fields: Iterable[Field]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in fields:
        for column in columns_of(each.origin):
            found.setdefault(column, each.name)
    return found


class Program:
    """Evaluates what a stream's mapping says, over sides of changes."""

    def __init__(self, contract: Contract, resolved: Resolved, columns: pa.Schema, engine: Engine) -> None:
        self.contract = contract
        self.resolved = resolved
        self.engine = engine
        self._stream = f"stream `{contract.stream}`"
        self.reads = resolved.reads
        conditions = [resolved.where, *(shape.where for shape in resolved.shapes)]
        for condition in conditions:
            if condition is not None:
                self._prepare_condition(condition, columns)
        self.types = tuple(self._type(shape, columns) for shape in resolved.shapes)

    # worked out before any row

    def _type(self, shape: Shape, columns: pa.Schema) -> TypeProgram:
        specs = self.contract.shape(shape.type)
        fields = tuple(self._field(name, specs[name], origin, columns) for name, origin in shape.fields.items())
        return TypeProgram(
            shape=shape,
            fields=fields,
            key=self.contract.key,
            rules=tuple(check.rules(specs, self.engine, what=self._stream)),
            schema=pa.schema([f.arrow for f in fields]),
            required=tuple(name for name, spec in specs.items() if not spec.optional),
        )

    def _field(self, name: str, spec: FieldSpec, origin: Origin, columns: pa.Schema) -> Field:
        what = f"{self._stream}, field `{name}`"
        if isinstance(origin, str):
            source = columns.field(origin).type
        else:
            source = self.engine.prepare(origin, columns, what=what)
        cast = cast_found(spec.parsed) if pa.types.is_null(source) else find_cast(source, spec.parsed)
        if cast is None:
            text = origin if isinstance(origin, str) else origin.text
            raise MappingError(
                f"{what}: expected {spec.type}, but `{text}` is {source}, and values do not pass without a guess",
                hint="write an expression that says how, such as to_timestamp(seconds) or t at time zone 'UTC'",
            )
        return Field(name, spec, origin, cast, arrow_field(name, spec), spec.type)

    def _prepare_condition(self, condition: Origin, columns: pa.Schema) -> None:
        what = f"{self._stream}, where"
        if isinstance(condition, str):
            kind = columns.field(condition).type
        else:
            kind = self.engine.prepare(condition, columns, what=what)
        if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            text = condition if isinstance(condition, str) else condition.text
            raise MappingError(f"{what}: `{text}` is {kind}, not a condition", hint="write a comparison")

    # over rows

    def truth(self, condition: Origin, side: Side) -> Truth:
        """Null counts as false, as in SQL."""
        self._refuse_unknown(columns_of(condition), side, condition)
        if isinstance(condition, Expression):
            result = self.engine.evaluate([condition], side)[0]
            values, failed, errors = result.values, result.failed, result.errors
        else:
            values, failed, errors = side.columns[condition], np.zeros(0, dtype=np.int64), pa.nulls(0, pa.string())
        mask = pc.fill_null(values.cast(pa.bool_()), False).to_numpy(zero_copy_only=False)
        return Truth(mask, failed, errors)

    def values(self, kind: TypeProgram, side: Side, *, key_only: bool = False) -> Values:
        """The fields of a type over a side, cast to their types; not yet checked."""
        fields = kind.key_fields if key_only else kind.fields
        self._refuse_unknown_rows(kind, fields, side)
        found = Values({}, [], {})
        computed = self._computed(fields, side, found)
        for each in fields:
            raw = side.columns[each.origin] if isinstance(each.origin, str) else computed[each.name]
            found.columns[each.name], bad = cast_all(each.cast, raw, each.arrow.type)
            if len(bad):
                found.faults.append(Fault(bad, each.name, each.expected, as_text(raw.take(pa.array(bad)))))
            if isinstance(each.origin, str) and each.origin in side.unknown:
                found.unknown[each.name] = side.unknown[each.origin]
        return found

    def check(self, kind: TypeProgram, values: Values) -> list[Fault]:
        """What breaks the contract among complete rows."""
        faults = []
        for name in kind.required:
            rows = check.missing(values.columns[name], values.unknown.get(name))
            if len(rows):
                faults.append(Fault(rows, name, "a value", pa.repeat(pa.scalar("null"), len(rows))))
        for rule in kind.rules:
            column = values.columns[rule.field]
            rows = check.broken(rule, column)
            if len(rows):
                faults.append(Fault(rows, rule.field, rule.expected, as_text(column.take(pa.array(rows)))))
        return faults

    def check_key(self, kind: TypeProgram, values: Values) -> list[Fault]:
        """What a delete must have: its key."""
        faults = []
        for name in kind.key:
            rows = check.missing(values.columns[name], None)
            if len(rows):
                faults.append(Fault(rows, name, "a value", pa.repeat(pa.scalar("null"), len(rows))))
        return faults

    def _computed(self, fields: Sequence[Field], side: Side, found: Values) -> Mapping[str, pa.Array]:
        asked = [(each, each.origin) for each in fields if isinstance(each.origin, Expression)]
        if not asked:
            return {}
        results = self.engine.evaluate([origin for _, origin in asked], side)
        for (each, origin), result in zip(asked, results, strict=True):
            if len(result.failed):
                found.faults.append(Fault(result.failed, each.name, f"`{origin.text}` can be evaluated", result.errors))
        return {each.name: result.values for (each, _), result in zip(asked, results, strict=True)}

    def _refuse_unknown_rows(self, kind: TypeProgram, fields: Sequence[Field], side: Side) -> None:
        if side.unknown:
            for each in fields:
                if isinstance(each.origin, Expression) or each.name in kind.key:
                    self._refuse_unknown(columns_of(each.origin), side, each.origin)

    def _refuse_unknown(self, columns: Sequence[str], side: Side, origin: Origin) -> None:
        for name in columns:
            if name in side.unknown:
                text = origin if isinstance(origin, str) else origin.text
                raise MappingError(
                    f"{self._stream}: `{text}` reads the column `{name}`, whose value the log did not carry for "
                    f"{int(side.unknown[name].sum())} changes of this batch: unchanged large values are left out",
                    hint="make the log carry whole rows: PostgreSQL: ALTER TABLE ... REPLICA IDENTITY FULL; "
                    "MySQL: SET GLOBAL binlog_row_image = 'FULL'",
                )
