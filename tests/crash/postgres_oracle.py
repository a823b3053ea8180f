"""What a torment must leave behind, told by plain code: source, folded stream and sink row by row, and the stream of
`shop.item` against the application's own audit, change by change.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, zip_longest
from operator import itemgetter
from typing import Any, Literal

import duckdb

from headwater import config
from headwater.assembly import Assembly
from headwater.mapping.hashing import event_ids
from headwater.model import Op
from headwater.sources.log_postgres.position import lsn_of, place_of
from headwater.sources.log_postgres.rows import below
from headwater.verify import Terms, gaps, verify_sink, verify_source
from tests.crash.postgres_world import CAPTURE, FIELDS, KEYS, PATIENCE, World

AUDITED = "shop.item"

Values = dict[str, Any]
Rows = dict[tuple[Any, ...], Values]

SOURCE = {
    "bank.account": "SELECT aid, bid, abalance, filler FROM pgbench_accounts",
    "bank.history": "SELECT tid, bid, aid, delta, mtime, filler FROM pgbench_history",
    "shop.item": "SELECT id, version, name, price, amount::text, tags, body, photo, seen FROM shop.item",
    "shop.note": "SELECT id, state, author, body, at, length(body)::bigint FROM shop.note WHERE state <> 'draft'",
    "shop.measure": "SELECT region, id, value, place::text, remark FROM shop.measure",
}


@dataclass(frozen=True, slots=True)
class Event:
    letter: str
    order: tuple[int, int, int]
    transaction: str | None
    values: Values
    unchanged: tuple[str, ...]
    id: bytes


def check(world: World) -> None:
    """Source, fold and sink, and `verify` by one of the streams; no event twice, and none left out of what the audit
    knows, but for what a load under way excuses. Each assertion names what is wrong.
    """
    keyed = [stream for stream in FIELDS if KEYS[stream]]
    verified = keyed[world.seed % len(keyed)]
    with Assembly(config.load(world.directory / "headwater.yaml")) as assembly:
        with world.finishing():
            _verify_source(assembly, verified)
        for stream in FIELDS:
            events = list(events_of(assembly, stream))
            once_and_in_order(stream, events)
            if KEYS[stream]:
                expected = source_rows(world, stream)
                same(f"fold of {stream}", folded(stream, events), expected)
                same(f"{stream} in the sink", sink_rows(world, stream), expected)
            else:
                _history_is_complete(world, stream, events)
            if stream == AUDITED:
                compare_with_audit(events, audited(world), span_of(assembly, events))
        _verify_sink(assembly, verified)


def _verify_source(assembly: Assembly, stream: str) -> None:
    """At the exported snapshot of a temporary slot, which the pipeline must reach."""
    contract, mapping = assembly.contract(stream), assembly.mapping(stream)
    with closing(assembly.source(CAPTURE)) as source:
        verify_source(assembly.bus, stream, contract, source, mapping, terms=Terms(wait=PATIENCE)).require_equal()


def _verify_sink(assembly: Assembly, stream: str) -> None:
    contract = assembly.contract(stream)
    found = gaps(assembly.bus, stream, contract)
    assert not found.backwards, f"{stream}: {found}"
    assert not found.missing, f"{stream}: {found}"
    with closing(assembly.sink("copy")) as sink:
        sink.prepare(contract)
        verify_sink(assembly.bus, stream, contract, sink).require_equal()


# both sides


def source_rows(world: World, stream: str) -> Rows:
    rows = [
        dict(zip(FIELDS[stream], row, strict=True))
        for row in world.server.execute(SOURCE[stream], database=world.database)
    ]
    return {tuple(row[name] for name in KEYS[stream]): row for row in rows}


def events_of(assembly: Assembly, stream: str) -> Iterator[Event]:
    names = list(FIELDS[stream])
    for events in assembly.bus.read(stream, after=None, follow=False):
        rows, ids = events.data.to_pylist(), event_ids(events).to_pylist()
        for row, event_id in zip(rows, ids, strict=True):
            order = (row["_epoch"], row["_commit"], row["_index"])
            unchanged = tuple(events.fields[place] for place in row.get("_unchanged") or ())
            values = {name: row[name] for name in names}
            yield Event(Op(row["_op"]).letter, order, row["_transaction"], values, unchanged, event_id)


def folded(stream: str, events: list[Event]) -> Rows:
    """The rows that the events lead to; an event that leaves a value unchanged must find it there."""
    rows: Rows = {}
    for event in events:
        key = tuple(event.values[name] for name in KEYS[stream])
        if event.letter == "d":
            rows.pop(key, None)
            continue
        known = {name: rows[key][name] for name in event.unchanged}
        rows[key] = {**event.values, **known}
    return rows


def sink_rows(world: World, stream: str) -> Rows:
    """By plain SQL, in the sink's own database."""
    names, table = FIELDS[stream], stream.replace(".", "_")
    if world.sink_database:
        listed = ", ".join(f'"{name}"::text' if kind == "uuid" else f'"{name}"' for name, kind in names.items())
        found = world.server.execute(f'SELECT {listed} FROM "{table}"', database=world.sink_database)
        rows = [dict(zip(names, row, strict=True)) for row in found]
    else:
        listed = ", ".join(f'"{name}"' for name in names)
        with duckdb.connect(str(world.directory / "copy.duckdb"), read_only=True) as target:
            rows = target.sql(f'SELECT {listed} FROM "{table}"').to_arrow_table().to_pylist()
    keyed = {tuple(row[name] for name in KEYS[stream]): row for row in rows}
    assert len(keyed) == len(rows), f"{stream}: a key is in the sink twice"
    return keyed


