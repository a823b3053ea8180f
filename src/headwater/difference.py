"""A complete reading of a stream's rows against the stream's fold: what differs, as events.

One idea: both sides are spilled to disk in parts by the hash of their key, and DuckDB joins them part by part; a
reading of any size needs the memory of a part. Rows never become Python objects.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from headwater.contracts.model import Contract
from headwater.errors import MappingError, SourceError
from headwater.mapping.evolve import conform
from headwater.model import ORDER_FIELDS, ORDER_NAMES, UNCHANGED, Events, Op, Order, Reading, Reload
from headwater.protocols import StreamState
from headwater.schema import events_schema, table_schema
from headwater.spill import PARTS, Spill

_ROWS = 10_000
_AHEAD = 1_000
_GROUP_BYTES = 16 * 2**20
_END_OF_COMMIT = 2**32

_NUMBER = (
    "_epoch::UHUGEINT * 79228162514264337593543950336::UHUGEINT"
    " + _commit::UHUGEINT * 4294967296::UHUGEINT + _index::UHUGEINT"
)
"""The order triple as one number, column `_o`: 32 bits of epoch, 64 of commit, 32 of index."""


class Difference:
    """Used by one thread, once: `add` the reading's rows, `finish`, `close`. A context manager.

    `directory` takes the temporary files, about the size of the rows and the stream. `state`, the stream's on the bus,
    is checked before anything is read.
    """

    def __init__(
        self,
        contract: Contract,
        directory: Path,
        memory_limit: str = "100MB",
        *,
        state: StreamState | None = None,
    ) -> None:
        check_comparable(contract, state)
        self.contract = contract
        self._columns = pa.schema([pa.field(f.name, _stored(f.type)) for f in table_schema(contract)])
        self._like: Events | None = None
        self._before = False
        self._truncated = -1
        self._last: Order | None = None
        self._used = -1
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = Path(tempfile.mkdtemp(prefix="difference-", dir=directory))
        self._db = duckdb.connect(config=_settings(self._directory, memory_limit))
        rows = pa.schema([*ORDER_FIELDS, *self._columns, ("_unchanged", UNCHANGED), ("_row", pa.uint64())])
        self._staged = Spill(self._directory, "staged", rows, contract.key)
        self._history = Spill(self._directory, "history", rows, contract.key)

    def add(self, events: Events) -> None:
        """Take READ events of the reading. Memory does not grow with them."""
        self._remember(events)
        if len(events):
            last = _newest(events.data)
            self._last = last if self._last is None else max(self._last, last)
            self._staged.add(self._shaped(events, len(self._staged)), self._db)

    def finish(self, history: Iterable[Events], reading: Reading) -> Iterator[Events]:
        """Yield the events that bring the stream to the reading's rows, a bounded number of rows at a time.

        `history` is the whole stream, tombstones included. A key that an event behind `reading.since` has touched is
        left alone. `DIFFERENCE`: c, u, d of what differs; `REBUILD`: every row as r, and d for vanished keys; both in
        the sequence of the reading, deletes last. A contract of `kind: event` gets no d: that a row is gone is not
        something that happened. Raises `MappingError` when two rows have one key, `SourceError` when a row is ordered
        before the event that it would replace (no sink would take it).
        """
        self._staged.end(self._db)
        for events in history:
            self._take(self._conformed(events), reading.since)
        self._history.end(self._db)
        if self._truncated > _number(reading.since):
            return
        upserts, deletes = self._compare(reading)
        yield from self._events_of_upserts(upserts)
        if self.contract.kind == "fact":
            yield from self._events_of_deletes(deletes, reading.since)

    def close(self) -> None:
        """Remove the files; at any time, more than once."""
        self._staged.close()
        self._history.close()
        self._db.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # taking rows in

    def _remember(self, events: Events) -> None:
        self._like = self._like or events
        self._before = self._before or ("before" in events.data.schema.names and not self.contract.types)

    def _take(self, events: Events, since: Order) -> None:
        """Events of the stream's history; truncates are kept as a place alone."""
        self._remember(events)
        data = events.data
        beside = self._last or since
        self._used = max(self._used, _highest_index(data, beside))
        truncates = pc.equal(data.column("_op"), Op.TRUNCATE.value)
        if pc.any(truncates).as_py():
            self._truncated = max(self._truncated, _number(_newest(data.filter(truncates))))
            data = data.filter(pc.invert(truncates))
        if len(data):
            self._history.add(self._shaped(dataclasses.replace(events, data=data), len(self._history)), self._db)

    def _conformed(self, events: Events) -> Events:
        if events.version == self.contract.version:
            return events
        return dataclasses.replace(events, data=conform(events.data, self.contract, events.type))

    def _shaped(self, events: Events, row: int) -> pa.RecordBatch:
        """The columns that all types of the stream share, in types that DuckDB has, and each row's ordinal."""
        data = events.data
        arrays = [data.column(name) for name in ORDER_NAMES]
        for wanted in self._columns:
            if wanted.name == "type":
                arrays.append(pa.repeat(events.type or "", len(data)))
            elif wanted.name in data.schema.names:
                arrays.append(data.column(wanted.name).cast(wanted.type))
            else:
                arrays.append(pa.nulls(len(data), wanted.type))
        ordinals = pa.array(range(row, row + len(data)), pa.uint64())
        return pa.RecordBatch.from_arrays([*arrays, self._marks(events), ordinals], schema=self._staged.schema)

    def _marks(self, events: Events) -> pa.Array:
        """`_unchanged`, with ordinals of the stored columns instead of the event type's fields."""
        if "_unchanged" not in events.data.schema.names:
            return pa.nulls(len(events), UNCHANGED)
        marks = events.data.column("_unchanged")
        stored = pa.array([self._columns.names.index(name) for name in events.fields], pa.int16())
        ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(marks), 0)).cast(pa.int32())
        starts = pa.concat_arrays([pa.array([0], pa.int32()), ends])
        return pa.ListArray.from_arrays(starts, pc.take(stored, pc.list_flatten(marks)))

    # comparing, part by part

    def _compare(self, reading: Reading) -> tuple[list[Path], list[Path]]:
        """One file of upserts (by row of the reading) and one of deletes for each group of parts."""
        upserts, deletes = [], []
        for number, parts in enumerate(self._groups()):
            self._load("staged", self._staged, parts)
            self._load("history", self._history, parts)
            self._refuse_duplicate_keys()
            self._fold()
            upserts.append(self._result(f"upserts-{number}", self._upserts(reading)))
            deletes.append(self._result(f"deletes-{number}", self._deletes(reading)))
            for table in ("staged", "history", "fold"):
                self._db.execute(f"DROP TABLE {table}")
        return upserts, deletes

    def _groups(self) -> Iterator[range]:
        """Neighbouring parts that fit into memory together: all of them for a small stream."""
        start = total = 0
        for part in range(PARTS):
            size = self._staged.nbytes[part] + self._history.nbytes[part]
            if total and total + size > _GROUP_BYTES:
                yield range(start, part)
                start, total = part, 0
            total += size
        yield range(start, PARTS)

    def _load(self, table: str, spill: Spill, parts: range) -> None:
        with spill.read(parts) as reader:
            self._db.register("arrived", reader)
            self._db.execute(f"CREATE TABLE {table} AS SELECT *, {_NUMBER} AS _o FROM arrived")
            self._db.unregister("arrived")

    def _refuse_duplicate_keys(self) -> None:
        key = self._key()
        twice = f"SELECT {key} FROM staged GROUP BY {key} HAVING count(*) > 1 ORDER BY ALL LIMIT 3"
        if found := self._db.sql(twice).fetchall():
            raise MappingError(
                f"stream {self.contract.stream}: one row a key is expected, "
                f"but the source has several rows with {self._key_text(found)}",
                hint="map the key to columns that are unique in the source, or narrow `where`",
            )

    def _fold(self) -> None:
        """Table `fold`: one row a key, the newest by order, its unchanged fields filled in; tombstones included."""
        self._db.execute(
            "CREATE TABLE fold AS SELECT h.* FROM history h SEMI JOIN (SELECT arg_max(rowid, _o) AS _newest"
            f" FROM history WHERE {_behind(self._truncated)} GROUP BY {self._key()}) ON h.rowid = _newest"
        )
        if self._db.sql("SELECT 1 FROM fold WHERE len(_unchanged) > 0 LIMIT 1").fetchall():
            self._fill_unchanged()

    def _fill_unchanged(self) -> None:
        """A field that the newest event did not carry comes from the newest event since the last delete that did."""
        key, others = self._key(), [name for name in self._columns.names if name not in self.contract.key]
        values = ", ".join(f"{_quoted(name)} = filled.{_quoted(name)}" for name in others)
        self._db.execute(
            f"WITH part AS (SELECT {key} FROM fold WHERE len(_unchanged) > 0),"
            f" gone AS (SELECT {key}, max(_o) AS _gone FROM history SEMI JOIN part USING ({key})"
            f" WHERE _op = {Op.DELETE.value} GROUP BY {key}),"
            f" alive AS (SELECT h.* FROM history h SEMI JOIN part USING ({key}) LEFT JOIN gone USING ({key})"
            f" WHERE {_behind(self._truncated)} AND (_gone IS NULL OR _o > _gone)),"
            f" filled AS (SELECT {key}, {', '.join(map(self._newest_carried, others))} FROM alive GROUP BY {key})"
            f" UPDATE fold SET {values} FROM filled WHERE {self._same_key('fold', 'filled')}"
        )

    def _newest_carried(self, name: str) -> str:
        ordinal = self._columns.names.index(name)
        carried = f"NOT coalesce(list_contains(_unchanged, {ordinal}), false)"
        return f"arg_max_null({_quoted(name)}, _o) FILTER (WHERE {carried}) AS {_quoted(name)}"

    def _upserts(self, reading: Reading) -> str:
        dead = f"(f._op IS NULL OR f._op = {Op.DELETE.value})"
        op = f"CASE WHEN {dead} THEN {Op.CREATE.value} ELSE {Op.UPDATE.value} END"
        rebuild = reading.reload is Reload.REBUILD
        return (
            f"SELECT s.* EXCLUDE (_op, _o, _unchanged), ({Op.READ.value if rebuild else op})::TINYINT AS _op,"
            f" coalesce(s._o <= f._o, false) AS _stale{self._before_column(f'NOT {dead}')}"
            f" FROM staged s LEFT JOIN fold f ON {self._same_key('s', 'f')}"
            f" WHERE (f._o IS NULL OR f._o <= {_literal(_number(reading.since))})"
            f" AND ({'true' if rebuild else f'{dead} OR {self._differs()}'}) ORDER BY s._row"
        )

    def _differs(self) -> str:
        """Exact and null-safe: NaN equals NaN, and -0.0 is not 0.0."""
        tests = []
        for column in self._columns:
            ours, theirs = f"s.{_quoted(column.name)}", f"f.{_quoted(column.name)}"
            tests.append(f"{ours} IS DISTINCT FROM {theirs}")
            if pa.types.is_floating(column.type):
                tests.append(f"({ours} = 0 AND {theirs} = 0 AND signbit({ours}) <> signbit({theirs}))")
        return " OR ".join(tests)

    def _deletes(self, reading: Reading) -> str:
        key = ", ".join(f"f.{_quoted(name)}" for name in self.contract.key)
        return (
            f"SELECT {key}, f._o >= {_literal(_number(self._last or reading.since) + 1)} AS _stale"
            f"{self._before_column('true')} FROM fold f ANTI JOIN staged s ON {self._same_key('s', 'f')}"
            f" WHERE f._op <> {Op.DELETE.value} AND f._o <= {_literal(_number(reading.since))} ORDER BY ALL"
        )

    def _before_column(self, had: str) -> str:
        """The fold's row as `before`, in streams whose events carry one."""
        if not self._before:
            return ""
        row = ", ".join(f"{_quoted(name)} := f.{_quoted(name)}" for name in self._columns.names)
        return f", CASE WHEN {had} THEN struct_pack({row}) END AS before"

    def _result(self, name: str, query: str) -> Path:
        path = self._directory / f"{name}.arrows"
        reader = self._db.sql(query).to_arrow_reader(_AHEAD)
        with pa.ipc.new_stream(str(path), reader.schema) as writer:
            for batch in reader:
                self._refuse_stale(batch)
                writer.write_batch(batch)
        return path

    def _refuse_stale(self, rows: pa.RecordBatch) -> None:
        stale = rows.filter(rows.column("_stale")).select(list(self.contract.key))[:3]
        if len(stale):
            columns = [stale.column(name).to_pylist() for name in self.contract.key]
            raise SourceError(
                f"stream {self.contract.stream}: a reading must be ordered behind what it replaces, "
                f"but it is not for {self._key_text(list(zip(*columns, strict=True)))}",
                hint="a source gives each reading a place behind `since`; this is a defect of the source",
            )

    # giving events out

    def _events_of_upserts(self, paths: Sequence[Path]) -> Iterator[Events]:
        for rows in _merged(paths, len(self._staged)):
            yield from self._events(rows)

    def _events_of_deletes(self, paths: Sequence[Path], since: Order) -> Iterator[Events]:
        """A `d` for each live key that the reading lacks, ordered behind the reading's rows."""
        count = sum(len(rows) for path in paths for rows in _read(path))
        place = self._place_behind(since, count)
        for rows in _gathered(rows for path in paths for rows in _read(path)):
            yield from self._events(_deletes_at(rows, place))
            place = Order(place.epoch, place.commit, place.index + len(rows))

    def _place_behind(self, since: Order, count: int) -> Order:
        """Where `count` deletes go: behind the reading's rows or, if it has none, behind `since`."""
        last = self._last or since
        used = max(self._used, last.index if self._last else -1)
        free = min(max(used, last.index) + 1, _END_OF_COMMIT - count)
        if count and free <= used:
            raise SourceError(
                f"stream {self.contract.stream}: {count} deletes must follow {last}, but its commit has no such room",
                hint="a source gives each reading a commit of its own; this is a defect of the source",
            )
        return Order(last.epoch, last.commit, free)

    def _events(self, rows: pa.RecordBatch) -> Iterator[Events]:
        """The rows as events; of one type each, in contracts that have several."""
        if not self.contract.types:
            yield self._typed_events(rows, None)
            return
        for start, stop, name in _runs(rows.column("type")):
            yield self._typed_events(rows.slice(start, stop - start), name)

    def _typed_events(self, rows: pa.RecordBatch, type_name: str | None) -> Events:
        like = self._like
        assert like is not None, "rows come from events"
        schema = events_schema(self.contract, type_name, before=self._before)
        arrays = [
            rows.column(field.name).cast(field.type)
            if field.name in rows.schema.names
            else pa.nulls(len(rows), field.type)
            for field in schema
        ]
        return dataclasses.replace(
            like,
            version=self.contract.version,
            data=pa.RecordBatch.from_arrays(arrays, schema=schema),
            type=type_name,
            reading=None,
            after=None,
            cursor=None,
            offsets=None,
        )

    # SQL and text

    def _key(self) -> str:
        return ", ".join(map(_quoted, self.contract.key))

    def _same_key(self, left: str, right: str) -> str:
        return " AND ".join(f"{left}.{_quoted(name)} = {right}.{_quoted(name)}" for name in self.contract.key)

    def _key_text(self, found: list[tuple[Any, ...]]) -> str:
        names = self.contract.key
        return "; ".join(", ".join(f"{n} = {v!r}" for n, v in zip(names, row, strict=True)) for row in found)


