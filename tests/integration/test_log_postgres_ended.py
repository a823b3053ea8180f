"""What ends a replication from the server's side, told by SQLSTATEs: the words are in whatever language it speaks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from headwater.drivers.postgres import adbc_errors, connect_adbc, fetched, translated
from headwater.errors import GapError, HeadwaterError, NotConnected, SourceError
from headwater.protocols import Load
from headwater.testing.postgres import PostgresServer
from tests.log_world import NAMES, World, captured, letters, wait_until

pytestmark = pytest.mark.needs("postgres")

SKIP = Load("initial", skip=True)
GERMAN = "de_DE.UTF-8"


@pytest.fixture
def german(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    """Debian's servers bring their translations; the locale is made here, for the server alone."""
    if shutil.which("localedef") is None:
        pytest.skip("there is no `localedef`, which makes a locale")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / GERMAN)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("there is no source of the locale de_DE; Debian's package is `locales`")
    server = PostgresServer(tmp_path / "server", settings={"lc_messages": GERMAN})
    places = server.directory.parent / "locales"
    shutil.copytree(tmp_path / GERMAN, places / GERMAN)
    monkeypatch.setenv("LOCPATH", str(places))
    monkeypatch.delenv("LANGUAGE", raising=False)
    with server:
        yield server


def test_f03_a_server_that_speaks_german_is_understood(german: PostgresServer) -> None:
    world = World(german.create_database("deutsch"), captured("t", "id", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY)")
    world.catch_up()
    world.sql(f"DROP PUBLICATION {NAMES.publication}", "INSERT INTO t VALUES (1)")
    world.sql(f"CREATE PUBLICATION {NAMES.publication} FOR TABLE t WITH (publish_via_partition_root = true)")
    with pytest.raises(GapError, match=f"a publication of {NAMES.publication} was not there") as caught:
        world.catch_up()
    if "existiert nicht" not in caught.value.message:
        pytest.skip("this server brings no translations")
    assert "headwater repair db/log" in caught.value.hint


def test_f04_f55_a_value_that_the_server_cannot_send_is_an_error_and_repair_goes_on(
    postgres_server: PostgresServer,
) -> None:
    """SQL_ASCII keeps any bytes; blind retries would meet them again and again, while the log grows."""
    encoding = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    postgres_server.execute(f"CREATE DATABASE bytes {encoding}")
    try:
        world = World(postgres_server.url_of("bytes"), captured("t", "id name", load=SKIP))
        world.sql("CREATE TABLE t (id int PRIMARY KEY, name text)")
        world.catch_up()
        world.sql(r"INSERT INTO t VALUES (1, convert_from('\xe9e8', 'SQL_ASCII'))")
        for _ in range(2):
            with pytest.raises(SourceError, match=r"cannot send its log \(SQLSTATE 22021\)") as caught:
                world.catch_up()
        assert "mend the value in its table; then `headwater repair db/log`" in caught.value.hint
        world.sql("UPDATE t SET name = 'mended'", f"SELECT pg_drop_replication_slot('{NAMES.slot}')")
        world.position = None
        world.catch_up()
        world.sql("UPDATE t SET name = 'seen'")
        assert letters(world.catch_up()) == [("u", {"id": 1, "name": "seen"})]
    finally:
        postgres_server.drop_database("bytes")


def test_f11_a_session_that_is_ended_is_a_lost_connection(database: str) -> None:
    world = World(database, captured("t", "id", load=SKIP))
    world.sql("CREATE TABLE t (id int PRIMARY KEY)")
    for what in ("pg_terminate_backend", "pg_cancel_backend"):
        with world.following() as following:
            following.next()
            wait_until(partial(_read, world))
            world.sql(f"SELECT {what}(active_pid) FROM pg_replication_slots WHERE slot_name = '{NAMES.slot}'")
            with pytest.raises(NotConnected):
                following.until(lambda rows: False)


def _read(world: World) -> bool:
    slot = world.slot()
    return slot is not None and slot[1] is not None


@pytest.mark.parametrize(
    ("state", "error"),
    [("40001", NotConnected), ("57P01", NotConnected), ("22012", SourceError), ("22021", SourceError)],
)
def test_f11_an_error_within_the_rows_is_told_by_its_sqlstate(
    database: str, state: str, error: type[HeadwaterError]
) -> None:
    World(database).sql(
        "CREATE FUNCTION f(n int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN IF n = 100000 THEN"
        f" RAISE EXCEPTION 'Satz vorbei' USING ERRCODE = '{state}'; END IF; RETURN repeat('x', 100); END $$"
    )
    with closing(connect_adbc(database, application="test")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT n, f(n) FROM generate_series(1, 100000) n")
        with pytest.raises(adbc_errors()) as caught:
            list(fetched(cursor))
    assert type(translated(caught.value, "")) is error
