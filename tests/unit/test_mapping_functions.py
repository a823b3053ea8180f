"""Mappings as Python functions, over record batches or over rows, under all the same rules."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headwater.errors import MappingError
from headwater.model import Op
from tests.mapping_rows import change, changes, contract, mapped, mapping, plain, reasons

OF = contract({"id": {"type": "int64"}, "label": {"type": "string", "pattern": "^[A-Z0-9!]*$"}})


def row(key: int, mode: str = "audit", price: float | None = 1.0) -> dict[str, Any]:
    return {"id": key, "mode": mode, "price": price}


def labelled(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"label": pc.utf8_upper(batch.column("mode")), "id": batch.column("id")})


def not_beta(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    return {
        "id": batch.column("id"),
        "label": pc.utf8_upper(batch.column("mode")),
        "_keep": pc.not_equal(batch.column("mode"), "beta"),
    }


def by_row(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["mode"] == "beta":
        return None
    return {"id": row["id"], "label": row["mode"].upper() + "!" * int(row["price"])}


def with_op(batch: pa.RecordBatch) -> dict[str, Any]:
    letters = [Op(op).letter.upper() for op in batch.column("_op").to_pylist()]
    return {"id": batch.column("id").to_pylist(), "label": letters}


ROWS = [
    change("c", None, row(1)),
    change("u", row(1), row(1, "honor")),
    change("u", row(1, "honor"), row(2, "honor")),
    change("u", row(3, "beta"), row(3, "x")),
    change("u", row(4), row(4, "beta")),
    change("d", row(5), None),
    change("d", row(6, "beta"), None),
    change("t"),
]


def test_function_over_batches() -> None:
    found = [
        (e["op"], e["at"], e["id"], e["label"]) for e in mapped(mapping(of=OF, function=labelled), ROWS[:3], cut=1)
    ]
    assert found == [
        ("c", (1, 0), 1, "AUDIT"), ("u", (2, 0), 1, "HONOR"), ("d", (3, 0), 1, None), ("c", (3, 1), 2, "HONOR"),
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [False, True])
def test_function_that_chooses_rows_is_a_where(rows: bool) -> None:
    of = mapping({"rows": rows}, OF, function=by_row if rows else not_beta)
    found = [(e["op"], e["id"], e["label"]) for e in mapped(of, ROWS)]
    tail = "!" if rows else ""
    assert found == [
        ("c", 1, "AUDIT" + tail), ("u", 1, "HONOR" + tail), ("d", 1, None), ("c", 2, "HONOR" + tail),
        ("c", 3, "X" + tail), ("d", 4, None), ("d", 5, None), ("t", None, None),
    ]  # fmt: skip


def test_function_from_the_configuration() -> None:
    of = mapping({"function": f"{__name__}:by_row", "rows": True}, OF)
    assert [e["label"] for e in mapped(of, [change("c", None, row(1, price=3.0))])] == ["AUDIT!!!"]


def test_function_sees_the_op() -> None:
    found = mapped(mapping(of=OF, function=with_op), [change("c", None, row(1)), change("r", None, row(2))])
    assert [e["label"] for e in found] == ["C", "R"]


def test_result_is_cast_and_checked_like_any_other() -> None:
    def floats(batch: pa.RecordBatch) -> dict[str, Any]:
        return {"id": pc.cast(batch.column("id"), pa.float64()), "label": batch.column("mode")}

    rows = [change("c", None, row(1, "A")), change("c", None, row(2, "b"))]
    events, rejected = mapping(of=OF, function=floats).apply(changes(rows))
    assert [(e["id"], e["label"]) for e in plain(events)] == [(1, "A")]
    assert [(r["field"], r["got"], r["key"]) for r in reasons(rejected)] == [("label", "b", '{"id":2}')]


def test_type_that_passes_only_by_a_guess_is_rejected() -> None:
    fields = {"id": {"type": "int64"}, "at": {"type": "timestamp"}}

    def numbers(batch: pa.RecordBatch) -> dict[str, Any]:
        return {"id": batch.column("id"), "at": batch.column("id")}

    events, rejected = mapping(of=contract(fields), function=numbers).apply(changes([change("c", None, row(1))]))
    assert events == []
    assert [(r["field"], r["expected"], r["got"]) for r in reasons(rejected)] == [("at", "timestamp", "1")]


@pytest.mark.parametrize("rows", [False, True])
def test_f55_rows_on_which_the_function_fails_go_to_quarantine_alone(rows: bool) -> None:
    def fussy_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
        if 7 in batch.column("id").to_pylist():
            raise ValueError("no sevens")
        return labelled(batch)

    def fussy_row(row: dict[str, Any]) -> dict[str, Any] | None:
        return {"id": row["id"], "label": {7: None}.get(row["id"], "A") + "B"}  # type: ignore[operator]

    of = mapping({"rows": rows}, OF, function=fussy_row if rows else fussy_batch)
    many = [change("c", None, row(n)) for n in range(20)] + [change("u", row(7), row(8)), change("d", row(7), None)]
    events, rejected = of.apply(changes(many))
    assert [e["id"] for e in plain(events)] == [n for n in range(20) if n != 7] + [8]
    found = reasons(rejected)
    assert [(r["field"], r["key"]) for r in found] == [("function", None), ("function", None)]
    assert ("TypeError" if rows else "ValueError: no sevens") in found[0]["got"]


def test_function_that_cannot_be_had_or_used() -> None:
    with pytest.raises(MappingError, match="function `nowhere:f` cannot be imported"):
        mapping({"function": "nowhere:f"}, OF)
    with pytest.raises(MappingError, match="is a ModuleType|is a str, not a callable"):
        mapping({"function": f"{__name__}:__name__"}, OF)
    with pytest.raises(MappingError, match="its result lacks label"):
        mapping(of=OF, function=lambda batch: {"id": batch.column("id")}).apply(changes(ROWS[:1]))
    with pytest.raises(MappingError, match="`id` has 0 rows, and 1 were given"):
        mapping(of=OF, function=lambda batch: {"id": [], "label": []}).apply(changes(ROWS[:1]))


def test_invalid_and_uncarried_values_are_never_shown_to_a_function() -> None:
    invalid = [{"column": "price", "expected": "number", "got": "text"}]
    of = mapping(of=OF, function=labelled)
    rows = [change("c", None, row(1), _invalid=invalid), change("c", None, row(2))]
    events, rejected = of.apply(changes(rows, invalid=True))
    assert [e["id"] for e in plain(events)] == [2]
    assert [(r["field"], r["expected"]) for r in reasons(rejected)] == [("price", "number")]
    batch = changes([change("u", None, row(1), _unchanged=[1])], unchanged=True)
    with pytest.raises(MappingError, match="did not carry the values of mode"):
        mapping({"pattern": "log"}, OF, function=labelled).apply(batch)


def test_delete_whose_old_row_is_its_key_alone_reaches_the_stream() -> None:
    of = mapping({"pattern": "query"}, OF, function=not_beta)
    old = {"id": 1, "mode": None, "price": None}
    assert [(e["op"], e["id"]) for e in mapped(of, [change("d", old, None)])] == [("d", 1)]


def test_fingerprint_names_the_function() -> None:
    prints = {mapping(of=OF, function=f).fingerprint for f in (labelled, not_beta)}
    assert len(prints | {mapping({"function": f"{__name__}:by_row"}, OF).fingerprint}) == 3
