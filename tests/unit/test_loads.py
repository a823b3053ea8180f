"""What a stream begins with: every combination of what the bus knows, the newest note, and the capture's position."""

from __future__ import annotations

from typing import Any

import pytest

from headwater import loads
from headwater.buses.memory import MemoryBus
from headwater.config import StreamConfig
from headwater.model import Mapped, Note, Op, Position, Reload
from headwater.protocols import Declaration, Load
from tests.streams import ITEM, append, events

INITIAL = Load("initial")
COMPARE, REBUILD = Reload.DIFFERENCE, Reload.REBUILD


def declaration(source: str = "shop/trigger", fingerprint: str = "f", key: tuple[str, ...] = ("id",)) -> Declaration:
    contract = ITEM if key else ITEM.model_copy(update={"key": (), "kind": "event"})
    return Declaration(contract, source, fingerprint)


def config(**more: Any) -> StreamConfig:
    return StreamConfig.model_validate({"source": "shop", "table": "item", "pattern": "trigger", **more})


def bus(
    *, declared: bool = True, rows: bool = False, positioned: bool = False, notes: tuple[str, ...] = (), epoch: int = 3
) -> MemoryBus:
    made = MemoryBus()
    if declared:
        made.declare([declaration()])
    if notes:
        made.settle(Mapped(notes=tuple(Note("shop.item", loads.KIND, text) for text in notes)))
    if rows:
        append(made, events([{"op": Op.CREATE.letter, "at": (epoch, 1, 0), "id": 1}]), position=(epoch, 1))
        if not positioned:
            made.forget("shop/trigger")
    elif positioned:
        made.append(Mapped(), source="shop/trigger", position=Position(epoch, 1, b""))
    return made


def skip(token: str) -> Load:
    return Load(token, skip=True)


