"""What every sink must do, as tests to be inherited.

An adapter is done when this passes for it:

    class TestMine(SinkConformance):
        @pytest.fixture
        def target(self, tmp_path: Path) -> SinkTarget:
            return SinkTarget("mine:target", tmp_path)
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater.contracts.model import Contract
from headwater.errors import CursorMismatch, RowRefused, SinkError
from headwater.model import Cursor, Op
from headwater.protocols import Sink
from headwater.schema import arrow_type
from headwater.testing.sink_events import (
    HOSTILE,
    KEYS,
    UTC,
    Row,
    Script,
    SinkTarget,
    all_rows,
    contract_of,
    exact,
    failing,
    row,
    rows_in,
    typed,
)

C, U, D, R, T = Op.CREATE, Op.UPDATE, Op.DELETE, Op.READ, Op.TRUNCATE

_FAULTS = (OSError, SinkError)


class SinkConformance:
    """Inherit, and give `target`."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> SinkTarget:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _closing(self, target: SinkTarget) -> Iterator[None]:
        yield
        target.close()

    # cursors

    def test_a_new_target_has_no_cursor(self, target: SinkTarget) -> None:
        sink = target.open()
        assert sink.cursor("shop.item") is None
        sink.prepare(contract_of())
        assert sink.cursor("shop.item") is None
        assert rows_in(sink) == {}

    def test_rows_and_cursor_are_there_for_the_next_who_opens(self, target: SinkTarget) -> None:
        script = Script(contract_of())
        sink = target.open()
        sink.prepare(script.contract)
        sink.write(script.events([row(C, 1, id=1, name="a", price=decimal.Decimal("1.50"), note='{"x": 1}')]))
        sink.close()
        again = target.open()
        assert again.cursor("shop.item") == Cursor("first", (1,))
        again.prepare(script.contract)
        state = again.state("shop.item")
        assert state.cursor == Cursor("first", (1,))
        assert [r for b in state.rows for r in b.to_pylist()] == [
            {"_epoch": 1, "_commit": 1, "_index": 0, "id": 1, "name": "a", "price": decimal.Decimal("1.50"),
             "note": '{"x": 1}'}
        ]  # fmt: skip

    def test_the_same_batch_again_changes_nothing(self, target: SinkTarget) -> None:
        script = Script(contract_of())
        sink = _prepared(target, script)
        batch = script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b"), row(D, 2, id=2)])
        sink.write(batch)
        before = all_rows(sink, "shop.item")
        sink.write(batch)
        assert all_rows(sink, "shop.item") == before
        assert sink.cursor("shop.item") == Cursor("first", (3,))

    def test_f83_a_zombie_writer_is_stopped(self, target: SinkTarget) -> None:
        script = Script(contract_of())
        zombie = _prepared(target, script)
        first = script.events([row(C, 1, id=1, name="a")])
        zombie.write(first)
        heir = _prepared(target, script)
        heir.write(script.events([row(U, 2, id=1, name="b")]))
        late = replace(first, after=Cursor("first", (1,)), cursor=Cursor("first", (5,)))
        with pytest.raises(CursorMismatch, match=r"shop\.item"):
            zombie.write(late)
        assert rows_in(heir)[1]["name"] == "b"
        assert heir.cursor("shop.item") == Cursor("first", (2,))

    def test_f83_a_cursor_of_another_incarnation_is_an_error(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        other = Script(contract_of(), incarnation="second", offset=1)
        with pytest.raises(CursorMismatch, match="incarnation"):
            sink.write(other.events([row(C, 9, id=2, name="b")]))
        assert list(rows_in(sink)) == [1]

    def test_a_gap_is_an_error(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        script.events([row(C, 2, id=2, name="lost")])
        with pytest.raises(CursorMismatch, match="expected to be 2"):
            sink.write(script.events([row(C, 3, id=3, name="c")]))

    def test_f83_a_cursor_that_vanished_stops_the_writer(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        _prepared(target, script).clear("shop.item")
        with pytest.raises(CursorMismatch):
            sink.write(script.events([row(C, 2, id=2, name="b")]))
        assert rows_in(_prepared(target, script)) == {}

    def test_move_sets_and_forgets(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a"), row(U, 2, id=1, name="b")]))
        sink.move("shop.item", Cursor("first", (1,)))
        assert target.open().cursor("shop.item") == Cursor("first", (1,))
        script.offset = 1
        sink.write(script.events([row(U, 2, id=1, name="b")]))
        assert rows_in(sink)[1]["name"] == "b"
        sink.move("shop.item", None)
        assert sink.cursor("shop.item") is None
        assert list(rows_in(sink)) == [1]

    def test_events_without_a_cursor_leave_it_alone(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(replace(script.events([row(R, 1, id=1, name="a")]), after=None, cursor=None, offsets=None))
        assert sink.cursor("shop.item") is None
        sink.move("shop.item", Cursor("first", (1,)))
        sink.write(script.events([row(U, 2, id=1, name="b")]))
        assert rows_in(sink)[1]["name"] == "b"

    def test_clear_starts_again(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 5, id=1, name="a"), row(D, 6, id=2)]))
        sink.clear("shop.item")
        assert (sink.cursor("shop.item"), rows_in(sink)) == (None, {})
        again = Script(contract_of())
        sink.write(again.events([row(R, 1, id=1, name="x"), row(R, 1, 2, id=2, name="y")]))
        assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "x", 2: "y"}

    # the current state

    def test_a_row_is_never_overwritten_by_an_earlier_one(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 10, 4, epoch=2, id=n, name="new") for n in range(1, 6)]))
        late = [
            row(U, 99, 99, epoch=1, id=1, name="old epoch"),
            row(U, 9, 99, epoch=2, id=2, name="old commit"),
            row(U, 10, 2, epoch=2, id=3, name="old index"),
            row(U, 10, 6, epoch=2, id=4, name="newer"),
            row(D, 9, epoch=2, id=5),
        ]
        sink.write(script.events(late))
        assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "new", 2: "new", 3: "new", 4: "newer", 5: "new"}

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_a_deleted_row_stays_deleted(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b")]))
        sink.write(script.events([row(D, 5, id=1), row(D, 5, 2, id=3)]))
        sink.write(script.events([row(U, 4, id=1, name="late"), row(C, 4, 2, id=3, name="later than its delete")]))
        assert list(rows_in(sink)) == [2]
        sink.write(script.events([row(C, 6, id=1, name="again")]))
        sink.write(script.events([row(D, 5, 4, id=1)]))
        assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "again", 2: "b"}

    def test_a_delete_in_the_batch_of_its_create(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a"), row(D, 1, 2, id=1), row(C, 1, 4, id=2, name="b")]))
        sink.write(script.events([row(U, 1, 1, id=1, name="late")]))
        assert list(rows_in(sink)) == [2]

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_f30_unchanged_columns_are_left_alone(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        price = decimal.Decimal("7.00")
        sink.write(script.events([row(C, 1, n, id=n, name=f"n{n}", price=price, note="[1]") for n in (1, 2, 3)]))
        sink.write(
            script.events(
                [
                    row(U, 2, id=1, name="changed", _unchanged=[2, 3]),
                    row(U, 2, 2, id=2, name=None, price=None, _unchanged=[3]),
                    row(U, 2, 4, id=3, price=price + 1, note="2"),
                    row(C, 2, 6, id=4, name="whole"),
                    row(U, 2, 8, id=4, note="3", _unchanged=[1]),
                ]
            )
        )
        assert rows_in(sink) == {
            1: {"id": 1, "name": "changed", "price": price, "note": "[1]"},
            2: {"id": 2, "name": None, "price": None, "note": "[1]"},
            3: {"id": 3, "name": None, "price": price + 1, "note": "2"},
            4: {"id": 4, "name": "whole", "price": None, "note": "3"},
        }

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_f30_a_stale_partial_row_changes_nothing(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        sink.write(script.events([row(C, 5, id=1, name="a", note="1"), row(C, 5, 2, id=2, name="b"), row(D, 6, id=2)]))
        sink.write(
            script.events([row(U, 4, id=1, name="x", _unchanged=[3]), row(U, 5, 4, id=2, name="y", _unchanged=[3])])
        )
        assert rows_in(sink) == {1: {"id": 1, "name": "a", "price": None, "note": "1"}}

    def test_f30_an_unchanged_column_of_no_row_is_refused_by_name(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        with pytest.raises(RowRefused, match=r'\{"id":77\}.*note'):
            sink.write(script.events([row(C, 2, id=2, name="b"), row(U, 3, id=77, name="x", _unchanged=[3])]))
        assert list(rows_in(sink)) == [1]
        assert sink.cursor("shop.item") == Cursor("first", (1,))

    @pytest.mark.parametrize("deletes", ["hard", "soft"])
    def test_truncate_empties_what_is_older(self, target: SinkTarget, deletes: str) -> None:
        sink = _prepared(target, script := Script(contract_of()), deletes=deletes)
        sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 9, id=2, name="younger than the truncate")]))
        sink.write(script.events([row(C, 2, id=3, name="c"), row(T, 3), row(C, 4, id=4, name="d")]))
        sink.close()
        sink = _prepared(target, script, deletes=deletes)
        sink.write(script.events([row(U, 2, 2, id=1, name="late")]))
        assert sorted(rows_in(sink)) == [2, 4]

    def test_a_changed_key_is_a_delete_and_a_create(self, target: SinkTarget) -> None:
        contract = contract_of(key=["id", "name"], fields={"id": {"type": "int64"}, "name": {"type": "string"}})
        sink = _prepared(target, script := Script(contract))
        sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=1, name="b")]))
        sink.write(script.events([row(D, 2, id=1, name="a"), row(C, 2, 1, id=2, name="a")]))
        assert sorted(rows_in(sink, key=("id", "name"))) == [(1, "b"), (2, "a")]

    # values

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_f31_every_value_comes_back_the_same(self, target: SinkTarget, kind: str) -> None:
        contract = contract_of(fields={"id": {"type": "int64"}, "value": {"type": kind, "optional": True}}, kind="fact")
        values = [*target.holds(kind, HOSTILE[kind]), None]
        sink = _prepared(target, script := Script(contract))
        sink.write(script.events([row(C, 1, 2 * n, id=n, value=v) for n, v in enumerate(values)]))
        found = pa.Table.from_batches(sink.state("shop.item").rows).sort_by("id").column("value")
        assert found.type == arrow_type(contract.fields["value"].parsed)
        assert exact(found) == exact(typed(values, found.type))

    def test_f31_a_value_that_the_store_cannot_hold_is_refused_by_name(self, target: SinkTarget) -> None:
        for number, (kind, values) in enumerate(target.refuses.items()):
            fields = {"id": {"type": "int64"}, "value": {"type": kind, "optional": True}}
            contract = contract_of(f"shop.refused{number}", fields=fields)
            sink = _prepared(target, script := Script(contract))
            for n, value in enumerate(values):
                script.offset = 0
                sink.clear(contract.stream)
                with pytest.raises(RowRefused, match=r'\{"id":5\}'):
                    sink.write(script.events([row(C, 1, id=4), row(C, 2, id=5, value=value), row(C, 3, id=6)]))
                assert [r["id"] for r in all_rows(sink, contract.stream)] == [4], n

    @pytest.mark.parametrize("kind", KEYS)
    def test_every_key_finds_its_row(self, target: SinkTarget, kind: str) -> None:
        contract = contract_of(key=["k"], fields={"k": {"type": kind}, "n": {"type": "int64", "optional": True}})
        sink = _prepared(target, script := Script(contract))
        keys = target.holds(kind, KEYS[kind])
        sink.write(script.events([row(C, 1, 2 * n, k=k, n=n) for n, k in enumerate(keys)]))
        sink.write(script.events([row(U, 2, 2 * n, k=k, n=100 + n) for n, k in enumerate(keys)]))
        sink.write(script.events([row(D, 3, k=keys[0])]))
        sink.write(script.events([row(U, 2, 99, k=keys[0], n=-1)]))
        found = pa.Table.from_batches(sink.state("shop.item").rows).sort_by("n")
        assert found.column("n").to_pylist() == [100 + n for n in range(1, len(keys))]
        assert exact(found.column("k")) == exact(typed(keys[1:], found.schema.field("k").type))

    # history

    def test_history_keeps_every_event(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()), mode="history")
        at = datetime.datetime(2024, 2, 29, 12, tzinfo=UTC)
        batch = script.events([row(C, 1, id=1, name="a", _time=at), row(U, 2, id=1, note="5", _unchanged=[1, 2])])
        sink.write(batch)
        sink.write(batch)
        sink.close()
        sink = _prepared(target, script, mode="history")
        sink.write(script.events([row(D, 3, id=1), row(T, 4)]))
        found = sorted(all_rows(sink, "shop.item"), key=lambda r: r["_offset"])
        names = ("_op", "_epoch", "_commit", "_index", "_time", "_offset", "_unchanged", "id", "name", "note")
        assert [tuple(r[n] for n in names) for r in found] == [
            (1, 1, 1, 0, at, 0, None, 1, "a", None),
            (2, 1, 2, 0, None, 1, "name,price", 1, None, "5"),
            (3, 1, 3, 0, None, 2, None, 1, None, None),
            (5, 1, 4, 0, None, 3, None, None, None, None),
        ]

    def test_history_holds_several_event_types(self, target: SinkTarget) -> None:
        types = {
            "placed": {"fields": {"id": {"type": "int64"}, "total": {"type": "decimal(10,2)"}}},
            "paid": {"fields": {"id": {"type": "int64"}, "method": {"type": "string"}}},
        }
        contract = contract_of(kind="event", key=[], fields={}, types=types)
        sink = _prepared(target, script := Script(contract), mode="history")
        sink.write(script.events([row(C, 1, id=1, total=decimal.Decimal("9.90"))], kind="placed"))
        sink.write(script.events([row(C, 2, id=1, method="card")], kind="paid"))
        found = sorted(all_rows(sink, "shop.item"), key=lambda r: r["_offset"])
        assert [(r["type"], r["id"], r["total"], r["method"]) for r in found] == [
            ("placed", 1, decimal.Decimal("9.90"), None),
            ("paid", 1, None, "card"),
        ]

    def test_a_stream_without_a_current_state_is_refused(self, target: SinkTarget) -> None:
        sink = target.open()
        with pytest.raises(SinkError, match="history"):
            sink.prepare(contract_of(kind="event", key=[]))

    # contracts that change

    @pytest.mark.parametrize("mode", ["current", "history"])
    def test_a_new_version_adds_and_widens(self, target: SinkTarget, mode: str) -> None:
        fields = {"id": {"type": "int64"}, "n": {"type": "int32", "optional": True}, "f": {"type": "float32"}}
        old = contract_of(fields=fields)
        sink = _prepared(target, script := Script(old), mode=mode)
        sink.write(script.events([row(C, 1, id=1, n=5, f=0.5), row(C, 1, 2, id=2, n=6, f=1.5)]))
        added = {
            "n": {"type": "int64", "optional": True},
            "f": {"type": "float64"},
            "label": {"type": "string", "default": "none"},
            "extra": {"type": "list<int64>", "optional": True},
        }
        new = contract_of(version=2, fields={**fields, **added})
        older = script.events([row(U, 2, id=2, n=7, f=2.5)])
        sink.prepare(new)
        sink.write(older)
        script.contract = new
        sink.write(script.events([row(C, 3, id=3, n=2**40, f=0.1, label="x", extra=[1])]))
        rows = sorted(all_rows(sink, "shop.item"), key=lambda r: (r["id"], r["_commit"]))
        found = [(r["id"], r["n"], r["f"], r["label"], r["extra"]) for r in rows if (r["id"], r["_commit"]) != (2, 1)]
        assert found == [(1, 5, 0.5, "none", None), (2, 7, 2.5, "none", None), (3, 2**40, 0.1, "x", [1])]

    def test_a_type_that_cannot_widen_is_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        fields = {**contract_of().fields, "price": contract_of().fields["price"].model_copy(update={"type": "int64"})}
        with pytest.raises(SinkError, match=r"`price`.*decimal\(10,2\).*int64"):
            sink.prepare(contract_of(version=2, fields=fields))

    def test_events_of_an_unknown_version_are_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        with pytest.raises(SinkError, match="version 2"):
            sink.write(script.events([row(C, 1, id=1)], version=2))

    def test_another_mode_is_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of()))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        with pytest.raises(SinkError, match="history"):
            target.open(mode="history").prepare(script.contract)

    # neighbours

    def test_streams_of_one_table_name_are_refused(self, target: SinkTarget) -> None:
        sink = _prepared(target, script := Script(contract_of("shop.item")))
        sink.write(script.events([row(C, 1, id=1, name="a")]))
        with pytest.raises(SinkError, match=r"shop_item.*shop\.item"):
            sink.prepare(contract_of("shop_item"))

    def test_f84_pipelines_share_a_target_but_no_table(self, target: SinkTarget) -> None:
        mine = _prepared(target, script := Script(contract_of()))
        mine.write(script.events([row(C, 1, id=1, name="a")]))
        theirs = target.open(pipeline="other")
        with pytest.raises(SinkError, match="tests"):
            theirs.prepare(contract_of())
        theirs.prepare(contract_of("shop.order"))
        theirs.write(Script(contract_of("shop.order")).events([row(C, 1, id=9, name="z")]))
        assert theirs.cursor("shop.item") is None
        theirs.clear("shop.item")
        mine.clear("shop.order")
        assert list(rows_in(mine)) == [1]
        assert list(rows_in(theirs, "shop.order")) == [9]

    def test_an_unprepared_stream_is_named(self, target: SinkTarget) -> None:
        with pytest.raises(SinkError, match=r"shop\.item was not prepared"):
            target.open().write(Script(contract_of()).events([row(C, 1, id=1)]))

    # crashes

    @pytest.mark.parametrize("mode", ["current", "history"])
    def test_a_fault_at_any_step_neither_loses_nor_repeats(self, target: SinkTarget, mode: str) -> None:
        contract = contract_of()
        history = _history(40)
        sink = _prepared(target, Script(contract), mode=mode)
        faults = 0
        for seed in range(400):
            try:
                with failing("sink.*=error:0.15", seed):
                    _deliver(sink, contract, history, step=5)
                break
            except _FAULTS:
                faults += 1
            except Exception as error:
                if "failpoint" not in str(error):
                    raise
                faults += 1
            sink = _prepared(target, Script(contract), mode=mode)
        assert sink.cursor(contract.stream) == Cursor("first", (len(history),))
        assert _seen(sink, mode) == _expected(history, mode)


