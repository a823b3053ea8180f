"""What PostgreSQL does to a sink: other sessions, other indexes, crashes, missing rights, its own limits."""

from __future__ import annotations

import decimal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from headwater.config import SinkConfig
from headwater.errors import Busy, ConfigError, HeadwaterError, NotConnected, RowRefused, SinkError
from headwater.model import Cursor, Events, Op
from headwater.protocols import Sink
from headwater.sinks.postgres import open_sink
from headwater.testing.postgres import PostgresServer
from headwater.testing.sink_events import Script, SinkTarget, all_rows, contract_of, failing, row, rows_in
from tests.acceptance.project import Project

C, U, D = Op.CREATE, Op.UPDATE, Op.DELETE

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture
def script() -> Script:
    return Script(contract_of())


@pytest.fixture
def target(database: str, tmp_path: Path) -> Iterator[SinkTarget]:
    made = SinkTarget(database, tmp_path)
    yield made
    made.close()


@pytest.fixture
def sql(database: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Statements of somebody else, each its own transaction; the rows of the last."""
    with psycopg.connect(database, autocommit=True) as connection:

        def run(*statements: str) -> list[tuple[Any, ...]]:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

        yield run


SQL = Callable[..., list[tuple[Any, ...]]]


def _prepared(target: SinkTarget, script: Script, **options: Any) -> Sink:
    sink = target.open(**options)
    sink.prepare(script.contract)
    return sink


def _with(url: str, **settings: str) -> str:
    """The URL with settings of the server for its sessions."""
    return f"{url}?options={quote(' '.join(f'-c {name}={value}' for name, value in settings.items()))}"


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


# other indexes


def test_f44_a_unique_value_moves_from_row_to_row(target: SinkTarget, script: Script, sql: SQL) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b")]))
    sql("CREATE UNIQUE INDEX users_own ON shop_item (name)")
    swap = [
        row(U, 2, id=1, name="spare"),
        row(U, 3, id=2, name="a"),
        row(U, 4, 0, id=1, name="spare too"),
        row(U, 4, 2, id=2, name="aside"),
        row(U, 4, 4, id=1, name="a"),
        row(U, 4, 6, id=2, name="b"),
        row(C, 5, id=3, name="c"),
    ]
    sink.write(script.events(swap))
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "a", 2: "b", 3: "c"}
    assert sink.cursor("shop.item") == Cursor("first", (9,))


def test_f44_a_chain_of_moves_passes_at_once_in_the_order_of_the_source(
    target: SinkTarget, script: Script, sql: SQL
) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, 2 * n, id=n, name=f"n{n}") for n in range(100)]))
    sql("CREATE UNIQUE INDEX users_own ON shop_item (name)")
    sink.write(script.events([row(U, 200 - n, id=n, name=f"n{n + 1}") for n in reversed(range(100))]))
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {n: f"n{n + 1}" for n in range(100)}
    assert sql("SELECT count(DISTINCT xmin::text) FROM shop_item") == [(1,)]


def test_f55_only_the_row_that_is_refused_stops(target: SinkTarget, script: Script, sql: SQL) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, id=0, name="n777")]))
    sql("CREATE UNIQUE INDEX users_own ON shop_item (name)")
    batch = [row(C, n, id=n, name=f"n{n}") for n in range(1, 1001)]
    with pytest.raises(RowRefused, match=r'\{"id":777\} at \(epoch 1, commit 777, index 0\).*users_own'):
        sink.write(script.events(batch))
    assert sorted(rows_in(sink)) == list(range(777))
    assert sink.cursor("shop.item") == Cursor("first", (777,))
    assert sql("SELECT count(DISTINCT xmin::text) < 20 FROM shop_item") == [(True,)]
    sql("DROP INDEX users_own")
    script.offset = 777
    sink.write(script.events(batch[776:]))
    assert len(rows_in(sink)) == 1001


@pytest.mark.parametrize(
    ("state", "kind", "said"),
    [
        ("P0001", RowRefused, r'"id":2'),
        ("22012", RowRefused, r'"id":2'),
        ("53100", NotConnected, "free space"),
        ("53300", NotConnected, "53300"),
        ("40001", Busy, "40001"),
        ("55P03", Busy, "pg_locks"),
        ("25006", SinkError, "target_session_attrs"),
        ("XX001", SinkError, "XX001"),
    ],
)
def test_errors_of_the_server_by_what_can_be_done(
    target: SinkTarget, script: Script, sql: SQL, state: str, kind: type[HeadwaterError], said: str
) -> None:
    sink = _prepared(target, script)
    sql(
        "CREATE FUNCTION objects() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}', DETAIL = 'card 4711'; END$$",
        "CREATE TRIGGER objects BEFORE INSERT ON shop_item FOR EACH ROW WHEN (new.id = 2) EXECUTE FUNCTION objects()",
    )
    batch = script.events([row(C, 1, id=1, name="a"), row(C, 2, id=2, name="b")])
    with pytest.raises(kind, match=said) as raised:
        sink.write(batch)
    assert type(raised.value) is kind
    assert "4711" not in str(raised.value), "details hold values of rows"
    assert sorted(rows_in(sink)) == ([1] if kind is RowRefused else [])
    sql("DROP TRIGGER objects ON shop_item")
    script.offset = len(rows_in(sink))
    sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 2, id=2, name="b")][script.offset :]))
    assert sorted(rows_in(sink)) == [1, 2]


# other sessions


def test_f83_of_several_writers_at_one_cursor_one_goes_on(target: SinkTarget, script: Script) -> None:
    sinks = [_prepared(target, script) for _ in range(3)]
    start = 0
    for n in range(10):
        batches = [_batch_of(script, n, writer, start) for writer in range(3)]
        barrier = threading.Barrier(3)
        ended: dict[int, str] = {}
        threads = [threading.Thread(target=_raced, args=(k, sinks[k], batches[k], barrier, ended)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(ended.values()) == ["CursorMismatch", "CursorMismatch", "written"]
        (winner,) = [writer for writer, how in ended.items() if how == "written"]
        assert sinks[0].cursor("shop.item") == batches[winner].cursor
        found = [r["name"] for r in all_rows(sinks[0], "shop.item") if r["_commit"] == n]
        assert found == [f"writer {winner}"] * (winner + 1)
        start += winner + 1


def _batch_of(script: Script, commit: int, writer: int, start: int) -> Events:
    """As many rows as to make the cursor behind them this writer's own."""
    script.offset = start
    return script.events([row(U, commit, 2 * n, id=n, name=f"writer {writer}") for n in range(writer + 1)])


def _raced(number: int, sink: Sink, batch: Events, barrier: threading.Barrier, ended: dict[int, str]) -> None:
    barrier.wait(60)
    try:
        sink.write(batch)
        ended[number] = "written"
    except HeadwaterError as error:
        ended[number] = type(error).__name__


@contextmanager
def _holding(url: str, *statements: str) -> Iterator[psycopg.Connection]:
    """Another session within a transaction."""
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection
        connection.rollback()


def test_a_row_that_somebody_locks_is_busy(target: SinkTarget, script: Script, database: str) -> None:
    target.url = _with(database, lock_timeout="100ms")
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    batch = script.events([row(U, 2, id=1, name="b"), row(C, 2, 2, id=2, name="c")])
    with _holding(database, "SELECT * FROM shop_item FOR UPDATE"), pytest.raises(Busy, match="55P03.*\n.*pg_locks"):
        sink.write(batch)
    assert rows_in(sink)[1]["name"] == "a"
    sink.write(batch)
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "b", 2: "c"}


