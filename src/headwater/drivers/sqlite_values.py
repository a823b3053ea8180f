"""What SQLite stores, as Arrow columns: the physical types, and the marks for values that do not fit them.

SQLite types values, not columns. A column is read as one of four exact physical types, or as `VARIANT`, which keeps
each value in the child named after its storage class and leaves the judgement to the dialect.

    int64    INTEGER; a REAL that is a whole number of at most 2**53
    float64  REAL; an INTEGER of at most 2**53
    string   TEXT in valid UTF-8
    binary   BLOB
    VARIANT  anything but TEXT in invalid UTF-8

Anything else becomes null and is reported in `_invalid` (`model.INVALID`): never rounded, never converted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from headwater.drivers.sqlite_errors import StatementError
from headwater.errors import SourceError
from headwater.model import INVALID

VARIANT = pa.struct([("integer", pa.int64()), ("real", pa.float64()), ("text", pa.string()), ("blob", pa.binary())])
PHYSICAL = (pa.int64(), pa.float64(), pa.string(), pa.binary(), VARIANT)

EXACT = 2**53
"""The largest magnitude up to which every whole number is a float64."""

SHOWN = 2**20
"""How many bytes of a text or blob a mark holds: the quarantine is to have the value, not a hint of it."""

BYTES = 32 * 2**20
"""A record batch ends at the row at which its texts and blobs pass this size, so that wide rows stay in memory."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """One value that its column cannot hold. `got` says its storage class and the value, `SHOWN` bytes at the most."""

    row: int
    column: str
    expected: str
    got: str


def check_physical(columns: pa.Schema) -> None:
    """Raises `SourceError` for a column that is not one of `PHYSICAL`."""
    for field in columns:
        if field.type not in PHYSICAL:
            raise SourceError(f"column `{field.name}`: {field.type} is no physical type of SQLite")


def check_width(found: int, columns: pa.Schema) -> None:
    if found != len(columns):
        raise SourceError(f"the statement gives {found} columns, {len(columns)} are expected: {columns.names}")


def check_count(path: str, wanted: int, given: int) -> None:
    if wanted != given:
        raise StatementError(f"{path}: the statement has {wanted} parameters, {given} values are given")


class Undecodable(bytes):
    """TEXT that is not UTF-8, kept apart from BLOBs."""


def decoded(raw: bytes) -> str | Undecodable:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return Undecodable(raw)


def expected_of(wanted: pa.DataType) -> str:
    """What a mark says was expected."""
    return "text in UTF-8" if wanted == VARIANT else str(wanted)


def bindable(path: str, batch: pa.RecordBatch) -> list[pa.Array]:
    """The columns as int64, float64, string, binary (or their large kinds) or null: what a statement can bind."""
    return [_bindable(path, field, column) for field, column in zip(batch.schema, batch.columns, strict=True)]


def _bindable(path: str, field: pa.Field, column: pa.Array) -> pa.Array:
    kind = field.type
    for fits, wanted in _BOUND_AS:
        if fits(kind):
            try:
                return column if wanted is None or kind == wanted else column.cast(wanted)
            except pa.ArrowInvalid as error:
                raise StatementError(
                    f"{path}: column `{field.name}` does not fit SQLite's integers: {error}"
                ) from error
    raise StatementError(
        f"{path}: column `{field.name}` is {kind}, which SQLite cannot hold",
        hint="convert it to a number, text or bytes first",
    )


_BOUND_AS: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType | None], ...] = (
    (pa.types.is_integer, pa.int64()),
    (pa.types.is_boolean, pa.int64()),
    (pa.types.is_floating, pa.float64()),
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_binary_view, pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
    (pa.types.is_string, None),
    (pa.types.is_large_string, None),
    (pa.types.is_binary, None),
    (pa.types.is_large_binary, None),
    (pa.types.is_null, None),
)


def got(value: int | float | bytes, kind: str, size: int) -> str:
    """`kind` is the storage class; of texts and blobs, `value` is at least the beginning and `size` the whole."""
    if kind == "integer" or not isinstance(value, bytes):
        return f"{kind} {value!r}"
    if kind == "blob":
        return f"blob X'{value[:SHOWN].hex()}{_more(size)}' ({size} bytes)"
    return f"text {_shown_text(value, size)}"


def _shown_text(value: bytes, size: int) -> str:
    text = value[:SHOWN].decode("utf-8", "backslashreplace")
    return f"{text!r}{_more(size)}"


def _more(size: int) -> str:
    return "..." if size > SHOWN else ""


def with_misfits(batch: pa.RecordBatch, misfits: Sequence[Misfit]) -> pa.RecordBatch:
    """The batch with a trailing `_invalid` column, if there is anything to report."""
    if not misfits:
        return batch
    return batch.append_column(pa.field("_invalid", INVALID), invalid_column(batch.num_rows, misfits))


def invalid_column(rows: int, misfits: Sequence[Misfit]) -> pa.Array:
    by_row: dict[int, list[dict[str, str]]] = {}
    for m in misfits:
        by_row.setdefault(m.row, []).append({"column": m.column, "expected": m.expected, "got": m.got})
    return pa.array((by_row.get(row) for row in range(rows)), INVALID, size=rows)
