"""JSON Schemas of headwater.yaml, contracts and vocabulary.yaml, for editors: made from the models that read them.

To what pydantic derives this adds the short spellings that the models take (a source as its URL alone, retention as a
word, `${VAR}` for a number), and as descriptions the docstrings of classes and attributes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from headwater.errors import ConfigError

Kind = Literal["config", "contract", "vocabulary"]

_MODELS: dict[str, tuple[str, str]] = {
    "config": ("headwater.config", "Config"),
    "contract": ("headwater.contracts.model", "Contract"),
    "vocabulary": ("headwater.contracts.vocabulary", "Vocabulary"),
}
_SHORT: dict[str, dict[str, Any]] = {
    "SourceConfig": {"type": "string", "description": "The URL alone."},
    "BusConfig": {"type": "string", "description": "The URL alone."},
    "Retention": {"enum": ["forever", "compacted"]},
}
_VARIABLE = {"type": "string", "pattern": r"\$\{[^}]+\}", "description": "filled in from the environment"}


def json_schema(kind: str) -> dict[str, Any]:
    """JSON Schema draft 2020-12. `kind`: `config`, `contract` or `vocabulary`."""
    if kind not in _MODELS:
        raise ConfigError(f"`{kind}` has no schema", hint=f"there are {', '.join(_MODELS)}")
    module, name = _MODELS[kind]
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for title, definition in [(name, schema), *definitions.items()]:
        _describe(title, definition)
    schema = _walk(schema, _closed)
    schema["$defs"] = {title: _with_short(title, definition) for title, definition in schema.get("$defs", {}).items()}
    if kind == "config":
        _hide(schema, "directory")
        schema = _with_variables(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"Headwater {kind}"}


def _describe(title: str, definition: dict[str, Any]) -> None:
    for name, text in _docstrings().get(title, {}).items():
        if name in definition.get("properties", {}):
            definition["properties"][name]["description"] = text
    definition.pop("title", None)
    for attribute in definition.get("properties", {}).values():
        attribute.pop("title", None)


def _with_short(title: str, definition: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [_SHORT[title], definition]} if title in _SHORT else definition


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    """A mapping whose keys follow a pattern takes no others."""
    return {**node, "additionalProperties": False} if "patternProperties" in node else node


def _hide(schema: dict[str, Any], name: str) -> None:
    schema["properties"].pop(name, None)


def _with_variables(schema: dict[str, Any]) -> dict[str, Any]:
    """Wherever a number, a boolean or one of a few words is expected, text with a `${VAR}` will do."""
    changed: dict[str, Any] = _walk(schema, lambda node: _or_variable(node) if _is_scalar(node) else node)
    changed["$defs"]["Variable"] = _VARIABLE
    return changed


def _or_variable(node: dict[str, Any]) -> dict[str, Any]:
    outer: dict[str, Any] = {name: node.pop(name) for name in ("description", "default") if name in node}
    return {"anyOf": [node, {"$ref": "#/$defs/Variable"}], **outer}


def _is_scalar(node: dict[str, Any]) -> bool:
    return node.get("type") in ("integer", "number", "boolean") or "enum" in node or "pattern" in node


def _walk(node: Any, change: Callable[[dict[str, Any]], dict[str, Any]], *, key: str = "") -> Any:
    if isinstance(node, list):
        return [_walk(item, change) for item in node]
    if not isinstance(node, dict) or key in ("propertyNames", "default", "examples"):
        return node
    inner = {name: _walk(value, change, key=name) for name, value in node.items()}
    return change(inner) if key not in ("properties", "$defs", "patternProperties") else inner


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """Class -> attribute -> the string literal below it."""
    found: dict[str, dict[str, str]] = {}
    for module in {module for module, _ in _MODELS.values()}:
        tree = ast.parse(inspect.getsource(importlib.import_module(module)))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = _attributes(node)
    return found


def _attributes(node: ast.ClassDef) -> dict[str, str]:
    pairs = zip(node.body, node.body[1:], strict=False)
    return {
        first.target.id: " ".join(second.value.value.split())
        for first, second in pairs
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
        and isinstance(second.value.value, str)
    }
