"""Changes and mappings written as rows, for tests of the mapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from headwater.config import StreamConfig
from headwater.contracts.model import Contract
from headwater.mapping.stream import MappingPlan, StreamMapping
from headwater.model import Changes, Events, Op, Rejected, TableId, changes_schema

TABLE = TableId("", "enrollment")
COLUMNS = pa.schema([("id", pa.int64()), ("mode", pa.string()), ("price", pa.float64())])
LETTERS = {op.letter: op for op in Op}
FIELDS: dict[str, Any] = {
    "id": {"type": "int64"},
    "mode": {"type": "string", "optional": True},
    "price": {"type": "float64", "optional": True},
}

Row = dict[str, Any]


def contract(fields: dict[str, Any] | None = None, **more: Any) -> Contract:
    data: dict[str, Any] = {"stream": "learning.enrollment", "version": 1, "key": ["id"], **more}
    if "types" not in more:
        data["fields"] = FIELDS if fields is None else fields
    return Contract.model_validate(data)


def config(**more: Any) -> StreamConfig:
    return StreamConfig.model_validate({"source": "lms", "table": "enrollment", "pattern": "trigger", **more})


def mapping(
    settings: dict[str, Any] | None = None,
    of: Contract | None = None,
    *,
    columns: pa.Schema = COLUMNS,
    key: Sequence[str] = ("id",),
    function: Callable[..., Any] | None = None,
) -> StreamMapping:
    of = of or contract()
    plan = MappingPlan(
        stream=of.stream,
        config=config(**(settings or {})),
        contract=of,
        columns=columns,
        key=tuple(key),
        pipeline="test",
        source="lms/trigger",
        function=function,
    )
    return StreamMapping(plan)


def change(letter: str, before: Row | None = None, after: Row | None = None, **more: Any) -> Row:
    """One change as a row; its `_commit` is its place in the batch unless told."""
    return {"_op": int(LETTERS[letter]), "before": before, "after": after, **more}


def changes(
    rows: Sequence[Row], *, columns: pa.Schema = COLUMNS, unchanged: bool = False, invalid: bool = False, cut: int = 0
) -> Changes:
    """`cut`: how many foreign rows lie on either side of the batch in the same buffers."""
    filler = [change("c", None, None) for _ in range(cut)]
    numbered = [
        {"_epoch": 1, "_commit": number, "_index": 0, **row} for number, row in enumerate([*filler, *rows, *filler])
    ]
    schema = changes_schema(columns, unchanged=unchanged, invalid=invalid)
    data = pa.RecordBatch.from_pylist(numbered, schema=schema).slice(cut, len(rows))
    data.validate(full=True)
    return Changes(TABLE, data)


def mapped(of: StreamMapping, rows: Sequence[Row], **more: Any) -> list[Row]:
    """The events of `rows`, as rows of op letter, commit, index and fields; nothing may be rejected."""
    events, rejected = of.apply(changes(rows, **more))
    assert rejected is None, rejected.reasons.to_pylist()
    return plain(events)


def plain(events: Sequence[Events]) -> list[Row]:
    found = []
    for part in events:
        part.data.validate(full=True)
        for row in part.data.to_pylist():
            shown = {name: value for name, value in row.items() if not name.startswith("_")}
            marks = {} if row.get("_unchanged") is None else {"unchanged": row["_unchanged"]}
            kind = {} if part.type is None else {"type": part.type}
            place = {"op": Op(row["_op"]).letter, "at": (row["_commit"], row["_index"])}
            found.append({**place, **kind, **shown, **marks})
    return found


def reasons(rejected: Rejected | None) -> list[Row]:
    assert rejected is not None
    assert rejected.changes.data.num_rows == rejected.reasons.num_rows
    found: list[Row] = rejected.reasons.to_pylist()
    return found
