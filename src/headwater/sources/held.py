"""The rows of a `model.SourceState`, with what is held open in the source while they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from headwater.model import Changes


class HeldRows:
    """An iterator that gives back what it holds at its end, when it is closed, and when it is never even begun.

    A generator would not do the last. `rows` must not begin to read before its first row is asked for.
    """

    def __init__(self, held: ExitStack, rows: Iterator[Changes]) -> None:
        self._held = held
        self._rows = rows

    def __iter__(self) -> Iterator[Changes]:
        return self

    def __next__(self) -> Changes:
        found = next(self._rows, None)
        if found is None:
            self.close()
            raise StopIteration
        return found

    def close(self) -> None:
        self._rows = iter(())
        self._held.close()

    def __del__(self) -> None:
        self.close()
