"""The tables and triggers of the pattern, as SQL values.

One idea: **each row of the change table tells the truth, at the moment it is written, about every key it names.** So no
trigger believes NEW alone: it reads the row again. What the application's own triggers and cascades did in between
has been written down before it, and the last word on each key is the table's state, in whatever order SQLite
fires triggers (it promises none).

Rows that a write replaces (INSERT or UPDATE OR REPLACE, or a REPLACE clause of the table) fire no trigger unless
`recursive_triggers` is on (lang_conflict.html). So BEFORE triggers put every row that might be replaced, found through
the primary key and each unique index, into the pending table; AFTER triggers, which fire only for writes that happened,
make deletes of those that are gone. BEFORE triggers also fire for writes that OR IGNORE and ON CONFLICT DO skip:
what they leave behind is never believed, only looked at, and at most `KEPT` rows of it stay.

None of our statements can fail on a conflict: the application's conflict clause would override ours
(lang_createtrigger.html), so our tables have no constraint that could.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headwater.drivers.sqlite import quoted
from headwater.model import Op
from headwater.sources.trigger_sqlite.names import Names
from headwater.sources.trigger_sqlite.shape import ROWIDS, Shape, Unique

MARKER = 0
"""The `op`, and the layout's number, of a row that is no change but a place: an installation, or a repair."""

P = "headwater_p"
"""The alias of the pending table: no table of the application has it."""

KEPT = 16
"""Pending rows of skipped writes that are kept; a write replaces at most one row a unique index."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column of `table` lies in which slot. A table whose stored columns change gets a new layout and number."""

    number: int
    table: str
    columns: tuple[str, ...]
    """Slot by slot. A rowid that is the identity has the name ""."""

    def slot(self, column: str) -> int | None:
        return self.columns.index(column) if column in self.columns else None


