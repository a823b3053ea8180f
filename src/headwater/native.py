"""Which of the compiled modules run, and the one switch for them.

Those written in Cython (`*.pyx`) have a counterpart in Python; those named `*_cy` are Python files that are compiled
where a compiler is there, and run as they are elsewhere. `HEADWATER_NATIVE=off` does without compiled ones,
`HEADWATER_NATIVE=require` makes their absence an error; otherwise they are used where they were built. Either way the
results are the same.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

from headwater.errors import MissingExtra

VARIABLE = "HEADWATER_NATIVE"

COMPILED = (
    "headwater.buses.embedded.segments_native",
    "headwater.drivers.postgres_native",
    "headwater.drivers.sqlite_native",
    "headwater.mapping.projection_native",
    "headwater.wire.pgcopy_native",
    "headwater.wire.pgoutput_native",
)
EITHER = (
    "headwater.wire.array_text_cy",
    "headwater.wire.pgcopy_cy",
    "headwater.wire.pgoutput_cy",
    "headwater.wire.pgoutput_values_cy",
)


def setting() -> str:
    """`auto`, `off` or `require`."""
    value = os.environ.get(VARIABLE, "auto") or "auto"
    if value not in ("auto", "off", "require"):
        raise MissingExtra(f"{VARIABLE} is `{value}`; auto, off or require is expected")
    return value


@functools.cache
def compiled(name: str) -> ModuleType | None:
    """The compiled module, or None. Raises `MissingExtra` where it is required and missing."""
    if setting() == "off":
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if setting() == "require":
            raise MissingExtra(
                f"{VARIABLE}=require, but {name} cannot be imported: {error}",
                hint=_BUILD,
            ) from error
        return None


def either(name: str) -> ModuleType:
    """A `*_cy` module: compiled, or the same lines as Python. Raises `MissingExtra` as `compiled` does."""
    return uncompiled(name) if setting() == "off" else _imported(name)


@functools.cache
def uncompiled(name: str) -> ModuleType:
    """A `*_cy` module as Python, even where it was compiled."""
    package, _, last = name.rpartition(".")
    folder = Path(next(iter(importlib.import_module(package).__path__)))
    spec = importlib.util.spec_from_file_location(name, folder / f"{last}.py")
    if spec is None or spec.loader is None:
        raise MissingExtra(f"{name} has no Python file in {folder}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_compiled(module: ModuleType) -> bool:
    return not str(module.__file__).endswith(".py")


def running() -> str:
    """`native` (all of them), `pure Python` (none) or `partly native`: for `--version` and the tests' header."""
    found = [compiled(name) is not None for name in COMPILED] + [is_compiled(either(name)) for name in EITHER]
    if all(found):
        return "native"
    return "partly native" if any(found) else "pure Python"


def _imported(name: str) -> ModuleType:
    module = importlib.import_module(name)
    if setting() == "require" and not is_compiled(module):
        raise MissingExtra(f"{VARIABLE}=require, but {name} is not compiled", hint=_BUILD)
    return module


_BUILD = "install a C compiler and run `pip install --force-reinstall headwater`"
