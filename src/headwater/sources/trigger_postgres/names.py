"""The names of everything that the trigger pattern makes in somebody's database.

Each begins with the pipeline's name, and is only ever matched whole: `_` is a wildcard in LIKE, and one pipeline's name
may be the beginning of another's (F66, F84).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from headwater.drivers.postgres import quoted

SCHEMA = "headwater"
FIRST = "!"
"""Triggers fire in the order of their names: ours see a row before the application's, and the foreign keys', go on."""


@dataclass(frozen=True, slots=True)
class Names:
    """`pipeline` as configured: letters, digits and `-`; so the replacement by `_` cannot make two names equal."""

    pipeline: str
    schema: str = SCHEMA

    @property
    def prefix(self) -> str:
        return f"headwater_{self.pipeline.replace('-', '_')}"

    @property
    def tables(self) -> tuple[str, str, str]:
        """Unquoted: changes, marks, and what is known of the rest."""
        return f"{self.prefix}_change", f"{self.prefix}_mark", f"{self.prefix}_meta"

    @property
    def change(self) -> str:
        """The change table as SQL: one row a row-level change."""
        return self.sql(self.tables[0])

    @property
    def mark(self) -> str:
        """Snapshots that somebody has read rows in: the order of changes is cut there."""
        return self.sql(self.tables[1])

    @property
    def meta(self) -> str:
        """Format, incarnation, layouts, and how far the reader has come."""
        return self.sql(self.tables[2])

    @property
    def sequence(self) -> str:
        """What numbers changes and looks; as an SQL expression of type regclass."""
        return f"{_literal(self.sql(f'{self.prefix}_number'))}::pg_catalog.regclass"

    @property
    def application(self) -> str:
        """What our connections are called in `pg_stat_activity`."""
        return f"headwater {self.pipeline} trigger"[:63]

    def sql(self, name: str) -> str:
        return f"{quoted(self.schema)}.{quoted(name)}"

    def function(self, number: int) -> str:
        return f"{self.prefix}_{number}"

    def trigger(self, number: int, event: str) -> str:
        """`event`: r for rows, t for TRUNCATE."""
        return f"{FIRST}{self.prefix}_{number}_{event}"

    def owns_function(self, name: str) -> bool:
        return re.fullmatch(rf"{re.escape(self.prefix)}_\d+", name) is not None

    def owns_trigger(self, name: str) -> bool:
        return re.fullmatch(rf"{FIRST}{re.escape(self.prefix)}_\d+_[rt]", name) is not None


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
