"""What query capture can see of a table, said in whole sentences: for `status`, `doctor` and the check of contracts."""

from __future__ import annotations

from headwater.config import StreamConfig
from headwater.dialects import Table
from headwater.protocols import Guarantee

LOOK_BACK = 60.0
"""Seconds, for a cursor that is a time, unless `look_back` says otherwise."""


def guarantee(config: StreamConfig, *, keyed: bool, key: tuple[str, ...] = ()) -> Guarantee:
    """`key`: the columns that identify a row, so that capture by id is told from capture by timestamp."""
    if config.cursor is None:
        return Guarantee("exactly_once", "latest", "seen", (_LATEST,))
    if key == (config.cursor,):
        return _by_id(config)
    notes = [_LATEST, _late(config, _span(config)), _null(config)]
    if not keyed:
        notes.append("Rows have no key: after a VACUUM, or any other renumbering, the newest may be read twice.")
        return Guarantee("at_least_once", "latest", "unseen", (*notes, _NO_DELETES))
    deletes, note = _deletes(config)
    return Guarantee("exactly_once", "latest", deletes, (*notes, note))


def _by_id(config: StreamConfig) -> Guarantee:
    deletes, note = _deletes(config)
    fixed = "Updates of rows are not seen" + (
        " before the reconciliation." if config.reconcile_deletes is not None else ": the cursor is the key."
    )
    reused = f"Should `{config.cursor}` be given out again after the newest rows were deleted, the new row is missed."
    late = _late(config, f"{config.look_back_ids} ids")
    return Guarantee("exactly_once", "latest", deletes, (fixed, late, reused, note))


_LATEST = "Of several changes between two polls only the last is seen."
_NO_DELETES = "Hard deletes are not seen."


def _span(config: StreamConfig) -> str:
    seconds = LOOK_BACK if config.look_back is None else config.look_back
    return f"{seconds:g} s"


def _late(config: StreamConfig, span: str) -> str:
    text = f"A row that commits with a `{config.cursor}` more than {span} behind the highest one is "
    if config.reconcile_deletes is None:
        return text + "missed for ever."
    return text + f"found by the reconciliation every {config.reconcile_deletes:g} s."


def _null(config: StreamConfig) -> str:
    text = f"Rows whose `{config.cursor}` is NULL, and updates that leave it as it is, are not seen by polls"
    return text + ("." if config.reconcile_deletes is None else ", but by the reconciliation.")


def _deletes(config: StreamConfig) -> tuple[str, str]:
    if config.reconcile_deletes is None:
        return "unseen", f"{_NO_DELETES} `reconcile_deletes` would find them."
    return "seen", f"Hard deletes are seen by the reconciliation every {config.reconcile_deletes:g} s."


def findings(table: Table, config: StreamConfig) -> list[str]:
    """What is wrong, or slow, with this table under this configuration; with the SQL that mends it."""
    found = []
    key = config.key or table.key
    if not key:
        found.append(f"{table.id} has no key; name the columns that identify a row as `key`")
    if config.cursor is None:
        return found
    column = table.column(config.cursor)
    if column is None:
        names = ", ".join(c.name for c in table.columns)
        return [*found, f"{table.id} has no column `{config.cursor}`; columns are {names}"]
    if column.nullable:
        found.append(
            f"cursor `{config.cursor}` of {table.id} may be NULL; rows in which it is are not seen by polls:"
            " declare it NOT NULL, or set `reconcile_deletes`"
        )
    if table.sql is None and not table.is_view and not any(i[:1] == (config.cursor,) for i in _indexes(table)):
        name, cursor = f"{table.id.name}_{config.cursor}".replace('"', ""), config.cursor.replace('"', '""')
        quoted = table.id.name.replace('"', '""')
        found.append(
            f"cursor `{config.cursor}` of {table.id} has no index, so each poll reads the whole table:"
            f' CREATE INDEX "{name}" ON "{quoted}" ("{cursor}")'
        )
    return found


def _indexes(table: Table) -> tuple[tuple[str, ...], ...]:
    return (table.key, *table.unique, *table.indexes)
