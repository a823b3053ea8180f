"""Rows that the compiled loop makes ready at once are what the loops over single columns make of them.

Messages lie at the end of a page behind which nothing may be read: a loop that reads beyond dies.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headwater.dialects.postgres_types import PgType, PgTypes
from headwater.errors import HeadwaterError
from headwater.model import TableId
from headwater.sources.log_postgres.changes import Shaper
from headwater.sources.log_postgres.targets import Target
from headwater.wire.pgoutput import Decoder, Transaction
from tests import pgoutput_messages as m

pytestmark = pytest.mark.needs("native")

MODEST = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])

NAMES = {
    16: "bool", 17: "bytea", 20: "int8", 21: "int2", 23: "int4", 25: "text", 26: "oid", 114: "json", 700: "float4",
    701: "float8", 1082: "date", 1083: "time", 1114: "timestamp", 1184: "timestamptz", 1700: "numeric", 2950: "uuid",
    3802: "jsonb",
}  # fmt: skip
TYPES = PgTypes(PgType(oid, "pg_catalog", name, "b", 0, 0, -1, "") for oid, name in NAMES.items())
OID = 7
DAY = 86_400_000_000
EXACT = Context(prec=60)
"""The usual one rounds to 28 digits, or refuses more."""


def packed(layout: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: struct.pack(layout, value))


def integers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.encode)
moments = packed(">q", st.integers(-63_082_281_600_000_000, 252_455_615_999_999_999))
PLAIN: dict[int, st.SearchStrategy[bytes]] = {
    16: st.sampled_from([b"\0", b"\1"]),
    17: st.binary(max_size=20),
    20: packed(">q", integers(64)),
    21: packed(">h", integers(16)),
    23: packed(">i", integers(32)),
    25: texts,
    26: packed(">I", st.integers(0, 2**32 - 1)),
    114: texts,
    700: packed(">f", st.floats(width=32)),
    701: packed(">d", st.floats()),
    1082: packed(">i", st.integers(-730_119, 2_921_939)),
    1083: packed(">q", st.integers(0, DAY - 1)),
    1114: moments,
    1184: moments,
    2950: st.uuids().map(lambda value: value.bytes),
    3802: texts.map(b"\1".__add__),
}
"""Values that have no mark."""

ODD: dict[int, st.SearchStrategy[bytes]] = {
    25: st.binary(max_size=20),
    114: st.binary(max_size=6),
    1082: packed(">i", integers(32) | st.sampled_from([-730_120, 2_921_940, 2**31 - 1, -(2**31)])),
    1083: packed(">q", st.sampled_from([DAY, DAY - 1, -1])),
    1114: packed(">q", integers(64)),
    1184: packed(">q", st.sampled_from([2**63 - 1, -(2**63), 252_455_616_000_000_000, -63_082_281_600_000_001])),
    3802: st.binary(max_size=6),
}
"""Values with marks, and such as no server sends."""


def numbers(digits: int, scale: int) -> st.SearchStrategy[bytes]:
    """Of a column `numeric(digits, scale)`; those before it was altered had fewer decimals."""
    whole = st.integers(-(10**digits) + 1, 10**digits - 1)
    exact = st.builds(lambda value, fewer: Decimal(value).scaleb(fewer - scale, EXACT), whole, st.integers(0, scale))
    return exact.filter(lambda value: abs(value) < 10 ** (digits - scale)).map(shown)


def shown(value: Decimal) -> bytes:
    return m.numeric(value if int(value.as_tuple().exponent) <= 0 else value.quantize(Decimal(1), context=EXACT))


def odd_numbers(digits: int, scale: int) -> st.SearchStrategy[bytes]:
    """More digits than there is room for, no numbers, and groups of digits that are not as the server has them."""
    fields = st.tuples(st.integers(-6, 6), st.sampled_from([0, 0x4000, 0xC000, 0xD000]), st.integers(0, 12))
    groups = st.lists(st.sampled_from([0, 1, 10, 5000, 1234, 9999, 10_000]), max_size=6)
    written = st.builds(lambda f, g: struct.pack(f">HhHH{len(g)}H", len(g), f[0], f[1], f[2], *g), fields, groups)
    return written | st.decimals(places=scale, allow_nan=True).map(m.numeric)


@dataclass
class World:
    """One table, and what happened to it."""

    kinds: list[int]
    typmods: dict[str, int]
    transactions: list[list[bytes]]

    @property
    def columns(self) -> list[tuple[str, int]]:
        return [(f"c{n}", kind) for n, kind in enumerate(self.kinds)]

    @property
    def frames(self) -> list[bytes]:
        messages = [m.relation(OID, "t", self.columns, identity="f", typmods=self.typmods)]
        for n, inside in enumerate(self.transactions):
            messages += [m.begin(n + 98, 8 * n, n), *inside, m.commit(8 * n, 8 * n + 8)]
        return [m.framed(message) for message in messages]


@st.composite
def worlds(draw: st.DrawFn, *, odd: bool) -> World:
    kinds = draw(st.lists(st.sampled_from([*PLAIN, 1700]), min_size=1, max_size=6))
    values, typmods = [], {}
    for n, kind in enumerate(kinds):
        digits = draw(st.integers(1, 38))
        scale = draw(st.integers(0, digits))
        plain = numbers(digits, scale) if kind == 1700 else PLAIN[kind]
        strange = odd_numbers(digits, scale) if kind == 1700 else ODD.get(kind, st.binary(max_size=9))
        if kind == 1700:
            typmods[f"c{n}"] = ((digits << 16) | scale) + 4
        values.append(st.none() | plain | (strange if odd and draw(st.booleans()) else plain))
    row = st.tuples(*values).map(list)
    inserts, updates = st.builds(lambda new: m.insert(OID, new), row), st.builds(lambda new: m.update(OID, new), row)
    moves = st.builds(lambda new, old: m.update(OID, new, old, b"O"), row, row)
    deletes, truncates = st.builds(lambda old: m.delete(OID, old), row), st.just(m.truncate(OID))
    partial = st.builds(lambda new: m.update(OID, [m.UNCHANGED, *new[1:]]), row) if odd else inserts
    changes = draw(st.lists(st.sampled_from([inserts, updates, moves, deletes, truncates, partial]), min_size=1))
    inside = st.lists(st.one_of(changes), max_size=8)
    return World(kinds, typmods, draw(st.lists(inside, min_size=1, max_size=4)))


class Both:
    """The same frames with recipes and without."""

    def __init__(self) -> None:
        self._guarded = m.Guarded(2**22)

    def outcomes(self, world: World, frames: list[bytes], part: Transaction | None = None) -> list[tuple[Any, ...]]:
        return [self._outcome(world, frames, part, ready=ready) for ready in (True, False)]

    def _outcome(self, world: World, frames: list[bytes], part: Transaction | None, *, ready: bool) -> tuple[Any, ...]:
        names = tuple(name for name, _ in world.columns)
        target = Target(TableId("public", "t"), names, frozenset(names[:1]))
        shaper = Shaper({OID: target}, TYPES, 3, binary=True)
        decoder = Decoder(binary=True, wanted=shaper.wanted, recipes=shaper.recipe if ready else None)
        data, ends = m.joined(frames)
        found, at_once = [], []
        try:
            for segment in decoder.decode(self._guarded.holding(data), ends, transaction=part):
                at_once += [True] * len(segment.ready) + [False] * len(segment.tables)
                keep = np.arange(len(segment.transactions)) % 3 < 2
                for k in (np.ones(len(keep), np.bool_), keep):
                    found += [changes.data for _, changes in shaper.changes(segment, k)]
        except (HeadwaterError, pa.ArrowInvalid) as error:
            return [*map(_shown, found)], str(error), at_once
        for batch in found:
            batch.validate(full=True)
        return [*map(_shown, found)], "", at_once


def _shown(batch: Any) -> str:
    """With its types; as text, so that NaN equals NaN."""
    return f"{batch.schema}: {batch.to_pylist()}"


@pytest.fixture(scope="module")
def both() -> Both:
    return Both()


@given(world=worlds(odd=False))
@MODEST
def test_plain_values_are_made_ready_and_are_the_same(both: Both, world: World) -> None:
    ready, general = both.outcomes(world, world.frames)
    assert ready[:2] == general[:2]
    assert all(ready[2])
    assert not any(general[2])


@given(world=worlds(odd=True))
@example(world=World([1083], {}, [[m.insert(OID, [struct.pack(">q", -1)])]]))
@MODEST
def test_values_that_are_not_plain_come_to_the_same(both: Both, world: World) -> None:
    ready, general = both.outcomes(world, world.frames)
    assert ready[:2] == general[:2]


@given(world=worlds(odd=False), seed=st.integers(0, 2**64))
@MODEST
def test_damaged_messages_come_to_the_same(both: Both, world: World, seed: int) -> None:
    rng = random.Random(seed)
    part = Transaction(2**32 - 1, 2**64 - 1, 9, 5, streamed=False) if rng.random() < 0.3 else None
    frames = world.frames
    ready, general = both.outcomes(world, [frames[0], *m.damaged(rng, frames[1:])], part)
    assert ready[:2] == general[:2]


def test_many_rows_come_to_the_same(both: Both) -> None:
    """More than one slice of them, and more than one byte of marks for nulls."""
    new = [struct.pack(">q", 5), b"x" * 500, None]
    inside: Iterable[bytes] = (m.insert(OID, [new[0], new[1] if n % 7 else None, b"\1"]) for n in range(5000))
    world = World([20, 25, 16], {}, [list(inside)])
    ready, general = both.outcomes(world, world.frames)
    assert ready[:2] == general[:2]
    assert ready[2] == [True]
