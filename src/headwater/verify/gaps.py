"""A stream against itself: is any change in it twice, and does the order triple ever run backwards?"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.contracts.model import Contract
from headwater.model import Order
from headwater.protocols import Bus
from headwater.verify.comparison import EXAMPLES
from headwater.verify.tables import Tables, Workspace


@dataclass(frozen=True, slots=True)
class Gaps:
    """`repeated`: order triples that several events share, with their offsets. `backwards`: offsets whose event is
    ordered before one at a lower offset, which a replay from quarantine does and a capture never. `missing`: offsets
    between the first and the last that hold nothing; only compaction may leave such.
    """

    stream: str
    events: int
    repeated: tuple[tuple[Order, tuple[int, ...]], ...]
    backwards: tuple[tuple[int, Order], ...]
    missing: int

    @property
    def clean(self) -> bool:
        return not (self.repeated or self.backwards or self.missing)


_REPEATED = """
    SELECT _epoch, _commit, _index, list(_offset ORDER BY _offset) FROM events
    GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT {limit}
"""
_BACKWARDS = """
    SELECT _offset, _epoch, _commit, _index FROM (
        SELECT *, max(_place) OVER (ORDER BY _offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS _highest
        FROM (SELECT *, (_epoch::UHUGEINT << 96) + (_commit::UHUGEINT << 32) + _index::UHUGEINT AS _place FROM events)
    ) WHERE _place < _highest ORDER BY _offset LIMIT {limit}
"""


def gaps(bus: Bus, stream: str, contract: Contract, *, workspace: Workspace | None = None) -> Gaps:
    """Look at the order triple and offset of every event that the stream holds; the first of what is wrong in full."""
    with Tables(contract, workspace or Workspace(), history=True) as tables:  # event by event: a key is not needed
        tables.load_events(bus.read(stream, after=None, follow=False))
        count = tables.count("events")
        repeated = tables.db.sql(_REPEATED.format(limit=EXAMPLES)).fetchall()
        backwards = tables.db.sql(_BACKWARDS.format(limit=EXAMPLES)).fetchall()
        span = tables.one("SELECT coalesce(max(_offset) - min(_offset) + 1, 0) FROM events")
    return Gaps(
        stream,
        count,
        tuple((Order(*triple), tuple(offsets)) for *triple, offsets in repeated),
        tuple((offset, Order(*triple)) for offset, *triple in backwards),
        int(span) - count,
    )
