"""From the names of a database to names of a domain: entities, their streams, their fields."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNCHANGED = words(
    """
    status address news series species analysis basis bus campus canvas corpus bonus access process progress business
    class census consensus syllabus data metadata sms gps dns settings
    """
)
_IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman", "criteria": "criterion"}
_ENDINGS = (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("zes", "z"))


def snake(name: str) -> str:
    """A name as contracts write it: `courseOverview` and `Course-Overview` become `course_overview`."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    text = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"
    return (text if text[0].isalpha() else f"n_{text}")[:63].rstrip("_")


def singular(name: str) -> str:
    """The last word of a snake-case name in the singular, by the plain rules of English; words they fit badly stay."""
    head, _, word = name.rpartition("_")
    return f"{head}_{_singular(word)}" if head else _singular(word)


def _singular(word: str) -> str:
    if word in _UNCHANGED or len(word) < 4:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, replacement in _ENDINGS:
        if word.endswith(ending):
            return word[: -len(ending)] + replacement
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def field_name(column: str) -> str:
    """A contract field's name; two names are Headwater's own."""
    name = snake(column)
    return f"{name}_value" if name in ("before", "type") else name


@dataclass(frozen=True, slots=True)
class Naming:
    """`namespace` stands before the entity in the stream's name: the application's prefix, or the pipeline's name."""

    namespace: str
    entity: str

    @property
    def stream(self) -> str:
        return f"{self.namespace}.{self.entity}"


def name_tables(tables: Iterable[str], *, pipeline: str) -> dict[str, Naming]:
    """A stream and an entity for each table; both are unique.

    `student_courseenrollment` is the entity `courseenrollment` of the application `student`, if other tables have that
    prefix too, or none of them is called `student` (then `student_note` is an entity of its own, not a note of that
    application).
    """
    names = {table: snake(table) for table in tables}
    prefixes = _applications(list(names.values()))
    named = {table: _naming(name, prefixes, snake(pipeline)) for table, name in names.items()}
    return _unique(named, names)


# Prefixes of applications that have one table that is worth publishing.
_KNOWN_APPLICATIONS = frozenset({"auth", "student", "accounts", "enterprise", "certificates", "grades", "django"})


def _applications(names: list[str]) -> frozenset[str]:
    whole = {singular(name) for name in names} | set(names)
    counts = Counter(name.split("_", 1)[0] for name in names if "_" in name)
    return frozenset(p for p, n in counts.items() if p not in whole and (n > 1 or p in _KNOWN_APPLICATIONS))


def _naming(name: str, prefixes: frozenset[str], pipeline: str) -> Naming:
    prefix, _, rest = name.partition("_")
    if prefix in prefixes and rest and rest[0].isalpha():
        return Naming(prefix, singular(rest))
    return Naming(pipeline, singular(name))


def _unique(named: Mapping[str, Naming], names: Mapping[str, str]) -> dict[str, Naming]:
    """Where two tables would have one entity, both take their table's whole name, and then a number."""
    counts = Counter(naming.entity for naming in named.values())
    taken: set[str] = set()
    result = {}
    for table, naming in named.items():
        entity = naming.entity if counts[naming.entity] == 1 else singular(names[table])
        number = 2
        candidate = entity
        while candidate in taken:
            candidate, number = f"{entity}_{number}", number + 1
        taken.add(candidate)
        result[table] = Naming(naming.namespace, candidate)
    return result


def key_field(column: str, entity: str) -> str:
    """The name of an identity: `id` says nothing outside its table."""
    name = field_name(column)
    return f"{entity}_{name}" if name in ("id", "uuid", "key", "pk", "rowid", "oid", "guid") else name


def reference_field(column: str, entity: str, key: str) -> str:
    """`[role_]key`: `user_id` stays, `invited_by_id` becomes `invited_by_user_id`."""
    name = snake(column)
    if name == key or name.endswith(f"_{key}"):
        return name
    role = re.sub(r"_(id|key|uuid|fk|ref)$", "", name).split("_")
    entity_words = set(entity.split("_"))
    while role and (role[-1] in entity_words or _singular(role[-1]) in entity_words or role == ["id"]):
        role.pop()
    return "_".join([*role, key])
