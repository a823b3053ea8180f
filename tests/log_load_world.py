"""A source of PostgreSQL's log and everything that it gave, folded as whoever reads the stream would, for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from headwater.config import SourceConfig, StreamConfig
from headwater.drivers.postgres import connect, execute
from headwater.model import Batch, Changes, Note, Op, Position, TableId
from headwater.protocols import Capture, Load
from headwater.sources.log_postgres import open_source
from headwater.sources.log_postgres.source import LogSource

Row = dict[str, Any]


def capture(
    table: str, columns: str, key: str = "id", *, load: Load | None = None, stream: str = "", **more: Any
) -> Capture:
    """`table`: without its schema, `public`; `columns` and `key`: separated by blanks."""
    return Capture(
        stream or f"test.{table}",
        TableId("public", table),
        tuple(columns.split()),
        tuple(key.split()),
        StreamConfig(source="db", table=table, pattern="log"),
        load or Load("initial"),
        **more,
    )


class World:
    """`take` runs the source from where it stands and keeps what it gives. Dropping it in between is a crash."""

    def __init__(self, url: str, *captures: Capture) -> None:
        self.url = url
        self.captures = captures
        self.position: Position | None = None
        self.batches: list[Batch] = []

    def source(self) -> LogSource:
        return open_source(
            name="db/log",
            pipeline="test",
            config=SourceConfig.model_validate(self.url),
            captures=self.captures,
            epoch=1,
            config_dir="/tmp",
        )

    def take(self, batches: int | None = None, *, follow: bool = False) -> LogSource:
        """Take so many batches and drop the source, or all up to its end."""
        source = self.source()
        with closing(source):
            for number, _ in enumerate(self.stream(source, follow=follow), 1):
                if number == batches:
                    break
        self._forget_broken_readings()
        return source

    def _forget_broken_readings(self) -> None:
        """Nothing of a reading reaches the bus before its last part."""
        ended = {part.stream for batch in self.batches for part in batch.changes if part.reading and part.reading.last}
        self.batches = [
            dataclasses.replace(
                batch, changes=tuple(p for p in batch.changes if p.reading is None or p.stream in ended)
            )
            for batch in self.batches
        ]

    def stream(self, source: LogSource, *, follow: bool) -> Iterator[Batch]:
        for batch in source.read(self.position, follow=follow):
            assert self.position is None or _place(batch.position) >= _place(self.position)
            self.batches.append(dataclasses.replace(batch, changes=tuple(batch.changes)))
            self.position = batch.position
            source.confirm(batch.position)
            yield batch

    @property
    def notes(self) -> list[Note]:
        return [note for batch in self.batches for note in batch.notes]

    def changes(self, stream: str) -> list[Changes]:
        (wanted,) = (capture for capture in self.captures if capture.stream == stream)
        found = (part for batch in self.batches for part in batch.changes)
        return [part for part in found if part.stream == stream or (part.stream is None and part.table == wanted.table)]

    def rows(self, stream: str) -> list[Row]:
        """What came, as it came: `op`, `at`, `before`, `after`, and `unchanged`, the names of columns."""
        return [row for part in self.changes(stream) for row in _rows(part)]

    def ops(self, stream: str) -> str:
        return "".join(row["op"] for row in self.rows(stream))

    def folded(self, stream: str) -> list[Row]:
        """The rows by the order of the changes. Fails for a partial change without a row that it could change."""
        (wanted,) = (capture for capture in self.captures if capture.stream == stream)
        return fold(self.rows(stream), wanted.key)

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        with connect(self.url, application="tests") as connection:
            found: list[tuple[Any, ...]] = []
            for statement in statements:
                found = execute(connection, statement)
            return found

    def table(self, table: str, columns: str, order: str = "id") -> list[Row]:
        names = columns.split()
        rows = self.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY {order}")
        return [dict(zip(names, row, strict=True)) for row in rows]


def fold(rows: Sequence[Row], key: Sequence[str]) -> list[Row]:
    places = [row["at"] for row in rows]
    assert len(set(places)) == len(places), "two changes share a place in the order"
    state: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row["at"]):
        if row["op"] == "t":
            state.clear()
            continue
        before, after = row["before"], row["after"]
        if before is not None and (after is None or _key(before, key) != _key(after, key)):
            state.pop(_key(before, key), None)
        if after is None:
            continue
        kept = {}
        if row["unchanged"]:
            assert row["op"] == "u", f"a row begins without being whole: {row}"
            assert _key(after, key) in state, f"a partial change of a row that is not there: {row}"
            kept = {name: state[_key(after, key)][name] for name in row["unchanged"]}
        state[_key(after, key)] = {**after, **kept}
    return sorted(state.values(), key=lambda row: _key(row, key))


def _key(row: Row, key: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in key)


def _rows(part: Changes) -> Iterator[Row]:
    names = part.columns.names
    for row in part.data.to_pylist():
        yield {
            "op": Op(row["_op"]).letter,
            "at": (row["_epoch"], row["_commit"], row["_index"]),
            "before": row["before"],
            "after": row["after"],
            "unchanged": [names[place] for place in row.get("_unchanged") or ()],
            "invalid": row.get("_invalid"),
        }


def _place(position: Position) -> tuple[int, int]:
    return position.epoch, position.commit
