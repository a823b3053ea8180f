"""A table as its triggers must know it: what identifies a row, and by which indexes one row can replace another.

Read from SQLite's own pragmas. Only expressions of indexes have no pragma: their text is cut out of CREATE INDEX
between tokens, and never rewritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.drivers.sqlite import Connection, quoted
from headwater.errors import SourceError

ROWIDS = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True, slots=True)
class Part:
    """One column of a key. `name` is an identifier as SQL text. `collation` is "" for a rowid."""

    name: str
    collation: str = ""
    nullable: bool = True

    def same(self, left: str, right: str, *, null: bool = True) -> str:
        """SQL: whether two values are the same to this key; and whether two NULLs are. `left` and `right` are SQL."""
        collate = f" COLLATE {quoted(self.collation)}" if self.collation else ""
        return f"{left} {'IS' if self.nullable and null else '='} {right}{collate}"


@dataclass(frozen=True, slots=True)
class Unique:
    """An index (or the rowid) that allows one row a key. `terms` are SQL over the table's own column names."""

    terms: tuple[str, ...]
    collations: tuple[str, ...]
    columns: tuple[str, ...] | None
    """The plain columns it depends on; None when it depends on expressions or has a predicate."""
    predicate: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """`identity` is the primary key, or the rowid in a table without one."""

    table: str
    columns: tuple[str, ...]
    generated: frozenset[str]
    defaults: dict[str, str]
    """Of NOT NULL columns: what OR REPLACE puts in the place of a NULL (lang_conflict.html)."""
    identity: tuple[Part, ...]
    key: tuple[str, ...]
    """The primary key's columns; () without one."""
    rowid: str
    """A name under which the rowid can be reached; "" in a table WITHOUT ROWID."""
    uniques: tuple[Unique, ...]
    foreign_triggers: bool
    """Whether the table has triggers of the application's own."""

    @property
    def keyed_by_rowid(self) -> bool:
        return not self.key


def shape_of(connection: Connection, table: str, ours: Sequence[str] = ()) -> Shape:
    """`ours`: names of triggers that are not the application's. Raises `SourceError` for what cannot have triggers."""
    name, kind, rootpage = _entry(connection, table)
    if kind == "view" or not rootpage:
        what = "a view" if kind == "view" else "a virtual table"
        raise SourceError(
            f"{name} is {what}: SQLite has no triggers on it that see its rows change",
            hint="capture the tables beneath it, or use `pattern: query`",
        )
    info = connection.execute(f"PRAGMA table_xinfo({quoted(name)})")
    columns = tuple(row[1] for row in info)
    keyed = sorted((row for row in info if row[5]), key=lambda row: int(row[5]))
    key = tuple(row[1] for row in keyed)
    indexes = [row for row in connection.execute(f"PRAGMA index_list({quoted(name)})") if row[2]]
    primary = next((row for row in indexes if row[3] == "pk"), None)
    with_rowid = _has_rowid(connection, primary)
    rowid = next((r for r in ROWIDS if r not in {c.lower() for c in columns}), "") if with_rowid else ""
    nullable = {row[1]: not row[3] for row in info}
    return Shape(
        table=name,
        columns=columns,
        generated=frozenset(row[1] for row in info if row[6] in (2, 3)),
        defaults={row[1]: row[4] for row in info if row[3] and row[4] is not None},
        identity=_identity(connection, key, primary, rowid, nullable if with_rowid else {}),
        key=key,
        rowid=rowid,
        uniques=tuple(_uniques(connection, key, primary, rowid, indexes)),
        foreign_triggers=_foreign(connection, name, ours),
    )


def _entry(connection: Connection, table: str) -> tuple[str, str, int]:
    found = connection.execute(
        "SELECT name, type, rootpage FROM sqlite_master WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE",
        (table,),
    )
    if not found:
        raise SourceError(f"there is no table {table} in {connection.path}", hint="`headwater doctor` lists the tables")
    name, kind, rootpage = found[0]
    return str(name), str(kind), int(rootpage or 0)


def _has_rowid(connection: Connection, primary: tuple[object, ...] | None) -> bool:
    """An index of a rowid table ends with the rowid (column number -1); one of a table WITHOUT ROWID does not."""
    if primary is None:
        return True
    rows = connection.execute(f"PRAGMA index_xinfo({quoted(str(primary[1]))})")
    return any(row[1] == -1 for row in rows)


def _identity(
    connection: Connection,
    key: tuple[str, ...],
    primary: tuple[object, ...] | None,
    rowid: str,
    nullable: dict[str, bool],
) -> tuple[Part, ...]:
    if not key:
        if not rowid:
            raise SourceError("a table whose columns hide all three names of its rowid, and without a primary key")
        return (Part(rowid, nullable=False),)
    if primary is None:
        return (Part(quoted(key[0]), nullable=False),)
    rows = connection.execute(f"PRAGMA index_xinfo({quoted(str(primary[1]))})")
    collations = {row[2]: row[4] for row in rows if row[5]}
    return tuple(Part(quoted(c), collations[c], nullable.get(c, False)) for c in key)


def _uniques(
    connection: Connection,
    key: tuple[str, ...],
    primary: tuple[object, ...] | None,
    rowid: str,
    indexes: list[tuple[object, ...]],
) -> list[Unique]:
    found = []
    if rowid or (key and primary is None):
        alias = rowid or quoted(key[0])
        columns = (*ROWIDS, *(key if primary is None else ()))
        found.append(Unique((alias,), ("",), columns))
    return found + [_unique(connection, str(row[1]), bool(row[4])) for row in indexes]


def _unique(connection: Connection, index: str, partial: bool) -> Unique:
    rows = [row for row in connection.execute(f"PRAGMA index_xinfo({quoted(index)})") if row[5]]
    collations = tuple(str(row[4]) for row in rows)
    if not partial and all(row[1] >= 0 for row in rows):
        names = tuple(str(row[2]) for row in rows)
        return Unique(tuple(map(quoted, names)), collations, names)
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?", (index,))[0]
    texts, predicate = cut_index(str(sql))
    terms = [quoted(str(row[2])) if row[1] >= 0 else text for row, text in zip(rows, texts, strict=True)]
    return Unique(tuple(terms), collations, None, predicate)


def cut_index(sql: str) -> tuple[list[str], str]:
    """The terms of a CREATE INDEX, and its predicate ("" without one), as they are written."""
    from sqlglot import TokenType
    from sqlglot.dialects.sqlite import SQLite

    tokens = SQLite().tokenize(sql)
    depth, start, terms, end = 0, 0, [], len(tokens)
    for place, token in enumerate(tokens):
        if token.token_type == TokenType.L_PAREN:
            depth += 1
            if depth == 1:
                start = token.end + 1
        elif token.token_type == TokenType.R_PAREN:
            depth -= 1
        if (depth == 0 and token.token_type == TokenType.R_PAREN) or (
            depth == 1 and token.token_type == TokenType.COMMA
        ):
            terms.append(sql[start : token.start].strip())
            start = token.end + 1
        if depth == 0 and token.token_type == TokenType.R_PAREN:
            end = place
            break
    rest = tokens[end + 1 :]
    predicate = sql[rest[0].end + 1 :].strip() if rest and rest[0].text.upper() == "WHERE" else ""
    return [_without_order(term) for term in terms], predicate


def _without_order(term: str) -> str:
    head, _, last = term.rpartition(" ")
    return head.rstrip() if last.upper() in ("ASC", "DESC") and head else term


def _foreign(connection: Connection, table: str, ours: Sequence[str]) -> bool:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (table,))
    return any(name not in ours for (name,) in rows)
