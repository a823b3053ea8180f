"""Events from plain rows and back, and streams of them on a bus, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from headwater.buses.memory import MemoryBus
from headwater.contracts.model import Contract, FieldSpec
from headwater.model import Events, Mapped, Op, Position
from headwater.protocols import Declaration
from headwater.schema import events_schema

ITEM = Contract(
    stream="shop.item",
    version=1,
    key=("id",),
    fields={"id": FieldSpec(type="int64"), "name": FieldSpec(type="string", optional=True)},
)
OPS = {op.letter: op for op in Op}


def events(rows: Sequence[dict[str, Any]], contract: Contract = ITEM, **more: Any) -> Events:
    """Rows of `op`, `at` (an order triple), fields, and `unchanged` field names, as events."""
    names = list(contract.shape(more.get("type")))
    marked = any("unchanged" in row for row in rows)
    schema = events_schema(contract, more.get("type"), before=more.pop("before", False), unchanged=marked)
    return Events(
        contract.stream,
        contract.version,
        pa.RecordBatch.from_pylist([_row(row, names) for row in rows], schema=schema),
        source="shop/trigger",
        seed=b"0123456789abcdef",
        **more,
    )


def _row(row: dict[str, Any], names: list[str]) -> dict[str, Any]:
    epoch, commit, index = row["at"]
    unchanged = [names.index(name) for name in row["unchanged"]] if "unchanged" in row else None
    order = {"_op": OPS[row["op"]].value, "_epoch": epoch, "_commit": commit, "_index": index}
    return {**row, **order, "_unchanged": unchanged}


def rows_of(part: Events) -> Iterator[dict[str, Any]]:
    for row in part.data.to_pylist():
        order = (row.pop("_epoch"), row.pop("_commit"), row.pop("_index"))
        shown = {"op": Op(row.pop("_op")).letter, "at": order}
        shown |= {name: value for name, value in row.items() if not name.startswith("_")}
        yield shown if part.type is None else {**shown, "type": part.type}


def bus_with(*parts: Events, contract: Contract = ITEM) -> MemoryBus:
    """A bus that holds one stream."""
    bus = MemoryBus()
    bus.declare([Declaration(contract, "shop/trigger", "fingerprint")])
    append(bus, *parts)
    return bus


def append(bus: MemoryBus, *parts: Events, position: tuple[int, int] = (1, 1)) -> None:
    bus.append(Mapped(events=parts), source="shop/trigger", position=Position(*position, token=b""))