def make_tables(names: Names, width: int) -> list[str]:
    """Columns without a type have no affinity: every value keeps its storage class (datatype3.html, 3.1)."""
    slots = ", ".join(slot_columns(width))
    olds = ", ".join(f"o{i}" for i in range(width))
    return [
        f"CREATE TABLE {quoted(names.change)} (id INTEGER PRIMARY KEY AUTOINCREMENT, t INTEGER, op INTEGER, {slots})",
        f"CREATE TABLE {quoted(names.pending)} (n INTEGER PRIMARY KEY, t INTEGER, {olds})",
        f"CREATE TABLE {quoted(names.meta)} (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ]


def slot_columns(width: int) -> list[str]:
    return [f"{side}{i}" for side in "on" for i in range(width)]


def widen(names: Names, have: int, width: int) -> list[str]:
    added = [(names.change, f"{side}{i}") for i in range(have, width) for side in "on"]
    added += [(names.pending, f"o{i}") for i in range(have, width)]
    return [f"ALTER TABLE {quoted(table)} ADD COLUMN {column}" for table, column in added]


def triggers(names: Names, shape: Shape, layout: Layout) -> dict[str, str]:
    """Name -> CREATE TRIGGER, exactly as `sqlite_master` will show it."""
    writer = _Writer(names, shape, layout)
    bodies: dict[str, tuple[str, list[str]]] = {
        "before_insert": ("BEFORE INSERT", writer.before_insert()),
        "before_update": (f"BEFORE UPDATE{_of(shape)}", writer.before_update()),
        "after_insert": ("AFTER INSERT", writer.after_insert()),
        "after_update": ("AFTER UPDATE", writer.after_update()),
        "after_delete": ("AFTER DELETE", writer.after_delete()),
    }
    found = {}
    for event, (when, statements) in bodies.items():
        name = names.trigger(layout.number, event)
        body = "".join(f"  {statement};\n" for statement in statements)
        head = f"CREATE TRIGGER {quoted(name)} {when} ON {quoted(shape.table)} FOR EACH ROW BEGIN"
        found[name] = f"{head}\n{body}END"
    return found


def _of(shape: Shape) -> str:
    """Only an update of a key's column can replace another row. Columns are matched by name, the rowid's included."""
    columns: dict[str, None] = {}
    for unique in shape.uniques:
        if unique.columns is None or shape.generated.intersection(unique.columns):
            return ""
        columns.update(dict.fromkeys(unique.columns))
    return " OF " + ", ".join(map(quoted, columns))


class _Writer:
    """The statements of one table's triggers."""

    def __init__(self, names: Names, shape: Shape, layout: Layout) -> None:
        self._shape = shape
        self._t = layout.number
        self._change = quoted(names.change)
        self._pending = quoted(names.pending)
        self._table = quoted(shape.table)
        # A table named new or old would hide NEW and OLD in its own subqueries.
        self._row = quoted("headwater_row") if shape.table.lower() in ("new", "old") else self._table
        self._from = f"{self._table} AS {self._row}"
        rowid = shape.identity[0].name
        self._names = [quoted(c) if c else rowid for c in layout.columns]
        self._identity_slots = [self._names.index(part.name) for part in shape.identity]
        self._olds = ", ".join(f"o{i}" for i in range(len(self._names)))
        self._news = ", ".join(f"n{i}" for i in range(len(self._names)))

    def before_insert(self) -> list[str]:
        return [self._forget_old(), *(self._remember(unique, "") for unique in self._shape.uniques)]

    def before_update(self) -> list[str]:
        other = f" AND NOT ({self._same(self._at(self._row), self._at('OLD'))})"
        return [self._forget_old(), *(self._remember(unique, other) for unique in self._shape.uniques)]

    def after_insert(self) -> list[str]:
        same = self._same(self._at(self._row), self._in(f"{P}."))
        joined = f"LEFT JOIN {self._pending} AS {P} ON {P}.t = {self._t} AND {same}"
        op = f"CASE WHEN {P}.n IS NULL THEN {Op.CREATE:d} ELSE {Op.UPDATE:d} END"
        written = f"FROM {self._from} {joined} WHERE {self._here()}"
        return [
            self._record_gone(self._gone(f"{P}.")),
            self._record(op, self._slots(f"{P}."), self._values(self._row), written),
            self._forget(f"{self._same(self._at('NEW'), self._in(''))} OR {self._gone('')}"),
        ]

    def after_update(self) -> list[str]:
        moved = f"NOT ({self._same(self._at('OLD'), self._at('NEW'))})"
        here, old = self._here(), self._values("OLD")
        replaced, settled = (
            f"{self._gone(prefix)} OR ({moved} AND {self._same(self._at('NEW'), self._in(prefix))})"
            for prefix in (f"{P}.", "")
        )
        vanished = f"WHERE {moved} AND NOT EXISTS (SELECT 1 FROM {self._from} WHERE {here})"
        returned = f"FROM {self._from} WHERE {moved} AND {self._back()}"
        mine = self._same(self._at("OLD"), self._in(f"{P}."))  # a row that moved is told of below, not replaced
        return [
            self._record_gone(f"NOT ({mine}) AND ({replaced})"),
            self._record(Op.UPDATE, old, self._values(self._row), f"FROM {self._from} WHERE {here}"),
            self._record(Op.DELETE, old, None, vanished),
            self._record(Op.CREATE, None, self._values(self._row), returned),
            self._forget(settled),
            self._refresh(),
        ]

    def after_delete(self) -> list[str]:
        """Also told apart here: replaced rows whose cascade has deleted the very row that replaced them."""
        back = f"FROM (SELECT 1) LEFT JOIN {self._from} ON {self._back()}"
        present = f"{self._row}.{self._shape.identity[0].name} IS NOT NULL"
        op = f"CASE WHEN {present} THEN {Op.UPDATE:d} ELSE {Op.DELETE:d} END"
        mine = self._same(self._at("OLD"), self._in(f"{P}."))
        return [
            self._record_gone(f"NOT ({mine}) AND {self._gone(f'{P}.')}"),
            self._record(op, self._values("OLD"), self._values(self._row), back),
            self._forget(f"{self._same(self._at('OLD'), self._in(''))} OR {self._gone('')}"),
        ]

    # parts

    def _record(self, op: Op | str, old: str | None, new: str | None, rest: str) -> str:
        columns = ", ".join(["t", "op", *([self._olds] if old else []), *([self._news] if new else [])])
        values = ", ".join([str(self._t), op if isinstance(op, str) else f"{op:d}", *filter(None, (old, new))])
        return f"INSERT INTO {self._change}({columns}) SELECT {values} {rest}"

    def _record_gone(self, condition: str) -> str:
        """Deletes of remembered rows that were replaced."""
        source = f"FROM {self._pending} AS {P} WHERE {P}.t = {self._t} AND ({condition})"
        return self._record(Op.DELETE, self._slots(f"{P}."), None, source)

    def _forget(self, condition: str) -> str:
        return f"DELETE FROM {self._pending} WHERE t = {self._t} AND ({condition})"

    def _remember(self, unique: Unique, condition: str) -> str:
        known = (
            f"NOT EXISTS (SELECT 1 FROM {self._pending} AS {P} "
            f"WHERE {P}.t = {self._t} AND {self._same(self._at(self._row), self._in(f'{P}.'))})"
        )
        return (
            f"INSERT INTO {self._pending}(t, {self._olds}) SELECT {self._t}, {self._values(self._row)} "
            f"FROM {self._from} WHERE {self._conflict(unique)}{condition} AND {known}"
        )

    def _conflict(self, unique: Unique) -> str:
        """SQL: whether the row at hand and NEW collide in this index. NULLs never do, `=` says so."""
        tests = []
        for term, collation in zip(unique.terms, unique.collations, strict=True):
            plain = unique.columns is not None or term in map(quoted, self._shape.columns)
            left, right = (f"{self._row}.{term}", self._given(term)) if plain else (f"({term})", self._computed(term))
            tests.append(f"{left} = {right}" + (f" COLLATE {quoted(collation)}" if collation else ""))
        if unique.predicate:
            tests.append(f"({unique.predicate})")
        return " AND ".join(tests)

    def _given(self, name: str) -> str:
        default = next((d for c, d in self._shape.defaults.items() if quoted(c) == name), None)
        return f"NEW.{name}" if default is None else f"coalesce(NEW.{name}, {default})"

    def _computed(self, term: str) -> str:
        """An index's expression over NEW: as written, over a row that has the table's name and columns."""
        row = ", ".join(f"{self._given(quoted(c))} AS {quoted(c)}" for c in self._shape.columns)
        return f"(SELECT {term} FROM (SELECT {row}) AS {self._row})"

    def _forget_old(self) -> str:
        newest = f"(SELECT max(n) FROM {self._pending})"
        return f"DELETE FROM {self._pending} WHERE t = {self._t} AND n <= {newest} - {KEPT + len(self._shape.uniques)}"

    def _refresh(self) -> str:
        """Keep what is remembered of a row up to date; only the application's triggers can make us need it."""
        mine = f"WHERE t = {self._t} AND {self._same(self._at('OLD'), self._in(''))}"
        if not self._shape.foreign_triggers:
            return f"DELETE FROM {self._pending} {mine}"
        values = ", ".join(f"o{i} = NEW.{name}" for i, name in enumerate(self._names))
        return f"UPDATE {self._pending} SET {values} {mine}"

    def _gone(self, prefix: str) -> str:
        inner = prefix or f"{self._pending}."
        return f"NOT EXISTS (SELECT 1 FROM {self._from} WHERE {self._same(self._at(self._row), self._in(inner))})"

    def _here(self) -> str:
        """SQL: the row that was just written. Rows with a NULL in their key are only told apart by rowid."""
        if self._shape.rowid and any(part.nullable for part in self._shape.identity):
            return f"{self._row}.{self._shape.rowid} = NEW.{self._shape.rowid}"
        return self._same(self._at(self._row), self._at("NEW"))

    def _back(self) -> str:
        """SQL: a row that has the place of the one that has just left it."""
        return self._same(self._at(self._row), self._at("OLD"), null=False)

    def _same(self, left: Callable[[int], str], right: Callable[[int], str], *, null: bool = True) -> str:
        parts = enumerate(self._shape.identity)
        return " AND ".join(part.same(left(i), right(i), null=null) for i, part in parts)

    def _at(self, qualifier: str) -> Callable[[int], str]:
        return lambda i: f"{qualifier}.{self._shape.identity[i].name}"

    def _in(self, prefix: str) -> Callable[[int], str]:
        return lambda i: f"{prefix}o{self._identity_slots[i]}"

    def _slots(self, prefix: str) -> str:
        return ", ".join(f"{prefix}o{i}" for i in range(len(self._names)))

    def _values(self, qualifier: str) -> str:
        return ", ".join(f"{qualifier}.{name}" for name in self._names)


def changed_keys(names: Names, layout: Layout, shape: Shape) -> str:
    """SQL: the identities that changes behind `:since` name; what a load must leave to the stream."""
    slots = identity_slots(layout, shape)
    selects = []
    for side in "on":
        columns = [f"{side}{i}" for i in slots]
        present = " AND ".join(f"{column} IS NOT NULL" for column in columns)
        selects.append(
            f"SELECT {', '.join(columns)} FROM {quoted(names.change)} "
            f"WHERE id > :since AND t = {layout.number} AND {present}"
        )
    return " UNION ALL ".join(selects)


def identity_slots(layout: Layout, shape: Shape) -> list[int]:
    names: Sequence[str] = shape.key or ("",)
    return [layout.columns.index(name) for name in names]


__all__ = ["KEPT", "MARKER", "ROWIDS", "Layout", "changed_keys", "make_tables", "triggers", "widen"]
