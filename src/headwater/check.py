"""Configuration, contracts and vocabulary against one another, without touching data.

Everything that is wrong is reported, not only the first; each problem names its file, line and rule. `look` adds what
only the databases' catalogues know (columns, keys) and what each stream's path gives; without it those rules are
passed over.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from headwater import plugins
from headwater.config import FILE, Config, StreamConfig, TypeMapping
from headwater.contracts import vocabulary
from headwater.contracts.document import Document, parse_document
from headwater.contracts.findings import Finding, Site
from headwater.contracts.model import Contract, FieldSpec
from headwater.contracts.store import ContractStore
from headwater.contracts.validation import nearest
from headwater.contracts.vocabulary import Written, check_vocabulary, load_vocabulary
from headwater.dialects import Dialect, Table
from headwater.errors import ConfigError, HeadwaterError, MappingError, SourceError
from headwater.guarantees import broken_promises
from headwater.mapping.expressions import Expression, parse
from headwater.model import TableId
from headwater.protocols import Guarantee
from headwater.scaffold import words

Severity = Literal["error", "warning"]

RULES: dict[str, tuple[Severity, str]] = {
    "CONTRACT_INVALID": ("error", "a contract or the vocabulary cannot be read"),
    "CONTRACT_UNUSED": ("warning", "a contract whose stream is not in headwater.yaml"),
    "NOT_ACCEPTED": ("warning", "a working copy that nobody has accepted yet: the engine does not go by it"),
    "CHANGED_AFTER_ACCEPT": ("error", "a working copy that differs from the accepted version of its number"),
    "TAMPERED": ("error", "an accepted version that was edited, deleted, or put there by hand"),
    "NO_OWNER": ("warning", "a contract without an owner"),
    "UNKNOWN_FIELD": ("error", "a mapping for a field that the contract does not have"),
    "UNKNOWN_TYPE": ("error", "event types of mapping and contract that are not the same"),
    "UNKNOWN_TABLE": ("error", "a table that the database does not have"),
    "UNKNOWN_COLUMN": ("error", "a field, key or cursor without a column"),
    "NO_KEY": ("error", "a table without a primary key, and no `key` that names columns"),
    "EXPRESSION": ("error", "an expression or `where` that cannot be parsed, or is not allowed"),
    "MIRRORS_TABLE": ("warning", "a contract that says no more than its table does"),
    "PII_PLAIN": ("warning", "personal data that leaves as it is, neither masked nor hashed"),
    "PROMISE": ("error", "a contract that promises more than its path can give"),
    "SINK_MATCHES_NOTHING": ("error", "a sink that names a stream which does not exist"),
    "SINK_PATTERN_UNUSED": ("warning", "a sink's wildcard that matches no stream"),
    "SOURCE_AWAY": ("warning", "a source that could not be looked at, so that its columns are not checked"),
}
"""The rules of configuration. Those of compatibility and vocabulary are in `contracts/`; all are errors unless said."""


@dataclass(frozen=True, slots=True)
class Problem:
    severity: Severity
    path: str
    line: int
    rule: str
    subject: str
    """The stream, field or sink."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        subject = f" {self.subject}" if self.subject else ""
        hint = f" -> {self.hint}" if self.hint else ""
        return f"{self.path}:{self.line}: {self.severity}: {self.rule}{subject}: {self.message}{hint}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What the databases say, by stream. A stream that is missing is not checked for it."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    guarantees: Mapping[str, Guarantee] = field(default_factory=dict)
    failures: Mapping[str, HeadwaterError] = field(default_factory=dict)


def check(
    config: Config, store: ContractStore, *, survey: Survey | None = None, file: Path | None = None
) -> list[Problem]:
    """Every problem, errors first. `file`: the configuration's own, for line numbers."""
    checker = _Checker(config, store, survey or Survey(), _document(file or config.directory / FILE))
    return sorted(checker.problems(), key=lambda p: (p.severity, p.path, p.line, p.rule, p.subject))


def look(config: Config) -> Survey:
    """Inspect the catalogues of all sources. A source that is away is a failure of its streams, not of the check."""
    tables: dict[str, Table] = {}
    columns: dict[str, tuple[str, ...]] = {}
    guarantees: dict[str, Guarantee] = {}
    failures: dict[str, HeadwaterError] = {}
    for name, stream in config.streams.items():
        try:
            table, found = _inspected(config, stream)
            columns[name] = found
            if table is not None:
                tables[name] = table
            keyed = bool(stream.key or (table is not None and table.key))
            scheme = config.sources[stream.source].scheme
            guarantees[name] = plugins.source_guarantee(scheme, stream.pattern)(stream, keyed=keyed)
        except HeadwaterError as error:
            failures[name] = error
    return Survey(tables, columns, guarantees, failures)


def _inspected(config: Config, stream: StreamConfig) -> tuple[Table | None, tuple[str, ...]]:
    source = config.sources[stream.source]
    dialect: Dialect = plugins.dialect_factory(source.scheme)(config=source, directory=str(config.directory))
    try:
        if stream.query is not None:
            return None, tuple(dialect.describe(stream.query).names)
        schema, dot, name = (stream.table or "").partition(".")
        table = dialect.table(TableId(schema, name) if dot else TableId("", schema))
        return table, tuple(column.name for column in table.columns)
    finally:
        dialect.close()