# (the bus; what is declared; the configuration) -> (load, least epoch, texts of new load notes)
TABLE = [
    # nothing there
    ("a new stream", {"declared": False}, {}, {}, INITIAL, 1, []),
    ("a new stream, initial: none", {"declared": False}, {}, {"initial": "none"}, skip("initial"), 1, []),
    ("declared, nothing read yet", {}, {}, {}, INITIAL, 1, []),
    ("declared, its table is empty", {"positioned": True}, {}, {}, INITIAL, 1, []),
    # as before
    ("going on", {"rows": True, "positioned": True}, {}, {}, INITIAL, 3, []),
    ("going on, initial: none", {"rows": True, "positioned": True}, {}, {"initial": "none"}, skip("initial"), 3, []),
    # the pattern was switched
    ("empty, switched", {}, {"source": "shop/query/x"}, {}, INITIAL, 1, []),
    (
        "switched",
        {"rows": True, "positioned": True},
        {"source": "q"},
        {},
        Load("switch-0", COMPARE),
        4,
        ["switch-0 difference 4"],
    ),
    (
        "switched, no key",
        {"rows": True, "positioned": True},
        {"source": "q", "key": ()},
        {},
        skip("switch-0"),
        4,
        ["switch-0 skip 4"],
    ),
    # the position is gone
    ("position lost", {"rows": True}, {}, {}, Load("switch-0", COMPARE), 4, ["switch-0 difference 4"]),
    (
        "position lost, noted before",
        {"rows": True, "notes": ("switch-0 difference 4",)},
        {},
        {},
        Load("switch-0", COMPARE),
        4,
        [],
    ),
    (
        "position lost after a rebuild",
        {"rows": True, "notes": ("rebuild-0 rebuild 2",)},
        {},
        {},
        Load("rebuild-0", REBUILD),
        4,
        [],
    ),
    # a load that was noted holds on
    ("noted, not begun", {"notes": ("owed-0 difference 1",)}, {}, {}, Load("owed-0", COMPARE), 1, []),
    (
        "noted, done or under way",
        {"rows": True, "positioned": True, "notes": ("switch-0 difference 9",)},
        {},
        {},
        Load("switch-0", COMPARE),
        9,
        [],
    ),
    (
        "the newest note counts",
        {"rows": True, "positioned": True, "notes": ("switch-0 difference 2", "rebuild-1 rebuild 5")},
        {},
        {},
        Load("rebuild-1", REBUILD),
        5,
        [],
    ),
    (
        "an owed reading keeps the epoch",
        {"rows": True, "positioned": True, "notes": ("owed-0 difference 1",)},
        {},
        {},
        Load("owed-0", COMPARE),
        3,
        [],
    ),
    # backfills
    (
        "a backfill",
        {"rows": True, "positioned": True, "notes": ("backfill-0 rows 3",)},
        {},
        {},
        Load("backfill-0", earlier=(INITIAL,)),
        3,
        [],
    ),
    (
        "a backfill of some rows",
        {"rows": True, "positioned": True, "notes": ("backfill-0 rows 3 \"name = 'a  b'\"",)},
        {},
        {},
        Load("backfill-0", where="name = 'a  b'", earlier=(INITIAL,)),
        3,
        [],
    ),
    (
        "one backfill behind another, and behind a comparison: none replaces what may not be finished",
        {
            "rows": True,
            "positioned": True,
            "notes": (
                "rebuild-0 rebuild 1",
                "switch-1 difference 2",
                'backfill-2 rows 3 "id = 1"',
                "backfill-3 rows 3",
            ),
        },
        {},
        {},
        Load("backfill-3", earlier=(Load("switch-1", COMPARE), Load("backfill-2", where="id = 1"))),
        3,
        [],
    ),
    (
        "a backfill of a stream that came back: its rows are compared first",
        {"rows": True, "positioned": True, "notes": ("away skip 0", "backfill-1 rows 3")},
        {},
        {},
        Load("return-2", COMPARE),
        4,
        ["return-2 difference 4"],
    ),
    (
        "position lost after a backfill: some rows are not all",
        {"rows": True, "notes": ('backfill-0 rows 3 "id = 1"',)},
        {},
        {},
        Load("switch-1", COMPARE),
        4,
        ["switch-1 difference 4"],
    ),
    # the mapping was changed
    ("new mapping, forward", {"rows": True, "positioned": True}, {"fingerprint": "g"}, {}, INITIAL, 3, []),
    (
        "new mapping, rebuild",
        {"rows": True, "positioned": True},
        {"fingerprint": "g"},
        {"on_mapping_change": "rebuild"},
        Load("rebuild-0", REBUILD),
        4,
        ["rebuild-0 rebuild 4"],
    ),
    ("new mapping, rebuild, empty", {}, {"fingerprint": "g"}, {"on_mapping_change": "rebuild"}, INITIAL, 1, []),
    ("same mapping, rebuild", {"rows": True, "positioned": True}, {}, {"on_mapping_change": "rebuild"}, INITIAL, 3, []),
    (
        "new mapping and pattern",
        {"rows": True, "positioned": True},
        {"fingerprint": "g", "source": "q"},
        {"on_mapping_change": "rebuild"},
        Load("switch-0", COMPARE),
        4,
        ["switch-0 difference 4"],
    ),
    # it was not configured for a while
    (
        "back again",
        {"rows": True, "positioned": True, "notes": ("away skip 0",)},
        {},
        {},
        Load("return-1", COMPARE),
        4,
        ["return-1 difference 4"],
    ),
    ("back again, empty", {"notes": ("away skip 0",)}, {}, {}, Load("return-1", COMPARE), 1, ["return-1 difference 1"]),
    (
        "back again, no key",
        {"rows": True, "positioned": True, "notes": ("away skip 0",)},
        {"key": ()},
        {},
        skip("return-1"),
        4,
        ["return-1 skip 4"],
    ),
    (
        "back since a while",
        {"rows": True, "positioned": True, "notes": ("away skip 0", "return-1 difference 4")},
        {},
        {},
        Load("return-1", COMPARE),
        4,
        [],
    ),
]


