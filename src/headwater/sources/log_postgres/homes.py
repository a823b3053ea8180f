"""Which rows a reader of a stream has: a partial change may go on only to one of them.

Two things leave a reader without a row that the log goes on to change: a load that is yet to bring it, and a key whose
row could not be made whole when it moved there, because it was gone by then. The latter's end is in the log below the
place where the log ended when that was found out; until it has come there the key is remembered, here and with the
position. Where it cannot be, a place is (`position.Place.doubt`): below it any row may be missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.model import Op
from headwater.sources.log_postgres.windows import Keys, key_of, words_of

Mask = npt.NDArray[np.bool_]

_MOST = 1000
"""Keys in a position."""

_MOST_TOLD = 100_000
"""Keys of rows that the log brought during a load, in memory."""

EVER = 2**63 - 1
"""A place that is not known yet."""


@dataclass(frozen=True, slots=True)
class Homes:
    """What a load has brought. `loading`: not all; then rows up to the key `after` (texts), and those of `keys`.

    `told`: those that the log brought meanwhile.
    """

    loading: bool
    after: tuple[str, ...] | None = None
    keys: Keys | None = None
    told: Told | None = None

    def known(self, keys: Sequence[pa.Array], places: Sequence[tuple[int, int]]) -> Mask:
        """Which of these keys have a row for a change at its place (`_commit`, `_index`), by `keys` and `told`."""
        found = np.zeros(len(places), bool) if self.keys is None else self.keys.has(keys)
        return found if self.told is None else found | self.told.has(keys, places)


class Told:
    """The keys whose row the log brought during a load, each with the place from which on it is there.

    Where there are too many, some are forgotten: a change of such a row reads it once more. `known`: what `written`
    gave.
    """

    def __init__(self, known: Sequence[str] = ()) -> None:
        self._since: dict[bytes, tuple[int, int]] = {bytes.fromhex(word): (0, 0) for word in known}

    def has(self, keys: Sequence[pa.Array], places: Sequence[tuple[int, int]]) -> Mask:
        """A stored transaction may be read twice: what it brings further on is not there yet."""
        since = (self._since.get(word) for word in _words(keys))
        return np.array([at is not None and at < place for at, place in zip(since, places, strict=True)], bool)

    def written(self) -> tuple[str, ...]:
        """The keys' hashes; few."""
        return tuple(word.hex() for word in itertools.islice(self._since, _MOST))

    def learn(self, data: pa.RecordBatch, key: Sequence[str]) -> None:
        """From changes (`model.Changes.data`) as they go on: each state that they leave is one that a reader has."""
        places = places_of(data)
        truncates = np.flatnonzero(data.column("_op").to_numpy() == Op.TRUNCATE)
        first = int(truncates[-1]) if len(truncates) else 0
        if len(truncates):
            self._since.clear()
        steps: list[tuple[int, bool, bytes]] = []
        for name in ("before", "after"):
            state = data.column(name)
            rows = np.flatnonzero(state.is_valid().to_numpy(zero_copy_only=False))
            rows = rows[rows >= first]
            words = _words(key_of(state.take(pa.array(rows)), key))
            steps += zip(rows.tolist(), itertools.repeat(name == "after"), words, strict=False)
        for row, there, word in sorted(steps):
            if not there:
                self._since.pop(word, None)
            elif len(self._since) < _MOST_TOLD:
                self._since.setdefault(word, places[row])


def places_of(data: pa.RecordBatch) -> list[tuple[int, int]]:
    return list(zip(data.column("_commit").to_pylist(), data.column("_index").to_pylist(), strict=True))


class Lost:
    """The keys of one stream whose row its readers do not have. `doubt`: below it, this is so of every other key too
    that is not known to be there. `known`: what `written` gave.
    """

    def __init__(self, doubt: int = 0, known: Mapping[str, int] | None = None) -> None:
        self._doubt = doubt
        self._reached = 0
        self._until = {bytes.fromhex(word): until for word, until in (known or {}).items()}
        self._there: set[bytes] = set()
        self._keys: tuple[Keys, Keys] | None = None

    def __bool__(self) -> bool:
        return self.doubtful or bool(self._until)

    @property
    def doubtful(self) -> bool:
        return self._doubt > self._reached

    @property
    def doubt(self) -> int:
        """The place in the log behind which no row is missing that is not known to be."""
        return max((self._doubt, *self._until.values())) if len(self._until) > _MOST else self._doubt

    def written(self, lsn: int) -> dict[str, int]:
        """The keys' hashes, as far as they matter behind `lsn`, each with the place where it ends to; few."""
        return {} if len(self._until) > _MOST else {w.hex(): until for w, until in self._until.items() if until > lsn}

    def among(self, keys: Sequence[pa.Array]) -> Mask:
        """Whose row is missing, or may be."""
        if self._keys is None:
            self._keys = _set_of(self._until), _set_of(self._there)
        lost, there = self._keys
        return ~there.has(keys) if self.doubtful else lost.has(keys)

    def settle(self, keys: Sequence[pa.Array], lost: Mask, until: int) -> None:
        """From now on these keys, each given once, are without their row or not."""
        if not self.doubtful:
            news = lost | self.among(keys)
            keys, lost = [column.filter(pa.array(news)) for column in keys], lost[news]
        for word, missing in zip(_words(keys), lost.tolist(), strict=True):
            if missing:
                self._until.setdefault(word, until)
                self._there.discard(word)
            else:
                self._until.pop(word, None)
                if self.doubtful:
                    self._there.add(word)
        self._keys = None

    def forget(self) -> None:
        """There is no row at all any more."""
        self._until.clear()
        self._there.clear()
        self._doubt, self._keys = 0, None

    def behind(self, lsn: int) -> None:
        """The stream has come to `lsn`: what was gone below it has ended."""
        self._reached = max(self._reached, lsn)
        over = [word for word, until in self._until.items() if until <= lsn]
        for word in over:
            del self._until[word]
        if not self.doubtful:
            self._there.clear()
        if over or not self.doubtful:
            self._keys = None


def _words(keys: Sequence[pa.Array]) -> list[bytes]:
    raw = words_of(keys).tobytes()
    return [raw[place : place + 16] for place in range(0, len(raw), 16)]


def _set_of(words: dict[bytes, int] | set[bytes]) -> Keys:
    return Keys.of(np.frombuffer(b"".join(words), np.uint64).reshape(-1, 2))
