"""A sink that comes when the beginning of a stream is gone: rows from the source, handed over at an exact offset."""

from __future__ import annotations

from typing import Any

from tests.acceptance.project import Project, stream

FORGETFUL: dict[str, Any] = {"retention": {"age": "0s"}}


def forget(project: Project) -> None:
    """Retention drops everything that has been appended."""
    with project.assembly(append=True) as assembly:
        assembly.declare()
        assembly.bus.maintain()
        assert not assembly.bus.streams()["shop.item"].complete


def test_a_late_sink_gets_the_source_s_rows_and_goes_on_behind_them(project: Project) -> None:
    project.contracts["shop.item"] |= FORGETFUL
    project.config["sinks"] = {}
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1), (2, 'two', 20, 2);")
    forget(project)
    project.config["sinks"] = {"warehouse": {"url": "duckdb:warehouse.duckdb"}}
    project.run()
    assert project.rows() == {(1, "one", 10), (2, "two", 20)} == project.source()
    project.run("DELETE FROM item WHERE id = 1; UPDATE item SET size = 21 WHERE id = 2;")
    assert project.rows() == {(2, "two", 21)} == project.source()


def test_a_sink_that_cannot_join_is_refused_with_the_reason_and_the_others_go_on(project: Project) -> None:
    """Query capture knows no exact place."""
    project.contracts["shop.item"] |= FORGETFUL
    project.config["streams"]["shop.item"] = stream(pattern="query", cursor="updated_at")
    project.config["sinks"] = {}
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1);")
    forget(project)
    project.config["sinks"] = {"warehouse": {"url": "duckdb:warehouse.duckdb"}}
    errors = project.try_run()
    assert list(errors) == ["warehouse"]
    assert "no exact place" in errors["warehouse"]
