"""The names of what log capture makes in somebody's database. They are only ever matched whole (F66, F84)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

LONGEST = 63
"""Bytes of a name in PostgreSQL (NAMEDATALEN - 1)."""

MESSAGES = "headwater"
"""The prefix of our logical messages."""


@dataclass(frozen=True, slots=True)
class Names:
    """`pipeline` and `source` as configured.

    A `-` of the pipeline becomes `_` and a `_` of the source `__`, so that `a-b` with `c` is not `a` with `b_c`.
    """

    pipeline: str
    source: str

    @property
    def slot(self) -> str:
        return self._name("")

    @property
    def publication(self) -> str:
        """Of every table whose updates and deletes can be told."""
        return self._name("")

    @property
    def inserts(self) -> str:
        """The publication of tables without a replica identity: their inserts alone."""
        return self._name("_inserts")

    @property
    def application(self) -> str:
        """What our connections are called in `pg_stat_activity`."""
        return f"headwater {self.pipeline} {self.source}"[:LONGEST]

    def _name(self, ending: str) -> str:
        """A name that is too long, or could be another's, keeps its beginning and is told apart by a hash."""
        name = f"headwater_{self.pipeline.replace('-', '_')}_{self.source.replace('_', '__')}"
        if len(name) + len("_inserts") > LONGEST or "--" in f"{self.pipeline}-":
            mark = hashlib.blake2b(f"{self.pipeline} {self.source}".encode(), digest_size=5).hexdigest()
            name = f"{name[: LONGEST - len('_inserts') - 11]}_{mark}"
        return name + ending


def names_of(pipeline: str, capture: str) -> Names:
    """`capture`: as `status` names it, the source and its pattern: `lms/log`."""
    return Names(pipeline, capture.partition("/")[0])