def rendered(problems: list[Problem], form: Literal["text", "json", "github-actions"] = "text") -> str:
    """For people, for programs, or as annotations of a GitHub workflow; paths as seen from the working directory."""
    problems = [replace(problem, path=_nearer(problem.path)) for problem in problems]
    if form == "json":
        return json.dumps([asdict(problem) for problem in problems], indent=2, ensure_ascii=False)
    if form == "github-actions":
        return "\n".join(map(_annotation, problems))
    return "\n".join(map(str, problems))


def _nearer(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _annotation(problem: Problem) -> str:
    text = f"{problem.subject}: {problem.message} {problem.hint}".strip(": ")
    for character, escape in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, escape)
    return f"::{problem.severity} file={problem.path},line={problem.line},title={problem.rule}::{text}"


def _document(path: Path) -> Document:
    try:
        return parse_document(path.read_text(encoding="utf-8"), str(path))
    except OSError:  # made in code: there is no file, and so no line
        return Document(str(path), {})


@dataclass(frozen=True, slots=True)
class _Checker:
    config: Config
    store: ContractStore
    survey: Survey
    document: Document

    def problems(self) -> Iterator[Problem]:
        contracts: dict[str, Written] = {}
        for name in sorted({*self.store.streams(), *self.config.streams}):
            try:
                contracts[name] = self._written(name)
                yield from self._contract(name, contracts[name])
            except ConfigError as error:
                yield self._invalid(self.store.path(name), name, error)
        yield from self._vocabulary(list(contracts.values()))
        for name in self.config.streams:
            if name in contracts:
                yield from _StreamChecker(self, name, contracts[name].contract).problems()
        yield from self._sinks()

    def problem(self, rule: str, path: tuple[str | int, ...], subject: str, message: str, hint: str = "") -> Problem:
        """A problem of headwater.yaml."""
        return Problem(RULES[rule][0], self.document.path, self.document.line(*path), rule, subject, message, hint)

    def _written(self, name: str) -> Written:
        """The contract as it is being worked on, else the newest accepted version."""
        if self.store.has_working(name):
            return Written(self.store.working(name), Site(self.store.document(name)))
        contract = self.store.newest(name)
        if contract is None:
            return Written(self.store.working(name))  # raises the error that says what is missing
        path = self.store.published(name) / f"v{contract.version}.yaml"
        return Written(contract, Site(Document(str(path), {})))

    def _contract(self, name: str, written: Written) -> Iterator[Problem]:
        contract, site = written.contract, written.site
        if name not in self.config.streams:
            message = "no stream of headwater.yaml has this contract"
            yield _at(site, "CONTRACT_UNUSED", ("stream",), name, message, self._meant(name))
        if not contract.owner:
            yield _at(
                site, "NO_OWNER", ("owner",), name, "nobody answers for it", "write `owner:` with the team that does"
            )
        if self.store.has_working(name):
            yield from (_broken(name, finding, "error") for finding in self.store.judge(name))
        yield from self._acceptance(name, written)
        for tampered in self.store.tampered(name):
            hint = "restore the file from version control; to change a contract, accept a new version"
            yield Problem("error", str(tampered.path), 1, "TAMPERED", name, str(tampered).split(": ", 1)[1], hint)

    def _acceptance(self, name: str, written: Written) -> Iterator[Problem]:
        contract, site = written.contract, written.site
        newest = self.store.newest(name)
        if newest is None or contract.version > newest.version:
            going_by = f"the engine goes by v{newest.version}" if newest else "readers have nothing to rely on yet"
            message = f"version {contract.version} is not accepted: {going_by}"
            hint = f"`headwater contract accept {name}`"
            yield _at(site, "NOT_ACCEPTED", ("version",), name, message, hint)
            return
        same = next((old for old in self.store.accepted(name) if old.version == contract.version), None)
        if same != contract:
            message = f"it differs from the accepted version {contract.version}, which is immutable"
            hint = f"write `version: {newest.version + 1}`"
            yield _at(site, "CHANGED_AFTER_ACCEPT", ("version",), name, message, hint)

    def _invalid(self, path: Path, name: str, error: ConfigError) -> Problem:
        """An error that says its place itself, or that there is no such file: then the stream is the place."""
        match = re.match(r"(.+?):(\d+): ", error.message)
        if match:
            text = error.message[match.end() :]
            return Problem("error", match[1], int(match[2]), "CONTRACT_INVALID", name, text, error.hint)
        return self.problem("CONTRACT_INVALID", ("streams", name), name, error.message, error.hint)

    def _vocabulary(self, contracts: list[Written]) -> Iterator[Problem]:
        path = self.config.directory / vocabulary.FILE
        try:
            file = load_vocabulary(path)
        except ConfigError as error:
            yield self._invalid(path, vocabulary.FILE, error)
            return
        streams = {written.site.path: written.contract.stream for written in contracts}
        for finding in check_vocabulary(file, contracts):
            severity: Severity = "warning" if finding.rule in vocabulary.WARNINGS else "error"
            yield _broken(streams.get(finding.path, ""), finding, severity)

    def _sinks(self) -> Iterator[Problem]:
        for name, sink in self.config.sinks.items():
            for place, pattern in enumerate(sink.streams):
                if any(fnmatch.fnmatchcase(stream, pattern) for stream in self.config.streams):
                    continue
                wild = any(character in pattern for character in "*?[")
                rule = "SINK_PATTERN_UNUSED" if wild else "SINK_MATCHES_NOTHING"
                message = f"`{pattern}` matches no stream"
                yield self.problem(rule, ("sinks", name, "streams", place), name, message, self._meant(pattern))

    def _meant(self, word: str) -> str:
        near = nearest(word, list(self.config.streams))
        return f"did you mean `{near}`?" if near else f"streams are {', '.join(self.config.streams) or 'none'}"


