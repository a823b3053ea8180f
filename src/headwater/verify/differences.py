"""The two sides of `Tables` joined: every key whose values differ, put into its class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from headwater.mapping.keys import canonical_keys
from headwater.verify.comparison import EXAMPLES, Comparison, KeyDifference, Keys
from headwater.verify.tables import Tables, quoted


@dataclasses.dataclass(frozen=True, slots=True)
class Excuses:
    """What explains a difference. Offsets compare with that of a key's last event, -1 for a key without one."""

    waiting: frozenset[str] = frozenset()
    """Keys (canonical JSON) with a row in quarantine."""
    refused: frozenset[str] = frozenset()
    """Keys whose row in the database breaks the contract."""
    mapped_from: int = 0
    """The offset from which the mapping of today holds."""
    settled_below: int | None = None
    """Keys with events at or behind this offset have moved on."""
    extra_deletes: bool = False
    """Rows that only the stream has were deleted unseen."""


def find(tables: Tables, comparison: Comparison, *, rows_are_source: bool) -> None:
    """Fill table `found` with what differs, and the comparison's counts of rows."""
    _count_repeated(tables, comparison)
    tables.db.execute("DROP TABLE IF EXISTS found")
    for number, part in enumerate(tables.parts()):
        comparison.rows_source += tables.tell(part)
        query = _joined(tables, _rows(tables, part, comparison), rows_are_source)
        tables.db.execute(f"CREATE TABLE found AS {query}" if number == 0 else f"INSERT INTO found {query}")
    comparison.rows_target = tables.count("rows")
    if rows_are_source:
        comparison.rows_source, comparison.rows_target = comparison.rows_target, comparison.rows_source


def classify(tables: Tables, comparison: Comparison, excuses: Excuses) -> set[str]:
    """Count what was found under its class, the first of each in full; returns the refused keys among it."""
    met: set[str] = set()
    if not tables.count("found"):
        return met
    for batch in tables.batches(_with_last_offset(tables)):
        kinds = _classes(tables, batch, excuses)
        for name in pc.unique(kinds).to_pylist():
            rows = batch.filter(pc.equal(kinds, name))
            _collect(getattr(comparison, name), rows, tables.identity)
        if excuses.refused:
            met |= excuses.refused.intersection(canonical_keys(batch, tables.contract.key).to_pylist())
    return met


def _rows(tables: Tables, part: str, comparison: Comparison) -> str:
    """The rows of a part, one a key."""
    once = f"DISTINCT ON ({', '.join(map(quoted, tables.identity))})" if comparison.repeated else ""
    return f"SELECT {once} *, true AS _there FROM rows WHERE {part}"


def _joined(tables: Tables, rows: str, rows_are_source: bool) -> str:
    names = ["_op", *tables.columns.names] if tables.history else tables.columns.names
    same = " AND ".join(f"e.{quoted(n)} = r.{quoted(n)}" for n in tables.identity)
    keys = ", ".join(f"coalesce(e.{quoted(n)}, r.{quoted(n)}) AS {quoted(n)}" for n in tables.identity)
    differs = " OR ".join(f"e.{quoted(n)} IS DISTINCT FROM r.{quoted(n)}" for n in names)
    ours, theirs = _row("e", names), _row("r", names)
    source, target = (theirs, ours) if rows_are_source else (ours, theirs)
    lacking, surplus = ("e", "r") if rows_are_source else ("r", "e")
    return (
        f"SELECT {keys}, CASE WHEN {lacking}._there IS NULL THEN 'missing' WHEN {surplus}._there IS NULL THEN 'extra'"
        f" ELSE 'differing' END AS _class, {source} AS source, {target} AS target"
        f" FROM (SELECT *, true AS _there FROM told) e FULL JOIN ({rows}) r ON {same}"
        f" WHERE e._there IS NULL OR r._there IS NULL OR {differs}"
    )


def _row(side: str, names: list[str]) -> str:
    packed = ", ".join(f"{quoted(name)} := {side}.{quoted(name)}" for name in names)
    return f"CASE WHEN {side}._there THEN struct_pack({packed}) END"


def _with_last_offset(tables: Tables) -> str:
    identity = ", ".join(map(quoted, tables.identity))
    return (
        f"SELECT found.*, coalesce(_last, -1)::BIGINT AS _last FROM found LEFT JOIN"
        f" (SELECT {identity}, max(_offset) AS _last FROM {tables.known} SEMI JOIN found USING ({identity})"
        f" GROUP BY {identity}) USING ({identity}) ORDER BY {identity}"
    )


def _count_repeated(tables: Tables, comparison: Comparison) -> None:
    identity = ", ".join(map(quoted, tables.identity))
    again = f"SELECT {identity} FROM rows GROUP BY {identity} HAVING count(*) > 1"
    comparison.repeated.count = tables.one(f"SELECT count(*) FROM ({again})")
    for batch in tables.batches(f"{again} ORDER BY ALL LIMIT {EXAMPLES}"):
        comparison.repeated.examples += [KeyDifference(key, None, None) for key in batch.to_pylist()]


def _classes(tables: Tables, found: pa.RecordBatch, excuses: Excuses) -> pa.Array:
    """The name of each row's class: what explains it, else how it differs. The first that fits counts."""
    last = found.column("_last")
    names, conditions = [], []
    if excuses.settled_below is not None:
        names.append("unsettled")
        conditions.append(pc.greater_equal(last, excuses.settled_below))
    for name, known in (("quarantined", excuses.waiting), ("refused", excuses.refused)):
        if known:
            names.append(name)
            keys = canonical_keys(found, tables.contract.key)
            conditions.append(pc.is_in(keys, pa.array(sorted(known), pa.string())))
    if excuses.mapped_from:
        names.append("older_mapping")
        conditions.append(pc.less(last, excuses.mapped_from))
    if excuses.extra_deletes:
        names.append("unseen_deletes")
        conditions.append(pc.equal(found.column("_class"), "extra"))
    if not conditions:
        return found.column("_class")
    tests = pa.StructArray.from_arrays([_array(test) for test in conditions], names=names)
    return pc.case_when(tests, *map(pa.scalar, names), found.column("_class"))


def _array(test: pa.Array | pa.ChunkedArray) -> pa.Array:
    return test.combine_chunks() if isinstance(test, pa.ChunkedArray) else test


def _collect(keys: Keys, rows: pa.RecordBatch, identity: tuple[str, ...]) -> None:
    keys.count += len(rows)
    shown = rows.slice(0, EXAMPLES - len(keys.examples))
    keys.examples += _examples(shown, identity)


def _examples(rows: pa.RecordBatch, identity: tuple[str, ...]) -> Iterator[KeyDifference]:
    for row in rows.select([*identity, "source", "target"]).to_pylist():
        yield KeyDifference({name: row[name] for name in identity}, row["source"], row["target"])
