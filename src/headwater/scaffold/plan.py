"""What `init` will write, worked out from the tables: streams with their fields, and what is left out, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from headwater.config import StreamConfig
from headwater.contracts.naming import cut, field_name, snake
from headwater.contracts.types import parse_type
from headwater.dialects import Column, ForeignKey, Table
from headwater.doctor.choice import Choice, choose, row_key
from headwater.model import TableId
from headwater.protocols import Guarantee
from headwater.scaffold.framework import kept_by
from headwater.scaffold.obstacles import ObstaclesOf
from headwater.scaffold.privacy import Kind, looks
from headwater.scaffold.words import Naming, key_field, name_tables, reference_field

UNKEYABLE = frozenset({"float32", "float64", "json", "list", "map", "struct"})
"""Types that cannot be part of a key."""

USUAL = "public"
"""PostgreSQL's schema for who asked for none."""

GuaranteeOf = Callable[[StreamConfig, bool], Guarantee]


@dataclass(frozen=True, slots=True)
class PlannedField:
    name: str
    column: str
    type: str
    optional: bool
    ref: str | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Withheld:
    column: str
    name: str
    type: str
    optional: bool
    kind: Kind


@dataclass(frozen=True, slots=True)
class PlannedStream:
    naming: Naming
    table: Table
    choice: Choice
    fields: tuple[PlannedField, ...]
    key: tuple[str, ...]
    """Names of fields."""
    withheld: tuple[Withheld, ...]
    config: StreamConfig
    guarantee: Guarantee


