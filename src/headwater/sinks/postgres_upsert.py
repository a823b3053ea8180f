"""Live rows into a table of PostgreSQL by key, none of them over a later one.

A few rows pass in one statement. Of many, those whose key the table lacks are copied into the table itself, which costs
the server less than half of an `INSERT ... ON CONFLICT`, and the others update theirs. Which are which is found out as
cheaply as it can be: an integer key above the table's highest is new; if a sample of the others is in the table, they
are all taken to be, and how many the update finds says whether that was so; else all their keys are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.faults import failpoint
from headwater.sinks import postgres_types as types
from headwater.sinks import shaping
from headwater.sinks.postgres_ingest import PgTransaction
from headwater.sinks.upsert import CURRENT, Table, listed, newer, quoted, same_key, triple

MANY = 1_000
"""Rows from which on the few more statements of `_apart` are worth their while."""
SAMPLE = 100
"""Keys that are looked up to guess whether all are in the table. Looking up all of them takes a fifth of an update."""


def placed(transaction: PgTransaction, table: Table, data: pa.RecordBatch) -> None:
    """`data`: the table's columns, one row of each key."""
    if data.num_rows >= MANY:
        transaction.execute(f"LOCK TABLE {quoted(table.name)} IN ROW EXCLUSIVE MODE")
    target = _target(transaction, table)
    if target.constrained:
        _at_once(transaction, table, data)
    elif data.num_rows >= MANY and target.takes_copies:
        _apart(transaction, table, by_key(table, data))
    else:
        _at_once(transaction, table, by_key(table, data))


def by_key(table: Table, data: pa.RecordBatch) -> pa.RecordBatch:
    """Rows in the key's order touch each page of the index once: updates from all over take two thirds of the time."""
    places = pc.sort_indices(data, [(name, "ascending") for name in table.key])
    return data if pc.all(pc.equal(places, shaping.numbers(data))).as_py() else data.take(places)


@dataclass(frozen=True, slots=True)
class _Target:
    """What somebody may have made of the table.

    `constrained`: there are unique indexes or exclusions of somebody's own, which only the source's order satisfies.
    `takes_copies`: a binary COPY into it means what an INSERT does: no rules, no row security, and each column of the
    very type that it was made with; a COPY into another one of as many bytes would change values without a word. It
    stays so until the end of a transaction that has locked the table.
    """

    constrained: bool
    takes_copies: bool


def _target(transaction: PgTransaction, table: Table) -> _Target:
    found = transaction.execute(
        "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid "
        "AND (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary), c.relhasrules OR c.relrowsecurity, "
        "a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_class c JOIN pg_attribute a "
        "ON a.attrelid = c.oid WHERE c.oid = to_regclass(?) AND a.attnum > 0 AND NOT a.attisdropped",
        (quoted(table.name),),
    )
    kinds = {name: kind for _, _, name, kind in found}
    as_made = all(kinds.get(name) == types.spelled(types.declared(table, name)) for name in table.columns.names)
    return _Target(any(row[0] for row in found), as_made and not any(row[1] for row in found))


def _at_once(transaction: PgTransaction, table: Table, data: pa.RecordBatch) -> None:
    with transaction.given(table, types.all_stored(table, data)) as batch:
        failpoint("sink.postgres.after_ingest")
        _merge(transaction, table, batch)


def _merge(transaction: PgTransaction, table: Table, batch: str, where: Sequence[str] = ()) -> None:
    names = listed(table.columns.names)
    sets = ", ".join(f"{quoted(n)} = excluded.{quoted(n)}" for n in table.values)
    guards = [f"NOT EXISTS (SELECT 1 {_guards(table, 'b')})"] if _has_guards(transaction, table) else []
    chosen = " AND ".join(("true", *where, *guards))
    transaction.execute(
        f"INSERT INTO {quoted(table.name)} AS t ({names}) SELECT {names} FROM {batch} b WHERE {chosen} "
        f"ON CONFLICT ({listed(table.key)}) DO UPDATE SET {sets} WHERE {newer('excluded', 't')}"
    )


def _has_guards(transaction: PgTransaction, table: Table) -> bool:
    return table.guarded and bool(transaction.execute(f"SELECT 1 FROM {quoted(table.guard)} LIMIT 1"))


