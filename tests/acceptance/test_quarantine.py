"""Rows that break their contract: set aside one by one, replayed in order, never in the way of others (F54, F55)."""

from __future__ import annotations

from typing import Any

from headwater import quarantine
from headwater.assembly import Assembly
from headwater.protocols import RejectedRow
from headwater.quarantine import Replayed
from tests.acceptance.project import Project, contract, stream


def limited(minimum: int, version: int = 1, **changes: Any) -> dict[str, Any]:
    made = contract("shop.item", version, **changes)
    made["fields"]["size"]["min"] = minimum
    return made


def rejected(project: Project) -> list[RejectedRow]:
    with project.assembly() as assembly:
        return list(assembly.bus.rejected("shop.item"))


def replay(project: Project, numbers: list[int] | None = None) -> Replayed:
    with project.assembly(append=True) as assembly:
        return quarantine.replay(assembly.bus, assembly.route("shop.item"), numbers)


def drop(assembly: Assembly, numbers: list[int]) -> None:
    quarantine.drop(assembly.bus, numbers)


def test_f55_a_bad_row_is_set_aside_and_the_others_flow(project: Project) -> None:
    project.contracts["shop.item"] = limited(0)
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1), (2, 'two', -5, 2), (3, 'three', 30, 3);")
    assert project.rows() == {(1, "one", 10), (3, "three", 30)}


def test_f54_the_reason_names_field_expected_got_key_and_position(project: Project) -> None:
    project.contracts["shop.item"] = limited(0)
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1);")
    project.run("INSERT INTO item VALUES (2, 'two', -5, 2);")
    (row,) = rejected(project)
    assert (row.stream, row.field, row.got, row.key) == ("shop.item", "size", "-5", '{"item_id":2}')
    assert "0" in row.expected
    assert row.order.commit > 0


def test_a_replayed_row_is_appended_once_the_contract_allows_it(project: Project) -> None:
    project.contracts["shop.item"] = limited(0)
    project.run("INSERT INTO item VALUES (1, 'one', -10, 1);")
    assert replay(project).rejected != [], "it breaks the contract still"
    project.contracts["shop.item"] = limited(-100, 2)
    done = replay(project)
    assert (len(done.appended), done.rejected, rejected(project)) == (1, [], [])
    project.run()
    assert project.rows() == {(1, "one", -10)} == project.source()


def test_a_fact_with_a_newer_event_is_superseded(project: Project) -> None:
    project.contracts["shop.item"] = limited(0)
    project.run("INSERT INTO item VALUES (1, 'one', 5, 1);")
    project.run("UPDATE item SET size = -5 WHERE id = 1; UPDATE item SET size = 7 WHERE id = 1;")
    project.contracts["shop.item"] = limited(-100, 2)
    done = replay(project)
    assert (done.appended, len(done.superseded)) == ([], 1)
    assert rejected(project) == []
    project.run()
    assert project.rows() == {(1, "one", 7)}


def test_replayed_facts_of_one_key_are_appended_in_order(project: Project) -> None:
    project.contracts["shop.item"] = limited(0)
    project.run("INSERT INTO item VALUES (1, 'one', 5, 1);")
    project.run("UPDATE item SET size = -5 WHERE id = 1; UPDATE item SET size = -6 WHERE id = 1;")
    project.contracts["shop.item"] = limited(-100, 2)
    assert len(replay(project).appended) == 2
    project.run()
    assert project.events()[-2:] == [("u", 1, "one", -5), ("u", 1, "one", -6)]
    assert project.rows() == {(1, "one", -6)}


def test_later_events_of_a_key_wait_behind_the_quarantined_one(project: Project) -> None:
    project.contracts["shop.item"] = limited(0, kind="event")
    project.config["sinks"]["warehouse"]["mode"] = "history"
    project.run()
    project.run(
        "INSERT INTO item VALUES (1, 'one', -5, 1); UPDATE item SET size = 6 WHERE id = 1;"
        "INSERT INTO item VALUES (2, 'two', 20, 2);"
    )
    project.run("UPDATE item SET size = 7 WHERE id = 1;")
    assert project.events() == [("c", 2, "two", 20)]
    assert len(rejected(project)) == 3
    project.contracts["shop.item"] = limited(-100, 2, kind="event")
    assert len(replay(project).appended) == 3
    assert project.events() == [("c", 2, "two", 20), ("c", 1, "one", -5), ("u", 1, "one", 6), ("u", 1, "one", 7)]


def test_an_event_that_waits_is_not_replayed_before_the_one_it_waits_for(project: Project) -> None:
    project.contracts["shop.item"] = limited(0, kind="event")
    project.config["sinks"] = {}
    project.run()
    project.run("INSERT INTO item VALUES (1, 'one', -5, 1); UPDATE item SET size = 6 WHERE id = 1;")
    first, second = rejected(project)
    assert replay(project, [second.number]).waiting == [second.number]
    assert replay(project).waiting == [second.number]
    with project.assembly(append=True) as assembly:
        drop(assembly, [first.number])
    assert replay(project).appended == [second.number]
    assert project.events() == [("u", 1, "one", 6)]


def test_relaxed_order_lets_later_events_pass(project: Project) -> None:
    project.contracts["shop.item"] = limited(0, kind="event")
    project.config["streams"]["shop.item"] = stream(order="relaxed")
    project.config["sinks"] = {}
    project.run()
    project.run("INSERT INTO item VALUES (1, 'one', -5, 1); UPDATE item SET size = 6 WHERE id = 1;")
    assert project.events() == [("u", 1, "one", 6)]


def test_a_reading_quarantines_a_broken_row_once_and_does_not_delete_it(project: Project) -> None:
    """Bulk polls meet the row again and again; its last good state stays."""
    project.contracts["shop.item"] = limited(0)
    project.config["streams"]["shop.item"] = stream(pattern="query")
    project.run("INSERT INTO item VALUES (1, 'one', 5, 1), (2, 'two', 6, 2);")
    project.run("UPDATE item SET size = -5 WHERE id = 1;")
    project.run()
    project.run("DELETE FROM item WHERE id = 2;")
    assert project.rows() == {(1, "one", 5)}
    assert [(row.key, row.got) for row in rejected(project)] == [('{"item_id":1}', "-5")]


def test_text_in_an_integer_column_is_quarantined_with_what_it_was(project: Project) -> None:
    """F70: SQLite's columns hold any value."""
    text = "many " * 100
    project.run(f"INSERT INTO item VALUES (1, 'one', '{text}', 1), (2, 'two', 20, 2);")
    assert project.rows() == {(2, "two", 20)}
    (row,) = rejected(project)
    assert (row.field, row.got) == ("size", f"text '{text}'")
