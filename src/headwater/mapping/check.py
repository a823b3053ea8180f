"""The contract's rules as vectorised tests: each gives, for one field's column, which rows break it.

Rules stand in the order in which a reason is most useful: missing values first, then what a value may not be. Types,
and with them the precision of decimals and the spelling of UUIDs, are the casts' part.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.contracts.model import FieldSpec
from headwater.errors import MappingError
from headwater.mapping.engine import Engine
from headwater.mapping.evolve import typed
from headwater.schema import arrow_type

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rule:
    """`holds` gives true, false or (for null values) null for each value."""

    field: str
    expected: str
    holds: Callable[[pa.Array], pa.Array]


def rules(shape: Mapping[str, FieldSpec], engine: Engine, *, what: str) -> list[Rule]:
    """What values that are there must fulfil. Raises `MappingError` for a rule that cannot be applied."""
    found: list[Rule] = []
    for name, spec in shape.items():
        try:
            found += _rules_of(name, spec, engine)
        except (ValueError, TypeError, ArithmeticError, pa.ArrowException) as error:
            raise MappingError(f"{what}, field `{name}`: its rules cannot be applied: {error}") from error
    return found


def _rules_of(name: str, spec: FieldSpec, engine: Engine) -> Iterator[Rule]:
    if spec.enum is not None and not spec.open:
        allowed = pa.array(list(spec.enum), arrow_type(spec.parsed))
        yield Rule(name, f"one of {', '.join(map(str, spec.enum))}", _among(allowed))
    if spec.min is not None:
        yield Rule(name, f"at least {spec.min}", _compared(pc.greater_equal, spec, spec.min))
    if spec.max is not None:
        yield Rule(name, f"at most {spec.max}", _compared(pc.less_equal, spec, spec.max))
    if spec.pattern is not None:
        yield Rule(name, f"text that matches {spec.pattern}", _matching(spec.pattern))
    if spec.parsed.name == "json":
        yield Rule(name, "JSON text", engine.valid_json)


def _among(allowed: pa.Array) -> Callable[[pa.Array], pa.Array]:
    return lambda values: pc.or_kleene(pc.is_in(values, allowed), pc.is_null(values))


def _compared(compare: Callable[[pa.Array, pa.Scalar], pa.Array], spec: FieldSpec, limit: Any) -> Any:
    bound = _bound(spec, limit)
    return lambda values: compare(values, bound)


def _bound(spec: FieldSpec, limit: Any) -> pa.Scalar:
    """A limit in the field's type; where it has more digits than the field, or is no whole number, as a decimal."""
    kind = spec.parsed
    if kind.name in ("int32", "int64", "decimal"):
        number = decimal.Decimal(str(limit))
        return pa.scalar(int(number), pa.int64()) if kind.name != "decimal" and number % 1 == 0 else pa.scalar(number)
    if kind.name in ("float32", "float64"):
        return pa.scalar(float(limit), pa.float64())
    return pa.scalar(typed(kind, limit), arrow_type(kind))


def _matching(pattern: str) -> Callable[[pa.Array], pa.Array]:
    pc.match_substring_regex(pa.array([""]), pattern)  # RE2 lacks look-around and back references: say so at once
    return lambda values: pc.match_substring_regex(values, pattern)


def missing(values: pa.Array, unknown: Mask | None) -> npt.NDArray[np.int64]:
    """The rows whose value is null although it must not be; a value that was not carried is not missing."""
    if not values.null_count:
        return np.zeros(0, dtype=np.int64)
    null = values.is_null().to_numpy(zero_copy_only=False)
    return np.flatnonzero(null if unknown is None else null & ~unknown)


def broken(rule: Rule, values: pa.Array) -> npt.NDArray[np.int64]:
    """The rows whose value is there and breaks the rule."""
    if values.null_count == len(values):
        return np.zeros(0, dtype=np.int64)
    holds = rule.holds(values)
    if pc.all(holds, min_count=0).as_py():
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(pc.fill_null(pc.invert(holds), False).to_numpy(zero_copy_only=False))
