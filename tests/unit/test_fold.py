"""fold: the newest row of each key, by order and never by position; what a row does not carry, from an earlier one."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from headwater.mapping.fold import fold
from headwater.model import ORDER_FIELDS, UNCHANGED, Op

LETTERS = {op.letter: int(op) for op in Op}
FIELDS = (pa.field("id", pa.int64()), pa.field("name", pa.string()), pa.field("note", pa.string()))
SCHEMA = pa.schema([*ORDER_FIELDS, *FIELDS])
MARKED = SCHEMA.append(pa.field("_unchanged", UNCHANGED))


def event(letter: str, commit: int, key: int | None, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"_op": LETTERS[letter], "_epoch": 1, "_commit": commit, "_index": 0, "id": key, "name": name, **more}


def batch(*rows: dict[str, Any], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=schema)


def found(data: pa.RecordBatch) -> list[tuple[Any, ...]]:
    data.validate(full=True)
    shown = [n for n in data.schema.names if n in ("id", "name", "note", "_unchanged")]
    return [(Op(row["_op"]).letter, row["_commit"], *(row[n] for n in shown)) for row in data.to_pylist()]


def test_newest_row_of_each_key_in_order() -> None:
    data = batch(event("c", 1, 1, "a"), event("c", 2, 2, "b"), event("u", 3, 1, "c"), event("d", 4, 2))
    assert found(fold(data, ["id"])) == [("u", 3, 1, "c", None), ("d", 4, 2, None, None)]


def test_order_decides_not_position() -> None:
    late = {**event("u", 1, 1, "later epoch"), "_epoch": 2}
    inside = {**event("u", 9, 2, "later index"), "_index": 3}
    data = batch(late, event("u", 9, 1, "older epoch"), inside, event("u", 9, 2, "earlier index"))
    assert found(fold(data, ["id"])) == [("u", 9, 2, "later index", None), ("u", 1, 1, "later epoch", None)]


def test_commits_beyond_signed_range_are_compared_as_unsigned() -> None:
    data = batch(event("c", 2**63 + 5, 1, "new"), event("c", 2**63 - 5, 1, "old"))
    assert found(fold(data, ["id"])) == [("c", 2**63 + 5, 1, "new", None)]


def test_unique_ordered_rows_pass_without_a_copy() -> None:
    data = batch(event("c", 1, 5), event("c", 2, 3))
    assert fold(data, ["id"]) is data


def test_empty_batch_and_table() -> None:
    assert fold(batch(), ["id"]).num_rows == 0
    assert fold(SCHEMA.empty_table(), ["id"]).schema == SCHEMA


def test_table_of_several_chunks_and_offsets_carried() -> None:
    one = batch(event("c", 1, 1, "a")).append_column("_offset", pa.array([7], pa.uint64()))
    two = batch(event("u", 2, 1, "b")).append_column("_offset", pa.array([8], pa.uint64()))
    result = fold(pa.Table.from_batches([one, two]), ["id"])
    assert result.column("_offset").to_pylist() == [8]
    assert result.column("name").to_pylist() == ["b"]


def test_keys_of_several_columns_and_types() -> None:
    rows = [event("c", 1, 1, "a"), event("c", 2, 1, "b"), event("u", 3, 1, "a", note="new"), event("c", 4, 2, "a")]
    result = fold(batch(*rows), ["name", "id"])
    assert found(result) == [("c", 2, 1, "b", None), ("u", 3, 1, "a", "new"), ("c", 4, 2, "a", None)]


def test_sparse_and_negative_keys() -> None:
    ids = [-(2**63), 2**63 - 1, 0, -(2**63), 2**63 - 1]
    result = fold(batch(*(event("c", n, i) for n, i in enumerate(ids))), ["id"])
    assert [(row[1], row[2]) for row in found(result)] == [(2, 0), (3, -(2**63)), (4, 2**63 - 1)]


def test_sliced_batch() -> None:
    data = batch(event("c", 1, 1, "x"), event("c", 2, 1, "a"), event("u", 3, 1, "b"), event("u", 4, 1, "y"))
    assert found(fold(data.slice(1, 2), ["id"])) == [("u", 3, 1, "b", None)]


def test_truncate_drops_what_is_older_and_stays_first() -> None:
    data = batch(event("c", 1, 1, "gone"), event("u", 5, 3, "stays"), event("t", 3, None), event("t", 2, None))
    assert found(fold(data, ["id"])) == [("t", 3, None, None, None), ("u", 5, 3, "stays", None)]


def test_f30_unchanged_value_comes_from_the_newest_row_that_has_it() -> None:
    data = batch(
        event("c", 1, 1, "a", note="long"),
        event("u", 2, 1, "b", note="longer"),
        event("u", 3, 1, "c", _unchanged=[2]),
        event("c", 4, 2, "other", note="other"),
        event("u", 5, 1, None, _unchanged=[1, 2]),
        schema=MARKED,
    )
    result = fold(data, ["id"])
    assert found(result) == [("c", 4, 2, "other", "other"), ("u", 5, 1, "c", "longer")]
    assert "_unchanged" not in result.schema.names


def test_f30_search_ends_at_a_delete_or_a_new_row() -> None:
    data = batch(
        event("c", 1, 1, "a", note="dead"),
        event("d", 2, 1),
        event("u", 3, 1, "b", _unchanged=[2]),
        event("u", 4, 2, "c", note="of a former life"),
        event("c", 5, 2, "d", _unchanged=[2]),
        event("u", 6, 2, "e", _unchanged=[2]),
        schema=MARKED,
    )
    assert found(fold(data, ["id"])) == [("u", 3, 1, "b", None, [2]), ("u", 6, 2, "e", None, [2])]


def test_f30_what_stays_unknown_stays_listed() -> None:
    data = batch(
        event("u", 1, 1, "a", _unchanged=[2]),
        event("u", 2, 1, None, _unchanged=[1, 2]),
        event("c", 3, 2, "x", note="y"),
        schema=MARKED,
    )
    assert found(fold(data, ["id"])) == [("u", 2, 1, "a", None, [2]), ("c", 3, 2, "x", "y", None)]


def test_f30_unchanged_in_a_slice_and_out_of_order() -> None:
    rows = [
        event("u", 9, 1, "foreign", note="foreign"),
        event("u", 3, 1, None, _unchanged=[1, 2]),
        event("u", 2, 1, "b", _unchanged=[2]),
        event("c", 1, 1, "a", note="n"),
        event("u", 9, 1, "foreign", note="foreign"),
    ]
    assert found(fold(batch(*rows, schema=MARKED).slice(1, 3), ["id"])) == [("u", 3, 1, "b", "n")]


def test_truncate_hides_older_values_from_unchanged() -> None:
    rows = [event("c", 1, 1, "a", note="n"), event("t", 2, None), event("u", 3, 1, "b", _unchanged=[2])]
    result = fold(batch(*rows, schema=MARKED), ["id"])
    assert found(result) == [("t", 2, None, None, None, None), ("u", 3, 1, "b", None, [2])]