def test_a_deadlock_is_busy(target: SinkTarget, script: Script, database: str, sql: SQL) -> None:
    target.url = _with(database, deadlock_timeout="300ms")
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, id=1, name="a"), row(C, 1, 2, id=2, name="b")]))
    batch = script.events([row(U, 2, id=1, name="x"), row(U, 2, 2, id=2, name="y")])
    with _holding(database, "SET deadlock_timeout = '60s'", "UPDATE shop_item SET name = 'z' WHERE id = 2") as other:
        crossing = threading.Thread(target=lambda: _cross(other, sql))
        crossing.start()
        with pytest.raises(Busy, match="40P01"):
            sink.write(batch)
        crossing.join(60)
    sink.write(batch)
    assert {k: v["name"] for k, v in rows_in(sink).items()} == {1: "x", 2: "y"}


WAITING = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'headwater %' AND wait_event_type = 'Lock'"


def _cross(other: psycopg.Connection, sql: SQL) -> None:
    _until(lambda: sql(WAITING))
    other.execute("UPDATE shop_item SET name = 'z' WHERE id = 1")


def test_neighbours_begin_at_the_same_moment(target: SinkTarget) -> None:
    """Whoever comes second to a table or schema that both need waits, or is told to try again."""
    target.options = {"schema": "new"}
    sinks = [target.open(name=f"sink{n}") for n in range(4)]
    errors: list[HeadwaterError] = []

    def begin(number: int) -> None:
        for _ in range(20):
            try:
                sinks[number].prepare(contract_of(f"shop.n{number}"))
                break
            except Busy:
                continue
            except HeadwaterError as error:
                errors.append(error)
                break

    threads = [threading.Thread(target=begin, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    for n, sink in enumerate(sinks):
        sink.write(Script(contract_of(f"shop.n{n}")).events([row(C, 1, id=n)]))
        assert list(rows_in(sink, f"shop.n{n}")) == [n]


def test_f84_schemas_are_worlds_of_their_own(target: SinkTarget, script: Script, sql: SQL) -> None:
    sql("CREATE SCHEMA app", "CREATE TABLE public.shop_item AS SELECT 42 AS theirs")
    first = _prepared(target, script, options={"schema": "app"})
    second = _prepared(target, script, options={"schema": 'we"ird.One'})
    first.write(script.events([row(C, 1, id=1, name="a")]))
    second.write(Script(contract_of()).events([row(C, 1, id=2, name="b")]))
    assert (list(rows_in(first)), list(rows_in(second))) == ([1], [2])
    second.clear("shop.item")
    assert (list(rows_in(first)), list(rows_in(second))) == ([1], [])
    assert sql("SELECT * FROM public.shop_item") == [(42,)]
    with pytest.raises(SinkError, match="Headwater did not make"):
        target.open().prepare(script.contract)


# crashes and lost connections


def test_a_crash_of_the_server_leaves_nothing_half_done(tmp_path: Path, script: Script) -> None:
    with TemporaryDirectory(prefix="headwater-") as folder, PostgresServer(Path(folder) / "data") as server:
        target = SinkTarget(server.url, tmp_path)
        sink = _prepared(target, script)
        sink.write(script.events([row(C, 1, 2 * n, id=n, name="old") for n in range(50)]))
        batch = script.events([row(D, 2, id=0), *(row(U, 2, 2 * n, id=n, name="new") for n in range(1, 60))])
        with closing(psycopg.connect(server.url)) as holder:
            holder.execute("SELECT * FROM shop_item WHERE id = 49 FOR UPDATE")
            crashing = threading.Thread(target=lambda: _crash(server))
            crashing.start()
            with pytest.raises(NotConnected):
                sink.write(batch)
            crashing.join(60)
        fresh = _prepared(target, script)
        assert {v["name"] for v in rows_in(fresh).values()} == {"old"}
        assert fresh.cursor("shop.item") == Cursor("first", (50,))
        sink.write(batch)
        assert {k: v["name"] for k, v in rows_in(sink).items()} == dict.fromkeys(range(1, 60), "new")
        target.close()


def _crash(server: PostgresServer) -> None:
    _until(lambda: server.execute(WAITING))
    server.restart("immediate")


def test_an_ended_session_is_made_anew(target: SinkTarget, script: Script, sql: SQL) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    assert sink.cursor("shop.item") == Cursor("first", (1,))
    ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name LIKE 'headwater %'"
    assert sql(ended) == [(True,), (True,)]
    batch = script.events([row(C, 2, id=2, name="b")])
    with pytest.raises(NotConnected):
        sink.write(batch)
    with pytest.raises(NotConnected):
        sink.cursor("shop.item")
    sink.write(batch)
    assert sink.cursor("shop.item") == Cursor("first", (2,))


@pytest.mark.parametrize("point", ["after_ingest", "after_removal", "before_patch", "before_commit"])
def test_a_fault_between_two_statements_undoes_them(target: SinkTarget, script: Script, point: str) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, 2 * n, id=n, name="a", note="1") for n in range(3)]))
    batch = script.events([row(D, 2, id=0), row(U, 2, 2, id=1, name="b"), row(U, 2, 4, id=2, name="c", _unchanged=[3])])
    with failing(f"sink.postgres.{point}=error:1"), pytest.raises(OSError, match=point):
        sink.write(batch)
    assert {k: v["name"] for k, v in rows_in(sink).items()} == dict.fromkeys(range(3), "a")
    sink.write(batch)
    assert {k: (v["name"], v["note"]) for k, v in rows_in(sink).items()} == {1: ("b", None), 2: ("c", "1")}


