"""Where the functions of the loaded SQLite library are: of the very one that Python's `sqlite3` is linked to.

A second copy of the library in one process breaks the locks of the first (docs/decisions/0001-one-sqlite-library.md),
so the native engine brings none and links to none; it is given addresses.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import functools
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from types import ModuleType

from headwater import native

FUNCTIONS = (
    "open_v2", "close_v2", "errmsg", "extended_errcode", "extended_result_codes", "busy_timeout", "prepare_v2",
    "step", "reset", "finalize", "clear_bindings", "interrupt", "get_autocommit", "total_changes", "progress_handler",
    "bind_parameter_count", "bind_parameter_name", "bind_null", "bind_int64", "bind_double", "bind_text", "bind_blob64",
    "column_count", "column_type", "column_int64", "column_double", "column_text", "column_blob", "column_bytes",
)  # fmt: skip


@functools.cache
def engine_module() -> ModuleType | None:
    """The native engine, bound to the library; None where there is no such module or the library hides itself."""
    module = native.compiled("headwater.drivers.sqlite_native")
    found = addresses() if module is not None else None
    if module is None or found is None:
        return None
    module.bind_library(found)
    return module


def addresses() -> Mapping[str, int] | None:
    """The address of each function; None if one of them, or the library, cannot be found."""
    try:
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        found = {name: _address(library, name) for name in FUNCTIONS}
        library.sqlite3_sourceid.restype = ctypes.c_char_p
        source = library.sqlite3_sourceid()
    except (OSError, AttributeError):
        return None
    with closing(sqlite3.connect(":memory:")) as connection:
        ((expected,),) = connection.execute("SELECT sqlite_source_id()")
    return found if source == expected.encode() else None


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, f"sqlite3_{name}"), ctypes.c_void_p).value
    if address is None:
        raise AttributeError(name)
    return address
