"""A stream, field, sink or pattern that is added, removed or changed between two runs; loss and doubling together."""

from __future__ import annotations

import pytest

from headwater.errors import ConfigError
from tests.acceptance.project import Project, contract, stream

THREE = "INSERT INTO item VALUES (1, 'one', 10, 1), (2, 'two', 20, 2), (3, 'three', 30, 3);"
ROWS = {(1, "one", 10), (2, "two", 20), (3, "three", 30)}
LOADED = [("r", 1, "one", 10), ("r", 2, "two", 20), ("r", 3, "three", 30)]


def test_nothing_changed_nothing_happens(project: Project) -> None:
    project.run(THREE)
    project.run()
    assert project.events() == LOADED
    assert project.rows() == ROWS


# streams


def test_a_stream_added_is_loaded_and_leaves_the_others_alone(project: Project) -> None:
    """F26."""
    project.run(THREE)
    project.config["streams"]["shop.big"] = stream(where="size > 15")
    project.contracts["shop.big"] = contract("shop.big")
    project.run("UPDATE item SET name = 'drei' WHERE id = 3;")
    assert project.events() == [*LOADED, ("u", 3, "drei", 30)]
    assert project.rows(table="shop_big") == {(2, "two", 20), (3, "drei", 30)} == project.source(where="size > 15")
    assert sorted(row[1] for row in project.events("shop.big")) == [2, 3]


def test_a_stream_removed_keeps_its_events_and_the_others_go_on(project: Project) -> None:
    project.config["streams"]["shop.big"] = stream(where="size > 15")
    project.contracts["shop.big"] = contract("shop.big")
    project.run(THREE)
    del project.config["streams"]["shop.big"]
    project.run("DELETE FROM item WHERE id = 2;")
    assert project.rows() == {(1, "one", 10), (3, "three", 30)}
    assert len(project.events("shop.big")) == 2


def test_a_stream_that_comes_back_is_compared_not_loaded_again(project: Project) -> None:
    """What happened while it was away is found, deletes included, and nothing is doubled."""
    project.config["streams"]["shop.other"] = stream()
    project.contracts["shop.other"] = contract("shop.other")
    project.run(THREE)
    kept = project.config["streams"].pop("shop.item")
    project.run("DELETE FROM item WHERE id = 1; UPDATE item SET size = 21 WHERE id = 2;")
    project.config["streams"]["shop.item"] = kept
    project.run("INSERT INTO item VALUES (4, 'four', 40, 4);")
    assert project.rows() == {(2, "two", 21), (3, "three", 30), (4, "four", 40)} == project.source()
    added = project.events()[len(LOADED) :]
    assert sorted(added) == [("c", 4, "four", 40), ("d", 1, None, None), ("u", 2, "two", 21)]


# fields


def test_a_field_added_holds_from_here_on(project: Project) -> None:
    project.contracts["shop.item"]["fields"].pop("size")
    project.run(THREE)
    project.contracts["shop.item"] = contract("shop.item", 2)
    project.run("UPDATE item SET size = 11 WHERE id = 1;")
    assert project.rows() == {(1, "one", 11), (2, "two", None), (3, "three", None)}
    assert project.notes("mapping") != []


def test_a_field_added_with_rebuild_is_filled_for_all(project: Project) -> None:
    project.contracts["shop.item"]["fields"].pop("size")
    project.run(THREE)
    project.contracts["shop.item"] = contract("shop.item", 2)
    project.config["streams"]["shop.item"]["on_mapping_change"] = "rebuild"
    project.run("DELETE FROM item WHERE id = 2;")
    assert project.rows() == {(1, "one", 10), (3, "three", 30)} == project.source()
    again = len(project.events())
    project.run()
    assert len(project.events()) == again, "a rebuild is carried out once"


def test_a_field_removed_leaves_the_contract_and_the_sink_keeps_its_column(project: Project) -> None:
    project.run(THREE)
    project.contracts["shop.item"] = contract("shop.item", 2)
    del project.contracts["shop.item"]["fields"]["size"]
    project.run("INSERT INTO item VALUES (4, 'four', 40, 4);")
    assert project.rows("item_id, name") == {(1, "one"), (2, "two"), (3, "three"), (4, "four")}
    assert project.events("shop.item", "name")[-1] == ("c", "four")


def test_a_field_with_another_expression_forward(project: Project) -> None:
    project.run(THREE)
    project.config["streams"]["shop.item"]["fields"]["name"] = "upper(name)"
    project.run("UPDATE item SET size = 22 WHERE id = 2;")
    assert project.rows() == {(1, "one", 10), (2, "TWO", 22), (3, "three", 30)}


