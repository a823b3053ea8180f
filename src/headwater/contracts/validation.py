"""Data into a model, and pydantic's complaints into sentences that name file, line, key and the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from headwater.contracts.document import Document
from headwater.errors import ConfigError, ContractError

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], data: Any, *, where: str, document: Document | None = None) -> M:
    """`data` as a `model`, or a `ConfigError` that names each wrong place, and the nearest right key.

    `document`: the file that the data came from; with it each complaint begins with `path:line:`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        complaints = _complaints(model, data, error)
        if document is None:
            text = f"{where}: " + "; ".join(words for _, words in complaints)
        else:
            text = "\n".join(f"{document.place(*path)}: {words}" for path, words in complaints)
        is_contract = model.__name__ == "Contract"
        kind, page = (ContractError, "contracts") if is_contract else (ConfigError, "configuration")
        raise kind(text, hint=f"see docs/{page}.md") from error


def _complaints(model: type[BaseModel], data: Any, error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    found: dict[tuple[str | int, ...], str] = {}
    for item in error.errors(include_url=False):
        path = _within(data, item["loc"], item["type"])
        found.setdefault(path, _explain(model, path, dict(item)))
    return list(found.items())


def _within(data: Any, loc: tuple[str | int, ...], kind: str) -> tuple[str | int, ...]:
    """The part of pydantic's `loc` that the data has; its own additions (names of union members) fall away."""
    path: list[str | int] = []
    for step in loc:
        there = isinstance(data, dict) and step in data
        there = there or (isinstance(data, (list, tuple)) and isinstance(step, int) and step < len(data))
        if not there:
            return (*path, step) if kind == "missing" and step == loc[-1] else tuple(path)
        path.append(step)
        data = data[step]
    return tuple(path)


def _explain(model: type[BaseModel], path: tuple[str | int, ...], item: dict[str, Any]) -> str:
    spelled = ".".join(map(str, path)) or "the file"
    if item["type"] == "extra_forbidden":
        return f"`{spelled}` is not a known key; {_advice(str(path[-1]), _keys_at(model, path[:-1]))}"
    if item["loc"] and item["loc"][-1] == "[key]":
        return f"`{spelled}` is no name: lower-case letters, digits and `_`, a letter first"
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"`{spelled}`: a mapping is expected, found {type(item['input']).__name__}"
    if item["type"] == "missing":
        return f"`{spelled}` is missing"
    if item["type"] == "literal_error":
        known = [str(value).strip("' ") for value in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"`{spelled}: {item['input']}` is not possible; {_advice(str(item['input']), known)}"
    return f"`{spelled}`: {item['msg'].removeprefix('Value error, ')}"


def _advice(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else f"known are {', '.join(known)}"


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, known, 1, 0.5)), None)


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the model that the path leads to. In a mapping or list, every second step is a name or number."""
    current: type[BaseModel] = model
    named = False
    for step in path:
        if named:
            named = False
            continue
        field = current.model_fields.get(str(step))
        inner = _models_in(field.annotation) if field is not None else []
        if field is not None and inner:
            current, named = inner[0], _is_collection(field.annotation)
    return sorted(field.alias or name for name, field in current.model_fields.items() if not field.exclude)


def _is_collection(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, list, tuple) or any(map(_is_collection, get_args(annotation)))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
