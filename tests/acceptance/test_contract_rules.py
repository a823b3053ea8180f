"""Contract and mapping on the whole path: from the application's statement to the sink and the reader in Python.

Each rule of contracts and mappings has its test; those that need no path have theirs where the part is tested:

    unlisted fields take the column of their name        unit/test_mapping_stream
    expressions are scalar and deterministic             unit/test_mapping_expressions
    the whole-row rule over unchanged values (F30)       unit/test_mapping_stream
    field types, attributes, exact values (F34)          unit/test_mapping_contract, unit/test_mapping_types
    vectorised checks, one reason a row (F54)            unit/test_mapping_contract
    compatibility, acceptance, immutable versions        unit/test_compatibility, unit/test_contract_store
    vocabulary, references, terms                        unit/test_vocabulary, unit/test_check
    widening and filling of older events                 unit/test_mapping_evolve
    fingerprint; `forward` and `rebuild`                 acceptance/test_changes_between_runs
    quarantine, replay, superseded, waiting              acceptance/test_quarantine
    `on_invalid: stop`, paused streams                   acceptance/test_standing_still
    promises, keys, columns that are not there           acceptance/test_bad_input
    file and code as each other                          unit/test_api, unit/test_config, and below
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from headwater.api import Event, Pipeline
from headwater.check import check
from headwater.contracts.store import ContractStore
from headwater.errors import ContractError
from headwater.model import Batch, Changes, Op, Order, changes_schema
from tests.acceptance.project import Project, contract, stream

THREE = "INSERT INTO item VALUES (1, 'one', 10, 1), (2, 'two', 20, 2), (3, 'three', 30, 3);"


def read(project: Project, name: str = "shop.item") -> list[Event]:
    """The events as a reader in Python gets them."""
    project.save()
    with Pipeline.load(project.directory / "headwater.yaml") as pipeline:
        return list(pipeline.events(name, follow=False))


def accept(project: Project, made: dict[str, Any]) -> None:
    """`headwater contract accept` of a working copy."""
    project.contracts[made["stream"]] = made
    project.save()
    ContractStore(project.directory / "contracts").accept(made["stream"])


def has(fields: dict[str, Any], key: str, **more: Any) -> dict[str, Any]:
    """A contract of `shop.item` with other fields."""
    return {**contract("shop.item"), "key": [key], "fields": fields, **more}


# what a mapping makes of rows


def test_several_streams_of_one_table_each_have_a_shape_and_a_key_of_their_own(project: Project) -> None:
    project.config["streams"] = {
        "shop.item": stream(),
        "shop.label": stream(fields={"label": "upper(name)", "rank": "size / 10"}, where="size >= 20"),
        "shop.size": {"source": "shop", "table": "item", "pattern": "query", "fields": {"item_id": "id"}},
    }
    project.contracts |= {
        "shop.label": {
            **contract("shop.label"),
            "key": ["label"],
            "fields": {"label": {"type": "string"}, "rank": {"type": "int64", "optional": True}},
        },
        "shop.size": {
            **contract("shop.size"),
            "fields": {"item_id": {"type": "int64"}, "size": {"type": "int64", "optional": True}},
        },
    }
    project.run(THREE)
    project.run("UPDATE item SET size = 25 WHERE id = 1; DELETE FROM item WHERE id = 2;")
    assert project.rows() == {(1, "one", 25), (3, "three", 30)}
    assert project.rows("item_id, size", "shop_size") == {(1, 25), (3, 30)}
    for name in project.config["streams"]:
        project.require_equal(name)


def test_renames_expressions_hashes_and_masks(project: Project) -> None:
    project.contracts["shop.item"] = has(
        {
            "number": {"type": "int64"},
            "label": {"type": "string", "optional": True},
            "half": {"type": "decimal(10,1)", "optional": True},
            "secret": {"type": "string", "optional": True, "pii": "sensitive"},
            "shown": {"type": "string", "optional": True, "pii": "personal"},
        },
        "number",
    )
    fields = {
        "number": "id",
        "label": "upper(name) || '!'",
        "half": "round(size / 2, 1)",
        "secret": "hash(name)",
        "shown": "mask(name)",
    }
    project.config["streams"]["shop.item"] = stream(fields=fields)
    project.run("INSERT INTO item VALUES (1, 'one', 5, 1), (2, NULL, NULL, 2);")
    project.run("INSERT INTO item VALUES (3, 'öl', 7, 3); UPDATE item SET name = 'two' WHERE id = 2;")
    assert project.rows("number, label, half") == {
        (1, "ONE!", Decimal("2.5")),
        (2, "TWO!", None),
        (3, "ÖL!", Decimal("3.5")),
    }
    hidden = project.rows("number, secret, shown")
    assert len({secret for _, secret, _ in hidden}) == 3
    assert not any(name in str(hidden) for name in ("one", "two", "öl"))
    assert {(1, hashlib.sha256(b"one").hexdigest())} <= {(number, secret) for number, secret, _ in hidden}
    project.require_equal()


def test_a_row_that_leaves_where_is_deleted_and_one_that_enters_is_created(project: Project) -> None:
    project.config["streams"]["shop.item"] = stream(where="size > 15")
    project.run(THREE)
    project.run(
        "UPDATE item SET size = 5 WHERE id = 2; UPDATE item SET size = 16 WHERE id = 1;"
        "UPDATE item SET size = 17 WHERE id = 1; UPDATE item SET name = 'zwei' WHERE id = 2;"
        "DELETE FROM item WHERE id = 2; DELETE FROM item WHERE id = 3; UPDATE item SET size = NULL WHERE id = 1;"
    )
    assert project.events() == [
        ("r", 2, "two", 20),
        ("r", 3, "three", 30),
        ("d", 2, None, None),
        ("c", 1, "one", 16),
        ("u", 1, "one", 17),
        ("d", 3, None, None),
        ("d", 1, None, None),
    ]
    assert project.rows() == set() == project.source(where="size > 15")
    project.require_equal()


@pytest.mark.parametrize("pattern", ["trigger", "query"])
def test_a_stream_key_of_its_own_and_what_becomes_of_its_changes(project: Project, pattern: str) -> None:
    """A changed stream key is delete + create; a changed table key is none, where the stream does not show it."""
    project.contracts["shop.item"] = has(
        {"name": {"type": "string"}, "size": {"type": "int64", "optional": True}}, "name"
    )
    project.config["streams"]["shop.item"] = stream(fields=None, pattern=pattern)
    project.run(THREE)
    project.run("UPDATE item SET name = 'eins' WHERE id = 1; UPDATE item SET id = 9 WHERE id = 2;")
    project.run("UPDATE item SET size = 21 WHERE id = 9; DELETE FROM item WHERE id = 3;")
    assert project.rows("name, size") == {("eins", 10), ("two", 21)} == project.source("name, size")
    told = [(event.op, event.key["name"]) for event in read(project)[3:]]
    if pattern == "trigger":
        assert told[:2] == [("d", "one"), ("c", "eins")]
        assert told[-2:] == [("u", "two"), ("d", "three")]
    else:
        assert sorted(told) == [("c", "eins"), ("d", "one"), ("d", "three"), ("u", "two")]
    project.require_equal()


def test_several_event_types_keep_one_sequence_into_a_history(project: Project) -> None:
    project.contracts["shop.item"] = {
        "stream": "shop.item", "version": 1, "owner": "tests", "kind": "event", "key": ["item_id"],
        "types": {
            "added": {"fields": {"item_id": {"type": "int64"}, "name": {"type": "string"}}},
            "sold": {"fields": {"item_id": {"type": "int64"}, "left": {"type": "int64", "min": 0}}},
            "gone": {"fields": {"item_id": {"type": "int64"}}},
        },
    }  # fmt: skip
    types = {
        "added": {"ops": ["c", "r"], "fields": {"item_id": "id"}},
        "sold": {"ops": ["u"], "where": "size IS NOT NULL", "fields": {"item_id": "id", "left": "size"}},
        "gone": {"ops": ["d"], "fields": {"item_id": "id"}},
    }
    project.config["streams"]["shop.item"] = stream(fields=None, types=types)
    project.config["sinks"] = {
        name: {"url": f"{name}:{made}", "mode": "history"}
        for name, made in {"duckdb": "warehouse.duckdb", "sqlite": "copy.db", "parquet": "lake"}.items()
    }
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1);")
    project.run(
        "INSERT INTO item VALUES (2, 'two', 20, 2); UPDATE item SET size = 9 WHERE id = 1;"
        "UPDATE item SET size = NULL WHERE id = 1; UPDATE item SET size = 19 WHERE id = 2;"
        "DELETE FROM item WHERE id = 1;"
    )
    wanted: list[tuple[Any, ...]] = [
        ("added", 1, "one", None),
        ("added", 2, "two", None),
        ("sold", 1, None, 9),
        ("sold", 2, None, 19),
        ("gone", 1, None, None),
    ]
    with duckdb.connect(str(project.directory / "warehouse.duckdb"), read_only=True) as db:
        order = 'ORDER BY "_epoch", "_commit", "_index"'
        assert db.execute(f'SELECT type, item_id, name, "left" FROM shop_item {order}').fetchall() == wanted
    read_back = [(e.type, e.fields["item_id"], e.fields.get("name"), e.fields.get("left")) for e in read(project)]
    assert read_back == wanted
    project.require_equal()


def test_before_is_what_the_contract_saw(project: Project) -> None:
    project.config["streams"]["shop.item"] = stream(before=True, fields={"item_id": "id", "name": "upper(name)"})
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1);")
    project.run("UPDATE item SET name = 'two' WHERE id = 1; DELETE FROM item WHERE id = 1;")
    assert [(event.op, event.before) for event in read(project)] == [
        ("r", None),
        ("u", {"item_id": 1, "name": "ONE", "size": 10}),
        ("d", {"item_id": 1, "name": "TWO", "size": 10}),
    ]
    assert project.rows() == set()
    project.require_equal()


def labelled(rows: pa.RecordBatch) -> dict[str, pa.Array]:
    """A mapping over record batches."""
    return {
        "item_id": rows.column("id"),
        "name": pc.utf8_upper(rows.column("name")),
        "size": pc.multiply(rows.column("size"), 2),
        "_keep": pc.fill_null(pc.greater(rows.column("size"), 5), False),
    }


def labelled_row(row: dict[str, Any]) -> dict[str, Any] | None:
    """The same over rows."""
    if row["size"] is None or row["size"] <= 5:
        return None
    return {"item_id": row["id"], "name": row["name"].upper(), "size": row["size"] * 2}


@pytest.mark.parametrize("rows", [False, True], ids=["batches", "rows"])
def test_a_python_function_is_a_mapping_under_the_same_rules(project: Project, rows: bool) -> None:
    name = "labelled_row" if rows else "labelled"
    project.config["streams"]["shop.item"] = stream(fields=None, function=f"{__name__}:{name}", rows=rows)
    project.contracts["shop.item"]["fields"]["size"]["max"] = 100
    project.run(THREE + "INSERT INTO item VALUES (4, 'four', 5, 4);")
    project.run(
        "UPDATE item SET size = 6 WHERE id = 4; UPDATE item SET size = 1 WHERE id = 1;"
        "UPDATE item SET id = 22 WHERE id = 2; UPDATE item SET size = 51 WHERE id = 3;"
    )
    assert project.events()[3:] == [
        ("c", 4, "FOUR", 12),
        ("d", 1, None, None),
        ("d", 2, None, None),
        ("c", 22, "TWO", 40),
    ]
    with project.assembly() as assembly:
        assert [(row.key, row.field, row.got) for row in assembly.bus.rejected()] == [('{"item_id":3}', "size", "102")]
    assert project.rows() == {(4, "FOUR", 12), (22, "TWO", 40), (3, "THREE", 60)}


@pytest.mark.parametrize(
    ("field", "attributes", "bad", "good"),
    [
        ("name", {"enum": ["one", "two"]}, "'three'", "'two'"),
        ("name", {"pattern": "^[a-z]+$"}, "'T3'", "'t'"),
        ("name", {"optional": False}, "NULL", "''"),
        ("size", {"min": 0}, "-1", "0"),
        ("size", {"max": 9}, "10", "9"),
        ("size", {"type": "int32"}, "2147483648", "2147483647"),
        ("size", {"enum": [1, 2]}, "3", "2"),
    ],
)
def test_what_breaks_an_attribute_is_set_aside(
    project: Project, field: str, attributes: dict[str, Any], bad: str, good: str
) -> None:
    project.contracts["shop.item"]["fields"][field] |= attributes
    project.run(f"INSERT INTO item (id, {field}) VALUES (1, {good}), (2, {bad});")
    with project.assembly() as assembly:
        assert [(row.key, row.field) for row in assembly.bus.rejected()] == [('{"item_id":2}', field)]
    assert project.rows() == project.source(where="id = 1")


def test_an_open_enum_lets_other_values_pass(project: Project) -> None:
    project.contracts["shop.item"]["fields"]["name"] |= {"enum": ["one"], "open": True}
    project.run(THREE)
    assert project.rows() == project.source()


# versions


def second(**more: Any) -> dict[str, Any]:
    made = contract("shop.item", 2, **more)
    made["fields"] |= {
        "colour": {"type": "string", "default": "grey"},
        "weight": {"type": "float64", "optional": True},
    }
    return made


def test_readers_get_the_newest_accepted_version_and_older_events_are_filled(project: Project) -> None:
    project.sql("ALTER TABLE item ADD COLUMN colour TEXT; ALTER TABLE item ADD COLUMN weight REAL;")
    accept(project, contract("shop.item"))
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1, 'red', 1.5);")
    accept(project, second())
    old = {"item_id": 1, "name": "one", "size": 10, "colour": "grey", "weight": None}
    assert [(event.version, event.fields) for event in read(project)] == [(1, old)]
    project.run("INSERT INTO item VALUES (2, 'two', 20, 2, 'blue', 2.5);")
    new = {"item_id": 2, "name": "two", "size": 20, "colour": "blue", "weight": 2.5}
    assert [(event.version, event.fields) for event in read(project)] == [(1, old), (2, new)]
    shown = project.rows("item_id, name, size, colour, weight")
    assert shown == {tuple(old.values()), tuple(new.values())}
    project.config["sinks"]["late"] = {"url": "sqlite:late.db"}
    project.run()
    for name in ("late", "warehouse"):
        with project.assembly() as assembly:
            sink = assembly.sink(name)
            sink.prepare(assembly.contract("shop.item"))
            found = [row for part in sink.state("shop.item").rows for row in part.to_pylist()]
            sink.close()
        wanted = [dict(old), dict(new)]
        assert sorted(({n: row[n] for n in old} for row in found), key=lambda row: row["item_id"]) == wanted


def test_the_engine_goes_by_what_was_accepted_not_by_the_working_copy(project: Project) -> None:
    accept(project, contract("shop.item"))
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1);")
    edited = contract("shop.item", 2)
    del edited["fields"]["size"]
    edited["fields"]["name"]["enum"] = ["nothing"]
    project.contracts["shop.item"] = edited
    project.run("INSERT INTO item VALUES (2, 'two', 20, 2);")
    assert project.rows() == {(1, "one", 10), (2, "two", 20)}
    assert {event.version for event in read(project)} == {1}
    with project.assembly() as assembly:
        rules = {problem.rule for problem in check(assembly.config, assembly.contracts)}
    assert "NOT_ACCEPTED" in rules


@pytest.mark.parametrize("found", ["changed", "missing"])
def test_an_accepted_version_that_was_edited_or_deleted_is_refused(project: Project, found: str) -> None:
    accept(project, contract("shop.item"))
    accept(project, contract("shop.item", 2))
    project.run("INSERT INTO item VALUES (1, 'one', 10, 1);")
    path = project.directory / "contracts/published/shop.item/v2.yaml"
    kept = path.read_text()
    if found == "missing":
        path.unlink()
    else:
        data = yaml.safe_load(kept)
        data["fields"]["size"]["max"] = 0
        path.write_text(yaml.safe_dump(data))
    with pytest.raises(ContractError) as error:
        project.try_run()
    assert error.value.message == f"{path}: accepted version 2 of `shop.item` is {found}"
    assert "version control" in error.value.hint
    path.write_text(kept)
    project.run("INSERT INTO item VALUES (2, 'two', 20, 2);")
    assert project.rows() == project.source()


# truncate: SQLite has none, so that the change is made here; router, bus and sinks are the real ones


def truncate(project: Project) -> None:
    """What a source with TRUNCATE yields, behind everything that was captured."""
    with project.assembly(append=True) as assembly:
        assembly.declare()
        plan = assembly.plan("shop.item")
        state = assembly.bus.streams()["shop.item"]
        position = assembly.bus.position(plan.capture)
        assert state.order is not None
        assert position is not None
        order = Order(state.order.epoch, state.order.commit, state.order.index + 100)
        batch = Batch((Changes(plan.table, truncation(plan.columns, order)),), position, 1)
        router = assembly.router(plan.capture)
        assembly.bus.append(router(batch), source=plan.capture, position=position)
        router.close()


def truncation(columns: pa.Schema, order: Order) -> pa.RecordBatch:
    schema = changes_schema(columns)
    row: dict[str, Any] = dict.fromkeys(schema.names)
    row |= {"_op": Op.TRUNCATE.value, "_epoch": order.epoch, "_commit": order.commit, "_index": order.index}
    return pa.RecordBatch.from_pylist([row], schema=schema)


@pytest.fixture
def truncated(project: Project) -> Project:
    project.config["sinks"] |= {"copy": {"url": "sqlite:copy.db"}, "lake": {"url": "parquet:lake"}}
    project.run(THREE)
    project.run("UPDATE item SET size = 11 WHERE id = 1; DELETE FROM item WHERE id = 2;")
    return project


def in_sinks(project: Project) -> list[set[int]]:
    found = []
    with project.assembly() as assembly:
        for name in project.config["sinks"]:
            sink = assembly.sink(name)
            sink.prepare(assembly.contract("shop.item"))
            parts = list(sink.state("shop.item").rows)
            found.append({key for part in parts for key in part.column("item_id").to_pylist()})
            sink.close()
    return found


def test_truncate_is_expanded_to_the_deletes_it_stands_for(truncated: Project) -> None:
    truncate(truncated)
    assert sorted(truncated.events()[5:]) == [("d", 1, None, None), ("d", 3, None, None)]
    assert len({event.id for event in read(truncated)}) == 7, "each has an id of its own"
    truncated.run("DELETE FROM item; INSERT INTO item VALUES (4, 'four', 40, 4);")
    assert in_sinks(truncated) == [{4}] * 3
    truncated.require_equal(expanded=True)


def test_truncate_as_an_event_empties_the_sinks(truncated: Project) -> None:
    truncated.config["streams"]["shop.item"]["on_truncate"] = "event"
    truncate(truncated)
    assert truncated.events()[5:] == [("t", None, None, None)]
    truncated.run()
    assert in_sinks(truncated) == [set()] * 3
    truncated.run("DELETE FROM item; INSERT INTO item VALUES (4, 'four', 40, 4);")
    assert in_sinks(truncated) == [{4}] * 3
    truncated.require_equal()


def test_truncate_stops_the_stream_and_nothing_is_lost(truncated: Project) -> None:
    truncated.config["streams"]["shop.item"]["on_truncate"] = "stop"
    truncate(truncated)
    with truncated.assembly() as assembly:
        state = assembly.bus.streams()["shop.item"]
        assert "truncate" in (state.paused or "").lower()
        assert state.parked == 1
        assembly.bus.resume("shop.item")
    truncated.config["streams"]["shop.item"]["on_truncate"] = "expand"
    truncated.run("DELETE FROM item; INSERT INTO item VALUES (4, 'four', 40, 4);")
    assert in_sinks(truncated) == [{4}] * 3
    truncated.require_equal(expanded=True)


# file and code


def test_a_pipeline_in_code_and_its_file_go_on_from_the_same_state(project: Project) -> None:
    project.sql(THREE)
    settings: dict[str, Any] = {name: project.config[name] for name in ("name", "bus", "sources", "streams", "sinks")}
    made = [contract("shop.item")]
    with Pipeline(**settings, contracts=made, directory=project.directory) as pipeline:
        assert pipeline.run(once=True) == 0
        pipeline.save(project.directory / "headwater.yaml")
        in_code = pipeline.config
    project.sql("UPDATE item SET size = 11 WHERE id = 1;")
    with Pipeline.load(project.directory / "headwater.yaml") as pipeline:
        assert pipeline.config == in_code
        assert pipeline.run(once=True) == 0
        told = [(event.op, event.item_id) for event in pipeline.events("shop.item", follow=False)]
    assert told == [("r", 1), ("r", 2), ("r", 3), ("u", 1)]
    assert project.rows() == project.source()
