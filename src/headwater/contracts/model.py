"""The contract of one stream, as its YAML file says it.

A contract is the wall: what is not in it does not exist for a consumer. The models are frozen and closed, so that a
misspelt key is an error that names the nearest right one.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from headwater.contracts.document import write_yaml
from headwater.contracts.types import NUMERIC, FieldType, parse_type
from headwater.contracts.validation import validated
from headwater.errors import ContractError

__all__ = ["Consumer", "Contract", "Duration", "EventType", "FieldSpec", "Frozen", "Name", "Retention", "validated"]


class Frozen(BaseModel):
    """Base of every configuration model: immutable, no unknown keys. Errors never show values: one may be a secret."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        ignored_types=(cached_property,),
        hide_input_in_errors=True,
    )


Compatibility = Literal[
    "none", "backward", "backward_transitive", "forward", "forward_transitive", "full", "full_transitive"
]
Delivery = Literal["exactly_once", "at_least_once", "best_effort"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=63)]
StreamName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=200)]


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :]
    try:
        return float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        raise ValueError(f"`{value}` is no duration; write 500ms, 30s, 5m, 2h, 7d or 1w") from None


_SPELLED = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^[0-9.]+\s*(ms|s|m|h|d|w)$"}]}

Duration = Annotated[float, BeforeValidator(_duration), Field(ge=0), WithJsonSchema(_SPELLED)]
"""Seconds; written as `30s`, `5m`, `2h`, `7d`."""


RANGED = (*NUMERIC, "date", "timestamp", "local_timestamp")


