"""kill -9 at random failpoints and random times, again and again, while the application writes.

Loss and duplicates are asserted together (F6): source, stream and sinks row by row, and the stream against the
application's own audit, change by change.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import world

KILLS = 20


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(10))
def test_after_every_kill_nothing_is_lost_or_doubled(tmp_path: Path, seed: int) -> None:
    world.build(tmp_path, seed)
    tormented = world.World(tmp_path, seed)
    tormented.torment(KILLS)
    tormented.finish()

    expected = world.source_rows(tmp_path)
    assert world.duckdb_rows(tmp_path) == expected
    assert world.sqlite_rows(tmp_path) == expected
    assert world.parquet_rows(tmp_path) == expected

    for stream in world.COLUMNS:
        events = world.events_of(tmp_path, stream)
        assert len({order for _, order, _ in events}) == len(events), "no event twice"
        live = [order for letter, order, _ in events if letter != "r"]
        assert live == sorted(live), "each behind the one before"
        assert world.replayed(events, polled=stream.startswith("catalog")) == expected[stream]

    told = [(letter, fields) for letter, _, fields in world.events_of(tmp_path, "learning.enrollment") if letter != "r"]
    assert len(told) > world.LIVE
    assert told == world.audited(tmp_path)[-len(told) :]