def same(what: str, found: Rows, expected: Rows) -> None:
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not missing, f"{what} lacks {sorted(missing)[:5]} and {len(missing) - 1} more"
    assert not extra, f"{what} has {sorted(extra)[:5]} and {len(extra) - 1} more than it should"
    for key, row in expected.items():
        assert _plain(found[key]) == _plain(row), f"{what}, {key}:\n  found    {found[key]}\n  expected {row}"


def _plain(row: Values) -> Values:
    """Values that compare: NaN is equal to itself, a moment to the same moment in another zone, a UUID to its text."""
    return {name: _comparable(value) for name, value in row.items()}


def _comparable(value: Any) -> Any:
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC)
    return str(value) if isinstance(value, float | uuid.UUID) else value


# the stream by itself


def once_and_in_order(stream: str, events: list[Event]) -> None:
    """The deletes that a TRUNCATE makes share its place, and are of no transaction; nothing else shares one."""
    orders = [event.order for event in events]
    live = {(event.order, *(event.values[name] for name in KEYS[stream])) for event in events}
    assert len(live) == len(events), f"{stream}: an event is there twice"
    assert len({event.id for event in events}) == len(events), f"{stream}: two events have one id"
    assert orders == sorted(orders), f"{stream}: an event is behind a later one"
    shared = {order for order, count in Counter(orders).items() if count > 1}
    wrong = [e for e in events if e.order in shared and (e.letter != "d" or e.transaction is not None)]
    assert not wrong, f"{stream}: events share a place: {wrong[:5]}"


def _history_is_complete(world: World, stream: str, events: list[Event]) -> None:
    rows = world.server.execute(SOURCE[stream], database=world.database)
    told = Counter(tuple(event.values.values()) for event in events)
    assert told == Counter(rows), f"{stream}: {(told - Counter(rows)) or (Counter(rows) - told)}"


# the stream against the audit


@dataclass(frozen=True, slots=True)
class Written:
    """A change of one key, by the audit: `c` a row that was inserted, `m` one that moved here, `u`, `d` one that was
    deleted or moved away, `t` one that a TRUNCATE took. `version`: of what was written.
    """

    letter: str
    version: int | None
    xid: str
    lsn: int
    seq: int

    @property
    def ends(self) -> bool:
        return self.letter in "dt"

    def is_told_by(self, event: Event) -> bool:
        if event.letter == "d":
            return (self.letter, self.xid) == ("d", event.transaction)
        if event.letter == "t":
            return (self.letter, self.xid) == ("t", event.transaction)
        return bool(self.version == event.values["version"])


@dataclass(frozen=True, slots=True)
class Span:
    """Of a stream, as LSNs: `start`, what is behind it was not in the slot's snapshot; `loaded`, what is behind it came
    when the table had been read: the place of the first event then.
    """

    start: int
    loaded: int


def span_of(assembly: Assembly, events: list[Event]) -> Span:
    position = assembly.bus.position(CAPTURE)
    assert position is not None
    first = assembly.bus.streams()[AUDITED].first
    ends = [note.offset - first for note in assembly.bus.notes(AUDITED) if note.note.kind == "loaded"]
    loaded = min((event.order[1] for event in events[max(ends) :]), default=sys.maxsize)
    return Span(place_of(position, CAPTURE).start, loaded)


