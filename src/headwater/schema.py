"""A contract's field types as Arrow types. The one place that says which Arrow type a field has.

    bool int32 int64 float32 float64 string   the Arrow types of these names
    bytes                 binary
    decimal(p,s)          decimal128(p, s) up to 38 digits, decimal256 above
    date, time            date32, time64[us]
    timestamp             timestamp[us, UTC]
    local_timestamp       timestamp[us]
    uuid, json            string; canonical lower-case text, JSON text. The field's metadata `headwater.type` says which
    list<T>, struct<...>  list, struct
    map<string,T>         map<string, T>
All fields are nullable: a delete carries only its key, and unchanged fields are empty.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from headwater.contracts.model import Contract, FieldSpec
from headwater.contracts.types import FieldType
from headwater.model import ORDER_FIELDS, TIMESTAMP, UNCHANGED

_SCALARS: dict[str, Any] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": TIMESTAMP,
    "local_timestamp": pa.timestamp("us"),
    "uuid": pa.string(),
    "json": pa.string(),
}


def arrow_type(parsed: FieldType) -> pa.DataType:
    if parsed.name == "decimal":
        make = pa.decimal128 if parsed.precision <= 38 else pa.decimal256
        return make(parsed.precision, parsed.scale)
    if parsed.name == "list":
        return pa.list_(arrow_type(parsed.items[0]))
    if parsed.name == "map":
        return pa.map_(pa.string(), arrow_type(parsed.items[0]))
    if parsed.name == "struct":
        return pa.struct([(n, arrow_type(t)) for n, t in zip(parsed.names, parsed.items, strict=True)])
    return _SCALARS[parsed.name]


def arrow_field(name: str, spec: FieldSpec) -> pa.Field:
    metadata = {"headwater.type": spec.parsed.name} if spec.parsed.name in ("uuid", "json") else None
    return pa.field(name, arrow_type(spec.parsed), metadata=metadata)


def fields_schema(contract: Contract, type_name: str | None = None) -> pa.Schema:
    """The contract's fields alone."""
    return pa.schema([arrow_field(name, spec) for name, spec in contract.shape(type_name).items()])


def table_schema(contract: Contract) -> pa.Schema:
    """The fields of all event types side by side, after a `type` if there are several: what a sink's table holds."""
    fields = [arrow_field(name, spec) for name, spec in contract.all_fields.items()]
    return pa.schema([pa.field("type", pa.string()), *fields] if contract.types else fields)


def events_schema(
    contract: Contract, type_name: str | None = None, *, before: bool = False, unchanged: bool = False
) -> pa.Schema:
    """The schema of `Events.data`."""
    fields = fields_schema(contract, type_name)
    extra = [pa.field("_unchanged", UNCHANGED)] if unchanged else []
    extra += [pa.field("before", pa.struct(list(fields)))] if before else []
    return pa.schema([*ORDER_FIELDS, *fields, *extra])
