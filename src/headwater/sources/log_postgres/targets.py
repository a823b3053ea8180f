"""Which tables the log is read for, and what of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from headwater.dialects.postgres_options import texts_of
from headwater.model import TableId
from headwater.protocols import Capture
from headwater.sources.log_postgres.tables import Described


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One captured table: the columns that any of its streams reads, and those whose old values tell a row.

    `needed`: those without which a stream of facts cannot say which row was changed or deleted.
    """

    id: TableId
    columns: tuple[str, ...]
    identifying: frozenset[str]
    as_text: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    partitioned: bool = False


def targets_of(
    captures: Iterable[Capture], tables: Mapping[TableId, Described], as_text: Iterable[str]
) -> dict[int, Target]:
    """By the tables' oids, which outlive a renaming. `captures`: those that can be captured."""
    chosen = frozenset(as_text)
    found: dict[int, Target] = {}
    for capture in captures:
        described = tables[capture.table]
        known = found.get(described.oid, Target(capture.table, (), frozenset()))
        names = {*known.columns, *capture.columns}
        identifying = frozenset(capture.identifying or capture.key)
        found[described.oid] = Target(
            capture.table,
            tuple(name for name in described.columns if name in names),
            known.identifying | identifying,
            texts_of(capture.table, described.columns, chosen) & names,
            known.needed | (frozenset() if capture.kind == "event" else identifying),
            described.leaf.kind == "p",
        )
    return found
