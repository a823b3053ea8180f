"""Which of the compiled modules run, and the one switch for them.

`HEADWATER_NATIVE=off` does without, `HEADWATER_NATIVE=require` makes their absence an error; otherwise they are used
where they were built. Either way the results are the same.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

from headwater.errors import MissingExtra

VARIABLE = "HEADWATER_NATIVE"


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
                hint="install a C compiler and run `pip install --force-reinstall headwater`",
            ) from error
        return None


def running() -> str:
    """`native` or `pure Python`: for `--version` and the header of the tests."""
    return "native" if compiled("headwater.drivers.sqlite_native") is not None else "pure Python"