@dataclass(frozen=True, slots=True)
class Skipped:
    table: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    source: str
    streams: tuple[PlannedStream, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is the same for every table. `guarantee` says what a stream's path gives, by configuration and keyedness."""

    pipeline: str
    source: str
    obstacles: ObstaclesOf
    guarantee: GuaranteeOf
    asked_for: frozenset[str] = field(default_factory=frozenset)
    """Tables that the user named; a framework's table is only taken then."""


def plan(tables: Sequence[Table], around: Circumstances) -> Plan:
    reasons = {str(table.id): _refused(table, around) for table in tables}
    skipped = tuple(Skipped(name, why) for name, why in reasons.items() if why is not None)
    chosen = [table for table in tables if reasons[str(table.id)] is None]
    columns = [column.name for table in chosen for column in table.columns]
    labels = _labels(chosen)
    named = name_tables(labels.values(), pipeline=around.pipeline, columns=columns)
    namings = {table: named[label] for table, label in labels.items()}
    entities = _Entities({table.id: table for table in chosen}, namings)
    return Plan(around.source, tuple(_stream(table, entities, around) for table in chosen), skipped)


def _labels(tables: Sequence[Table]) -> dict[TableId, str]:
    """What tables are named after: a schema counts like an application's prefix, unless it is the usual or only one."""
    schemas = {table.id.schema for table in tables}
    alone = len(schemas) == 1
    return {table.id: table.id.name if alone or table.id.schema == USUAL else str(table.id) for table in tables}


def _refused(table: Table, around: Circumstances) -> str | None:
    """Why a table gets no stream."""
    name = table.id.name
    asked = name in around.asked_for or str(table.id) in around.asked_for
    if not asked and (what := kept_by(name)):
        return what
    if "." in table.id.schema:
        return "the name of its schema holds a dot, and `table: a.b.c` means the table b.c of the schema a"
    if "." in name and not table.id.schema:
        return "its name holds a dot, and `table: a.b` means the table b of the schema a; publish it through a view"
    key = row_key(table)
    if not key:
        what = "a view" if table.is_view else "a table without a primary key"
        return f"{what}: name the columns that identify a row, with `key: [...]`"
    columns = [column for column in table.columns if column.name in key]
    for column in columns:
        kind = looks(column.name, snake(name))
        if kind is not None and not _is_identifier(table, column.name, kind):
            return f"its key `{column.name}` looks {kind}, and a key cannot be withheld"
        if parse_type(column.contract).name in UNKEYABLE:
            return f"its key `{column.name}` is {column.contract}, which cannot be a key"
    return None


@dataclass(frozen=True, slots=True)
class _Entities:
    """The chosen tables as entities that others may refer to."""

    tables: dict[TableId, Table]
    namings: dict[TableId, Naming]

    def key_names(self, table: TableId) -> dict[str, str]:
        """Column -> field of a table's key."""
        return {column: key_field(column, self.namings[table].entity) for column in row_key(self.tables[table])}

    def target(self, table: Table, column: Column) -> tuple[ForeignKey, str] | None:
        """The foreign key of one column that refers to the whole identity of a chosen table, and that column there."""
        for key in table.foreign_keys:
            there = self.tables.get(key.table)
            if key.columns != (column.name,) or there is None:
                continue
            references = key.references or there.key
            if references == row_key(there) and len(references) == 1:
                return key, references[0]
        return None


def _stream(table: Table, entities: _Entities, around: Circumstances) -> PlannedStream:
    naming = entities.namings[table.id]
    choice = choose(table, around.obstacles(table))
    fields, withheld = _fields(table, entities)
    columns = {planned.column: planned.name for planned in fields}
    config = StreamConfig(
        source=around.source,
        table=str(table.id),
        pattern=choice.pattern,
        fields={planned.name: planned.column for planned in fields if planned.name != planned.column},
        cursor=choice.cursor,
        key=choice.key,
    )
    key = tuple(columns[column] for column in row_key(table))
    guarantee = around.guarantee(config, True)
    return PlannedStream(naming, table, choice, tuple(fields), key, tuple(withheld), config, guarantee)


def _fields(table: Table, entities: _Entities) -> tuple[list[PlannedField], list[Withheld]]:
    fields: list[PlannedField] = []
    withheld: list[Withheld] = []
    taken: set[str] = set()
    own = entities.key_names(table.id)
    for column in _key_first(table):
        planned = _field(table, column, entities, own)
        name = _free(planned.name, taken)
        taken.add(name)
        kind = looks(column.name, entities.namings[table.id].entity)
        if kind is not None and not (column.name in own or (kind == "personal" and planned.ref)):
            withheld.append(Withheld(column.name, name, column.contract, column.nullable, kind))
        else:
            ref = planned.ref if name == planned.name else None
            fields.append(PlannedField(name, column.name, planned.type, planned.optional, ref, planned.remark))
    return fields, withheld


def _key_first(table: Table) -> Iterable[Column]:
    key = row_key(table)
    yield from (column for name in key for column in table.columns if column.name == name)
    yield from (column for column in table.columns if column.name not in key)


def _field(table: Table, column: Column, entities: _Entities, own: dict[str, str]) -> PlannedField:
    name = own.get(column.name) or field_name(column.name)
    optional = column.nullable and column.name not in own
    ref = None
    if (target := entities.target(table, column)) is not None:
        foreign, there = target
        other = entities.tables[foreign.table].column(there)
        entity = entities.namings[foreign.table].entity
        key = entities.key_names(foreign.table)[there]
        if other is not None and other.contract != column.contract:
            remark = f"refers to `{entity}`, whose {key} is {other.contract}"
            return PlannedField(name, column.name, column.contract, optional, None, remark)
        if column.name not in own:
            name, ref = reference_field(column.name, entity, key), entity
        elif name == key or name.endswith(f"_{key}"):
            ref = entity
    return PlannedField(name, column.name, column.contract, optional, ref)


def _is_identifier(table: Table, column: str, kind: Kind) -> bool:
    """A foreign key, or a name that ends as identifiers do: it tells who only to somebody who knows already."""
    foreign = any(column in key.columns for key in table.foreign_keys)
    return foreign or (kind == "personal" and snake(column).rsplit("_", 1)[-1] in ("id", "uuid", "guid"))


def _free(name: str, taken: set[str]) -> str:
    """A name that another column has taken already gets a number."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = cut(name, f"_{number}"), number + 1
    return candidate
