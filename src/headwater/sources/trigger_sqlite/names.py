"""The names of everything that the trigger pattern makes in somebody's database.

Each begins with the pipeline's name, and is only ever matched whole: `_` is a wildcard in LIKE, and one pipeline's name
may be the beginning of another's (F66, F84).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EVENTS = ("before_insert", "before_update", "after_insert", "after_update", "after_delete")


@dataclass(frozen=True, slots=True)
class Names:
    """`pipeline` as configured: letters, digits and `-`; so the replacement by `_` cannot make two names equal."""

    pipeline: str

    @property
    def prefix(self) -> str:
        return f"headwater_{self.pipeline.replace('-', '_')}"

    @property
    def change(self) -> str:
        """The change table: one row a row-level change."""
        return f"{self.prefix}_change"

    @property
    def pending(self) -> str:
        """Rows that a write may be about to replace."""
        return f"{self.prefix}_pending"

    @property
    def meta(self) -> str:
        """Format, incarnation and layouts."""
        return f"{self.prefix}_meta"

    @property
    def tables(self) -> tuple[str, str, str]:
        return self.change, self.pending, self.meta

    def trigger(self, number: int, event: str) -> str:
        return f"{self.prefix}_{number}_{event}"

    def owns_trigger(self, name: str) -> bool:
        pattern = rf"{re.escape(self.prefix)}_\d+_({'|'.join(EVENTS)})"
        return re.fullmatch(pattern, name) is not None
