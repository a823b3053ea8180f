"""The compiled modules, which are optional: where they cannot be built, Headwater runs without them.

`HEADWATER_NATIVE=off` builds none; `HEADWATER_NATIVE=require` makes a failure to build them an error.
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = os.environ.get("HEADWATER_NATIVE", "auto")
SOURCES = Path("src")


def sources() -> dict[str, str]:
    """Module -> source. Those named `*_cy` are Python files that run uncompiled, too."""
    found = [*SOURCES.rglob("*.pyx"), *SOURCES.rglob("*_cy.py")]
    return {".".join(path.relative_to(SOURCES).with_suffix("").parts): str(path) for path in sorted(found)}


def extensions() -> list[Extension]:
    if NATIVE == "off":
        return []
    found = [
        Extension(name, [source], extra_compile_args=["-O2"], optional=NATIVE != "require")
        for name, source in sources().items()
    ]
    modules: list[Extension] = cythonize(found, build_dir="build")  # type: ignore[no-untyped-call]
    return modules


setup(ext_modules=extensions(), options={"build_ext": {"parallel": os.cpu_count() or 1}})
