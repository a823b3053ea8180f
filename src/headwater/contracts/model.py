"""The contract of one stream, as its YAML file says it.

A contract is the wall: what is not in it does not exist for a consumer. The models are frozen and closed, so that a
misspelt key is an error that names the nearest right one.
"""

from __future__ import annotations

import difflib
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headwater.contracts.types import NUMERIC, FieldType, parse_type
from headwater.errors import ConfigError, ContractError


class Frozen(BaseModel):
    """Base of every configuration model: immutable, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, ignored_types=(cached_property,)
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


Duration = Annotated[float, BeforeValidator(_duration), Field(ge=0)]
"""Seconds; written as `30s`, `5m`, `2h`, `7d`."""


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

    @cached_property
    def parsed(self) -> FieldType:
        return parse_type(self.type)

    @model_validator(mode="after")
    def _consistent(self) -> FieldSpec:
        kind = parse_type(self.type).name
        if self.pattern is not None and kind != "string":
            raise ValueError(f"`pattern` is for strings, not {self.type}")
        if (self.min is not None or self.max is not None) and kind not in (
            *NUMERIC,
            "date",
            "timestamp",
            "local_timestamp",
        ):
            raise ValueError(f"`min` and `max` are for numbers and times, not {self.type}")
        if self.enum is not None and kind not in ("string", "int32", "int64"):
            raise ValueError(f"`enum` is for strings and integers, not {self.type}")
        return self


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


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], data: Any, *, where: str) -> M:
    """`data` as a `model`, or a `ConfigError` that names each wrong place, and the nearest right key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, dict(item)) for item in error.errors()]
        kind = ContractError if model is Contract else ConfigError
        raise kind(f"{where}: " + "; ".join(lines), hint="see docs/configuration.md") from error


def _explain(model: type[BaseModel], item: dict[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    if item["type"] != "extra_forbidden":
        return f"`{'.'.join(path) or 'the file'}`: {item['msg'].removeprefix('Value error, ')}"
    known = _keys_at(model, item["loc"][:-1])
    near = difflib.get_close_matches(path[-1], known, 1, 0.5)
    advice = f"did you mean `{near[0]}`?" if near else f"known keys are {', '.join(known)}"
    return f"`{'.'.join(path)}` is not a known key; {advice}"


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the model that the path leads to; steps that are names within a mapping are passed over."""
    current: type[BaseModel] = model
    for step in path:
        field = current.model_fields.get(str(step))
        inner = _models_in(field.annotation) if field is not None else []
        current = inner[0] if inner else current
    return sorted(field.alias or name for name, field in current.model_fields.items())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
