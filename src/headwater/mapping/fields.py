"""Which column or expression each field of a contract comes from: worked out once, before any row is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.config import StreamConfig, TypeMapping
from headwater.contracts.model import Contract, FieldSpec
from headwater.errors import MappingError
from headwater.mapping.expressions import Expression, nearest, parse

Origin = str | Expression
"""A plain column's name, or an expression."""

KEPT = "_keep"
"""The column by which a Python function says which rows are events at all."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How one event type (None: the only one) is made. `where` and `ops` choose its changes among the stream's."""

    type: str | None
    fields: dict[str, Origin]
    where: Origin | None
    ops: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A stream's mapping with every name found. `where` is the stream's; `key` the contract's."""

    shapes: tuple[Shape, ...]
    where: Origin | None
    key: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        found: dict[str, None] = {}
        for origin in self.origins():
            found.update(dict.fromkeys(columns_of(origin)))
        return tuple(found)

    @property
    def wheres(self) -> list[Origin]:
        found = [self.where, *(shape.where for shape in self.shapes)]
        return [origin for origin in found if origin is not None]

    def origins(self) -> list[Origin]:
        return self.wheres + [origin for shape in self.shapes for origin in shape.fields.values()]


def columns_of(origin: Origin) -> tuple[str, ...]:
    return (origin,) if isinstance(origin, str) else origin.columns


def columns_needed(
    config: StreamConfig, contract: Contract, available: Sequence[str], key: Sequence[str] = ()
) -> tuple[str, ...]:
    """The columns that the mapping reads and those of the table's key, in the table's sequence; all others can stay.

    A Python function may read any. Raises `MappingError` that names field, expression and unknown column, with the
    nearest right one.
    """
    names = [*config.key, *key]
    for name in names:
        if name not in available:
            raise MappingError(
                f"stream `{contract.stream}`, key: no column `{name}`; {nearest(name, available)}",
                hint="`key` lists the table's own columns",
            )
    if config.function is not None:
        return tuple(available)
    wanted = {*names, *resolve(config, contract, available).reads}
    return tuple(name for name in available if name in wanted)


def columns_whole(config: StreamConfig, contract: Contract, available: Sequence[str]) -> tuple[str, ...]:
    """The columns whose value each change must carry: those that `where`, keys, expressions or a function read."""
    if config.function is not None:
        return tuple(available)
    resolved = resolve(config, contract, available)
    read: set[str] = set()
    for origin in resolved.origins():
        if isinstance(origin, Expression):
            read.update(origin.columns)
    read.update(column for where in resolved.wheres for column in columns_of(where))
    read.update(columns_identifying(config, contract, available))
    return tuple(name for name in available if name in read)


def columns_identifying(config: StreamConfig, contract: Contract, available: Sequence[str]) -> tuple[str, ...]:
    """The columns that the event's key is made from, which a delete must carry too; all, for a Python function."""
    if config.function is not None:
        return tuple(available)
    shapes = resolve(config, contract, available).shapes
    read = {column for shape in shapes for name in contract.key for column in columns_of(shape.fields[name])}
    return tuple(name for name in available if name in read)


def resolve(config: StreamConfig, contract: Contract, available: Sequence[str]) -> Resolved:
    """Find every field's origin among the columns `available`. Raises `MappingError`."""
    stream = f"stream `{contract.stream}`"
    _refuse_unknown_fields(config, contract)
    where = _where(config.where, available, stream)
    if contract.types:
        shapes = tuple(_typed(config, contract, name, available) for name in _types(config, contract))
    else:
        shapes = (Shape(None, _fields(config.fields, contract, None, available), None, "cudr"),)
    return Resolved(shapes, where, contract.key)


def resolve_function(config: StreamConfig, contract: Contract, produced: Sequence[str]) -> Resolved:
    """The mapping behind a Python function: its result's columns are the fields."""
    if contract.types:
        raise MappingError(
            f"stream `{contract.stream}`: a function cannot feed a contract with several event types",
            hint="write `types` with `where` and `fields`, or one stream for each type",
        )
    shape = Shape(None, _fields({}, contract, None, produced), None, "cudr")
    return Resolved((shape,), KEPT if KEPT in produced else None, contract.key)


def _types(config: StreamConfig, contract: Contract) -> list[str]:
    if not config.types:
        raise MappingError(
            f"stream `{contract.stream}`: the contract has the event types {', '.join(contract.types)}, and nothing "
            "says which change becomes which",
            hint="write `types: {name: {where: ..., fields: {...}}}`; a change takes the first type that fits",
        )
    return list(config.types)


def _refuse_unknown_fields(config: StreamConfig, contract: Contract) -> None:
    for name in config.types:
        if name not in contract.types:
            known = contract.types or ["none: it has one shape"]
            raise MappingError(
                f"stream `{contract.stream}`: the contract has no event type `{name}`; {nearest(name, known)}"
            )
        _refuse_unknown(config.types[name].fields, contract.shape(name), f"{contract.stream}`, type `{name}")
    _refuse_unknown(config.fields, contract.all_fields, contract.stream)


def _refuse_unknown(fields: dict[str, str], shape: dict[str, FieldSpec], where: str) -> None:
    for name in fields:
        if name not in shape:
            raise MappingError(
                f"stream `{where}`: `fields` has `{name}`, which is no field of the contract; {nearest(name, shape)}",
                hint="fields are written as `field of the contract: column or expression`",
            )


def _typed(config: StreamConfig, contract: Contract, name: str, available: Sequence[str]) -> Shape:
    own: TypeMapping = config.types[name]
    where = _where(own.where, available, f"stream `{contract.stream}`, type `{name}`")
    fields = _fields({**config.fields, **own.fields}, contract, name, available)
    return Shape(name, fields, where, "".join(own.ops))


def _where(text: str | None, available: Sequence[str], what: str) -> Origin | None:
    return None if text is None else parse(text, available, what=f"{what}, where")


def _fields(
    listed: dict[str, str], contract: Contract, type_name: str | None, available: Sequence[str]
) -> dict[str, Origin]:
    place = f"stream `{contract.stream}`" + (f", type `{type_name}`" if type_name else "")
    found: dict[str, Origin] = {}
    for name in contract.shape(type_name):
        what = f"{place}, field `{name}`"
        if name in listed:
            found[name] = parse(listed[name], available, what=what)
        elif name in available:
            found[name] = name
        else:
            raise MappingError(
                f"{what}: the table has no column of that name; {nearest(name, available)}",
                hint=f"say where it comes from: `fields: {{{name}: column or expression}}`",
            )
    return found


@dataclass(frozen=True, slots=True)
class Leak:
    """A field of personal data that leaves the database as it is."""

    field: str
    pii: str
    text: str


def pii_findings(config: StreamConfig, contract: Contract, available: Sequence[str]) -> list[Leak]:
    """The fields with `pii: personal` or `sensitive` that are mapped without `hash` or `mask`: for `check` to warn."""
    if config.function is not None:
        return []
    found: dict[str, Leak] = {}
    for shape in resolve(config, contract, available).shapes:
        for name, spec in contract.shape(shape.type).items():
            origin = shape.fields[name]
            if spec.pii == "none" or (isinstance(origin, Expression) and origin.private):
                continue
            text = f"field `{name}` is {spec.pii} and mapped as it is; write `{name}: hash(...)` or `mask(...)`"
            found[name] = Leak(name, spec.pii, f"{text} unless consumers need the value")
    return list(found.values())