def _at(site: Site, rule: str, path: tuple[str | int, ...], subject: str, message: str, hint: str = "") -> Problem:
    """A problem of a contract's file."""
    return Problem(RULES[rule][0], site.path, site.line(*path), rule, subject, message, hint)


def _broken(name: str, finding: Finding, severity: Severity) -> Problem:
    message = f"{finding.change} -> {finding.breaks}" if finding.breaks else finding.change
    return Problem(severity, finding.path, finding.line, finding.rule, finding.field or name, message, finding.remedy)


@dataclass(frozen=True, slots=True)
class _StreamChecker:
    """One stream's mapping against its contract, its table and its path."""

    checker: _Checker
    name: str
    contract: Contract

    def problems(self) -> Iterator[Problem]:
        if self.name in self.checker.survey.failures:
            yield self._failure(self.checker.survey.failures[self.name])
        yield from self._keys()
        if self.stream.function is None:
            yield from self._types()
            for type_name in self.contract.type_names:
                yield from self._shape(type_name)
            if self._mirrors():
                message = "it says no more than its table does: no field is renamed, computed or described"
                hint = "consumers will depend on the table's inside; name and describe the fields for them"
                yield self._problem("MIRRORS_TABLE", ("table",), self.name, message, hint)
        given = self.checker.survey.guarantees.get(self.name)
        for broken in broken_promises(self.contract, given) if given is not None else ():
            hint = " ".join((*(given.notes if given else ()), "Choose a stronger pattern, or promise less."))
            yield self._problem("PROMISE", ("pattern",), self.name, broken, hint)

    @property
    def stream(self) -> StreamConfig:
        return self.checker.config.streams[self.name]

    @property
    def columns(self) -> tuple[str, ...] | None:
        return self.checker.survey.columns.get(self.name)

    def _problem(self, rule: str, path: tuple[str | int, ...], subject: str, message: str, hint: str = "") -> Problem:
        return self.checker.problem(rule, ("streams", self.name, *path), subject, message, hint)

    def _failure(self, error: HeadwaterError) -> Problem:
        rule = "UNKNOWN_TABLE" if isinstance(error, SourceError) else "SOURCE_AWAY"
        return self._problem(rule, ("table",), self.name, error.message, error.hint)

    def _keys(self) -> Iterator[Problem]:
        named = [("cursor", self.stream.cursor)] if self.stream.cursor else []
        for attribute, column in [*named, *(("key", column) for column in self.stream.key)]:
            if self.columns is not None and column not in self.columns:
                message = f"`{attribute}` names no column of the table: `{column}`"
                yield self._problem("UNKNOWN_COLUMN", (attribute,), self.name, message, _meant(column, self.columns))
        table = self.checker.survey.tables.get(self.name)
        if table is not None and not table.key and not self.stream.key and self.contract.kind == "fact":
            message = f"table {table.id} has no primary key, and a fact has to be identified"
            hint = "write `key:` with the columns that identify a row"
            yield self._problem("NO_KEY", ("table",), self.name, message, hint)

    def _types(self) -> Iterator[Problem]:
        mapped, promised = set(self.stream.types), set(self.contract.types)
        for name in sorted(mapped - promised):
            message = f"the contract has no event type `{name}`"
            yield self._problem("UNKNOWN_TYPE", ("types", name), self.name, message, _meant(name, sorted(promised)))
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
                    "UNKNOWN_FIELD", (*path, field_name), self.name, message, _meant(field_name, list(shape))
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
            hint = f"map it under `fields:`, or remove it; {_meant(text, self.columns or ())}"
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
            spec.ref or name in contract.key or words.field_name(stream.fields.get(name, name)) == name
            for name, spec in contract.fields.items()
        )


def _what(stream: str, field_name: str) -> str:
    return f"stream `{stream}`, `where`" if field_name == "where" else f"stream `{stream}`, field `{field_name}`"


def _names_in(text: str) -> tuple[str, ...]:
    return tuple(quoted.replace('""', '"') or plain for quoted, plain in re.findall(r'"((?:[^"]|"")+)"|(\w+)', text))


def _meant(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else f"known are {', '.join(known) or 'none'}"
