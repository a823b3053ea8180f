"""One stream's mapping against its contract, its table and its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from headwater.check.problems import Problem, in_configuration, meant
from headwater.check.survey import SourceRefused, Survey
from headwater.config import StreamConfig, TypeMapping
from headwater.contracts import naming
from headwater.contracts.document import Document
from headwater.contracts.model import Contract, FieldSpec
from headwater.dialects import Table
from headwater.errors import HeadwaterError, MappingError, SourceError
from headwater.guarantees import RETENTION_HINT, broken_promises, broken_retention
from headwater.mapping.expressions import Expression, parse


@dataclass(frozen=True, slots=True)
class StreamCheck:
    """`document`: headwater.yaml, for the lines."""

    name: str
    stream: StreamConfig
    contract: Contract
    survey: Survey
    document: Document

    def problems(self) -> Iterator[Problem]:
        if self.name in self.survey.failures:
            yield self._failure(self.survey.failures[self.name])
        yield from self._keys()
        if self.stream.function is None:
            yield from self._types()
            for type_name in self.contract.type_names:
                yield from self._shape(type_name)
            if self._mirrors():
                message = "it says no more than its table does: no field is renamed, computed or described"
                hint = "consumers will depend on the table's inside; name and describe the fields for them"
                yield self._problem("MIRRORS_TABLE", ("table",), self.name, message, hint)
        if reason := broken_retention(self.contract, self.stream):
            yield self._problem("RETENTION", ("pattern",), self.name, reason, RETENTION_HINT)
        given = self.survey.guarantees.get(self.name)
        for broken in broken_promises(self.contract, given) if given is not None else ():
            hint = " ".join((*(given.notes if given else ()), "Choose a stronger pattern, or promise less."))
            yield self._problem("PROMISE", ("pattern",), self.name, broken, hint)

    @property
    def columns(self) -> tuple[str, ...] | None:
        return self.survey.columns.get(self.name)

    def _problem(self, rule: str, path: tuple[str | int, ...], subject: str, message: str, hint: str = "") -> Problem:
        return in_configuration(self.document, rule, ("streams", self.name, *path), subject, message, hint)

    def _failure(self, error: HeadwaterError) -> Problem:
        if isinstance(error, SourceRefused):
            path, source = ("sources", self.stream.source, "options"), self.stream.source
            return in_configuration(self.document, "SOURCE_REFUSED", path, source, error.message, error.hint)
        rule = "UNKNOWN_TABLE" if isinstance(error, SourceError) else "SOURCE_AWAY"
        return self._problem(rule, ("table",), self.name, error.message, error.hint)

    def _keys(self) -> Iterator[Problem]:
        named = [("cursor", self.stream.cursor)] if self.stream.cursor else []
        for attribute, column in [*named, *(("key", column) for column in self.stream.key)]:
            if self.columns is not None and column not in self.columns:
                message = f"`{attribute}` names no column of the table: `{column}`"
                yield self._problem("UNKNOWN_COLUMN", (attribute,), self.name, message, meant(column, self.columns))
        table = self.survey.tables.get(self.name)
        if table is not None and not table.key and not self.stream.key and self.contract.kind == "fact":
            message = f"table {table.id} has no primary key, and a fact has to be identified"
            hint = "write `key:` with the columns that identify a row"
            yield self._problem("NO_KEY", ("table",), self.name, message, hint)
        elif table is not None and not self._key_is_unique(table):
            message = (
                f"nothing makes `{', '.join(self.contract.key)}` unique: table {table.id} may have several rows of it"
            )
            hint = "two rows of one key overwrite each other; key the stream by a primary key or unique columns"
            yield self._problem("KEY_NOT_UNIQUE", ("fields",), self.name, message, hint)

    def _key_is_unique(self, table: Table) -> bool:
        """Whether the stream's key shows all columns of one that the database, or the configuration, says is unique."""
        if self.contract.kind != "fact" or self.stream.function is not None:
            return True
        shown = {self.stream.fields.get(name, name) for name in self.contract.key}
        if any(text.isidentifier() and text not in (self.columns or ()) for text in shown):
            return True  # that it is no column is said elsewhere
        return any(set(key) <= shown for key in (table.key, self.stream.key, *table.unique) if key)

    def _types(self) -> Iterator[Problem]:
        mapped, promised = set(self.stream.types), set(self.contract.types)
        for name in sorted(mapped - promised):
            message = f"the contract has no event type `{name}`"
            yield self._problem("UNKNOWN_TYPE", ("types", name), self.name, message, meant(name, sorted(promised)))
        for name in sorted(promised - mapped):
            message = f"nothing says which changes are events of type `{name}`"
            yield self._problem("UNKNOWN_TYPE", ("types",), self.name, message, "add it to `types:`")

    def _shape(self, type_name: str | None) -> Iterator[Problem]:
        if type_name is not None and type_name not in self.stream.types:
            return
        mapping = self.stream if type_name is None else self.stream.types[type_name]
        path = ("fields",) if type_name is None else ("types", type_name, "fields")
        shape = self.contract.shape(type_name)
        for field_name in mapping.fields:
            if field_name not in shape:
                message = f"the contract has no field `{field_name}`"
                yield self._problem(
                    "UNKNOWN_FIELD", (*path, field_name), self.name, message, meant(field_name, list(shape))
                )
        for field_name, spec in shape.items():
            yield from self._field((*path, field_name), mapping.fields.get(field_name, field_name), field_name, spec)
        yield from self._where(mapping, (*path[:-1], "where"))

    def _field(self, path: tuple[str, ...], text: str, field_name: str, spec: FieldSpec) -> Iterator[Problem]:
        try:
            parsed = self._parsed(text, field_name)
        except MappingError as error:
            yield self._not_mapped(path, text, field_name, error)
            return
        private = isinstance(parsed, Expression) and parsed.private
        if spec.pii != "none" and not private:
            message = f"{spec.pii} data of `{text}` leaves as it is"
            hint = f"if nobody needs the value: {field_name}: hash({text})"
            yield self._problem("PII_PLAIN", path, field_name, message, hint)

    def _not_mapped(self, path: tuple[str, ...], text: str, field_name: str, error: MappingError) -> Problem:
        message = error.message.removeprefix(f"{_what(self.name, field_name)}: ")
        if text.isidentifier():
            how = f"the table has no column `{text}`" if text != field_name else "no column has its name"
            hint = f"map it under `fields:`, or remove it; {meant(text, self.columns or ())}"
            return self._problem("UNKNOWN_COLUMN", path, field_name, how, hint)
        return self._problem("EXPRESSION", path, field_name, message, error.hint)

    def _where(self, mapping: StreamConfig | TypeMapping, path: tuple[str, ...]) -> Iterator[Problem]:
        if mapping.where is None:
            return
        try:
            self._parsed(mapping.where, "where")
        except MappingError as error:
            message = error.message.removeprefix(f"{_what(self.name, 'where')}: ")
            yield self._problem("EXPRESSION", path, self.name, message, error.hint)

    def _parsed(self, text: str, field_name: str) -> str | Expression:
        """Without the table's columns, every name in the expression is taken for one."""
        available = self.columns if self.columns is not None else _names_in(text)
        return parse(text, available, what=_what(self.name, field_name))

    def _mirrors(self) -> bool:
        """Whether the contract says what the table says: own names for identities and references alone do not count."""
        stream, contract = self.stream, self.contract
        if stream.where or stream.types or stream.query or contract.types:
            return False
        described = any(spec.description or spec.unit or spec.term for spec in contract.fields.values())
        return not described and all(
            spec.ref or name in contract.key or naming.field_name(stream.fields.get(name, name)) == name
            for name, spec in contract.fields.items()
        )


def _what(stream: str, field_name: str) -> str:
    return f"stream `{stream}`, `where`" if field_name == "where" else f"stream `{stream}`, field `{field_name}`"


def _names_in(text: str) -> tuple[str, ...]:
    return tuple(quoted.replace('""', '"') or plain for quoted, plain in re.findall(r'"((?:[^"]|"")+)"|(\w+)', text))
