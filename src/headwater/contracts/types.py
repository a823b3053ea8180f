"""The field types of a contract, as values parsed from their short spelling.

`decimal(10,2)`, `list<string>`, `map<string,int64>`, `struct<sku: string, count: int32>`; nested freely.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from headwater.errors import ContractError

SCALARS = (
    "bool", "int32", "int64", "float32", "float64", "string", "bytes", "date", "time",
    "timestamp", "local_timestamp", "uuid", "json",
)  # fmt: skip
NUMERIC = ("int32", "int64", "float32", "float64", "decimal")


@dataclass(frozen=True, slots=True)
class FieldType:
    """`name` is a scalar's name, or `decimal`, `list`, `map`, `struct`.

    `items` holds a list's one type, a map's value type (its keys are strings), or a struct's types, with their names
    in `names`.
    """

    name: str
    precision: int = 0
    scale: int = 0
    items: tuple[FieldType, ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.name == "list":
            return f"list<{self.items[0]}>"
        if self.name == "map":
            return f"map<string,{self.items[0]}>"
        if self.name == "struct":
            return "struct<" + ", ".join(f"{n}: {t}" for n, t in zip(self.names, self.items, strict=True)) + ">"
        return self.name


@functools.lru_cache(maxsize=4096)
def parse_type(text: str) -> FieldType:
    """Raises `ContractError` that shows the place at which the text stops making sense."""
    parser = _Parser(text)
    parsed = parser.type()
    parser.end()
    return parsed


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = re.findall(r"\w+|[^\w\s]", text)
        self.at = 0

    def type(self) -> FieldType:
        name = self._take()
        if name in SCALARS:
            return FieldType(name)
        if name == "decimal":
            return self._decimal()
        if name == "list":
            return FieldType("list", items=(self._inside(self.type),))
        if name == "map":
            return self._inside(self._map)
        if name == "struct":
            return self._inside(self._struct)
        raise self._error(f"unknown type `{name}`")

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise self._error(f"`{self.tokens[self.at]}` is left over")

    def _decimal(self) -> FieldType:
        self._expect("(")
        precision = self._number()
        self._expect(",")
        scale = self._number()
        self._expect(")")
        if not 0 < precision <= 76 or scale > precision:
            raise self._error("decimal(precision, scale) needs 1 <= precision <= 76 and scale <= precision")
        return FieldType("decimal", precision, scale)

    def _map(self) -> FieldType:
        if self._take() != "string":
            raise self._error("the keys of a map are strings: map<string,...>")
        self._expect(",")
        return FieldType("map", items=(self.type(),))

    def _struct(self) -> FieldType:
        names: list[str] = []
        items: list[FieldType] = []
        while True:
            names.append(self._name(names))
            self._expect(":")
            items.append(self.type())
            if self._peek() != ",":
                return FieldType("struct", items=tuple(items), names=tuple(names))
            self._expect(",")

    def _name(self, before: list[str]) -> str:
        name = self._take()
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise self._error(f"`{name}` is no name: lower-case letters, digits and `_`, a letter first")
        if name in before:
            raise self._error(f"`{name}` is named twice")
        return name

    def _inside(self, parse: Callable[[], FieldType]) -> FieldType:
        self._expect("<")
        parsed = parse()
        self._expect(">")
        return parsed

    def _number(self) -> int:
        token = self._take()
        if not token.isdigit():
            raise self._error(f"a number is expected, not `{token}`")
        return int(token)

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else "the end"

    def _take(self) -> str:
        token = self._peek()
        self.at += 1
        return token

    def _expect(self, token: str) -> None:
        if (found := self._take()) != token:
            raise self._error(f"`{token}` is expected, not `{found}`")

    def _error(self, what: str) -> ContractError:
        known = ", ".join(SCALARS)
        return ContractError(
            f"field type `{self.text}`: {what}",
            hint=f"types are {known}, decimal(p,s), list<T>, map<string,T>, struct<name: T, ...>",
        )
