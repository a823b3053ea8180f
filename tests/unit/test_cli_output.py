"""Reports as text and as JSON."""

from __future__ import annotations

import datetime
import decimal
import json
import os
from dataclasses import dataclass
from typing import Any

import pytest
import typer

from headwater.cli.output import MISUSED, ask, count, duration, plain, print_json, print_table
from headwater.cli.tail import line
from headwater.model import Op


@dataclass(frozen=True, slots=True)
class _Report:
    name: str
    parts: tuple[Any, ...]


def test_a_report_keeps_every_value_exactly() -> None:
    moment = datetime.datetime(2026, 3, 1, 12, 0, 0, 1, datetime.UTC)
    values = (decimal.Decimal("12345678901234567.89"), moment, b"\x00\xff", float("nan"), 2**63, None, Op.READ, "é")
    assert plain(_Report("x", values)) == {
        "name": "x",
        "parts": [
            "12345678901234567.89",
            "2026-03-01T12:00:00.000001+00:00",
            "00ff",
            "nan",
            2**63,
            None,
            "read",
            "é",
        ],
    }


def test_json_is_json_and_keeps_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"naïve": float("inf")})
    shown = capsys.readouterr().out
    assert "naïve" in shown
    assert json.loads(shown) == {"naïve": "inf"}


def test_a_table_is_aligned_and_numbers_stand_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("stream", "lag"), [("a", 5), ("learning.enrollment", 1200), ("c", None)])
    assert capsys.readouterr().out.splitlines() == [
        "stream                lag",
        "a                       5",
        "learning.enrollment  1200",
        "c                       -",
    ]


def test_a_table_without_rows_is_its_heads(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("stream", "lag"), [])
    assert capsys.readouterr().out == "stream  lag\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.04, "0.0 s"), (9.94, "9.9 s"), (75, "75 s"), (120, "2 min"), (7_200, "2 h"), (864_000, "10 d")],
)
def test_durations_read_well(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_counts_have_their_plural() -> None:
    assert (count(1, "change"), count(1200, "change"), count(2, "batch", "batches")) == (
        "1 change",
        "1,200 changes",
        "2 batches",
    )


def test_without_a_terminal_nothing_is_done_that_was_not_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stopped:
        ask("drop it all?", yes=False)
    assert stopped.value.exit_code == MISUSED
    assert "--yes" in capsys.readouterr().err
    ask("drop it all?", yes=True)


def test_a_deletes_line_shows_what_it_carries() -> None:
    event = {
        "offset": 7,
        "time": "2026-03-01T12:00:00+00:00",
        "op": "d",
        "fields": {"order_id": 3, "price": None},
    }
    assert line(event) == "7  2026-03-01 12:00:00  d  order_id=3"


def test_a_row_that_a_narrow_terminal_cannot_hold_is_a_block_of_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((28, 24)))
    print_table(("id", "course_key", "title"), [(1, "course-v1:edX", "Ants and bees"), (2, "x" * 40, "Bees")])
    assert capsys.readouterr().out.splitlines() == [
        "id          1",
        "course_key  course-v1:edX",
        "title       Ants and bees",
        "",
        "id          2",
        f"course_key  {'x' * 40}",
        "title       Bees",
    ]
    print_table(("id", "course_key"), [(1, "course-v1:edX+DemoX+2026_T1+and+more")])
    assert capsys.readouterr().out.splitlines()[1] == " 1  course-v1:edX+DemoX+202…"
