"""Failpoints: named places between durable steps at which a test can make the process die or fail.

`HEADWATER_FAILPOINTS="bus.append.before_commit=kill:0.01;sink.*=error:1:3"`: a name or `*` pattern, then what happens,
how probable it is, and, optionally, how often at the most. `kill` is SIGKILL to oneself, `error` an OSError.
`HEADWATER_FAILPOINT_SEED` makes the dice repeatable. Without the variable a failpoint costs one comparison.
"""

from __future__ import annotations

import fnmatch
import os
import random
import signal
from dataclasses import dataclass


@dataclass(slots=True)
class _Rule:
    pattern: str
    action: str
    probability: float
    left: int


def _parse(text: str) -> list[_Rule]:
    rules = []
    for part in filter(None, text.split(";")):
        pattern, _, what = part.partition("=")
        action, probability, times = [*what.split(":"), "1", "-1"][:3]
        rules.append(_Rule(pattern, action, float(probability), int(times)))
    return rules


_rules = _parse(os.environ.get("HEADWATER_FAILPOINTS", ""))
_dice = random.Random(int(os.environ.get("HEADWATER_FAILPOINT_SEED", "0")))


def failpoint(name: str) -> None:
    """A place at which a test may kill or fail this process."""
    if _rules:
        _trigger(name)


def set_failpoints(text: str, seed: int = 0) -> None:
    """Set the rules from inside the process (`error` only makes sense there). "" clears them."""
    _rules[:] = _parse(text)
    _dice.seed(seed)


def _trigger(name: str) -> None:
    for rule in _rules:
        if rule.left and fnmatch.fnmatch(name, rule.pattern) and _dice.random() < rule.probability:
            rule.left -= 1
            if rule.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(f"failpoint {name}")
