"""The options of a PostgreSQL source. All patterns know all of them, for one source may feed streams of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from headwater.contracts.model import Duration, Frozen, validated
from headwater.errors import ConfigError
from headwater.model import TableId

ColumnName = Annotated[str, Field(pattern=r"^.+\..+\..+$")]


class Options(Frozen):
    """`options` of the source in headwater.yaml. All but `as_text` are of the log alone."""

    idle_advance: Duration = 5.0
    """How often, at the most, a position moves although nothing that is captured has changed."""
    heartbeat: Duration = 60.0
    """How long the log of this database may be silent, while the server writes, before a message is put into it."""
    binary: Literal["auto", "off"] = "auto"
    """Whether values travel in binary, where every captured column can."""
    streaming: Literal["auto", "off"] = "auto"
    """Whether large transactions are sent before their commit, where the server can (14 and later)."""
    as_text: tuple[ColumnName, ...] = Field(default=())
    """Columns (`schema.table.column`) that are strings, whatever their type."""
    origin: Literal["any", "none"] = "any"
    """`none`: only what was written here, not what replication brought from elsewhere."""


def options_of(given: Mapping[str, Any], source: str = "") -> Options:
    """Raises `ConfigError` for an option that is not known, with the nearest one that is."""
    where = f"options of source `{source}`" if source else "options of a PostgreSQL source"
    return validated(Options, dict(given), where=where)


def texts_of(table: TableId, columns: Iterable[str], texts: Iterable[str]) -> frozenset[str]:
    """The columns of a table that `as_text` names. Raises `ConfigError` for one that the table has not."""
    prefix, known = f"{table}.", list(columns)
    wanted = {text.removeprefix(prefix) for text in texts if text.startswith(prefix)}
    for name in sorted(wanted.difference(known)):
        raise ConfigError(
            f"option `as_text`: table {table} has no column `{name}`", hint=f"columns are {', '.join(known)}"
        )
    return frozenset(wanted)
