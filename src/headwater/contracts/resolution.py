"""Whether a reader that expects one type can take what a writer of another wrote.

Avro's promotions (specification 1.12, "Schema Resolution"), and stricter where logical types make the difference:
equal bytes under another scale, zone or unit are another value. Promotions that Avro allows although they may alter a
value are `LOSSY`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from headwater.contracts.types import FieldType


class Resolution(enum.IntEnum):
    EXACT = 0
    LOSSY = 1
    """Avro resolves it, and some values come out changed or not at all."""
    IMPOSSIBLE = 2


_PROMOTED: dict[tuple[str, str], Resolution] = {
    # writer, reader
    ("int32", "int64"): Resolution.EXACT,
    ("int32", "float32"): Resolution.LOSSY,  # exact to 2**24 only
    ("int32", "float64"): Resolution.EXACT,
    ("int64", "float32"): Resolution.LOSSY,
    ("int64", "float64"): Resolution.LOSSY,  # exact to 2**53 only
    ("float32", "float64"): Resolution.EXACT,
    ("string", "bytes"): Resolution.EXACT,
    ("bytes", "string"): Resolution.LOSSY,  # not all bytes are UTF-8
    ("uuid", "string"): Resolution.EXACT,
    ("json", "string"): Resolution.EXACT,
    ("uuid", "bytes"): Resolution.EXACT,
    ("json", "bytes"): Resolution.EXACT,
}


def resolve(*, reader: FieldType, writer: FieldType) -> Resolution:
    if reader == writer:
        return Resolution.EXACT
    if reader.name != writer.name:
        return _PROMOTED.get((writer.name, reader.name), Resolution.IMPOSSIBLE)
    if reader.name == "decimal":
        return _decimals(reader, writer)
    if reader.name in ("list", "map"):
        return resolve(reader=reader.items[0], writer=writer.items[0])
    return _structs(reader, writer)


def _decimals(reader: FieldType, writer: FieldType) -> Resolution:
    """The scale must be the same; more digits before the point are room that the writer did not use."""
    fits = reader.scale == writer.scale and reader.precision >= writer.precision
    return Resolution.EXACT if fits else Resolution.IMPOSSIBLE


def _structs(reader: FieldType, writer: FieldType) -> Resolution:
    """Members go by name and are all nullable: one that either side lacks is null or ignored."""
    written = dict(zip(writer.names, writer.items, strict=True))
    pairs = zip(reader.names, reader.items, strict=True)
    return _worst(resolve(reader=item, writer=written[name]) for name, item in pairs if name in written)


def _worst(resolutions: Iterable[Resolution]) -> Resolution:
    return max(resolutions, default=Resolution.EXACT)
