"""Folding the write-ahead log back into bus.db beside the appends, so that none of them has to wait for it.

SQLite would do it within the commit that fills the log: one append in some hundreds then takes as long as writing
16 MB does. Here a thread does it while appends go on, and holds them up only for what they added meanwhile: unless all
is folded back while nobody writes, SQLite never begins the log anew, and it grows
(https://www.sqlite.org/wal.html, "Avoiding Excessively Large WAL Files").
"""

from __future__ import annotations

import threading

from headwater.buses.embedded.store import CHECKPOINT, PAGE, Store

AT_MOST = 4 * CHECKPOINT
"""From so many bytes on a commit does it itself after all: what others write is not counted here."""
_EACH = 5 * PAGE
"""What an append adds to the log beside its records."""


class Folder:
    """For the appender; used under its lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written = 0
        self._thread: threading.Thread | None = None
        store.checkpoint_at(AT_MOST)

    def appended(self, nbytes: int) -> None:
        """An append of so many bytes was committed."""
        self._written += nbytes + _EACH
        if self._written >= CHECKPOINT // 2 and (self._thread is None or not self._thread.is_alive()):
            self._written = 0
            self._thread = threading.Thread(target=self._store.fold_back, name="bus log", daemon=True)
            self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
