"""Changes that become events as they stand: their columns are put together anew, and no row is looked at by itself.

Worked out for one row schema and one version of a contract. What is not that plain, by the mapping or by a row of the
batch, is left to `shaping`, which gives the same events for these, too.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from headwater import native
from headwater.mapping import check
from headwater.mapping.casts import same
from headwater.mapping.program import Program, TypeProgram
from headwater.model import ORDER_FIELDS

MODULE = "headwater.mapping.projection_native"


class Projection:
    """Used where `projection` finds that it may be."""

    def __init__(self, take: Any, kind: TypeProgram) -> None:
        self._take = take
        places = {f.name: len(ORDER_FIELDS) + number for number, f in enumerate(kind.fields)}
        self._rules = [(rule, places[rule.field]) for rule in kind.rules]

    def events(self, data: pa.RecordBatch) -> pa.RecordBatch | None:
        """Of all rows of `Changes.data`; None where a row has an old one, is gone, or breaks the contract."""
        events: pa.RecordBatch | None = self._take(data)
        if events is not None:
            for rule, place in self._rules:
                if len(check.broken(rule, events.column(place))):
                    return None
        return events


def projection(program: Program, changes: pa.Schema) -> Projection | None:
    """None where the mapping asks for more than columns as they are, or without the compiled module."""
    module = native.compiled(MODULE)
    if module is None or not _is_plain(program) or not _is_bare(changes):
        return None
    (kind,) = program.types
    row = changes.field("after").type
    places = [row.get_field_index(f.origin) for f in kind.fields]
    if min(places, default=-1) < 0 or len(set(places)) < len(places):
        return None
    required = [f.name in kind.required for f in kind.fields]
    return Projection(module.Projection(pa.RecordBatch, kind.events, places, required, bool(kind.key)), kind)


def _is_plain(program: Program) -> bool:
    if program.resolved.where is not None or len(program.types) != 1:
        return False
    (kind,) = program.types
    return kind.shape.type is None and all(isinstance(f.origin, str) and f.cast is same for f in kind.fields)


def _is_bare(changes: pa.Schema) -> bool:
    """Whether there are no columns but the order and the two states."""
    return bool(changes.names == [*(f.name for f in ORDER_FIELDS), "before", "after"]) and all(
        changes.field(number).type == f.type for number, f in enumerate(ORDER_FIELDS)
    )
