"""Whether a slot that the bus knows nothing of is ours: a file says that one is being made.

Between the slot and the first append a process may die; then the slot is worth nothing and is made anew (F20). A slot
of the same name without that file is of somebody whose bus is elsewhere, and who will come back for it (F84).
"""

from __future__ import annotations

import hashlib
from pathlib import Path


class Making:
    """`directory`: of this deployment. `system`: the server's identifier; no two databases share a file."""

    def __init__(self, directory: str, system: str, database: str, slot: str) -> None:
        words = hashlib.blake2b(f"{system} {database} {slot}".encode(), digest_size=8).hexdigest()
        self._file = Path(directory) / f".headwater-making-{words}"

    @property
    def under_way(self) -> bool:
        return self._file.exists()

    def begin(self) -> None:
        self._file.touch()

    def end(self) -> None:
        """The slot's first place is on the bus; more than once."""
        self._file.unlink(missing_ok=True)