@pytest.mark.parametrize(
    ("known", "declared", "configured", "load", "epoch", "noted"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_what_a_stream_begins_with(
    known: dict[str, Any],
    declared: dict[str, Any],
    configured: dict[str, Any],
    load: Load,
    epoch: int,
    noted: list[str],
) -> None:
    found = loads.decide(bus(**known), declaration(**declared), config(**configured))
    assert (found.load, found.epoch) == (load, epoch)
    assert [note.text for note in found.notes if note.kind == loads.KIND] == noted


@pytest.mark.parametrize("row", [row for row in TABLE if row[-1]], ids=lambda row: row[0])
def test_a_crash_between_the_note_and_the_declaration_asks_for_no_other_load_once_declared(
    row: tuple[Any, ...],
) -> None:
    _, known, declared, configured, *_ = row
    made = bus(**known)
    first = loads.decide(made, declaration(**declared), config(**configured))
    made.settle(Mapped(notes=first.notes))
    again = loads.decide(made, declaration(**declared), config(**configured))  # as after the crash
    made.settle(Mapped(notes=again.notes))
    made.declare([declaration(**declared)])
    last = loads.decide(made, declaration(**declared), config(**configured))
    assert last.load == again.load
    assert last.notes == ()


@pytest.mark.parametrize("key", [("id",), ()], ids=["keyed", "no key"])
def test_changes_that_a_keyless_stream_misses_at_a_switch_are_noted_as_a_gap(key: tuple[str, ...]) -> None:
    made = bus(rows=True, positioned=True)
    found = loads.decide(made, declaration(source="q", key=key), config())
    assert [note.kind for note in found.notes] == (["load"] if key else ["load", "gap"])


def test_streams_that_are_no_longer_configured_are_noted_once() -> None:
    made = bus(rows=True)
    first = loads.away(made, set())
    made.settle(Mapped(notes=tuple(first)))
    assert [note.text for note in first] == ["away skip 0"]
    assert loads.away(made, set()) == []
    assert loads.away(made, {"shop.item"}) == []


def test_a_mapping_that_changes_is_noted_with_the_place_it_holds_from() -> None:
    found = loads.decide(bus(rows=True, positioned=True), declaration(fingerprint="g"), config())
    assert [(note.kind, note.text) for note in found.notes] == [("mapping", "mapping g holds from here")]


def test_a_backfill_is_noted_with_its_condition_and_found_again() -> None:
    known = bus(rows=True, positioned=True)
    for number, where in enumerate([None, "name = 'a' || chr(10)"]):
        known.settle(Mapped(notes=(loads.backfill(known, "shop.item", where),)))
        found = loads.decide(known, declaration(), config()).load
        assert found == Load(f"backfill-{number}", where=where, earlier=found.earlier)
        assert [load.token for load in found.earlier] == ["initial", *(f"backfill-{n}" for n in range(number))]


def test_a_repair_compares_in_a_new_epoch_and_says_that_changes_are_missing() -> None:
    known = bus(rows=True, positioned=True)
    known.settle(Mapped(notes=loads.repair(known, declaration())))
    decided = loads.decide(known, declaration(), config())
    assert (decided.load, decided.epoch) == (Load("repair-0", COMPARE), 4)
    assert [placed.note.kind for placed in known.notes("shop.item")] == ["load", "gap"]


def test_a_repair_without_a_key_reads_nothing_again_and_says_so() -> None:
    known = bus(rows=True, positioned=True)
    known.settle(Mapped(notes=loads.repair(known, declaration(key=()))))
    assert loads.decide(known, declaration(key=()), config()).load == skip("repair-0")
    assert "is not in the stream" in known.notes("shop.item")[-1].note.text
