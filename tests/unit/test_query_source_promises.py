"""What query capture says of itself: guarantees, sentences, findings."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headwater.config import SourceConfig, StreamConfig
from headwater.dialects.sqlite import open_dialect
from headwater.model import TableId
from headwater.sources.query import findings, guarantee


def config(**more: Any) -> StreamConfig:
    return StreamConfig.model_validate({"source": "db", "table": "t", "pattern": "query", **more})


@pytest.mark.parametrize(
    ("more", "keyed", "key", "expected"),
    [
        ({}, True, ("id",), ("exactly_once", "latest", "seen")),
        ({"cursor": "at"}, True, ("id",), ("exactly_once", "latest", "unseen")),
        ({"cursor": "at", "reconcile_deletes": "1h"}, True, ("id",), ("exactly_once", "latest", "seen")),
        ({"cursor": "at"}, False, (), ("at_least_once", "latest", "unseen")),
        ({"cursor": "id"}, True, ("id",), ("exactly_once", "latest", "unseen")),
    ],
)
def test_guarantees(more: dict[str, Any], keyed: bool, key: tuple[str, ...], expected: tuple[str, str, str]) -> None:
    found = guarantee(config(**more), keyed=keyed, key=key)
    assert (found.delivery, found.changes, found.deletes) == expected


def test_f60_what_can_be_missed_is_said() -> None:
    assert guarantee(config(cursor="at", look_back="5m"), keyed=True).notes == (
        "Of several changes between two polls only the last is seen.",
        "A row that commits with a `at` more than 300 s behind the highest one is missed for ever.",
        "Rows whose `at` is NULL, and updates that leave it as it is, are not seen by polls.",
        "Hard deletes are not seen. `reconcile_deletes` would find them.",
    )
    by_id = guarantee(config(cursor="id", reconcile_deletes="1h"), keyed=True, key=("id",))
    assert by_id.notes == (
        "Updates of rows are not seen before the reconciliation.",
        "A row that commits with a `id` more than 1000 ids behind the highest one is found by the reconciliation"
        " every 3600 s.",
        "Should `id` be given out again after the newest rows were deleted, the new row is missed.",
        "Hard deletes are seen by the reconciliation every 3600 s.",
    )


def test_findings(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "f.db")) as connection:
        connection.execute('CREATE TABLE t (id INTEGER PRIMARY KEY, "the at" DATETIME, seen DATETIME NOT NULL)')
        connection.execute("CREATE INDEX t_seen ON t (seen)")
        connection.execute("CREATE TABLE log (v)")
    url = SourceConfig.model_validate(f"sqlite:///{tmp_path}/f.db")
    with closing(open_dialect(config=url)) as dialect:
        table, log = dialect.table(TableId("", "t")), dialect.table(TableId("", "log"))
    assert findings(table, config(cursor="seen")) == []
    assert findings(table, config(cursor="the at")) == [
        "cursor `the at` of t may be NULL; rows in which it is are not seen by polls:"
        " declare it NOT NULL, or set `reconcile_deletes`",
        "cursor `the at` of t has no index, so each poll reads the whole table:"
        ' CREATE INDEX "t_the at" ON "t" ("the at")',
    ]
    assert findings(table, config(cursor="att")) == ["t has no column `att`; columns are id, the at, seen"]
    assert findings(log, config()) == ["log has no key; name the columns that identify a row as `key`"]
