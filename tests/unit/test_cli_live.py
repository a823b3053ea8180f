"""What a running pipeline looks like, on a terminal and off it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from rich.console import Console

from headwater.cli.live import Picture, SinkLine, StreamLine, drawn, screen

STREAM = StreamLine("learning.enrollment", "trigger", 300_000, 125_000.4, 1_500, "exactly_once", "running", "")
SINK = SinkLine("warehouse", 298_500, 90_000.0, 1_500, "running", "")
PICTURE = Picture(7.2, (STREAM,), (SINK,))
FULL = dataclasses.replace(SINK, state="waiting", error="disk full\n  hint: make room")
LAST = dataclasses.replace(PICTURE, seconds=14.0, sinks=(dataclasses.replace(SINK, lag=0),))
TROUBLED = dataclasses.replace(PICTURE, seconds=8.0, sinks=(FULL,))


def test_the_table_fits_eighty_columns() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as shown:
        console.print(drawn(PICTURE))
    lines = [line.split() for line in shown.get().splitlines() if line.strip()]
    assert lines == [
        ["stream", "pattern", "rows", "rows/s", "lag", "delivery"],
        ["learning.enrollment", "trigger", "300,000", "125,000", "1,500", "exactly", "once"],
        ["sink", "rows", "rows/s", "lag", "state"],
        ["warehouse", "298,500", "90,000", "1,500", "running"],
        ["7", "s"],
    ]


def test_off_a_terminal_there_are_plain_lines_and_each_trouble_once(capsys: pytest.CaptureFixture[str]) -> None:
    with screen() as show:
        for picture in (PICTURE, TROUBLED, TROUBLED, dataclasses.replace(PICTURE, seconds=13.0), LAST):
            show(picture)
    assert capsys.readouterr().out.splitlines() == [
        "action=progress seconds=7 captured=300000 written=298500 rows_per_second=125000 lag=1500",
        'action=waiting name=warehouse error="disk full"',
        "action=recovered name=warehouse",
        "action=progress seconds=13 captured=300000 written=298500 rows_per_second=125000 lag=1500",
        "action=progress seconds=14 captured=300000 written=298500 rows_per_second=125000 lag=0",
    ]


def test_json_lines_hold_the_whole_picture(capsys: pytest.CaptureFixture[str]) -> None:
    with screen(as_json=True) as show:
        show(PICTURE)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "seconds": 7.2,
        "streams": [dataclasses.asdict(STREAM)],
        "sinks": [dataclasses.asdict(SINK)],
        "lag": 1_500,
    }