def _prepared(target: SinkTarget, script: Script, **options: Any) -> Sink:
    sink = target.open(**options)
    sink.prepare(script.contract)
    return sink


def _history(count: int) -> list[Row]:
    """Creates, updates and deletes of seven keys."""
    rows: list[Row] = []
    alive: set[int] = set()
    for n in range(count):
        key = (n * 5) % 7
        if key not in alive:
            rows.append(row(C, n, id=key, name=f"c{n}", note=str(n)))
            alive.add(key)
        elif n % 3:
            rows.append(row(U, n, id=key, name=f"u{n}", _unchanged=[3]))
        else:
            rows.append(row(D, n, id=key))
            alive.discard(key)
    return rows


def _deliver(sink: Sink, contract: Contract, history: Sequence[Row], step: int) -> None:
    cursor = sink.cursor(contract.stream)
    script = Script(contract, offset=cursor.offset if cursor else 0)
    while script.offset < len(history):
        sink.write(script.events(history[script.offset : script.offset + step]))


def _seen(sink: Sink, mode: str) -> list[tuple[Any, ...]]:
    names = ("_commit", "id", "name", *(["_op"] if mode == "history" else ["note"]))
    return sorted(tuple(r[n] for n in names) for r in all_rows(sink, "shop.item"))


def _expected(history: Iterable[Row], mode: str) -> list[tuple[Any, ...]]:
    if mode == "history":
        return sorted((r["_commit"], r["id"], r.get("name"), r["_op"]) for r in history)
    state: dict[int, Row] = {}
    for event in history:
        key = event["id"]
        if event["_op"] == D:
            state.pop(key)
        else:
            state[key] = {**state.get(key, {}), **event}
    return sorted((r["_commit"], r["id"], r["name"], r["note"]) for r in state.values())
