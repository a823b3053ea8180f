"""Older events as the newest accepted version of their contract sees them: fields by name, never by place."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.model import Contract, FieldSpec
from headwater.contracts.types import FieldType
from headwater.errors import MappingError
from headwater.mapping import unchanged
from headwater.mapping.casts import cast_all, find_cast
from headwater.model import ORDER_NAMES, Op
from headwater.schema import arrow_field, arrow_type


def conform(data: pa.RecordBatch, contract: Contract, type_name: str | None = None) -> pa.RecordBatch:
    """`data` in the shape of `contract`: added fields are filled with their default or null, removed ones dropped,
    widened types cast, `_unchanged` renumbered; other `_` columns stay. The same batch where nothing differs.

    Deletes and truncates carry no defaults: they carry nothing but a key.
    """
    shape = contract.shape(type_name)
    target = [arrow_field(name, spec) for name, spec in shape.items()]
    if _fits(data.schema, target):
        return data
    alive = pc.invert(pc.is_in(data.column("_op"), pa.array([int(Op.DELETE), int(Op.TRUNCATE)], pa.int8())))
    columns = {name: data.column(name) for name in ORDER_NAMES}
    schema = [data.schema.field(name) for name in ORDER_NAMES]
    for field in target:
        present = data.column(field.name) if field.name in data.schema.names else None
        columns[field.name] = _field(contract, field, shape[field.name], (present, alive))
        schema.append(field)
    for name in data.schema.names:
        found = _extra(data, name, contract, type_name) if name not in columns else None
        if found is not None:
            columns[name] = found
            schema.append(pa.field(name, found.type))
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(schema))


def _fits(schema: pa.Schema, target: list[pa.Field]) -> bool:
    found = [f for f in schema if not f.name.startswith("_") and f.name != "before"]
    if [(f.name, f.type) for f in found] != [(f.name, f.type) for f in target]:
        return False
    at = schema.get_field_index("before")
    return at < 0 or [(f.name, f.type) for f in schema.field(at).type] == [(f.name, f.type) for f in target]


def _field(contract: Contract, field: pa.Field, spec: FieldSpec, found: tuple[pa.Array | None, pa.Array]) -> pa.Array:
    present, alive = found
    if present is None:
        return _default(field, spec, alive)
    if present.type == field.type:
        return present
    cast = find_cast(present.type, spec.parsed)
    values, bad = cast_all(cast, present, field.type) if cast is not None else (present, [0])
    if len(bad):
        raise MappingError(
            f"stream `{contract.stream}`, field `{field.name}`: version {contract.version} says {spec.type}, but older "
            f"events hold {present.type} that does not widen to it",
            hint="an accepted version only ever widens a type; use a new field",
        )
    return values


def _extra(data: pa.RecordBatch, name: str, contract: Contract, type_name: str | None) -> pa.Array | None:
    """A column that is no field of the contract: `_` columns stay, `before` takes the new shape, the rest goes."""
    if name == "_unchanged":
        return _renumbered(data, list(contract.shape(type_name)))
    if name == "before":
        return _before(data.column(name), contract, type_name)
    return data.column(name) if name.startswith("_") else None


def _renumbered(data: pa.RecordBatch, fields: list[str]) -> pa.Array | None:
    old = [n for n in data.schema.names if not n.startswith("_") and n != "before"]
    to = np.array([fields.index(n) if n in fields else -1 for n in old], dtype=np.int16)
    return unchanged.renumbered(data.column("_unchanged"), to)


def _before(array: pa.StructArray, contract: Contract, type_name: str | None) -> pa.Array:
    present = {f.name: array.field(i) for i, f in enumerate(array.type)}
    shape = contract.shape(type_name)
    fields = [arrow_field(name, spec) for name, spec in shape.items()]
    alive = array.is_valid()
    children = [_field(contract, f, shape[f.name], (present.get(f.name), alive)) for f in fields]
    return pa.StructArray.from_arrays(children, fields=fields, mask=pc.invert(alive))


def _default(field: pa.Field, spec: FieldSpec, alive: pa.Array) -> pa.Array:
    if spec.default is None:
        return pa.nulls(len(alive), field.type)
    value = default_scalar(spec)
    return pc.if_else(alive, pa.repeat(value, len(alive)), pa.scalar(None, field.type))


def default_scalar(spec: FieldSpec) -> pa.Scalar:
    """A field's default, as YAML has it, in the field's Arrow type. Raises `MappingError` where it has none such."""
    kind = arrow_type(spec.parsed)
    try:
        return pa.scalar(typed(spec.parsed, spec.default), kind)
    except (ValueError, TypeError, ArithmeticError, pa.ArrowException) as error:
        raise MappingError(f"default {spec.default!r} is no {spec.type}: {error}") from error


def typed(kind: FieldType, value: Any) -> Any:
    """A value as YAML has it (`min`, `max`, `default`) as Python's own value of that type."""
    if value is None:
        return None
    if kind.name in _FROM_YAML:
        return _FROM_YAML[kind.name](value)
    if kind.name == "list":
        return [typed(kind.items[0], item) for item in value]
    if kind.name == "map":
        return [(str(name), typed(kind.items[0], item)) for name, item in value.items()]
    if kind.name == "struct":
        return {n: typed(t, value.get(n)) for n, t in zip(kind.names, kind.items, strict=True)}
    return value


def _date(value: Any) -> datetime.date:
    return value if isinstance(value, datetime.date) else datetime.date.fromisoformat(str(value))


def _local(value: Any) -> datetime.datetime:
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time())
    return datetime.datetime.fromisoformat(str(value))


def _instant(value: Any) -> datetime.datetime:
    found = value if isinstance(value, datetime.datetime) else _local(value)
    return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)


_FROM_YAML: dict[str, Any] = {
    "decimal": lambda value: decimal.Decimal(str(value)),
    "date": _date,
    "time": lambda value: value if isinstance(value, datetime.time) else datetime.time.fromisoformat(str(value)),
    "timestamp": _instant,
    "local_timestamp": _local,
    "bytes": lambda value: value if isinstance(value, bytes) else base64.b64decode(value),
    "json": lambda value: value if isinstance(value, str) else json.dumps(value),
    "uuid": str,
}