def test_what_is_said_to_be_durable_is(target: SinkTarget, script: Script, sql: SQL, database: str) -> None:
    sql(f"ALTER DATABASE {database.rsplit('/', 1)[1]} SET synchronous_commit = off")
    sink = _prepared(target, script)
    sql(
        "CREATE TABLE seen AS SELECT ''::text AS setting WHERE false",
        "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$",
        "CREATE TRIGGER look AFTER INSERT ON shop_item EXECUTE FUNCTION look()",
    )
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    assert sql("SELECT setting FROM seen") == [("on",)]


# rights and secrets


def test_a_missing_right_is_named_with_the_grant_that_gives_it(
    postgres_server: PostgresServer, database: str, tmp_path: Path, script: Script, sql: SQL
) -> None:
    name = database.rsplit("/", 1)[1]
    user = f"sink_{name}"
    sql(f"CREATE ROLE {user} LOGIN", f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
    target = SinkTarget(postgres_server.url_of(name, user=user), tmp_path)
    try:
        with pytest.raises(SinkError, match="permission denied") as raised:
            target.open().prepare(script.contract)
        grants = raised.value.hint.removeprefix("as the database's owner: ").split("; the tables")[0]
        sql(*grants.split("; "))
        sink = _prepared(target, script)
        sink.write(script.events([row(C, 1, id=1, name="a"), row(D, 2, id=2)]))
        assert list(rows_in(sink)) == [1]
        with pytest.raises(SinkError, match="permission denied.*\n.*CREATE SCHEMA"):
            _prepared(target, script, options={"schema": "elsewhere"})
    finally:
        target.close()
        sql(f"DROP OWNED BY {user}", f"DROP ROLE {user}")


def test_a_target_that_only_reads_is_named(target: SinkTarget, script: Script, sql: SQL, database: str) -> None:
    sql(f"ALTER DATABASE {database.rsplit('/', 1)[1]} SET default_transaction_read_only = on")
    with pytest.raises(SinkError, match="target_session_attrs"):
        target.open().prepare(script.contract)


@pytest.mark.parametrize(
    "url", ["postgresql://me:sek%20ret@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db?user=me&password=sek%20ret"]
)
def test_f81_a_password_is_in_no_error(tmp_path: Path, script: Script, url: str) -> None:
    with pytest.raises(NotConnected) as raised:
        SinkTarget(url, tmp_path).open().prepare(script.contract)
    error: BaseException | None = raised.value
    while error is not None:
        assert "sek" not in f"{error} {error!r}"
        error = error.__cause__


def test_f81_an_address_that_cannot_be_read_is_not_repeated(tmp_path: Path) -> None:
    config = SinkConfig.model_validate({"url": "postgresql://me:sek ret@[::1/db"})
    with pytest.raises(ConfigError, match="no address") as raised:
        open_sink(name="sink", pipeline="tests", config=config, directory=str(tmp_path))
    assert "sek" not in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("options", [{"schema": ""}, {"scheme": "x"}, {"schema": "s", "guards": "soon"}])
def test_options_that_mean_nothing_are_named(target: SinkTarget, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="sink sink: options"):
        target.open(options=options)


# values and tables


def test_tables_as_others_see_them(target: SinkTarget, sql: SQL) -> None:
    kinds = {
        "price": "decimal(10,2)", "at": "timestamp", "local": "local_timestamp", "on": "date", "ok": "bool",
        "n": "int32", "f": "float32", "u": "uuid", "j": "json", "raw": "bytes", "tags": "list<decimal(5,1)>",
        "ids": "list<uuid>", "days": "list<date>", "deep": "list<list<int64>>", "more": "map<string,int64>",
    }  # fmt: skip
    fields = {"id": {"type": "int64"}, **{name: {"type": kind, "optional": True} for name, kind in kinds.items()}}
    sink = _prepared(target, script := Script(contract_of(fields=fields)))
    one = "00000000-0000-4000-8000-00000000000a"
    values: dict[str, Any] = {
        "price": 1, "at": 1_709_164_799_123_456, "local": 0, "on": 19_782, "ok": True, "n": 7, "f": 0.5, "u": one,
        "j": '{"b": 1, "a": 1.10, "b": 2}', "raw": b"\0\xff", "tags": [2, None], "ids": [one, None], "days": [None],
        "deep": [[1], None], "more": [("k", 1)],
    }  # fmt: skip
    sink.write(script.events([row(C, 1, id=1, **values)]))
    columns = ", ".join(f'"{name}"::text' for name in kinds)
    assert sql("SET timezone = 'UTC'", f"SELECT {columns} FROM shop_item") == [
        ("1.00", "2024-02-28 23:59:59.123456+00", "1970-01-01 00:00:00", "2024-02-29", "true", "7", "0.5", one,
         '{"b": 1, "a": 1.10, "b": 2}', r"\x00ff", "{2.0,NULL}", f"{{{one},NULL}}", "{NULL}", "[[1],null]", '{"k":1}')
    ]  # fmt: skip
    types = sql("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'shop_item'::regclass "
                "AND attnum > 0 ORDER BY attnum")  # fmt: skip
    assert [kind for (kind,) in types] == [
        "bigint", "numeric(10,2)", "timestamp with time zone", "timestamp without time zone", "date", "boolean",
        "integer", "real", "uuid", "json", "bytea", "numeric(5,1)[]", "uuid[]", "date[]", "json", "json",
        "bigint", "bigint", "bigint",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value"), [("date", -(2**31) + 10_957), ("timestamp", -(2**63) + 946_684_800_000_000), ("uuid", "no")]
)
def test_f31_what_postgresql_would_take_for_something_else_is_refused(
    target: SinkTarget, kind: str, value: Any
) -> None:
    fields = {"id": {"type": "int64"}, "value": {"type": kind, "optional": True}}
    sink = _prepared(target, script := Script(contract_of(fields=fields)))
    with pytest.raises(RowRefused, match=r'"id":2'):
        sink.write(script.events([row(C, 1, id=1), row(C, 2, id=2, value=value)]))
    assert list(rows_in(sink)) == [1]


def test_a_commit_number_that_bigint_cannot_hold_is_an_error(target: SinkTarget, script: Script) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 2**63 - 1, id=1, name="a")]))
    with pytest.raises(SinkError, match="cannot be converted"):
        sink.write(script.events([row(U, 2**63, id=1, name="b")]))
    assert [(r["_commit"], r["name"]) for r in all_rows(sink, "shop.item")] == [(2**63 - 1, "a")]