def compare_with_audit(events: list[Event], audit: Audit, span: Span) -> None:
    """Key by key: the stream tells the audit's story once and in its order. What it may leave out is what a row that a
    load read held already, see `_Readings`, and what `_Story.excused` says.

    The audit's triggers fire under the row's lock, so that its sequence is the order of the commits for each key. What
    was written behind the slot's place cannot have been in a reading of it, and must have been told.
    """
    told: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        told[event.values["id"]].append(event)
    truncates = {w.xid: w.seq for w in sorted(chain.from_iterable(audit.values()), key=_seq) if w.letter == "t"}
    commits = {event.transaction: event.order[1] for event in events if event.transaction}
    xids = {event.order[:2]: event.transaction for events in told.values() for event in events if event.transaction}
    for events in told.values():
        for place, event in enumerate(events):
            if event.letter == "d" and event.transaction is None:
                xid = xids.get(event.order[:2])
                assert xid in truncates, f"a delete of no transaction, and no TRUNCATE: {event}"
                events[place] = dataclasses.replace(event, letter="t", transaction=xid)
    readings = _Readings(commits, span)
    for key in audit.keys() | told.keys():
        _Story(key, audit[key], readings, truncates).check(told[key])
    readings.check()


def _seq(written: Written) -> int:
    return written.seq


Audit = defaultdict[int, list[Written]]


def audited(world: World) -> Audit:
    """The rows are left beside the stream too, in the file `audit`."""
    found: Audit = defaultdict(list)
    rows = world.server.execute(
        "SELECT seq, xid::text, lsn::text, op, old_id, id, version FROM shop.audit ORDER BY seq",
        database=world.database,
    )
    (world.directory / "audit").write_text("".join(f"{row}\n" for row in rows))
    for seq, xid, lsn, op, old_id, new_id, version in rows:
        place = lsn_of(lsn)
        moved = op == "u" and old_id != new_id
        if op in "dt" or moved:
            found[old_id].append(Written("t" if op == "t" else "d", None, xid, place, seq))
        if op in "cu":
            found[new_id].append(Written("m" if moved else op, version, xid, place, seq))
    return found


class _Readings:
    """What was left out since a row that a load had read held it, and what was told although it did, over all keys.

    While the log comes to where a chunk was read, it leaves out what the chunk's rows hold. If capture ends meanwhile,
    what is left of that is told after all. So there is one place for the chunk: everything below it was left out,
    everything above it told. A chunk is known by the commit that its rows are placed behind.
    """

    def __init__(self, commits: Mapping[str, int], span: Span) -> None:
        self.span = span
        self._commits = commits
        self._left_out: dict[int, tuple[int, int, Written]] = {}
        """By chunk: of what was left out the last one, with its key."""
        self._told: dict[int, tuple[int, int]] = {}
        """By chunk: the first commit that was told though the row held it, with its key."""

    def least(self, written: Written) -> int:
        """The commit, where anything else of its transaction was told; else a place below it."""
        return self._commits.get(written.xid, written.lsn)

    def passed(self, chunk: int, written: Written) -> bool:
        """Whether the log had told of this commit before the chunk was read."""
        return self._commits.get(written.xid, chunk) < chunk

    def left_out(self, chunk: int, key: int, written: Written) -> None:
        found = (self.least(written), key, written)
        self._left_out[chunk] = max(self._left_out.get(chunk, found), found, key=itemgetter(0))

    def is_old(self, written: Written) -> bool:
        """Whether it can have been in the slot's snapshot."""
        return self.least(written) < self.span.start

    def told(self, chunk: int, key: int, commit: int) -> None:
        found = (commit, key)
        self._told[chunk] = min(self._told.get(chunk, found), found)

    def check(self) -> None:
        for chunk, (first, key) in self._told.items():
            last, other, written = self._left_out.get(chunk, (0, 0, None))
            assert last < first, f"item {other}: never told, but item {key} was from {first} on: {written}"


Known = Literal["nothing", "read", "there", "gone"]
"""What the reader has of a row: no word of it; what was read, and nothing since; the row; its end."""