def test_a_field_with_another_expression_rebuild(project: Project) -> None:
    project.run(THREE)
    project.config["streams"]["shop.item"]["fields"]["name"] = "upper(name)"
    project.config["streams"]["shop.item"]["on_mapping_change"] = "rebuild"
    project.run()
    assert project.rows() == {(1, "ONE", 10), (2, "TWO", 20), (3, "THREE", 30)}
    assert [row[0] for row in project.events()[3:]] == ["r", "r", "r"]


def test_a_where_that_excludes_more_with_rebuild_deletes(project: Project) -> None:
    project.run(THREE)
    project.config["streams"]["shop.item"] |= {"where": "size > 15", "on_mapping_change": "rebuild"}
    project.run()
    assert project.rows() == {(2, "two", 20), (3, "three", 30)}


# sinks


def test_a_sink_added_gets_everything_from_the_beginning(project: Project) -> None:
    del project.config["sinks"]["warehouse"]
    project.run(THREE)
    project.config["sinks"]["warehouse"] = {"url": "duckdb:warehouse.duckdb"}
    project.run("DELETE FROM item WHERE id = 3;")
    assert project.rows() == {(1, "one", 10), (2, "two", 20)} == project.source()


def test_a_sink_removed_and_added_again_goes_on_where_it_stood(project: Project) -> None:
    project.run(THREE)
    kept = project.config["sinks"].pop("warehouse")
    project.run("DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (4, 'four', 40, 4);")
    assert project.rows() == ROWS
    project.config["sinks"]["warehouse"] = kept
    project.run()
    assert project.rows() == {(2, "two", 20), (3, "three", 30), (4, "four", 40)} == project.source()


def test_a_sink_whose_streams_change(project: Project) -> None:
    project.config["streams"]["shop.big"] = stream(where="size > 15")
    project.contracts["shop.big"] = contract("shop.big")
    project.config["sinks"]["warehouse"]["streams"] = ["shop.item"]
    project.run(THREE)
    project.config["sinks"]["warehouse"]["streams"] = ["shop.*"]
    project.run()
    assert project.rows(table="shop_big") == {(2, "two", 20), (3, "three", 30)}


# patterns


def test_from_trigger_to_query_nothing_is_lost_or_doubled(project: Project) -> None:
    project.run(THREE)
    project.config["streams"]["shop.item"] |= {"pattern": "query", "cursor": "updated_at", "reconcile_deletes": "1h"}
    project.run("DELETE FROM item WHERE id = 1; UPDATE item SET size = 22, updated_at = 5 WHERE id = 2;")
    assert project.rows() == {(2, "two", 22), (3, "three", 30)} == project.source()
    assert sorted(project.events()[3:]) == [("d", 1, None, None), ("u", 2, "two", 22)]
    epochs = project.epochs()
    assert epochs[:3] == [1, 1, 1]
    assert min(epochs[3:]) > 1, "the epoch rises with the pattern"


def test_from_query_to_trigger_and_on(project: Project) -> None:
    project.config["streams"]["shop.item"] |= {"pattern": "query", "cursor": "updated_at"}
    project.run(THREE)
    project.config["streams"]["shop.item"] = stream()
    project.run("DELETE FROM item WHERE id = 1;")
    project.run("UPDATE item SET size = 23 WHERE id = 2; UPDATE item SET size = 24 WHERE id = 2;")
    assert project.rows() == {(2, "two", 24), (3, "three", 30)} == project.source()
    assert project.events()[3:] == [("d", 1, None, None), ("u", 2, "two", 23), ("u", 2, "two", 24)]


def test_from_bulk_to_cursor(project: Project) -> None:
    project.config["streams"]["shop.item"] |= {"pattern": "query"}
    project.run(THREE)
    project.run("DELETE FROM item WHERE id = 1;")
    project.config["streams"]["shop.item"]["cursor"] = "updated_at"
    project.run("UPDATE item SET size = 22, updated_at = 9 WHERE id = 2;")
    assert project.rows() == {(2, "two", 22), (3, "three", 30)} == project.source()


def test_another_table(project: Project) -> None:
    """The rows of the new table take the place of those of the old one."""
    project.run(THREE)
    project.sql("CREATE TABLE thing (id INTEGER PRIMARY KEY, name TEXT, size INTEGER);")
    project.config["streams"]["shop.item"] |= {"table": "thing", "on_mapping_change": "rebuild"}
    project.run("INSERT INTO thing VALUES (2, 'zwei', 2), (7, 'sieben', 7);")
    assert project.rows() == {(2, "zwei", 2), (7, "sieben", 7)}


def test_an_unknown_table_is_an_error_before_anything_is_touched(project: Project) -> None:
    project.config["streams"]["shop.item"]["table"] = "itme"
    with pytest.raises((ConfigError, Exception), match="item"):
        project.try_run()