def _guards(table: Table, row: str) -> str:
    """The deletes of the row's key that are as new as the row."""
    return f"FROM {quoted(table.guard)} g WHERE {same_key(table, 'g', row)} AND {triple('g')} >= {triple(row)}"


def _holds(table: Table, row: str) -> str:
    return f"EXISTS (SELECT 1 FROM {quoted(table.name)} h WHERE {same_key(table, 'h', row)})"


def _apart(transaction: PgTransaction, table: Table, data: pa.RecordBatch) -> None:
    """`data`: in the key's order."""
    given = types.all_stored(table, data)
    count = _below(transaction, table, given)
    failpoint("sink.postgres.after_keys")
    if count < given.num_rows:
        transaction.ingest(table.name, given.slice(count), temporary=False)
        failpoint("sink.postgres.after_copy")
    others = given.slice(0, count)
    if not count:
        return
    if _seem_held(transaction, table, others):
        _update(transaction, table, others)
    else:
        _looked_up(transaction, table, others)


def _below(transaction: PgTransaction, table: Table, given: pa.RecordBatch) -> int:
    """How many rows come before the first whose key is above all that the table holds or remembers as deleted."""
    first = given.column(table.key[0])
    if not pa.types.is_integer(first.type) or first.null_count:
        return int(given.num_rows)
    places = [table.name, *([table.guard] if table.guarded else [])]
    highest = ", ".join(f"(SELECT max({quoted(table.key[0])}) FROM {quoted(place)})" for place in places)
    ((found,),) = transaction.execute(f"SELECT greatest({highest})")
    return 0 if found is None else int(np.searchsorted(first.to_numpy(), found, side="right"))


def _seem_held(transaction: PgTransaction, table: Table, given: pa.RecordBatch) -> bool:
    """Whether the table holds the keys of some rows from all over the batch."""
    some = np.unique(np.linspace(0, given.num_rows - 1, SAMPLE, dtype=np.int64))
    with transaction.given(table, given.select([*table.key]).take(pa.array(some))) as batch:
        ((held,),) = transaction.execute(f"SELECT count(*) FROM {batch} b WHERE {_holds(table, 'b')}")
    return bool(held == len(some))


def _looked_up(transaction: PgTransaction, table: Table, given: pa.RecordBatch) -> None:
    held, void = _met(transaction, table, given)
    new = given.filter(pc.invert(pc.or_(held, void)))
    if new.num_rows:
        transaction.ingest(table.name, new, temporary=False)
    failpoint("sink.postgres.after_copy")
    _update(transaction, table, given.filter(held))


def _met(transaction: PgTransaction, table: Table, given: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Which rows' keys the table holds, and which rows are no newer than a delete of their key."""
    guarded = _has_guards(transaction, table)
    asked = given.select([*table.key, *(CURRENT.names if guarded else ())])
    with transaction.given(table, asked.append_column("_row", shaping.numbers(given))) as batch:
        held = transaction.numbers(f"SELECT b._row FROM {batch} b WHERE {_holds(table, 'b')}")
        void = pa.array([], pa.int64())
        if guarded:
            void = transaction.numbers(f"SELECT b._row FROM {batch} b WHERE EXISTS (SELECT 1 {_guards(table, 'b')})")
    return pc.is_in(shaping.numbers(given), held), pc.is_in(shaping.numbers(given), void)


def _update(transaction: PgTransaction, table: Table, given: pa.RecordBatch) -> None:
    """Rows that the table holds, most of them at least; those that it lacks are inserted."""
    if not given.num_rows:
        return
    sets = ", ".join(f"{quoted(n)} = b.{quoted(n)}" for n in table.values)
    with transaction.given(table, given) as batch:
        failpoint("sink.postgres.after_ingest")
        found = transaction.affected(
            f"UPDATE {quoted(table.name)} t SET {sets} FROM {batch} b "
            f"WHERE {same_key(table, 't', 'b')} AND {newer('b', 't')}"
        )
        if found < given.num_rows:
            _merge(transaction, table, batch, [f"NOT {_holds(table, 'b')}"])