def test_values_that_somebody_else_wrote_are_named(target: SinkTarget, script: Script, sql: SQL) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    sql("UPDATE shop_item SET price = 'NaN'")
    with pytest.raises(SinkError, match=r"shop_item\.price holds values that Headwater did not write"):
        rows_in(sink)


def test_names_that_postgresql_would_cut_are_refused(target: SinkTarget) -> None:
    for stream in ("shop." + "x" * 60, "shop." + "x" * 50):
        with pytest.raises(SinkError, match="bytes, and PostgreSQL holds 63"):
            target.open().prepare(contract_of(stream))
    script = Script(contract_of("shop." + "x" * 50))
    sink = _prepared(target, script, deletes="soft")
    sink.write(script.events([row(C, 1, id=1, name="a")]))
    assert list(rows_in(sink, script.contract.stream)) == [1]


def test_a_default_reaches_old_rows_without_writing_them_anew(target: SinkTarget, sql: SQL) -> None:
    fields = {"id": {"type": "int64"}, "n": {"type": "int32"}}
    sink = _prepared(target, script := Script(contract_of(fields=fields)))
    sink.write(script.events([row(C, 1, id=1, n=1)]))
    place = "SELECT pg_relation_filenode('shop_item'), xmin::text FROM shop_item WHERE id = 1"
    before = sql(place)
    added = {
        "label": {"type": "string", "default": 'it\'s \\ "so"'},
        "price": {"type": "decimal(12,3)", "default": "1.5"},
        "since": {"type": "timestamp", "default": "2024-02-29T12:00:00Z"},
    }
    script.contract = contract_of(version=2, fields={**fields, **added})
    sink.prepare(script.contract)
    assert sql(place) == before
    sink.write(script.events([row(C, 2, id=2, n=2)]))
    old, new = rows_in(sink)[1], rows_in(sink)[2]
    assert (old["label"], old["price"], old["since"].isoformat()) == (
        "it's \\ \"so\"", decimal.Decimal("1.500"), "2024-02-29T12:00:00+00:00",
    )  # fmt: skip
    assert (new["label"], new["price"], new["since"]) == (None, None, None)


