"""What PostgreSQL's sink does with many rows at a time, which it writes otherwise than a few."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headwater.errors import SinkError
from headwater.model import Op
from headwater.sinks import postgres_ingest, postgres_upsert
from headwater.testing.sink_events import Row, Script, SinkTarget, contract_of, failing, row, rows_in, sink_target
from headwater.testing.sinks import SinkConformance

C, U, D = Op.CREATE, Op.UPDATE, Op.DELETE
SQL = Callable[..., list[tuple[Any, ...]]]

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture
def sql(database: str) -> Iterator[SQL]:
    """Statements of somebody else; the rows of the last."""
    with psycopg.connect(database, autocommit=True) as connection:

        def run(*statements: str) -> list[tuple[Any, ...]]:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def target(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SinkTarget]:
    """Where each batch counts as many rows, of which two keys are a sample, and goes to the driver a few at a time."""
    monkeypatch.setattr(postgres_upsert, "MANY", 1)
    monkeypatch.setattr(postgres_upsert, "SAMPLE", 2)
    monkeypatch.setattr(postgres_ingest, "PIECE", 200)
    made = sink_target("postgresql", tmp_path, lambda: database)
    yield made
    made.close()


@pytest.fixture
def script() -> Script:
    return Script(contract_of())


class TestManyRows(SinkConformance):
    @pytest.fixture
    def target(self, target: SinkTarget) -> SinkTarget:
        return target


def _history(dice: random.Random, count: int) -> list[Row]:
    """Changes of 60 keys, some of which come late or once more."""
    rows = []
    for commit in range(count):
        key = dice.randrange(60)
        rows.append(
            row(D, commit, id=key, _time=commit)
            if dice.random() < 0.2
            else row(dice.choice((C, U)), commit, id=key, _time=commit, name=f"n{commit}", note=str(commit))
        )
    return [dice.choice(rows[max(0, n - 90) : n]) if n and dice.random() < 0.2 else r for n, r in enumerate(rows)]


@pytest.mark.parametrize("deletes", ["hard", "soft"])
def test_f31_many_rows_and_few_end_in_the_same_table(
    target: SinkTarget, script: Script, sql: SQL, monkeypatch: pytest.MonkeyPatch, deletes: str
) -> None:
    history = _history(random.Random(7), 800)
    tables = []
    for schema, many in (("by_many", 1), ("by_few", 10**9)):
        monkeypatch.setattr(postgres_upsert, "MANY", many)
        sink = target.open(name=schema, options={"schema": schema}, deletes=deletes)
        sink.prepare(script.contract)
        script.offset = 0
        for start in range(0, len(history), 80):
            sink.write(script.events(history[start : start + 80]))
        guards = (
            [] if deletes == "soft" else sql(f"SELECT id, _commit FROM {schema}.headwater_deleted_shop_item ORDER BY 1")
        )
        tables.append((sql(f"SELECT * FROM {schema}.shop_item ORDER BY id"), guards))
    assert tables[0] == tables[1]
    assert 20 < len(tables[0][0]) <= 60


def test_f31_a_late_row_above_every_key_stays_deleted(target: SinkTarget, script: Script) -> None:
    sink = target.open()
    sink.prepare(script.contract)
    sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 2, id=9, name="a")]))
    sink.write(script.events([row(D, 5, id=9)]))
    sink.write(script.events([row(U, 3, id=9, name="late"), row(C, 6, id=10, name="b")]))
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "a", 10: "b"}


def test_f31_new_late_and_deleted_rows_amid_known_ones(target: SinkTarget, script: Script) -> None:
    """First and last are known, so the sample takes all for known."""
    sink = target.open()
    sink.prepare(script.contract)
    sink.write(script.events([row(C, 1, n, id=n, name="a") for n in range(1, 10) if n != 5]))
    sink.write(script.events([row(D, 50, id=6), row(U, 50, 2, id=7, name="newer")]))
    sink.write(script.events([row(U, 20, n, id=n, name="b") for n in range(1, 10)]))
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {
        n: "newer" if n == 7 else "b" for n in range(1, 10) if n != 6
    }


@pytest.mark.parametrize("point", ["after_keys", "after_copy", "after_ingest"])
def test_a_fault_between_new_rows_and_known_ones_undoes_both(target: SinkTarget, script: Script, point: str) -> None:
    sink = target.open()
    sink.prepare(script.contract)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    batch = script.events([row(U, 2, id=1, name="b"), row(C, 2, 2, id=2, name="b")])
    with failing(f"sink.postgres.{point}=error:1"), pytest.raises(OSError, match=point):
        sink.write(batch)
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "a"}
    sink.write(batch)
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "b", 2: "b"}


def test_a_column_of_another_type_takes_the_values_not_their_bytes(
    target: SinkTarget, script: Script, sql: SQL
) -> None:
    sink = target.open()
    sink.prepare(script.contract)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    sql("ALTER TABLE shop_item ALTER COLUMN id TYPE double precision")
    sink.write(script.events([row(C, 2, 2 * n, id=n, name="b") for n in range(2, 5)]))
    assert sql("SELECT id, name FROM shop_item ORDER BY 1") == [(1, "a"), (2, "b"), (3, "b"), (4, "b")]


def test_a_rule_of_the_table_is_never_passed_by(target: SinkTarget, script: Script, sql: SQL) -> None:
    sink = target.open()
    sink.prepare(script.contract)
    sql(
        "CREATE TABLE seen (id bigint)",
        "CREATE RULE aside AS ON INSERT TO shop_item DO INSERT INTO seen VALUES (new.id)",
    )
    with pytest.raises(SinkError, match="INSERT or UPDATE rules"):
        sink.write(script.events([row(C, 1, id=1, name="a")]))


def test_row_security_of_the_table_holds(target: SinkTarget, script: Script, sql: SQL, database: str) -> None:
    sql("CREATE ROLE bound LOGIN", "CREATE SCHEMA bound AUTHORIZATION bound")
    try:
        target.url, target.options = database.replace("//postgres@", "//bound@"), {"schema": "bound"}
        sink = target.open()
        sink.prepare(script.contract)
        sql(
            "ALTER TABLE bound.shop_item ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "CREATE POLICY everything ON bound.shop_item USING (true)",
        )
        sink.write(script.events([row(C, 1, 2 * n, id=n, name="a") for n in range(3)]))
        assert sorted(rows_in(sink)) == [0, 1, 2]
    finally:
        target.close()
        sql("DROP OWNED BY bound CASCADE", "DROP ROLE bound")