class _Story:
    """What was written of one key, and how far the stream has told of it."""

    def __init__(self, key: int, written: list[Written], readings: _Readings, truncates: dict[str, int]) -> None:
        self.key = key
        self.written = written
        self.readings = readings
        self.truncates = truncates
        """By transaction: the last of its places in the audit."""
        self.place = 0
        self.read = -1
        """The latest change that a load's reading has shown."""
        self.chunk = 0
        self.resumed = False
        """Whether changes that the reading held were told behind it: then all that follow must be."""
        self.known: Known = "nothing"
        self.before: Known = "nothing"
        """The same, by what was told before the row was read, or since."""

    def check(self, events: list[Event]) -> None:
        for event, following in zip_longest(events, events[1:]):
            if event.letter != "r":
                self._is_told(event)
                continue
            number = self._read_in(event)
            if not _completes(event, following):
                self._is_read(number, event.order[1])
        self._leave_out(len(self.written))

    def _read_in(self, event: Event) -> int:
        version = event.values["version"]
        found = [n for n, written in enumerate(self.written) if not written.ends and written.version == version]
        assert found, f"item {self.key}: version {version} was read and never written"
        assert found[0] + 1 >= self.place, f"item {self.key}: an older row was read behind a newer one"
        return found[0]

    def _is_read(self, number: int, chunk: int) -> None:
        if self.read < self.place or self.known == "nothing":
            self.before = self.known
        self.read, self.chunk, self.resumed = number, chunk, False
        self.known = "there" if self.known == "there" else "read"

    def _is_told(self, event: Event) -> None:
        assert event.order[1] >= self.readings.span.start, f"item {self.key}: the slot's snapshot held it: {event}"
        if event.letter == "t" and self._is_emptied(event):
            return
        behind = range(self.place, len(self.written))
        place = next((n for n in behind if self.written[n].is_told_by(event)), None)
        assert place is not None, f"item {self.key}: told twice, or out of its order: {event}"
        self._leave_out(place)
        expected = self.written[place].letter.translate(_LETTERS)
        assert event.letter == expected, f"item {self.key}: {event} for {self.written[place]}"
        self.place = place + 1
        self.known = "gone" if event.letter in "dt" else "there"
        if self.read >= place:
            self.readings.told(self.chunk, self.key, event.order[1])
            self.resumed = True
            self.before = self.known

    def _is_emptied(self, event: Event) -> bool:
        """A TRUNCATE that the log comes to when a load has read the row as it was later. What came before it is in
        what was read; what came behind it, and was read, is told once more.
        """
        emptied = self.truncates[str(event.transaction)]
        place = sum(written.seq <= emptied for written in self.written)
        if self.read < place:
            return False
        own = self.written[place - 1].is_told_by(event)
        self._leave_out(place - own)
        self.place, self.read, self.known = place, -1, "gone"
        return True

    def _leave_out(self, place: int) -> None:
        """Up to `place`: what the row that was read holds, and what is excused."""
        for number in range(self.place, place):
            held = number <= self.read
            if self._excused(number, self.before if held else self.known):
                continue
            written = self.written[number]
            left_out = held and not self.resumed and not self.readings.passed(self.chunk, written)
            assert left_out, f"item {self.key}: never told: {written}"
            self.readings.left_out(self.chunk, self.key, written)

    def _excused(self, number: int, known: Known) -> bool:
        """It was in the slot's snapshot. Or the row was gone when it was to be read whole, after it had moved here or
        while it was yet to be loaded, for the first time or, as far as the source can tell, once more. That it ended is
        told, but for a TRUNCATE.
        """
        written = self.written[number]
        if self.place == 0 and self.readings.is_old(written):
            return True
        if written.letter not in "mu":
            return written.letter == "t" and known in ("nothing", "gone")
        end = next((later for later in self.written[number + 1 :] if later.letter != "u"), None)
        begin = next((earlier for earlier in self.written[number::-1] if earlier.letter != "u"), None)
        lost = begin is not None and begin.letter == "m" and known in ("nothing", "gone")
        unread = known in ("nothing", "read") and written.lsn <= self.readings.span.loaded
        return end is not None and end.ends and (lost or unread)


def _completes(read: Event, following: Event | None) -> bool:
    """Whether a row was read for the sake of the change behind it, which lacked a part: what it holds is told too."""
    if following is None or following.letter != "u":
        return False
    epoch, commit, index = following.order
    return read.order == (epoch, below(commit), index)


_LETTERS = str.maketrans("m", "c")
