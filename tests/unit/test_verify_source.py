"""A stream's fold against the database that feeds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pyarrow as pa

from headwater.buses.memory import MemoryBus
from headwater.contracts.model import Contract
from headwater.errors import SourceError
from headwater.model import (
    REASONS,
    Batch,
    Changes,
    Events,
    Mapped,
    Note,
    Order,
    Position,
    Rejected,
    SourceState,
    TableId,
    changes_schema,
)
from headwater.protocols import Capture
from headwater.schema import fields_schema
from headwater.verify import Comparison, Terms, gaps, verify_source
from tests.streams import ITEM, append, bus_with, events

TABLE = TableId("", "items")
Row = dict[str, Any]


class Database:
    """A source whose rows and place the test sets; `on_read` runs behind each reading."""

    name = "shop/trigger"
    captures: tuple[Capture, ...] = ()
    broken: ClassVar[dict[str, SourceError]] = {}

    def __init__(self, rows: list[Row], order: Order | None) -> None:
        self.rows = rows
        self.order = order
        self.readings = 0
        self.on_read: Callable[[int], None] = lambda reading: None

    def state(self, stream: str) -> SourceState:
        rows = [{"_op": 4, "_epoch": 9, "_commit": 9, "_index": 0, "after": row} for row in self.rows]
        data = pa.RecordBatch.from_pylist(rows, schema=changes_schema(fields_schema(ITEM)))
        self.readings += 1
        self.on_read(self.readings)
        return SourceState(self.order, iter([Changes(TABLE, data)]))

    def read(self, after: Position | None, *, follow: bool) -> Iterator[Batch]:
        return iter(())

    def confirm(self, position: Position) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class Same:
    """A mapping of equal names; refuses names that begin with `bad`."""

    def apply(self, changes: Changes) -> tuple[list[Events], Rejected | None]:
        rows = [row["after"] for row in changes.data.to_pylist()]
        good = [row for row in rows if not (row["name"] or "").startswith("bad")]
        bad = [n for n, row in enumerate(rows) if row not in good]
        out = [events([{"op": "r", "at": (9, 9, 0), **row} for row in good])]
        if not bad:
            return out, None
        reasons = [{"field": "name", "expected": "good", "got": "bad", "key": f'{{"id":{rows[n]["id"]}}}'} for n in bad]
        data = changes.data.take(pa.array(bad))
        return out, Rejected("shop.item", Changes(TABLE, data), pa.RecordBatch.from_pylist(reasons, schema=REASONS))


def compare(bus: MemoryBus, database: Database, *, terms: Terms | None = None, contract: Contract = ITEM) -> Comparison:
    return verify_source(bus, "shop.item", contract, database, Same(), terms=terms)


def created(*numbers: int, commit: int = 1) -> Events:
    return events([{"op": "c", "at": (1, commit, 2 * n), "id": n, "name": f"n{n}"} for n in numbers])


def rows(*numbers: int) -> list[Row]:
    return [{"id": n, "name": f"n{n}"} for n in numbers]


def test_the_fold_is_taken_at_the_place_of_the_reading() -> None:
    bus = bus_with(created(1, 2))
    later = [{"op": "u", "at": (1, 2, 0), "id": 1, "name": "later"}, {"op": "c", "at": (2, 1, 0), "id": 3}]
    append(bus, events(later), position=(2, 1))
    found = compare(bus, Database(rows(1, 2), Order(1, 1, 4)))
    found.require_equal()
    assert (found.rows_source, found.rows_target, found.at) == (2, 2, "1/1")


def test_a_split_change_belongs_to_the_place_of_its_change() -> None:
    bus = bus_with(events([{"op": "d", "at": (1, 1, 2), "id": 1}, {"op": "c", "at": (1, 1, 3), "id": 2, "name": "n2"}]))
    compare(bus, Database(rows(2), Order(1, 1, 2))).require_equal()


def test_differences_name_the_database_as_source_and_the_stream_as_target() -> None:
    found = compare(bus_with(created(1, 2, 3)), Database([*rows(1, 4), {"id": 2, "name": None}], Order(1, 1, 99)))
    assert [(d.key["id"], d.source, d.target) for d in found.differing] == [
        (2, {"id": 2, "name": None}, {"id": 2, "name": "n2"})
    ]
    assert [(d.key["id"], d.source, d.target) for d in found.missing] == [(4, {"id": 4, "name": "n4"}, None)]
    assert [(d.key["id"], d.source, d.target) for d in found.extra] == [(3, None, {"id": 3, "name": "n3"})]


def test_not_equal_is_not_the_same_as_not_yet() -> None:
    bus = bus_with(created(1))
    found = compare(bus, Database(rows(1, 2), Order(1, 8)))
    assert (found.comparable, found.reason) == (False, "behind by 7: captured up to 1 of 8")
    found = compare(bus, Database(rows(1, 2), Order(2, 1)))
    assert found.reason == "behind: captured in epoch 1, the database is in epoch 2"
    assert compare(MemoryBus(), Database([], Order(1, 1))).reason == "the stream is not on the bus"
    bus.forget("shop/trigger")
    assert compare(bus, Database([], Order(1, 1))).reason == "behind: nothing was captured yet"


def test_it_waits_for_a_running_pipeline_and_says_how_far_that_is() -> None:
    bus = bus_with(created(1))
    heard: list[str] = []

    def progress(text: str) -> None:
        heard.append(text)
        append(bus, events([{"op": "c", "at": (1, 2, 0), "id": 2, "name": "n2"}]), position=(1, 2))

    found = compare(bus, Database(rows(1, 2), Order(1, 2)), terms=Terms(wait=30, progress=progress))
    found.require_equal()
    assert heard == ["behind by 1: captured up to 1 of 2"]


def test_rows_that_break_the_contract_and_wait_nowhere_are_a_class_of_their_own() -> None:
    bus = bus_with(created(1, 2))
    database = Database([{"id": 1, "name": "bad"}, {"id": 2, "name": "n2"}, {"id": 3, "name": "bad"}], Order(1, 1, 99))
    found = compare(bus, database)
    assert ([d.key["id"] for d in found.refused], len(found.quarantined), found.equal) == ([1, 3], 0, True)


def test_keys_in_quarantine_are_a_class_of_their_own() -> None:
    bus = bus_with(created(1))
    data = pa.RecordBatch.from_pylist(
        [{"_op": 2, "_epoch": 1, "_commit": 1, "_index": 0, "after": {"id": 1, "name": "x"}}],
        schema=changes_schema(fields_schema(ITEM)),
    )
    reasons = pa.RecordBatch.from_pylist([{"field": "name", "key": '{"id":1}'}], schema=REASONS)
    rejected = Rejected("shop.item", Changes(TABLE, data), reasons)
    bus.append(Mapped(rejected=(rejected,)), source="shop/trigger", position=Position(1, 1, b""))
    found = compare(bus, Database([{"id": 1, "name": "x"}, {"id": 2, "name": "n2"}], Order(1, 1, 99)))
    assert [d.key["id"] for d in found.quarantined] == [1]
    assert [d.key["id"] for d in found.missing] == [2]


def test_rows_of_an_older_mapping_are_a_class_of_their_own() -> None:
    bus = bus_with(created(1, 2))
    note = Note("shop.item", "mapping", "a new mapping holds from here")
    bus.append(Mapped(events=[], notes=(note,)), source="shop/trigger", position=Position(1, 1, b""))
    append(bus, events([{"op": "c", "at": (1, 2, 0), "id": 3, "name": "n3"}]), position=(1, 2))
    found = compare(bus, Database([{"id": n, "name": "mapped anew"} for n in (1, 2, 3)], Order(1, 2, 99)))
    assert [d.key["id"] for d in found.older_mapping] == [1, 2]
    assert [d.key["id"] for d in found.differing] == [3]


def test_deletes_that_a_capture_cannot_see_are_a_class_of_their_own() -> None:
    bus = bus_with(created(1, 2))
    found = compare(bus, Database(rows(1), Order(1, 1, 99)), terms=Terms(deletes_seen=False))
    assert ([d.key["id"] for d in found.unseen_deletes], found.equal) == ([2], True)


def test_duplicate_keys_in_the_database_are_found() -> None:
    found = compare(bus_with(created(1)), Database(rows(1, 1), Order(1, 1, 99)))
    assert ([d.key for d in found.repeated], found.equal) == ([{"id": 1}], False)


def test_a_paused_stream_and_one_of_events_cannot_be_compared() -> None:
    bus = bus_with(created(1))
    clicks = ITEM.model_copy(update={"kind": "event"})
    assert "not a state of rows" in compare(bus, Database([], Order(1, 1)), contract=clicks).reason
    bus.pause("shop.item", "schema change")
    assert compare(bus, Database([], Order(1, 1))).reason.startswith("the stream stands still (schema change)")


def test_query_capture_that_does_not_run_is_compared_as_it_stands() -> None:
    found = compare(bus_with(created(1)), Database(rows(1, 2), None))
    assert ([d.key["id"] for d in found.missing], found.equal) == ([2], False)
    assert "no pipeline runs" in found.reason
    assert compare(bus_with(created(1)), Database(rows(1), None)).reason == ""


def polling(bus: MemoryBus, database: Database, polls: dict[int, Callable[[], None]]) -> Terms:
    """A pipeline that polls once each time somebody waits for it; what happens at a poll, by its number."""
    poll = 1

    def progress(text: str) -> None:
        nonlocal poll
        poll += 1
        polls.get(poll, lambda: None)()
        bus.append(Mapped(), source=database.name, position=Position(1, poll, b""))

    return Terms(wait=30, progress=progress)


def test_keys_that_differ_under_query_capture_are_read_again_until_they_are_stable() -> None:
    bus, database = bus_with(created(1)), Database(rows(1, 2), None)
    polls = {3: lambda: append(bus, created(2, commit=3), position=(1, 2))}
    found = compare(bus, database, terms=polling(bus, database, polls))
    found.require_equal()
    assert database.readings == 2


def test_what_stays_different_over_two_polls_is_a_difference() -> None:
    bus, database = bus_with(created(1)), Database(rows(1, 2), None)
    found = compare(bus, database, terms=polling(bus, database, {}))
    assert ([d.key["id"] for d in found.missing], database.readings) == ([2], 2)


def test_what_keeps_changing_is_unsettled() -> None:
    bus, database = bus_with(created(1)), Database(rows(1, 2), None)

    def change(reading: int) -> None:
        database.rows[1]["name"] = f"reading {reading}"

    database.on_read = change
    terms = polling(bus, database, {})
    found = compare(bus, database, terms=Terms(wait=0.3, progress=terms.progress))
    assert ([d.key["id"] for d in found.unsettled], found.equal) == ([2], True)
    assert database.readings >= 2


def test_a_pipeline_that_does_not_poll_leaves_differences_unsettled() -> None:
    found = compare(bus_with(created(1)), Database(rows(1, 2), None), terms=Terms(wait=0.2))
    assert [d.key["id"] for d in found.unsettled] == [2]
    assert found.reason == "what is unsettled had not seen two more polls after 0.2 s"


def test_gaps_names_repeated_orders_and_orders_that_run_backwards() -> None:
    bus = bus_with(created(1, 2), events([{"op": "t", "at": (1, 2, 0)}, {"op": "d", "at": (1, 3, 0), "id": 2}]))
    assert gaps(bus, "shop.item", ITEM).clean
    assert gaps(bus, "shop.item", ITEM).events == 4
    append(bus, events([{"op": "u", "at": (1, 2, 0), "id": 1}, {"op": "u", "at": (2, 0, 0), "id": 1}]))
    found = gaps(bus, "shop.item", ITEM)
    assert found.repeated == ((Order(1, 2, 0), (2, 4)),)
    assert found.backwards == ((4, Order(1, 2, 0)),)
    assert (found.clean, found.missing) == (False, 0)