def check_comparable(contract: Contract, state: StreamState | None) -> None:
    """Raises `MappingError` for a stream that no reading can be compared with."""
    if not contract.key:
        raise MappingError(
            f"stream {contract.stream} has no key, so that a reading cannot be compared with it",
            hint="declare a `key` in its contract, or begin it anew with `initial: none`",
        )
    if state is not None and not state.complete:
        raise MappingError(
            f"stream {contract.stream}: a comparison needs everything since its beginning, "
            f"but the bus keeps only what is behind offset {state.first}",
            hint="its retention has dropped events; `forever` or `compacted` keeps what a comparison needs",
        )


def _settings(directory: Path, memory_limit: str) -> dict[str, str | bool | int | float | list[str]]:
    return {"memory_limit": memory_limit, "temp_directory": str(directory / "duckdb"), "threads": 2}


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type as DuckDB can hold it: decimals of more than 38 digits, wherever they are, become canonical text."""
    if pa.types.is_decimal256(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_stored(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _stored(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _stored(f.type)) for f in kind])
    return kind


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _number(order: Order) -> int:
    return (order.epoch << 96) + (order.commit << 32) + order.index


def _literal(number: int) -> str:
    return f"'{number}'::UHUGEINT"


def _behind(truncated: int) -> str:
    return "true" if truncated < 0 else f"_o > {_literal(truncated)}"


def _newest(data: pa.RecordBatch) -> Order:
    """The highest order of the batch."""
    names = ["_epoch", "_commit", "_index"]
    best = pc.select_k_unstable(data.select(names), 1, sort_keys=[(name, "descending") for name in names])
    return Order(*(data.column(name)[best[0].as_py()].as_py() for name in names))


def _highest_index(data: pa.RecordBatch, beside: Order) -> int:
    """The highest index in the commit of `beside`; -1 if the batch has nothing of it."""
    same = pc.and_(
        pc.equal(data.column("_epoch"), pa.scalar(beside.epoch, pa.uint32())),
        pc.equal(data.column("_commit"), pa.scalar(beside.commit, pa.uint64())),
    )
    highest = pc.max(data.column("_index").filter(same)).as_py()
    return -1 if highest is None else int(highest)


def _read(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches joined to about `_ROWS` rows."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _ROWS:
            yield pa.concat_batches(waiting)
            waiting = []
    if any(map(len, waiting)):
        yield pa.concat_batches(waiting)


def _merged(paths: Sequence[Path], total: int) -> Iterator[pa.RecordBatch]:
    """The rows of all files by `_row`, below `total`; each file is in that sequence already."""
    files = [_Ahead(_read(path)) for path in paths]
    slices = (
        pa.concat_batches(pieces).sort_by("_row")
        for end in range(_ROWS, total + _ROWS, _ROWS)
        if (pieces := [piece for file in files for piece in file.below(end)])
    )
    return _gathered(slices)


class _Ahead:
    """Takes from sorted batches what lies below a bound, and holds the rest of one batch back."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.RecordBatch | None = next(batches, None)

    def below(self, end: int) -> Iterator[pa.RecordBatch]:
        while self._rest is not None:
            fit = pc.sum(pc.less(self._rest.column("_row"), end)).as_py() or 0
            if fit:
                yield self._rest.slice(0, fit)
            if fit < len(self._rest):
                self._rest = self._rest.slice(fit)
                return
            self._rest = next(self._batches, None)


def _deletes_at(rows: pa.RecordBatch, place: Order) -> pa.RecordBatch:
    count = len(rows)
    order = {
        "_op": pa.repeat(pa.scalar(Op.DELETE.value, pa.int8()), count),
        "_epoch": pa.repeat(pa.scalar(place.epoch, pa.uint32()), count),
        "_commit": pa.repeat(pa.scalar(place.commit, pa.uint64()), count),
        "_index": pa.array(range(place.index, place.index + count), pa.uint32()),
    }
    return pa.RecordBatch.from_arrays([*order.values(), *rows.columns], names=[*order, *rows.schema.names])


def _runs(names: pa.Array) -> Iterator[tuple[int, int, str]]:
    """Start, stop and value of each run of equal values."""
    runs = pc.run_end_encode(names)
    start = 0
    for stop, name in zip(runs.run_ends.to_pylist(), runs.values.to_pylist(), strict=True):
        yield start, stop, name
        start = stop
