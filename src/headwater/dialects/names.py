"""Names that are not found, with the nearest one that is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from headwater.dialects import Column
from headwater.errors import SourceError
from headwater.model import TableId


def required(name: str, columns: Sequence[Column], where: str) -> Column:
    """The column of this name. Raises `SourceError` that names the nearest."""
    for column in columns:
        if column.name == name:
            return column
    names = [column.name for column in columns]
    near = difflib.get_close_matches(name, names, 1, 0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"columns are {', '.join(names)}"
    raise SourceError(f"{where} has no column `{name}`", hint=hint)


def no_table(table: TableId, tables: Sequence[TableId], where: str) -> SourceError:
    names = [str(t) for t in tables]
    near = difflib.get_close_matches(str(table), names, 1, 0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"tables are {', '.join(names[:20]) or 'none'}"
    return SourceError(f"there is no table `{table}` in {where}", hint=hint)
