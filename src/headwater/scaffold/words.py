"""From the names of a database to names of a domain: entities, their streams, their fields."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headwater.contracts.naming import LONGEST, cut, field_name, snake


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


@dataclass(frozen=True, slots=True)
class Naming:
    """`namespace` stands before the entity in the stream's name: the application's prefix, or the pipeline's name."""

    namespace: str
    entity: str

    @property
    def stream(self) -> str:
        return f"{self.namespace}.{self.entity}"


def parted(name: str, known: frozenset[str]) -> str:
    """Words that were written together, as Django does with the names of models, parted where a known word begins them.

    `courseenrollment` becomes `course_enrollment` in a database that speaks of courses elsewhere.
    """
    return "_".join(part for word in name.split("_") for part in _parted(word, known))


def _parted(word: str, known: frozenset[str]) -> list[str]:
    if word in known:
        return [word]
    for end in range(len(word) - _SHORTEST, _SHORTEST - 1, -1):
        if word[:end] in known:
            return [word[:end], *_parted(word[end:], known)]
    return [word]


_SHORTEST = 4
"""Letters of a word; shorter ones begin too many others."""


def name_tables(tables: Iterable[str], *, pipeline: str, columns: Iterable[str] = ()) -> dict[str, Naming]:
    """A stream and an entity for each table; both are unique. `columns` tell which words the database speaks in.

    `student_courseenrollment` is the entity `courseenrollment` of the application `student`, if other tables have that
    prefix too, or none of them is called `student` (then `student_note` is an entity of its own, not a note of that
    application).
    """
    names = {table: snake(table) for table in tables}
    prefixes = _applications(list(names.values()))
    known = _vocabulary(names.values(), columns)
    named = {table: _naming(name, prefixes, namespace_of(pipeline), known) for table, name in names.items()}
    return _unique(named, names)


def namespace_of(pipeline: str) -> str:
    """The pipeline's name, for streams of tables without a prefix; `headwater...` is reserved."""
    name = snake(pipeline)
    return cut("db", f"_{name[:40]}") if name.startswith("headwater") else name


# Prefixes of applications that have one table that is worth publishing.
_KNOWN_APPLICATIONS = frozenset({"auth", "student", "accounts", "enterprise", "certificates", "grades", "django"})


def _applications(names: list[str]) -> frozenset[str]:
    whole = {singular(name) for name in names} | set(names)
    counts = Counter(name.split("_", 1)[0] for name in names if "_" in name)
    return frozenset(p for p, n in counts.items() if p not in whole and (n > 1 or p in _KNOWN_APPLICATIONS))


def _vocabulary(tables: Iterable[str], columns: Iterable[str]) -> frozenset[str]:
    """The words of tables' and columns' names that are written apart somewhere: `course_id` knows of courses."""
    apart = [name for name in (*tables, *map(snake, columns)) if "_" in name]
    found = frozenset(_singular(word) for name in apart for word in name.split("_") if len(word) >= _SHORTEST)
    return frozenset(word for word in found if _parted(word, found - {word}) == [word])


def _naming(name: str, prefixes: frozenset[str], pipeline: str, known: frozenset[str]) -> Naming:
    prefix, _, rest = name.partition("_")
    if prefix in prefixes and rest and rest[0].isalpha():
        return Naming(prefix, parted(singular(rest), known))
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
            candidate, number = cut(entity, f"_{number}"), number + 1
        taken.add(candidate)
        result[table] = Naming(naming.namespace, candidate)
    return result


def key_field(column: str, entity: str) -> str:
    """The name of an identity: `id` says nothing outside its table."""
    name = field_name(column)
    return cut(entity, f"_{name}") if name in ("id", "uuid", "key", "pk", "rowid", "oid", "guid") else name


def reference_field(column: str, entity: str, key: str) -> str:
    """`[role_]key`: `user_id` stays, `invited_by_id` becomes `invited_by_user_id`."""
    name = snake(column)
    if name == key or name.endswith(f"_{key}"):
        return name
    role = re.sub(r"_(id|key|uuid|fk|ref)$", "", name).split("_")
    entity_words = set(entity.split("_"))
    while role and (role[-1] in entity_words or _singular(role[-1]) in entity_words or role == ["id"]):
        role.pop()
    return cut("_".join(role), f"_{key}") if role and len(key) < LONGEST - 1 else key
