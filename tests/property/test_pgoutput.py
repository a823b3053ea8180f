"""The `pgoutput` decoder: what is written is what is read; compiled and uncompiled agree on damaged messages.

Damaged messages lie at the end of a page behind which nothing may be read: a loop that reads beyond dies.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.model import Op
from headwater.testing.postgres import PostgresServer
from headwater.wire.pgoutput import Decoder, Loops
from tests import pgoutput_messages as m
from tests.pgoutput_recordings import record
from tests.soak_pgoutput import Compared

MODEST = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packed(layout: str) -> Any:
    return lambda value: struct.pack(layout, value)


def integers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=4),
    st.builds(
        lambda digits, scale, sign: Decimal((sign, tuple(map(int, str(digits))), -scale)),
        st.integers(0, 10**40), st.integers(0, 60), st.integers(0, 1),
    ),
    st.sampled_from(list(map(Decimal, ("NaN", "Infinity", "-Infinity", "0", "0.0000", "10000", "0.00010001")))),
)  # fmt: skip

VALUES: dict[int, tuple[st.SearchStrategy[Any], Any, Any]] = {
    16: (st.booleans(), packed(">?"), bool),
    17: (st.binary(max_size=30), bytes, bytes),
    20: (integers(64), packed(">q"), int),
    21: (integers(16), packed(">h"), int),
    23: (integers(32), packed(">i"), int),
    25: (texts, str.encode, str),
    26: (st.integers(0, 2**32 - 1), packed(">I"), int),
    700: (st.floats(width=32, allow_nan=False), packed(">f"), float),
    701: (st.floats(allow_nan=False), packed(">d"), float),
    1082: (integers(32), packed(">i"), int),
    1184: (integers(64), packed(">q"), int),
    1700: (numbers, m.numeric, lambda value: printed(value)),
    2950: (st.uuids(), lambda value: value.bytes, lambda value: value.bytes),
    3802: (texts, lambda value: b"\1" + value.encode(), str),
}
"""Type -> values, how they are sent, how they are read."""


def printed(value: Decimal) -> str:
    if not value.is_finite():
        return "NaN" if value.is_nan() else "-Infinity" if value < 0 else "Infinity"
    text = f"{value:f}"
    return text.lstrip("-") if not value else text


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    count = draw(st.integers(1, 3))
    return [(16384 + n, draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=6))) for n in range(count)]


Change = tuple[Op, int, list[Any], list[Any] | None, list[bool]]


@st.composite
def changes(draw: st.DrawFn, found: list[tuple[int, list[int]]]) -> Change:
    """What happens, in which table, the new row, the old one, what of the new one is not sent."""
    number = draw(st.integers(0, len(found) - 1))
    row = st.tuples(*[st.none() | VALUES[kind][0] for kind in found[number][1]]).map(list)
    op = draw(st.sampled_from([Op.CREATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE]))
    old = draw(row) if op is Op.DELETE or (op is Op.UPDATE and draw(st.booleans())) else None
    gone = [op is Op.UPDATE and draw(st.integers(0, 4)) == 0 for _ in found[number][1]]
    return op, number, draw(row), old, gone


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[tuple[int, list[int]]], list[list[Change]]]:
    found = draw(tables())
    return found, draw(st.lists(st.lists(changes(found), max_size=6), min_size=1, max_size=4))


def sent(kinds: list[int], row: list[Any], gone: list[bool]) -> list[Any]:
    values = [None if value is None else VALUES[kind][1](value) for kind, value in zip(kinds, row, strict=True)]
    return [m.UNCHANGED if missing else value for missing, value in zip(gone, values, strict=True)]


def read(kinds: list[int], row: list[Any] | None, gone: list[bool]) -> list[Any]:
    if row is None:
        return [None] * len(kinds)
    return [None if v is None or g else VALUES[k][2](v) for k, v, g in zip(kinds, row, gone, strict=True)]


def written(change: Change, found: list[tuple[int, list[int]]]) -> bytes:
    op, number, new, old, gone = change
    oid, kinds = found[number]
    before = None if old is None else sent(kinds, old, [False] * len(kinds))
    if op is Op.CREATE:
        return m.insert(oid, sent(kinds, new, gone))
    if op is Op.UPDATE:
        return m.update(oid, sent(kinds, new, gone), before, b"O")
    return m.truncate(oid) if before is None else m.delete(oid, before)


@pytest.mark.parametrize("loops", [Loops.chosen(), Loops.uncompiled()], ids=["chosen", "uncompiled"])
@given(world=worlds())
@MODEST
def test_what_is_written_is_what_is_read(loops: Loops, world: Any) -> None:
    found, transactions = world
    messages = [m.relation(oid, f"t{oid}", [(f"c{n}", k) for n, k in enumerate(kinds)]) for oid, kinds in found]
    for n, inside in enumerate(transactions):
        messages += [m.begin(n, 8 * n), *[written(change, found) for change in inside], m.commit(8 * n, 8 * n + 8)]
    decoder = Decoder(binary=True, wanted=m.everything(m.wire), loops=loops)
    (segment,) = decoder.decode(*m.joined(map(m.framed, messages)))
    assert segment.transactions.xid.tolist() == list(range(len(transactions)))
    for number, (oid, kinds) in enumerate(found):
        expected = [(t, n, c) for t, inside in enumerate(transactions) for n, c in enumerate(inside) if c[1] == number]
        table = next((rows for rows in segment.tables if rows.relation.oid == oid), None)
        assert (table is None) == (not expected)
        if table is not None:
            check(table, kinds, expected)


def check(table: Any, kinds: list[int], expected: list[tuple[int, int, Change]]) -> None:
    assert table.transaction.tolist() == [t for t, _, _ in expected]
    assert table.ordinal.tolist() == [n for _, n, _ in expected]
    assert table.op.tolist() == [c[0] for _, _, c in expected]
    news = [read(kinds, c[2] if c[0] in (Op.CREATE, Op.UPDATE) else None, c[4]) for _, _, c in expected]
    assert [list(row.values()) for row in table.after.to_pylist()] == news
    olds = [read(kinds, c[3], [False] * len(kinds)) for _, _, c in expected]
    before = table.before.to_pylist() if table.before is not None else [dict.fromkeys(range(len(kinds)))] * len(olds)
    assert [list(row.values()) for row in before] == olds
    for column in range(len(kinds)):
        gone = [c[4][column] for _, _, c in expected]
        mask = table.unchanged[column]
        assert (mask.tolist() if mask is not None else [False] * len(gone)) == gone


@pytest.fixture(scope="module")
def compared(postgres_server: PostgresServer) -> Iterator[Compared]:
    url = postgres_server.create_database("pgoutput_damaged")
    yield Compared(list(record(postgres_server, url).values()))
    postgres_server.drop_database("pgoutput_damaged")


@pytest.mark.needs("postgres")
@pytest.mark.needs("native")
@given(seed=st.integers(0, 2**64))
@settings(MODEST, max_examples=400)
def test_compiled_and_uncompiled_agree_on_damaged_messages(compared: Compared, seed: int) -> None:
    compared.once(random.Random(seed))


@pytest.mark.needs("postgres")
def test_undamaged_samples_are_read(compared: Compared) -> None:
    """Or the comparison would compare nothing but errors."""
    for seed in range(300):
        compared.once(random.Random(seed))
    assert compared.read > 20
    assert compared.refused > 20
