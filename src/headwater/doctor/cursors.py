"""What there is to say of the column that a query capture goes by, on any database."""

from __future__ import annotations

from collections.abc import Callable

from headwater.dialects import Table
from headwater.doctor import Probe


def cursor_probes(
    table: Table, cursor: str, index: Callable[[Table, str], str], nulls: Callable[[Table, str], Probe]
) -> list[Probe]:
    """`index`: the SQL that makes an index; `nulls`: a look for rows without a value, where there may be any."""
    column = table.column(cursor)
    if column is None:
        return [Probe("cursor", "problem", f"the table has no column {cursor}")]
    found = []
    if not any(names[:1] == (cursor,) for names in (table.key, *table.indexes, *table.unique)):
        text = f"{cursor} has no index: each poll reads the whole table"
        found.append(Probe("cursor", "warning", text, index(table, cursor)))
    if column.nullable:
        found.append(nulls(table, cursor))
    return found or [Probe("cursor", "good", f"{cursor} is indexed and always set")]
