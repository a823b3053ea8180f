"""SQL expressions over one row: parsed with sqlglot, refused unless scalar and deterministic, rendered for DuckDB.

Columns keep the table's exact spelling. DuckDB takes no notice of case, so each column travels under a name made of the
hexadecimal digits of its own.

Two functions are Headwater's: `hash(x)` and `hash(x, 'salt')` give the SHA-256 of the (salted) text in hexadecimal
digits, `mask(x)` the first character and `***`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from headwater.errors import MappingError

PRIVATE = ("hash", "mask")
"""The functions that make a personal value fit to leave."""


@dataclass(frozen=True, slots=True)
class Expression:
    """`sql` names columns as `coded` does. `private`: it passes what it reads through `hash` or `mask`."""

    text: str
    sql: str
    columns: tuple[str, ...]
    private: bool = False


def coded(column: str) -> str:
    return "c_" + column.encode().hex()


def nearest(name: str, known: Iterable[str]) -> str:
    """Advice for a name that does not exist."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    near = near or [n for n in names if n.lower() == name.lower()]
    return f"did you mean `{near[0]}`?" if near else f"known are {', '.join(names)}"


def parse(text: str, available: Sequence[str], *, what: str) -> str | Expression:
    """A plain column's name, or an expression. `what` names the place in messages: "stream `x`, field `y`".

    Raises `MappingError`: SQL that does not parse, more than one expression, unknown columns (with the nearest right
    one), aggregates, windows, subqueries, parameters. What only DuckDB knows is checked when it is prepared.
    """
    if text in available:
        return text
    tree = _tree(text, what)
    from sqlglot import exp

    _refuse_whole_queries(tree, text, what)
    columns = _columns(tree, available, what)
    if isinstance(tree, exp.Column) and len(columns) == 1:
        return columns[0]
    private = any(_is_private(node) for node in tree.walk())
    tree = tree.transform(_private)
    return Expression(text, tree.sql(dialect="duckdb", comments=False), columns, private)


def _tree(text: str, what: str) -> Any:
    import sqlglot  # costs a tenth of a second, and most mappings are plain columns
    from sqlglot import exp

    try:
        statements = sqlglot.parse(f"SELECT {text}\n", read="duckdb")
    except sqlglot.errors.SqlglotError as error:
        reason = str(error).split("\n", 1)[0].split(". Line", 1)[0]
        raise MappingError(f"{what}: `{text}` is no SQL expression: {reason}", hint=_HINT) from error
    select: Any = statements[0]
    single = len(statements) == 1 and isinstance(select, exp.Select) and len(select.expressions) == 1
    if not single or {name for name, value in select.args.items() if value} - {"expressions"}:
        raise MappingError(f"{what}: `{text}` is not one SQL expression", hint=_HINT)
    return select.expressions[0]


_HINT = "write one scalar expression over the table's columns, such as round(price, 2)"


def _refuse_whole_queries(tree: Any, text: str, what: str) -> None:
    from sqlglot import exp

    refused = (
        (exp.AggFunc, "an aggregate, which needs more than one row"),
        (exp.Window, "a window, which needs more than one row"),
        (exp.Query, "a query"),
        (exp.Exists, "a query"),
        (exp.Star, "`*`"),
        (exp.Placeholder, "a parameter"),
        (exp.Parameter, "a parameter"),
        (exp.Alias, "a name for its result; the field is its name"),
    )
    for kind, description in refused:
        if tree.find(kind) is not None:
            raise MappingError(f"{what}: `{text}` holds {description}", hint=_HINT)


def _columns(tree: Any, available: Sequence[str], what: str) -> tuple[str, ...]:
    """The columns that are read, each renamed in the tree to what DuckDB sees."""
    from sqlglot import exp

    found: dict[str, None] = {}
    for node in list(tree.find_all(exp.Column)):
        identifier = node.parts[0]  # of `a.b`, a is the column and b a field of it
        name = identifier.name
        if name not in available:
            raise MappingError(f"{what}: no column `{name}`; {nearest(name, available)}", hint=_QUOTES)
        found[name] = None
        if len(node.parts) == 1 and node.parent is None:
            return (name,)
        identifier.replace(exp.to_identifier(coded(name)))
    return tuple(found)


_QUOTES = 'column names are case-sensitive; text is written in single quotes, "double quotes" enclose a column\'s name'


def _is_private(node: Any) -> bool:
    from sqlglot import exp

    return isinstance(node, exp.Anonymous) and node.name.lower() in PRIVATE


def _private(node: Any) -> Any:
    from sqlglot import exp

    if not _is_private(node):
        return node
    value, *salt = (exp.cast(argument, "VARCHAR") for argument in node.expressions)
    if node.name.lower() == "hash":
        salted = exp.DPipe(this=salt[0], expression=value) if salt else value
        return exp.Anonymous(this="sha256", expressions=[salted])
    first = exp.Anonymous(this="left", expressions=[value, exp.Literal.number(1)])
    return exp.DPipe(this=first, expression=exp.Literal.string("***"))
