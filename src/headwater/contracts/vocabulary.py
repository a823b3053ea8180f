"""The vocabulary: the entity types that fields refer to, and the terms that give numbers their meaning.

One idea: equal things have one name and one type in every stream. A field with `ref: user` is named as the user's key
is, with the role before it (`invited_by_user_id`), and has its type; the stream that is an entity's home has the
entity's identity as its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, field_validator

from headwater.contracts.document import parse_document
from headwater.contracts.findings import Finding, Site
from headwater.contracts.model import Contract, FieldSpec, Frozen, Name, StreamName
from headwater.contracts.types import parse_type
from headwater.contracts.validation import nearest, validated
from headwater.errors import ContractError

FILE = "vocabulary.yaml"

RULES: dict[str, str] = {
    "REF_UNKNOWN": "`ref` names an entity of the vocabulary",
    "REF_TYPE": "a field that refers to an entity has the type of its key",
    "REF_NAME": "a field that refers to an entity is named `[role_]key`, `key` being the entity's",
    "TERM_UNKNOWN": "`term` names a term of the vocabulary",
    "TERM_TYPE": "a field with a term has the term's type",
    "TERM_UNIT": "a field with a term has the term's unit",
    "ENTITY_OWNER": "an entity has an owner",
    "ENTITY_HOME": "an entity has a home stream, and that stream is a fact",
    "ENTITY_KEY": "the key of an entity's home stream is the entity's identity",
    "ENTITY_ELSEWHERE": "an entity's home stream has a contract here (a warning: it may be another pipeline's)",
    "FACT_ENTITY": "a fact is about an entity: its stream is an entity's home, or its key refers to one (a warning)",
}
WARNINGS = frozenset({"ENTITY_ELSEWHERE", "FACT_ENTITY"})


def _typed(value: str) -> str:
    try:
        parse_type(value)
    except ContractError as error:
        raise ValueError(error.message) from error
    return value


class Entity(Frozen):
    """`key`: name and type of each part of its identity. `stream`: its home, where its facts are published."""

    key: dict[Name, str] = Field(min_length=1)
    owner: str = ""
    stream: StreamName | None = None
    description: str = ""

    @field_validator("key")
    @classmethod
    def _types_parse(cls, value: dict[str, str]) -> dict[str, str]:
        return {name: _typed(kind) for name, kind in value.items()}


class Term(Frozen):
    """A kind of quantity: same type and unit wherever it appears."""

    type: str
    unit: str | None = None
    description: str = ""

    @field_validator("type")
    @classmethod
    def _type_parses(cls, value: str) -> str:
        return _typed(value)


class Vocabulary(Frozen):
    entities: dict[Name, Entity] = Field(default_factory=dict)
    terms: dict[StreamName, Term] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """A vocabulary and where it is written."""

    vocabulary: Vocabulary
    site: Site


def load_vocabulary(path: Path) -> VocabularyFile | None:
    """None when there is no such file. Raises `ConfigError` that names file, line, key and the nearest right key."""
    if not path.is_file():
        return None
    document = parse_document(path.read_text(encoding="utf-8"), str(path))
    vocabulary = validated(Vocabulary, document.data or {}, where=str(path), document=document)
    return VocabularyFile(vocabulary, Site(document))


@dataclass(frozen=True, slots=True)
class Written:
    """A contract and where it is written."""

    contract: Contract
    site: Site = field(default_factory=Site)


def check_vocabulary(file: VocabularyFile | None, contracts: Sequence[Written]) -> list[Finding]:
    """Every contract against the vocabulary, and the vocabulary against the contracts. No vocabulary: refs only."""
    vocabulary = file.vocabulary if file else Vocabulary()
    found = [finding for written in contracts for finding in _contract(vocabulary, written, alone=file is None)]
    if file is not None:
        found += _entities(file, {written.contract.stream: written.contract for written in contracts})
    return found


def _contract(vocabulary: Vocabulary, written: Written, *, alone: bool) -> Iterator[Finding]:
    contract, site = written.contract, written.site
    for type_name in contract.type_names:
        for name, spec in contract.shape(type_name).items():
            for rule, attribute, change, remedy in _field(vocabulary, name, spec):
                line = site.field_line(name, type_name, attribute)
                yield Finding(site.path, line, rule, name, change, "", remedy)
    if not alone and contract.kind == "fact" and not _has_entity(vocabulary, contract):
        change = f"no entity has its home in `{contract.stream}`, and its key refers to none"
        remedy = f"add the entity to {FILE}, with `stream: {contract.stream}`"
        yield Finding(site.path, site.line("key"), "FACT_ENTITY", "", change, "", remedy)


def _has_entity(vocabulary: Vocabulary, contract: Contract) -> bool:
    home = any(entity.stream == contract.stream for entity in vocabulary.entities.values())
    return home or any(contract.fields[name].ref for name in contract.key)


_Complaint = tuple[str, str, str, str]


def _field(vocabulary: Vocabulary, name: str, spec: FieldSpec) -> Iterator[_Complaint]:
    if spec.ref is not None:
        yield from _ref(vocabulary, name, spec, spec.ref)
    if spec.term is not None:
        yield from _term(vocabulary, spec, spec.term)


def _ref(vocabulary: Vocabulary, name: str, spec: FieldSpec, ref: str) -> Iterator[_Complaint]:
    entity = vocabulary.entities.get(ref)
    if entity is None:
        yield "REF_UNKNOWN", "ref", f"entity `{ref}` is not in {FILE}", _meant(ref, list(vocabulary.entities))
        return
    part = next((key for key in entity.key if name == key or name.endswith(f"_{key}")), None)
    if part is None:
        wanted = " or ".join(f"`[role_]{key}`" for key in entity.key)
        yield "REF_NAME", "ref", f"a reference to `{ref}` is named {wanted}", "rename the field"
        part = next(iter(entity.key)) if len(entity.key) == 1 else None
    if part is not None and parse_type(entity.key[part]) != spec.parsed:
        change = f"`{ref}` is identified by {part}: {entity.key[part]}, and this is {spec.type}"
        yield "REF_TYPE", "type", change, f"write `type: {entity.key[part]}` and convert in the mapping"


def _term(vocabulary: Vocabulary, spec: FieldSpec, name: str) -> Iterator[_Complaint]:
    term = vocabulary.terms.get(name)
    if term is None:
        yield "TERM_UNKNOWN", "term", f"term `{name}` is not in {FILE}", _meant(name, list(vocabulary.terms))
        return
    if parse_type(term.type) != spec.parsed:
        yield (
            "TERM_TYPE",
            "type",
            f"term `{name}` is {term.type}, and this is {spec.type}",
            f"write `type: {term.type}`",
        )
    if term.unit != spec.unit:
        change = f"term `{name}` is in {term.unit or 'no unit'}, and this is in {spec.unit or 'no unit'}"
        yield "TERM_UNIT", "unit", change, f"write `unit: {term.unit}`" if term.unit else "remove the unit"


def _meant(word: str, known: list[str]) -> str:
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else f"add it to {FILE}; known are {', '.join(known) or 'none'}"


def _entities(file: VocabularyFile, contracts: dict[str, Contract]) -> Iterator[Finding]:
    for name, entity in file.vocabulary.entities.items():
        for rule, change, remedy in _entity(entity, contracts):
            line = file.site.line("entities", name, "stream")
            yield Finding(file.site.path, line, rule, "", f"entity `{name}`: {change}", "", remedy)


def _entity(entity: Entity, contracts: dict[str, Contract]) -> Iterator[tuple[str, str, str]]:
    if not entity.owner:
        yield "ENTITY_OWNER", "it has no owner", "write `owner:` with the team that answers for it"
    if entity.stream is None:
        yield "ENTITY_HOME", "it has no home stream", "write `stream:` with the stream of its facts"
        return
    contract = contracts.get(entity.stream)
    if contract is None:
        near = nearest(entity.stream, list(contracts))
        remedy = f"did you mean `{near}`?" if near else "write its contract, if this pipeline publishes it"
        yield "ENTITY_ELSEWHERE", f"home stream `{entity.stream}` has no contract here", remedy
    elif contract.kind != "fact":
        yield "ENTITY_HOME", f"home stream `{entity.stream}` is of kind {contract.kind}", "a home publishes facts"
    elif (found := {name: contract.fields[name].parsed for name in contract.key}) != {
        name: parse_type(kind) for name, kind in entity.key.items()
    }:
        shown = ", ".join(f"{part}: {kind}" for part, kind in found.items())
        yield "ENTITY_KEY", f"the key of `{entity.stream}` is {shown}", "make the two the same"
