"""What the log brings of a row as `Changes`, without anything behind that could read it again."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from headwater.dialects.postgres_types import PgTypes
from headwater.drivers.postgres import connect
from headwater.model import TableId
from headwater.sources.log_postgres.changes import Shaper
from headwater.sources.log_postgres.targets import Target
from headwater.wire.pgoutput import Decoder
from tests import pgoutput_messages as m

pytestmark = pytest.mark.needs("postgres")

TEXT, INT4 = 25, 23


@pytest.mark.parametrize(("old", "filled"), [("the old value", True), (None, False)])
def test_f30_a_value_that_is_left_out_is_taken_from_the_old_row(database: str, old: str | None, filled: bool) -> None:
    """Null in the old row of an unchanged value is no value: then it stays marked."""
    with closing(connect(database, application="tests")) as connection:
        types = PgTypes.load(connection)
    target = Target(TableId("public", "t"), ("id", "large"), frozenset({"id"}))
    shaper = Shaper({7: target}, types, 1, binary=False)
    table = m.relation(7, "t", [("id", INT4), ("large", TEXT)], identity="f")
    update = m.update(7, ["1", m.UNCHANGED], ["1", old], b"O")
    frames = [m.framed(message) for message in (m.begin(5, 8), table, update, m.commit(8, 16))]
    (segment,) = Decoder(binary=False, wanted=shaper.wanted).decode(*m.joined(frames))
    ((_, changes),) = shaper.changes(segment, np.ones(1, np.bool_))
    (row,) = changes.data.to_pylist()
    assert row["before"] == {"id": 1, "large": old}
    assert row["after"]["large"] == ("the old value" if filled else None)
    assert row.get("_unchanged") == (None if filled else [1])
