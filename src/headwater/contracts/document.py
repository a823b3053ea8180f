"""A YAML file as data that still knows on which line each key stands.

Read by the rules of YAML 1.2, which people expect: `no` and `on` are text, not booleans; `1:30` is text, not ninety;
a date is text. A key that is written twice is an error: YAML would silently keep the last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from headwater.errors import ConfigError

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """`lines` leads from the path of a key or list item to its line, counted from 1."""

    path: str
    data: Any
    lines: Mapping[Path, int] = field(default_factory=dict)

    def line(self, *path: str | int) -> int:
        """The line of what `path` leads to, or of the nearest thing around it that is there."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1

    def place(self, *path: str | int) -> str:
        return f"{self.path}:{self.line(*path)}"


def parse_document(text: str, path: str, *, error: type[ConfigError] = ConfigError) -> Document:
    """Raises `error`, which names file and line."""
    loader = _Loader(text)
    collector = _Collector(path, error)
    try:
        node = loader.get_single_node()
        collector.collect(node, ())
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        raise error(f"{path}:{line}: not valid YAML: {problem.problem or problem.context}") from problem
    except yaml.YAMLError as problem:
        raise error(f"{path}: not valid YAML: {problem}") from problem
    finally:
        loader.dispose()
    return Document(path, data, collector.lines)


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it: ten times faster


class _Loader(_Base):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Line ends that only Unicode knows have to be escaped: the emitter would write them as they are, and fold them."""
    style = '"' if any(character in text for character in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _resolve(tag: str, pattern: str, first: str) -> None:
    for either in (_Loader, _Dumper):
        either.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


# The core schema of YAML 1.2, chapter 10.3.2, and the merge key of 1.1.
_resolve("null", r"~|null|Null|NULL|", "~nN\0")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_resolve("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789")
_resolve(
    "float",
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+0123456789.",
)
_resolve("merge", r"<<", "<")


def write_yaml(data: Any, *, flow: bool = False, width: float = 120) -> str:
    """Plain data as YAML that every reader of YAML 1.1 or 1.2 understands alike. `flow`: in braces, on one line."""
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        default_flow_style=flow,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf") if flow else width,
    )
    return text


@dataclass(frozen=True, slots=True)
class _Collector:
    """Walks the nodes once each: an alias has the lines of its first place."""

    file: str
    error: type[ConfigError]
    lines: dict[Path, int] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)

    def collect(self, node: Any, path: Path) -> None:
        if node is None or id(node) in self.seen:
            return
        self.seen.add(id(node))
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.collect(item, (*path, number))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> None:
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else str(key.start_mark)
            line = key.start_mark.line + 1
            if (*path, name) in self.lines:
                hint = f"it is on line {self.lines[*path, name]} already"
                raise self.error(f"{self.file}:{line}: `{name}` is written twice", hint=hint)
            self.lines[*path, name] = line
            self.collect(value, (*path, name))