class FieldSpec(Frozen):
    """One field. `optional` allows null; `open` lets readers expect enum values beyond the listed ones."""

    type: str
    optional: bool = False
    enum: tuple[str | int, ...] | None = None
    open: bool = False
    min: float | int | str | None = None
    max: float | int | str | None = None
    pattern: str | None = None
    unit: str | None = None
    ref: str | None = None
    term: str | None = None
    pii: Literal["none", "personal", "sensitive"] = "none"
    deprecated: bool | str = False
    default: Any = None
    description: str = ""
    examples: tuple[Any, ...] = ()

    @property
    def parsed(self) -> FieldType:
        return parse_type(self.type)

    @model_validator(mode="after")
    def _consistent(self) -> FieldSpec:
        try:
            kind = parse_type(self.type).name
        except ContractError as error:
            raise ValueError(f"{error.message} ({error.hint})") from error
        self._check_pattern(kind)
        self._check_range(kind)
        self._check_enum(kind)
        if self.default is not None and not _fits(self.default, kind):
            raise ValueError(f"`default: {self.default}` is no {self.type}")
        return self

    def _check_pattern(self, kind: str) -> None:
        if self.pattern is None:
            return
        if kind != "string":
            raise ValueError(f"`pattern` is for strings, not {self.type}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"`pattern: {self.pattern}` is no regular expression: {error}") from error

    def _check_range(self, kind: str) -> None:
        if self.min is None and self.max is None:
            return
        if kind not in RANGED:
            raise ValueError(f"`min` and `max` are for numbers and times, not {self.type}")
        low, high = bound(self.min), bound(self.max)
        if low is not None and high is not None:
            if type(low) is not type(high):
                raise ValueError(f"`min: {self.min}` and `max: {self.max}` cannot be compared")
            if low > high:  # type: ignore[operator]
                raise ValueError(f"`min: {self.min}` is above `max: {self.max}`")

    def _check_enum(self, kind: str) -> None:
        if self.enum is None:
            if self.open:
                raise ValueError("`open` is for a field with an `enum`")
            return
        if kind not in ("string", "int32", "int64"):
            raise ValueError(f"`enum` is for strings and integers, not {self.type}")
        wrong = [value for value in self.enum if isinstance(value, str) != (kind == "string")]
        if wrong or not self.enum:
            raise ValueError(
                f"`enum` of a {self.type} lists {self.type} values, not {wrong[0] if wrong else 'nothing'}"
            )
        if len(set(self.enum)) < len(self.enum):
            raise ValueError("`enum` lists a value twice")


def bound(value: float | int | str | None) -> Decimal | str | None:
    """A `min` or `max` as it is to be compared: a number, if it is one, however it was written; else a time as text."""
    if value is None:
        return None
    try:
        return Decimal(str(value))
    except InvalidOperation:
        return str(value)


def _fits(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return kind == "json"
    if kind in ("int32", "int64"):
        return isinstance(value, int)
    if kind in NUMERIC:
        return isinstance(value, (int, float)) or (kind == "decimal" and isinstance(bound(value), Decimal))
    expected: dict[str, tuple[type, ...]] = {"list": (list,), "map": (dict,), "struct": (dict,), "json": (object,)}
    return isinstance(value, expected.get(kind, (str,)))


class Retention(Frozen):
    """`{age: 7d, until_consumed: true}`; `forever` and `compacted` are spelled as plain words."""

    age: Duration | None = None
    until_consumed: bool = False
    compacted: bool = False
    tombstones: Duration = 86400.0
    """How long a delete is kept in a compacted stream, at the least."""
    max_bytes: int | None = None
    """At this size the stream stops and alarms; it never drops."""

    @model_validator(mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return {"forever": {}, "compacted": {"compacted": True}}.get(value, value) if isinstance(value, str) else value

    @property
    def spelled(self) -> str | dict[str, Any]:
        """As it is written in a contract."""
        if self == Retention():
            return "forever"
        if self == Retention(compacted=True):
            return "compacted"
        return self.model_dump(exclude_defaults=True, exclude_none=True)

    @property
    def forever(self) -> bool:
        return self.age is None and not self.compacted and not self.until_consumed


class Consumer(Frozen):
    name: str
    team: str = ""
    fields: tuple[str, ...] = ()


class EventType(Frozen):
    fields: dict[Name, FieldSpec]
    description: str = ""


class Contract(Frozen):
    """One version of one stream's contract. `fields` or, for `kind: event`, `types`."""

    stream: StreamName
    version: int = Field(ge=1)
    description: str = ""
    owner: str = ""
    kind: Literal["fact", "event"] = "fact"
    key: tuple[Name, ...] = ()
    compatibility: Compatibility = "full_transitive"
    delivery: Delivery = "exactly_once"
    changes: Literal["every", "latest"] = "latest"
    deletes: Literal["seen", "unseen"] = "unseen"
    retention: Retention = Retention()
    consumers: tuple[Consumer, ...] = ()
    fields: dict[Name, FieldSpec] = Field(default_factory=dict)
    types: dict[Name, EventType] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        if self.types and self.kind != "event":
            raise ValueError("`types` is for `kind: event`; a fact has one shape")
        if bool(self.types) == bool(self.fields):
            raise ValueError("a contract has `fields`, or `types` with fields of their own")
        if self.kind == "fact" and not self.key:
            raise ValueError("a fact needs a `key`: the fields that identify its entity")
        for type_name in self.type_names:
            self._check_shape(type_name)
        self._check_shared_names()
        self._check_retention()
        self._check_consumers()
        return self

    def _check_shape(self, type_name: str | None) -> None:
        fields = self.shape(type_name)
        where = f" of type `{type_name}`" if type_name else ""
        for name in fields:
            if name in ("before", "type"):
                raise ValueError(f"field `{name}`{where}: the name belongs to Headwater")
        for name in self.key:
            if name not in fields:
                raise ValueError(f"key field `{name}` is not among the fields{where}")
            if fields[name].optional:
                raise ValueError(f"key field `{name}`{where} cannot be optional")
            if fields[name].parsed.name in ("list", "map", "struct", "json", "float32", "float64"):
                raise ValueError(f"key field `{name}`{where}: {fields[name].type} cannot be part of a key")

    def _check_shared_names(self) -> None:
        types: dict[str, str] = {}
        for type_name in self.type_names:
            for name, spec in self.shape(type_name).items():
                first = types.setdefault(name, spec.type)
                if parse_type(first) != spec.parsed:
                    raise ValueError(f"field `{name}` is {first} in one type and {spec.type} in another")
        if len(set(self.key)) < len(self.key):
            raise ValueError("`key` names a field twice")

    def _check_retention(self) -> None:
        if not self.retention.compacted:
            return
        if not self.key:
            raise ValueError("`retention: compacted` keeps the newest event of each key, and there is no `key`")
        if self.types:
            raise ValueError(
                "`retention: compacted` would drop the earlier of two events of different `types`; "
                "keep them by `forever` or `age`"
            )

    def _check_consumers(self) -> None:
        for consumer in self.consumers:
            missing = sorted(set(consumer.fields) - set(self.all_fields))
            if missing:
                raise ValueError(f"consumer `{consumer.name}` uses fields that do not exist: {', '.join(missing)}")

    @property
    def type_names(self) -> tuple[str | None, ...]:
        """The event types, or (None,) for a contract of one shape."""
        return tuple(self.types) or (None,)

    def shape(self, type_name: str | None = None) -> dict[str, FieldSpec]:
        """The fields of one event type (None: of a contract without types)."""
        return self.types[type_name].fields if type_name is not None else self.fields

    @property
    def all_fields(self) -> dict[str, FieldSpec]:
        """Every field of every type; what a sink's table has. Types that share a name must share its type."""
        return {name: spec for t in self.type_names for name, spec in self.shape(t).items()}

    @property
    def keeps_history(self) -> bool:
        """Whether events of old versions stay for good, so that every new version has to be able to read them."""
        return self.retention.forever or self.retention.compacted

    def consumers_of(self, field: str) -> list[str]:
        """The declared consumers that use a field; one that names no fields uses all of them."""
        return [c.name for c in self.consumers if not c.fields or field in c.fields]


def dump(contract: Contract) -> str:
    """The contract as YAML, defaults left out but for those that are its promises."""
    data = contract.model_dump(exclude_defaults=True, exclude_none=True, mode="json")
    for promise in ("kind", "compatibility", "delivery", "changes", "deletes"):
        data.setdefault(promise, getattr(contract, promise))
    data["retention"] = contract.retention.spelled
    ordered = {name: data[name] for name in Contract.model_fields if name in data}
    return write_yaml(ordered)
