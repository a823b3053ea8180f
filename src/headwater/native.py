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
