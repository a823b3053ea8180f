"""What the `*_cy.py` modules need of `cython` where it is not installed: they run as ordinary Python then.

Only what they use is here. Types need nothing: annotations are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

compiled = False


class _NoGil:
    """`with cython.nogil` and `@cython.nogil`."""

    def __call__(self, thing: T) -> T:
        return thing

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


nogil = _NoGil()


def cclass(thing: T) -> T:
    return thing


def cfunc(thing: T) -> T:
    return thing


def inline(thing: T) -> T:
    return thing


def exceptval(*, check: bool) -> Callable[[T], T]:
    return lambda thing: thing
