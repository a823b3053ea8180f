"""A target in this process's memory: `memory:NAME`. The model that the others are compared with, and a stand-in in
tests.

What is kept is a fold, tombstones included, so that every promise of a sink follows from the fold's: an older row
never wins, a delete guards its key, an unchanged column stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from headwater.config import SinkBatch, SinkConfig
from headwater.contracts.model import Contract
from headwater.errors import RowRefused, SinkError
from headwater.mapping.evolve import conform
from headwater.mapping.fold import fold
from headwater.model import Cursor, Events, Op
from headwater.protocols import Guarantee, SinkState
from headwater.sinks import placing, shaping
from headwater.sinks.upsert import CURRENT, Table

BATCH = SinkBatch(events=100_000, age=0.1)


@dataclass(slots=True)
class Stored:
    """One stream: events in the newest shape."""

    table: Table
    owner: tuple[str, str]
    rows: pa.Table | None = None
    cursor: Cursor | None = None


@dataclass(slots=True)
class Target:
    """What several sinks may write into. Tables by name."""

    tables: dict[str, Stored] = field(default_factory=dict)


_targets: dict[str, Target] = {}
"""By name, for the life of the process: as a file is there for whoever opens it."""


def open_sink(*, name: str, pipeline: str, config: SinkConfig, directory: str) -> MemorySink:
    place = f"{directory}/{config.url.get_secret_value()}"
    return MemorySink(name, pipeline, config, _targets.setdefault(place, Target()))


class MemorySink:
    """See `Sink`."""

    def __init__(self, name: str, pipeline: str, config: SinkConfig, target: Target) -> None:
        self.name = name
        self.guarantee = Guarantee("exactly_once", notes=("Rows are in memory and end with the process.",))
        self._config = config
        self._owner = (pipeline, name)
        self._target = target
        self._believed: dict[str, Cursor | None] = {}

    def prepare(self, contract: Contract) -> None:
        table = Table(contract, self._config.mode, self._config.deletes == "soft")
        shaping.check_keyed(self.name, table)
        stored = self._target.tables.get(table.name)
        if stored is None:
            self._target.tables[table.name] = Stored(table, self._owner)
            return
        if stored.owner != self._owner or stored.table.contract.stream != contract.stream:
            raise SinkError(
                f"sink {self.name}: stream {contract.stream} needs the table `{table.name}`, which belongs to stream "
                f"{stored.table.contract.stream} of sink {stored.owner[1]} in pipeline {stored.owner[0]}",
                hint="rename the stream, or give the sink another name after `memory:`",
            )
        shaping.check_same(self.name, table, (stored.table.mode, stored.table.soft, stored.table.key))
        if stored.table.contract.version <= contract.version:
            self._evolve(stored, table)

    def _evolve(self, stored: Stored, table: Table) -> None:
        old = {name: str(kind) for name, kind in stored.table.types.items()}
        shaping.check_widening(self.name, table.contract, old)
        stored.table = table
        if stored.rows is not None:
            stored.rows = pa.Table.from_batches([_evolved(batch, table) for batch in stored.rows.to_batches()])

    def cursor(self, stream: str) -> Cursor | None:
        stored = self._stored(stream)
        self._believed[stream] = stored.cursor if stored is not None else None
        return self._believed[stream]

    def _stored(self, stream: str) -> Stored | None:
        stored = self._target.tables.get(placing.table_name(stream))
        mine = stored is not None and stored.owner == self._owner and stored.table.contract.stream == stream
        return stored if mine else None

    def write(self, events: Events) -> None:
        stored = self._stored(events.stream)
        table = shaping.check_version(self.name, None if stored is None else stored.table, events)
        assert stored is not None
        if placing.moves(self.name, events, stored.cursor, self._believed.get(events.stream, stored.cursor)):
            data = conform(events.data, table.contract, events.type)
            rows = self._folded(stored, data, events) if table.current else _appended(stored, data, events)
            stored.rows, stored.cursor = rows, events.cursor or stored.cursor
        self._believed[events.stream] = stored.cursor

    def _folded(self, stored: Stored, data: pa.RecordBatch, events: Events) -> pa.Table:
        data = data.drop_columns(["before"]) if "before" in data.schema.names else data
        rows = pa.Table.from_batches([data])
        if stored.rows is not None:
            rows = pa.concat_tables([stored.rows, rows], promote_options="default")
        folded = fold(rows, stored.table.key)
        if "_unchanged" in folded.schema.names:
            self._refuse(stored.table, folded, events)
        return pa.Table.from_batches([folded])

    def _refuse(self, table: Table, folded: pa.RecordBatch, events: Events) -> None:
        lacks = shaping.lacking(folded, list(table.contract.fields))
        row = pc.index(pc.is_valid(folded.column("_unchanged")), True).as_py()
        names = ", ".join(name for name, rows in lacks.items() if rows[row].as_py())
        place = placing.named_row(replace(events, data=folded), table.key, row)
        raise RowRefused(
            f"sink {self.name}, {place}: the event does not carry {names}, and the target has "
            f"no row of that key to keep them from",
            hint=f"the sink lacks earlier events: `headwater sink rebuild {self.name} {events.stream}`",
        )

    def move(self, stream: str, cursor: Cursor | None) -> None:
        if (stored := self._stored(stream)) is not None:
            stored.cursor = cursor
        self._believed[stream] = cursor

    def clear(self, stream: str) -> None:
        if (stored := self._stored(stream)) is not None:
            stored.rows = stored.cursor = None
        self._believed[stream] = None

    def state(self, stream: str) -> SinkState:
        stored = self._stored(stream)
        if stored is None:
            raise shaping.unprepared(self.name, stream)
        return SinkState(stored.cursor, _live(stored))

    def close(self) -> None:
        """The target stays for the next one who opens it."""


def _evolved(batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    return conform(batch, table.contract) if table.current else shaping.reshaped(batch, table.columns, table)


def _appended(stored: Stored, data: pa.RecordBatch, events: Events) -> pa.Table:
    added = pa.Table.from_batches([shaping.history(stored.table, data, events)])
    return added if stored.rows is None else pa.concat_tables([stored.rows, added], promote_options="permissive")


def _live(stored: Stored) -> Iterator[pa.RecordBatch]:
    if stored.rows is None:
        return
    table, rows = stored.table, stored.rows
    names = table.columns.names
    if table.current:
        gone = pc.is_in(rows.column("_op"), pa.array([Op.DELETE, Op.TRUNCATE], pa.int8()))
        rows, names = rows.filter(pc.invert(gone)), [*CURRENT.names, *table.fields.names]
    yield from rows.select(names).to_batches()
