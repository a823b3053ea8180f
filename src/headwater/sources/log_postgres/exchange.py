"""Rows that exchange keys within a transaction.

Where a key is checked at the commit (a deferrable constraint) or never, it may belong to two rows for a while: one
comes to it before the other leaves. The log tells of each row by itself, and who folds it by key would take away the
row that came with the one that left. But old rows are whole there (REPLICA IDENTITY FULL), so rows can be told apart:
what is left of a key at the end is what came to it and did not leave again. Such a key gets one change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.errors import GapError
from headwater.mapping.hashing import hash_rows
from headwater.model import Changes, Op
from headwater.protocols import Capture
from headwater.sources.log_postgres.windows import key_of, merged, with_columns, without_side

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_SEED = b"headwater exchange"[:16]


@dataclass(frozen=True, slots=True)
class _Sides:
    """Old and new rows, key by key, in the sequence in which they leave (-1) and come (+1).

    `key` and `version`: hashes of the key and of the whole row, each with its transaction. `row`: of the changes.
    `moves`: whether the change is one of the key.
    """

    key: Words
    version: Words
    sign: npt.NDArray[np.int8]
    row: Rows
    moves: Mask

    def part(self, chosen: Mask) -> _Sides:
        key, version, sign, row = self.key[chosen], self.version[chosen], self.sign[chosen], self.row[chosen]
        return _Sides(key, version, sign, row, self.moves[chosen])


def settled(data: pa.RecordBatch, key: Sequence[str]) -> pa.RecordBatch:
    """Changes (`model.Changes.data`) of whole transactions, in which a key belongs to one row at a time."""
    if data.column("before").null_count == len(data):
        return data
    sides = _sides_of(data, key)
    exchanged = np.isin(sides.key, _exchanged(sides, _arrives(sides)))
    if not exchanged.any():
        return data
    kept = ~exchanged
    kept[np.flatnonzero(exchanged)[_left(sides.part(exchanged))]] = True
    touched = np.zeros(len(data), bool)
    touched[sides.row[exchanged]] = True
    mine = kept & touched[sides.row]
    return _joined(data, touched, sides.part(mine), exchanged[mine])


class Watch:
    """Finds exchanges in a transaction that comes piece by piece, and is too large to be settled.

    `captures`: of the streams whose rows may exchange keys; `name`: of theirs together.
    """

    def __init__(self, name: str, captures: Iterable[Capture]) -> None:
        self._name = name
        self._came = [(capture, _Came()) for capture in captures]

    def seen(self, found: list[Changes]) -> list[Changes]:
        """The piece as it is. Raises `GapError`."""
        for changes in found:
            for capture, came in self._came:
                if capture.table == changes.table and came.exchanges(changes.data, capture.key):
                    raise GapError(
                        f"rows of table {changes.table} exchanged keys in a transaction that is too large to be settled"
                        " in memory: what the log says of them would take some away",
                        hint=f"`headwater repair {self._name}` makes a new slot behind it and compares every table with"
                        " its stream; a unique constraint that is not deferrable rules this out",
                    )
        return found


class _Came:
    """What has come to the keys of one table."""

    def __init__(self) -> None:
        self._moved, self._keys, self._versions = _Known(), _Known(), _Known()
        self._truncates = 0

    def exchanges(self, data: pa.RecordBatch, key: Sequence[str]) -> bool:
        """Whether rows of this piece exchange keys among them, or with what came before; remembers what comes."""
        sides = _sides_of(data, key, self._truncates)
        self._truncates += int(_truncates(data).sum())
        left, came = sides.sign < 0, sides.sign > 0
        first = ~_same(sides)
        another = left & first & self._keys.has(sides.key) & ~self._versions.has(sides.version)
        moved = came & sides.moves
        if (another | _goes(sides) & self._moved.has(sides.key)).any() or len(_exchanged(sides, moved)):
            return True
        self._moved.add(sides.key[moved])
        self._keys.add(sides.key[_arrives(sides)])
        self._versions.add(sides.version[came & self._keys.has(sides.key)])
        return False


class _Known:
    """A growing set of numbers: sorted arrays, each less than half as long as the one before."""

    def __init__(self) -> None:
        self._parts: list[Words] = []

    def add(self, numbers: Words) -> None:
        if len(numbers):
            self._parts.append(np.sort(numbers))
        while len(self._parts) > 1 and len(self._parts[-2]) < 2 * len(self._parts[-1]):
            last = self._parts.pop()
            self._parts[-1] = np.sort(np.concatenate([self._parts[-1], last]), kind="stable")

    def has(self, numbers: Words) -> Mask:
        found = np.zeros(len(numbers), bool)
        for part in self._parts:
            places = np.minimum(np.searchsorted(part, numbers), len(part) - 1)
            found |= part[places] == numbers
        return found


def _sides_of(data: pa.RecordBatch, key: Sequence[str], truncates: int = 0) -> _Sides:
    """`truncates`: how many came before in the transaction."""
    commits = data.column("_commit").to_numpy()
    group = truncates + np.cumsum(_truncates(data))
    group[1:] += np.cumsum(commits[1:] != commits[:-1])
    rows, keys, versions = [], [], []
    for name in ("before", "after"):
        state = data.column(name)
        there = np.flatnonzero(state.is_valid().to_numpy(zero_copy_only=False))
        chosen, groups = state.take(pa.array(there)), pa.array(group[there])
        rows.append(there)
        keys.append(_hashes([*key_of(chosen, key), groups]))
        versions.append(_hashes([*(chosen.field(place) for place in range(chosen.type.num_fields)), groups]))
    moves = _moves(len(data), rows, keys)
    sign = np.repeat(np.array([-1, 1], np.int8), [len(there) for there in rows])
    row, words = np.concatenate(rows), np.concatenate(keys)
    order = np.lexsort((sign, row, words))
    return _Sides(words[order], np.concatenate(versions)[order], sign[order], row[order], moves[row[order]])


def _truncates(data: pa.RecordBatch) -> Mask:
    found: Mask = data.column("_op").to_numpy() == Op.TRUNCATE
    return found


def _moves(count: int, rows: Sequence[Rows], keys: Sequence[Words]) -> Mask:
    found, there = [np.zeros(count, np.uint64) for _ in rows], [np.zeros(count, bool) for _ in rows]
    for place, (where, words) in enumerate(zip(rows, keys, strict=True)):
        found[place][where] = words
        there[place][where] = True
    moves: Mask = there[0] & there[1] & (found[0] != found[1])
    return moves


def _hashes(columns: Sequence[pa.Array]) -> Words:
    hashes = hash_rows(columns, _SEED)
    return np.frombuffer(hashes.buffers()[1], "<u8", count=2 * len(hashes)).reshape(-1, 2)[:, 0].copy()


def _exchanged(sides: _Sides, doubtful: Mask) -> Words:
    """The keys to which a row came while another had it, or may have had it.

    Rows follow one another at a key if each that leaves is the one that came last. That it looks alike proves nothing:
    `doubtful` says of which rows that come it does not do.
    """
    same, came, left = _same(sides), sides.sign > 0, sides.sign < 0
    before_came, alike = np.zeros(len(same), bool), np.zeros(len(same), bool)
    before_came[1:] = came[:-1]
    alike[1:] = sides.version[1:] == sides.version[:-1]
    odd = same & (left & ~(before_came & alike) | came & before_came)
    places = np.arange(len(same))
    start = np.maximum.accumulate(np.where(same, 0, places))
    latest = np.maximum.accumulate(np.where(doubtful, places, -1))
    return np.unique(sides.key[odd | _goes(sides) & (latest >= start)])


def _same(sides: _Sides) -> Mask:
    """Whether the side before is of the same key."""
    same = np.zeros(len(sides.key), bool)
    same[1:] = sides.key[1:] == sides.key[:-1]
    return same


def _arrives(sides: _Sides) -> Mask:
    """The sides of rows that come to their key, not of an update in place."""
    stayed = np.zeros(len(sides.key), bool)
    stayed[1:] = (sides.key[1:] == sides.key[:-1]) & (sides.row[1:] == sides.row[:-1])
    return (sides.sign > 0) & ~stayed


def _goes(sides: _Sides) -> Mask:
    """Likewise of rows that leave it."""
    stays = np.zeros(len(sides.key), bool)
    stays[:-1] = (sides.key[1:] == sides.key[:-1]) & (sides.row[1:] == sides.row[:-1])
    return (sides.sign < 0) & ~stays


def _left(sides: _Sides) -> Rows:
    """The one side of each key that says what became of it; none of a key with which nothing happened after all."""
    _, version = np.unique(sides.version, return_inverse=True)
    net = np.bincount(version, weights=sides.sign)[version]
    lives, gone = (sides.sign > 0) & (net > 0), (sides.sign < 0) & (net < 0)
    gone &= ~np.isin(sides.key, sides.key[lives])
    found = np.flatnonzero(lives | gone)
    last = np.ones(len(found), bool)
    last[:-1] = sides.key[found[1:]] != sides.key[found[:-1]]
    return found[last]


def _joined(data: pa.RecordBatch, touched: Mask, sides: _Sides, exchanged: Mask) -> pa.RecordBatch:
    """The changes that are not `touched`, and what is left of the others: deletes, and upserts of the place behind."""
    left, came = sides.sign < 0, sides.sign > 0
    deletes = data.take(pa.array(sides.row[left]))
    deletes = without_side(deletes, "after", np.ones(len(deletes), bool))
    upserts = data.take(pa.array(sides.row[came]))
    upserts = without_side(upserts, "before", np.ones(len(upserts), bool))
    upserts = with_columns(
        upserts,
        {
            "_op": pa.array(np.where(exchanged[came], np.int8(Op.UPDATE), np.int8(Op.CREATE)).astype(np.int8)),
            "_index": pc.add(upserts.column("_index"), pa.scalar(1, pa.uint32())),
        },
    )
    found = data.filter(pa.array(~touched))
    for part in (deletes, upserts):
        found = merged(found, part) if len(part) else found
    return found
