"""The same change keeps its id through any retry: what a process read and never appended is read again as the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from headwater.mapping.hashing import event_ids
from headwater.model import Events
from tests.acceptance.project import Project, contract, stream

ROWS = "INSERT INTO item (id, name, size, updated_at) VALUES (1, 'one', 1, 1), (2, 'two', 2, 2), (3, 'three', 3, 3);"
MORE = "INSERT INTO item VALUES (4, 'four', 4, 4); UPDATE item SET size = 20, updated_at = 5 WHERE id = 2;"
QUERY = {"pattern": "query", "cursor": "updated_at"}
PATTERNS: dict[str, dict[str, Any]] = {"trigger": {}, "bulk": {"pattern": "query"}, "timestamp": QUERY}


@pytest.fixture(params=PATTERNS)
def captured(project: Project, request: pytest.FixtureRequest) -> Project:
    project.config["streams"]["shop.item"] = stream(**PATTERNS[request.param])
    if request.param == "timestamp":
        project.contracts["shop.item"] = contract("shop.item", changes="latest", deletes="unseen")
    elif request.param == "bulk":
        project.contracts["shop.item"] = contract("shop.item", changes="latest")
    return project


def attempt(project: Project) -> dict[tuple[int, int | None], bytes]:
    """What a process that dies before it appends would have appended: id by key and size."""
    found: dict[tuple[int, int | None], bytes] = {}
    with project.assembly(append=True) as assembly:
        assembly.declare()
        (capture,) = assembly.captures()
        source, router = assembly.source(capture), assembly.router(capture)
        for batch in source.read(assembly.bus.position(capture), follow=False):
            found |= by_row(router(batch).events)
        source.close()
        router.close()
    return found


def stored(project: Project) -> dict[tuple[int, int | None], bytes]:
    with project.assembly() as assembly:
        return by_row(list(assembly.bus.read("shop.item", after=None, follow=False)))


def by_row(parts: Iterable[Events]) -> dict[tuple[int, int | None], bytes]:
    found: dict[tuple[int, int | None], bytes] = {}
    for part in parts:
        columns = (part.data.column(name).to_pylist() for name in ("item_id", "size"))
        found |= dict(zip(zip(*columns, strict=True), event_ids(part).to_pylist(), strict=True))
    return found


def test_rows_of_a_first_load_keep_their_ids(captured: Project) -> None:
    captured.sql(ROWS)
    first = attempt(captured)
    assert set(first) == {(1, 1), (2, 2), (3, 3)}
    assert attempt(captured) == first
    captured.run()
    assert stored(captured) == first


def test_changes_keep_their_ids(captured: Project) -> None:
    captured.run(ROWS)
    captured.sql(MORE)
    first = attempt(captured)
    assert set(first) == {(4, 4), (2, 20)}
    assert attempt(captured) == first
    captured.run()
    everything = stored(captured)
    assert {row: everything[row] for row in first} == first
    assert len(set(everything.values())) == 5, "and no two events share one"


def test_a_retried_poll_that_finds_another_value_finds_another_event(captured: Project) -> None:
    captured.run(ROWS)
    captured.sql(MORE)
    first = attempt(captured)
    captured.sql("UPDATE item SET size = 21, updated_at = 6 WHERE id = 2")
    second = attempt(captured)
    assert first[4, 4] == second[4, 4]
    assert first[2, 20] != second[2, 21]
