"""Streams that are paused or stop: their changes are parked, the others go on, nothing is lost."""

from __future__ import annotations

import pytest

from tests.acceptance.project import Project, contract, stream


@pytest.fixture
def two(project: Project) -> Project:
    """A project with a second stream of the same table."""
    project.config["streams"]["shop.other"] = stream()
    project.contracts["shop.other"] = contract("shop.other")
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1);")
    return project


def pause(project: Project, reason: str = "maintenance") -> None:
    with project.assembly() as assembly:
        assembly.bus.pause("shop.item", reason)


def resume(project: Project) -> None:
    with project.assembly() as assembly:
        assembly.bus.resume("shop.item")


def test_a_paused_stream_parks_and_the_others_go_on(two: Project) -> None:
    pause(two)
    two.run("INSERT INTO item VALUES (2, 'two', 20, 2);")
    assert two.rows() == {(1, "one", 10)}
    assert two.rows(table="shop_other") == {(1, "one", 10), (2, "two", 20)}
    with two.assembly() as assembly:
        state = assembly.bus.streams()["shop.item"]
        assert (state.paused, state.parked > 0) == ("maintenance", True)


def test_what_was_parked_is_mapped_when_it_resumes_in_order(two: Project) -> None:
    pause(two)
    two.run("INSERT INTO item VALUES (2, 'two', 20, 2); UPDATE item SET size = 21 WHERE id = 2;")
    two.run("DELETE FROM item WHERE id = 1;")
    resume(two)
    two.run("UPDATE item SET size = 22 WHERE id = 2;")
    assert two.rows() == {(2, "two", 22)} == two.source()
    assert two.events()[1:] == [("c", 2, "two", 20), ("u", 2, "two", 21), ("d", 1, None, None), ("u", 2, "two", 22)]
    with two.assembly() as assembly:
        state = assembly.bus.streams()["shop.item"]
        assert (state.paused, state.resuming, state.parked) == (None, False, 0)


def test_on_invalid_stop_stops_that_stream_alone(two: Project) -> None:
    two.contracts["shop.item"]["fields"]["size"]["min"] = 0
    two.config["streams"]["shop.item"]["on_invalid"] = "stop"
    two.run("INSERT INTO item VALUES (2, 'two', -2, 2); INSERT INTO item VALUES (3, 'three', 30, 3);")
    assert two.rows() == {(1, "one", 10)}
    assert two.rows(table="shop_other") == {(1, "one", 10), (2, "two", -2), (3, "three", 30)}
    with two.assembly() as assembly:
        reason = assembly.bus.streams()["shop.item"].paused
    assert reason is not None
    assert "size" in reason
    assert "-2" in reason
    two.contracts["shop.item"] = contract("shop.item", 2)
    resume(two)
    two.run()
    assert two.rows() == {(1, "one", 10), (2, "two", -2), (3, "three", 30)} == two.source()


def test_a_stream_that_resumes_and_still_breaks_stands_still_again_and_loses_nothing(two: Project) -> None:
    two.contracts["shop.item"]["fields"]["size"]["min"] = 0
    two.config["streams"]["shop.item"]["on_invalid"] = "stop"
    two.run("INSERT INTO item VALUES (2, 'two', -2, 2);")
    resume(two)
    two.run("INSERT INTO item VALUES (3, 'three', 30, 3);")
    assert two.rows() == {(1, "one", 10)}
    two.contracts["shop.item"] = contract("shop.item", 2)
    resume(two)
    two.run()
    assert two.rows() == two.source()
    assert [row[:2] for row in two.events()] == [("r", 1), ("c", 2), ("c", 3)]


def test_a_reading_that_came_while_the_stream_stood_still_is_made_again(project: Project) -> None:
    """A part of a reading is worth nothing: deletes would be invented."""
    project.config["streams"]["shop.item"] = stream(pattern="query")
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1), (2, 'two', 20, 2);")
    pause(project)
    project.run("DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (3, 'three', 30, 3);")
    assert project.rows() == {(1, "one", 10), (2, "two", 20)}
    resume(project)
    project.run()
    assert project.rows() == {(2, "two", 20), (3, "three", 30)} == project.source()


def test_the_source_stops_at_the_parking_budget_and_nothing_is_dropped(two: Project) -> None:
    two.config["bus"] = {"url": "embedded:data", "park_bytes": 20_000}
    pause(two)
    numbers = "WITH RECURSIVE n(value) AS (SELECT 10 UNION ALL SELECT value + 1 FROM n WHERE value < 300) "
    two.sql(f"INSERT INTO item {numbers} SELECT value, hex(randomblob(500)), 0, 9 FROM n;")
    errors = two.try_run()
    assert "shop.item" in errors["shop/trigger"]
    assert two.rows(table="shop_other") == {(1, "one", 10)}
    resume(two)
    two.run()
    assert two.rows() == two.source()
    assert two.rows(table="shop_other") == two.source()