def test_types_widen_in_place(target: SinkTarget) -> None:
    old = {
        "a": "int32",
        "b": "float32",
        "c": "decimal(10,2)",
        "d": "int32",
        "e": "list<int32>",
        "f": "list<decimal(5,1)>",
    }
    new = {
        "a": "int64",
        "b": "float64",
        "c": "decimal(60,4)",
        "d": "float64",
        "e": "list<int64>",
        "f": "list<decimal(9,2)>",
    }

    def fields(kinds: dict[str, str]) -> dict[str, Any]:
        return {"id": {"type": "int64"}, **{name: {"type": kind, "optional": True} for name, kind in kinds.items()}}

    sink = _prepared(target, script := Script(contract_of(fields=fields(old))))
    price = decimal.Decimal("-99999999.99")
    sink.write(
        script.events([row(C, 1, id=1, a=-5, b=0.5, c=price, d=2**31 - 1, e=[1, None], f=[decimal.Decimal("0.5")])])
    )
    script.contract = contract_of(version=2, fields=fields(new))
    sink.prepare(script.contract)
    sink.write(script.events([row(C, 2, id=2, a=2**40, b=0.1, c=price * 10**40, d=0.1, e=[2**40], f=[])]))
    assert list(rows_in(sink).values()) == [
        {"id": 1, "a": -5, "b": 0.5, "c": price, "d": 2**31 - 1, "e": [1, None], "f": [decimal.Decimal("0.50")]},
        {"id": 2, "a": 2**40, "b": 0.1, "c": price * 10**40, "d": 0.1, "e": [2**40], "f": []},
    ]


