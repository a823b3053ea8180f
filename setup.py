"""The compiled modules, which are optional: where they cannot be built, Headwater runs without them.

`HEADWATER_NATIVE=off` builds none; `HEADWATER_NATIVE=require` makes a failure to build them an error.
"""

from __future__ import annotations

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = os.environ.get("HEADWATER_NATIVE", "auto")
MODULES = {"headwater.drivers.sqlite_native": "src/headwater/drivers/sqlite_native.pyx"}


def extensions() -> list[Extension]:
    if NATIVE == "off":
        return []
    found = [
        Extension(name, [source], extra_compile_args=["-O2"], optional=NATIVE != "require")
        for name, source in MODULES.items()
    ]
    modules: list[Extension] = cythonize(found, build_dir="build")  # type: ignore[no-untyped-call]
    return modules


setup(ext_modules=extensions())