def test_batches_leave_nothing_behind(target: SinkTarget, script: Script, sql: SQL) -> None:
    sink = _prepared(target, script)
    temporary = "SELECT count(*), max(pg_relation_size(oid)) FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'"
    counts = []
    for n in range(5):
        commit = 10 * n
        rows = [row(C, commit, id=1, name="a"), row(C, commit, 2, id=2, name="b")]
        sink.write(script.events(rows))
        sink.write(script.events([row(D, commit + 1, id=1), row(U, commit + 1, 2, id=2, name="c", _unchanged=[2])]))
        counts.append(sql(temporary))
    assert counts[1:] == [counts[0]] * 4
    assert counts[0][0][1] == 0


def test_a_large_table_is_never_read_whole(target: SinkTarget, script: Script, sql: SQL) -> None:
    sink = _prepared(target, script)
    sink.write(script.events([row(C, 1, 2 * n, id=n, name="x" * 100) for n in range(20_000)]))
    sink.write(script.events([row(D, 2, id=n) for n in range(100)]))
    sql("ANALYZE")
    scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'shop_item'"
    sink.close()
    _until(lambda: sql("SELECT n_tup_del = 100 FROM pg_stat_user_tables WHERE relname = 'shop_item'") == [(True,)])
    before = sql(scans)
    sink = _prepared(target, script)
    late = [row(U, 3, id=n, name="late", _unchanged=[3]) for n in range(200, 400)]
    sink.write(script.events([*(row(D, 3, id=n) for n in range(100, 200)), *late]))
    sink.write(script.events([row(C, 4, id=n, name="again") for n in range(150)]))
    sink.close()
    _until(lambda: sql("SELECT n_tup_del = 200 FROM pg_stat_user_tables WHERE relname = 'shop_item'") == [(True,)])
    assert sql(scans) == before


# the whole path


def test_verify_finds_the_target_equal(database: str, tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.config["sinks"] = {
        "now": {"url": database},
        "soft": {"url": database, "deletes": "soft", "options": {"schema": "soft"}},
        "all": {"url": database, "mode": "history", "options": {"schema": "history"}},
    }
    project.run("INSERT INTO item (id, name, size) VALUES (1, 'a', 1), (2, '\U0001f409', NULL), (3, '', 3)")
    project.require_equal()
    project.run(
        "UPDATE item SET name = 'b' WHERE id = 1; DELETE FROM item WHERE id = 2; UPDATE item SET id = 4 WHERE id = 3"
    )
    project.require_equal()
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT item_id, name FROM shop_item ORDER BY 1").fetchall() == [(1, "b"), (4, "")]
        soft = "SELECT item_id FROM soft.shop_item WHERE _deleted ORDER BY 1"
        assert connection.execute(soft).fetchall() == [(2,), (3,)]
        connection.execute("UPDATE shop_item SET name = 'changed by hand' WHERE item_id = 1")
    with pytest.raises(HeadwaterError, match="now"):
        project.require_equal()
