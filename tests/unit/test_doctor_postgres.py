"""`headwater doctor` on real PostgreSQL servers: what it says is so, and the SQL that it offers does what it says."""

from __future__ import annotations

import re
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater.config import Config
from headwater.doctor import PatternReport, Probe, TableReport, doctor
from headwater.doctor.measures import lasting, size
from headwater.doctor.sights import Way
from headwater.drivers.postgres import connect, execute
from headwater.errors import SourceError
from headwater.testing.postgres import PostgresServer

pytestmark = pytest.mark.needs("postgres")

LOG = {"pattern": "log"}


def config(url: str, directory: Path, **streams: dict[str, Any]) -> Config:
    named = {name.replace("__", "."): {"source": "lms", **stream} for name, stream in streams.items()}
    return Config.model_validate({"name": "p", "sources": {"lms": url}, "streams": named, "directory": directory})


def reports(url: str, directory: Path, **streams: dict[str, Any]) -> dict[str, TableReport]:
    return {report.table.removeprefix("public."): report for report in doctor(config(url, directory, **streams))}


def probe(report: TableReport, name: str) -> Probe:
    (found,) = [probe for probe in report.probes if probe.name == name]
    return found


def pattern(report: TableReport, way: Way) -> PatternReport:
    return next(found for found in report.patterns if found.way == way)


def run(url: str, *statements: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    with connect(url, application="tests") as connection:
        for statement in statements:
            rows = execute(connection, statement)
    return rows


@contextmanager
def role(server: PostgresServer, url: str, name: str) -> Iterator[str]:
    """The URL of a role that may connect and nothing else."""
    run(url, f"CREATE ROLE {name} LOGIN")
    try:
        yield url.replace("postgres@", f"{name}@")
    finally:
        run(url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


# the server


def test_a_server_that_is_ready(database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY, n int)")
    found = reports(database, tmp_path, s={"table": "t", **LOG})
    states = {probe.name: probe.state for probe in found[""].probes if not probe.name.startswith("slot ")}
    assert states == {
        **dict.fromkeys(
            ("version", "standby", "wal_level", "slots", "senders", "role", "replication", "pooler"), "good"
        ),
        "synchronous_commit": "good",
        "wal": "good",
        "wal limit": "warning",
    }
    assert [report.table for report in doctor(config(database, tmp_path))] == ["", "public.t"]
    assert pattern(found["t"], "log").possible
    assert found["t"].healthy


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """As it comes from the package, and fuller than it should be."""
    settings = {
        "wal_level": "replica",
        "max_replication_slots": "1",
        "max_wal_senders": "1",
        "synchronous_commit": "off",
        "max_slot_wal_keep_size": "2GB",
        "wal_writer_delay": "300ms",
    }
    with PostgresServer(tmp_path_factory.mktemp("plain") / "data", settings=settings) as server:
        server.execute(
            "SELECT pg_create_physical_replication_slot('elsewhere', true)", "CREATE TABLE t (id int PRIMARY KEY)"
        )
        yield server


def test_what_a_server_lacks_is_named_with_its_sql(plain_server: PostgresServer, tmp_path: Path) -> None:
    found = reports(plain_server.url, tmp_path, s={"table": "t", **LOG})
    server = found[""]
    assert (probe(server, "wal_level").state, probe(server, "slots").state) == ("problem", "problem")
    assert probe(server, "wal_level").fix == "ALTER SYSTEM SET wal_level = 'logical';  -- then restart the server"
    assert probe(server, "slots").text == "1 of 1 replication slots are in use: none is left for this pipeline"
    assert probe(server, "wal limit").text.startswith("a slot may keep 2.0 GB")
    late = probe(server, "synchronous_commit")
    assert late.state == "warning"
    assert "up to 900 ms later (three times wal_writer_delay, 300 ms)" in late.text
    assert probe(server, "slot elsewhere").state == "warning"
    assert "nobody reads it now" in probe(server, "slot elsewhere").text
    enabling = pattern(found["t"], "log")
    assert not enabling.possible
    assert probe(server, "wal_level").fix in enabling.enable
    assert not server.healthy


def test_without_a_log_stream_the_same_is_no_problem(plain_server: PostgresServer, tmp_path: Path) -> None:
    assert all(report.healthy for report in reports(plain_server.url, tmp_path).values())


def test_the_sql_for_a_server_makes_it_ready(tmp_path: Path) -> None:
    settings = {"wal_level": "replica", "max_wal_senders": "5"}
    with PostgresServer(tmp_path / "data", settings=settings) as server:
        server.execute("CREATE TABLE t (id int PRIMARY KEY)")
        enabling = pattern(reports(server.url, tmp_path)["t"], "log")
        del server._settings["wal_level"]  # the command line would win over ALTER SYSTEM
        server.execute(*(sql.partition("  --")[0] for sql in enabling.enable))
        server.restart()
        assert pattern(reports(server.url, tmp_path)["t"], "log").possible


@pytest.mark.parametrize(
    ("setting", "advice"),
    [("rds.logical_replication", "rds.logical_replication = 1"), ("cloudsql.logical_decoding", "gcloud sql instances")],
)
def test_managed_servers_are_set_elsewhere(tmp_path: Path, setting: str, advice: str) -> None:
    with PostgresServer(tmp_path / "data", settings={"wal_level": "replica", setting: "off"}) as server:
        assert advice in probe(reports(server.url, tmp_path)[""], "wal_level").fix


def test_f10_a_standby_is_told_apart(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "first") as first:
        first.execute("CREATE TABLE t (id int PRIMARY KEY)")
        first.stop()
        standby = PostgresServer(tmp_path / "second")
        shutil.rmtree(standby.directory)
        shutil.copytree(first.directory, standby.directory, copy_function=shutil.copy2)
        (standby.directory / "standby.signal").touch()
        for path in (standby.directory, *standby.directory.rglob("*")):
            shutil.chown(path, path.owner() if not standby._user else standby._user["user"])
        with standby:
            found = reports(standby.url, tmp_path, s={"table": "t", **LOG})
            assert probe(found[""], "standby").state == "problem"
            assert not pattern(found["t"], "log").possible
            assert pattern(found["t"], "trigger").why_not == "the server is a standby: triggers are made on the primary"


def test_synchronous_commit_that_is_off_for_those_who_write(
    postgres_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    with role(postgres_server, database, "late_writer"):
        run(database, "ALTER ROLE late_writer SET synchronous_commit = off")
        found = probe(reports(database, tmp_path)[""], "synchronous_commit")
        assert found.text.startswith("off for role late_writer: the log shows a commit only once it is on disk")
        run(database, found.fix)
        assert probe(reports(database, tmp_path)[""], "synchronous_commit").state == "good"


# slots and their log


def test_f08_who_holds_the_log_back(postgres_server: PostgresServer, database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY, n text)")
    run(database, "SELECT pg_create_logical_replication_slot('headwater_p_lms', 'pgoutput')")
    run(database, "SELECT pg_create_logical_replication_slot('another_tool', 'pgoutput')")
    run(database, "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 3000) n")
    server = reports(database, tmp_path, s={"table": "t", **LOG})[""]
    other = probe(server, "slot another_tool")
    assert other.state == "warning"
    assert other.fix.startswith("SELECT pg_drop_replication_slot('another_tool');")
    kept = float(other.text.split()[1])
    assert other.text.split()[2] == "MB"
    assert 3 < kept < 100
    assert probe(server, "slot headwater_p_lms").text.startswith("this pipeline’s: keeps ")
    assert probe(server, "slot headwater_p_lms").state == "good"
    assert "one of them by this pipeline" in probe(server, "slots").text


def test_f08_a_slot_that_is_read_names_its_reader(database: str, tmp_path: Path) -> None:
    with closing(connect(database, application="somebody's tool", replication=True)) as reader:
        reader.pgconn.exec_(b"CREATE_REPLICATION_SLOT read_now TEMPORARY LOGICAL pgoutput")
        reader.pgconn.exec_(b"START_REPLICATION SLOT read_now LOGICAL 0/0 (proto_version '1', publication_names 'x')")
        found = probe(reports(database, tmp_path)[""], "slot read_now")
        assert (found.state, "somebody's tool of postgres at 127.0.0.1 reads it" in found.text) == ("good", True)


def test_f04_a_slot_that_the_server_gave_up(tmp_path: Path) -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "max_wal_size": "1GB"}
    with PostgresServer(tmp_path / "data", settings=settings) as server:
        server.execute(
            "SELECT pg_create_logical_replication_slot('headwater_p_lms', 'pgoutput')",
            "CREATE TABLE t (id int, n text)",
        )
        for _ in range(4):
            server.execute(
                "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 8000) n", "SELECT pg_switch_wal()"
            )
        unsafe = probe(reports(server.url, tmp_path)[""], "slot headwater_p_lms")
        assert (unsafe.state, "the next checkpoint will throw away" in unsafe.text) == ("problem", True)
        server.execute("CHECKPOINT")
        lost = probe(reports(server.url, tmp_path)[""], "slot headwater_p_lms")
        assert (lost.state, lost.fix) == ("problem", "headwater repair lms/log")
        assert "its reader has lost changes" in lost.text


def test_f08_how_long_the_disk_lasts(database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (n text)")
    stop = threading.Event()

    def write() -> None:
        with connect(database, application="writer") as connection:
            while not stop.is_set():
                execute(connection, "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 200)")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        text = probe(reports(database, tmp_path)[""], "wal").text
    finally:
        stop.set()
        thread.join()
    rate = text.removeprefix("the log grows by ").split(" a second")[0]
    assert rate.split()[1] in ("kB", "MB")
    found = re.search(r"([\d.]+) GB are free", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, rel=0.1)
    assert "with a slot that stands still they last" in text


# what lies between


def test_a_role_without_privileges_gets_findings_and_the_sql(
    postgres_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    run(database, "CREATE SCHEMA s", "CREATE TABLE s.t (id int PRIMARY KEY, n text)")
    with role(postgres_server, database, "little") as url:
        for _ in range(5):  # each answer names the next thing that stands in the way
            report = reports(url, tmp_path, x={"table": "s.t", **LOG})["s.t"]
            enabling = pattern(report, "log")
            if enabling.possible:
                break
            assert not pattern(report, "bulk query").possible or probe(report, "select").state == "good"
            run(database, *enabling.enable)
        assert enabling.possible
        assert report.healthy
        server = reports(url, tmp_path)[""]
        assert "pg_read_all_settings" in probe(server, "wal").text
        run(database, "DROP PUBLICATION headwater_p_lms")


def test_f81_a_server_that_is_away_is_a_report_without_secrets(tmp_path: Path) -> None:
    (report,) = doctor(config("postgresql://u:hunter2@127.0.0.1:1/db", tmp_path))
    assert (report.table, report.healthy) == ("", False)
    assert "127.0.0.1" in probe(report, "source").text
    assert "hunter2" not in repr(report)


class Pooler(threading.Thread):
    """Stands before a server as PgBouncer 1.22 does: no replication, and process numbers of its own.

    https://www.pgbouncer.org/changelog.html: replication connections are passed on since 1.23.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, client: socket.socket) -> None:
        with closing(client):
            first = self._packet(client)
            while struct.unpack("!I", first[4:8])[0] in (80877103, 80877104):  # SSLRequest, GSSENCRequest
                client.sendall(b"N")
                first = self._packet(client)
            if b"\0replication\0" in first:
                fields = b"SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0"
                client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                server.sendall(first)
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
                self._answers(server, client)

    @staticmethod
    def _packet(client: socket.socket) -> bytes:
        head = client.recv(4, socket.MSG_WAITALL)
        return head + client.recv(struct.unpack("!I", head)[0] - 4, socket.MSG_WAITALL)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    @staticmethod
    def _answers(server: socket.socket, client: socket.socket) -> None:
        """Messages one by one; BackendKeyData (`K`) gets another process number."""
        while head := server.recv(5, socket.MSG_WAITALL):
            body = server.recv(struct.unpack("!I", head[1:])[0] - 4, socket.MSG_WAITALL)
            if head[:1] == b"K":
                body = struct.pack("!I", 4_000_000) + body[4:]
            try:
                client.sendall(head + body)
            except OSError:
                return


def test_a_pooler_that_cannot_replicate(postgres_server: PostgresServer, database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    pooler = Pooler(postgres_server.port)
    pooler.start()
    with closing(pooler):
        address = database.replace(f":{postgres_server.port}/", f":{pooler.port}/")
        found = reports(address, tmp_path, s={"table": "t", **LOG})
        assert probe(found[""], "pooler").state == "warning"
        refused = probe(found[""], "replication")
        assert refused.state == "problem"
        assert refused.text.count("a pooler stands before the server") == 1
        assert refused.fix == "give the server's own address for this source"
        with pytest.raises(SourceError, match="a pooler stands before the server and cannot replicate"):
            connect(address, application="test", replication=True)
        assert not pattern(found["t"], "log").possible
        assert pattern(found["t"], "bulk query").possible


# tables

IDENTITIES = [
    ("(id int PRIMARY KEY, n int)", (), True),
    ("(id int PRIMARY KEY, n int)", ("REPLICA IDENTITY NOTHING",), False),
    ("(id int PRIMARY KEY DEFERRABLE, n int)", (), False),
    ("(id int NOT NULL UNIQUE, n int)", (), False),
    ("(id int UNIQUE, n int)", (), False),
    ("(id int, n int)", (), False),
    ("(id int, n int)", ("REPLICA IDENTITY FULL",), True),
    ("(id int NOT NULL UNIQUE, n int)", ("REPLICA IDENTITY USING INDEX t_id_key",), True),
    ("(id int NOT NULL UNIQUE, n int)", ("REPLICA IDENTITY USING INDEX t_id_key", "DROP CONSTRAINT t_id_key"), False),
    ("(id int, n int) PARTITION BY RANGE (id)", (), False),
    ("(id int PRIMARY KEY, n int) PARTITION BY RANGE (id)", (), True),
]


@pytest.mark.parametrize(("columns", "alterations", "identified"), IDENTITIES)
def test_f85_replica_identity_and_what_an_update_would_do(
    database: str, tmp_path: Path, columns: str, alterations: tuple[str, ...], identified: bool
) -> None:
    run(database, f"CREATE TABLE t {columns}")
    if "PARTITION" in columns:
        run(database, "CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (10)")
    run(database, *(f"ALTER TABLE t {alteration}" for alteration in alterations))
    run(database, "INSERT INTO t VALUES (1, 1)")
    report = reports(database, tmp_path, s={"table": "t", **LOG})["t"]
    found = probe(report, "replica identity")
    assert (found.state == "good", pattern(report, "log").possible) == (identified, identified)
    assert fails_when_published(database) is not identified
    if not identified:
        run(database, *(sql.partition("  --")[0] for sql in found.fix.splitlines()))
        report = reports(database, tmp_path, s={"table": "t", **LOG})["t"]
        assert probe(report, "replica identity").state == "good"
        assert pattern(report, "log").possible
        assert not fails_when_published(database)


def fails_when_published(url: str) -> bool:
    """Whether the application's UPDATE and DELETE fail with a publication of them."""
    run(url, "CREATE PUBLICATION trial FOR TABLE t WITH (publish_via_partition_root = true)")
    try:
        run(url, "UPDATE t SET n = n + 1", "DELETE FROM t WHERE n = -1")
    except SourceError as error:
        return "replica identity" in str(error)
    finally:
        run(url, "DROP PUBLICATION trial")
    return False


def contract(directory: Path, **more: Any) -> None:
    text = {"stream": "s", "version": 1, "owner": "o", "kind": "fact", "key": ["id"], **more}
    text.setdefault("fields", {"id": {"type": "int32"}, "body": {"type": "string", "optional": True}})
    (directory / "contracts").mkdir()
    (directory / "contracts" / "s.yaml").write_text(yaml.safe_dump(text))


def test_f30_long_values_and_what_reads_them(database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY, body text, title text, small int)")
    contract(tmp_path)
    plain = probe(reports(database, tmp_path, s={"table": "t", **LOG})["t"], "large values")
    assert (plain.state, "of body, title that it left alone" in plain.text) == ("good", True)
    reading = {"table": "t", **LOG, "where": "length(body) > 3"}
    found = probe(reports(database, tmp_path, s=reading)["t"], "large values")
    assert (found.state, "reads body (s)" in found.text) == ("warning", True)
    run(database, found.fix)
    names = {probe.name for probe in reports(database, tmp_path, s=reading)["t"].probes}
    assert "large values" not in names


def test_a_key_that_a_delete_does_not_carry(database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE)")
    contract(tmp_path, key=["code"], fields={"id": {"type": "int32"}, "code": {"type": "string"}})
    report = reports(database, tmp_path, s={"table": "t", **LOG})["t"]
    found = probe(report, "log")
    assert (found.state, "`code` of a row that was deleted" in found.text) == ("problem", True)
    run(database, found.fix)
    assert reports(database, tmp_path, s={"table": "t", **LOG})["t"].healthy


def test_events_of_a_table_without_a_key(database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int, body text)")
    contract(tmp_path, kind="event", key=[])
    report = reports(database, tmp_path, s={"table": "t", **LOG})["t"]
    assert probe(report, "replica identity").text == "none: its inserts alone are published, as events"
    assert probe(report, "log").state == "good"


def test_what_has_no_log_of_its_own(database: str, tmp_path: Path) -> None:
    run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, n int)",
        "CREATE VIEW v AS SELECT * FROM t",
        "CREATE MATERIALIZED VIEW m AS SELECT * FROM t",
        "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER far FOREIGN DATA WRAPPER w",
        "CREATE FOREIGN TABLE f (id int) SERVER far",
    )
    found = reports(database, tmp_path)
    possible = {name: pattern(report, "log").possible for name, report in found.items() if name}
    assert {name: possible[name] for name in possible.keys() & {"t", "v", "m", "u", "f"}} == {
        name: name == "t" for name in possible
    }
    assert {"t", "v", "u"} <= possible.keys()
    enabling = pattern(found["u"], "log")
    run(database, *(sql.partition("  --")[0] for sql in enabling.enable))
    assert pattern(reports(database, tmp_path)["u"], "log").possible


def test_rows_that_row_security_hides(postgres_server: PostgresServer, database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY)", "ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    with role(postgres_server, database, "half_blind") as url:
        run(database, "GRANT SELECT ON t TO half_blind")
        found = probe(reports(url, tmp_path)["t"], "row security")
        assert found.state == "problem"
        run(database, found.fix)
        assert "row security" not in {probe.name for probe in reports(url, tmp_path)["t"].probes}


def test_the_sql_for_a_cursor(database: str, tmp_path: Path) -> None:
    run(database, 'CREATE TABLE t (id int PRIMARY KEY, "modified" timestamptz)', "INSERT INTO t VALUES (1, NULL)")
    stream = {"table": "t", "pattern": "query", "cursor": "modified"}
    texts = [found.text for found in reports(database, tmp_path, s=stream)["t"].probes if found.name == "cursor"]
    assert texts == [
        "modified has no index: each poll reads the whole table",
        "modified is NULL in some rows, which a poll never sees",
    ]
    run(database, *pattern(reports(database, tmp_path)["t"], "query by timestamp").enable)
    assert pattern(reports(database, tmp_path)["t"], "query by timestamp").possible
    assert reports(database, tmp_path, s=stream)["t"].healthy


def test_looking_changes_nothing(database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY, body text)")
    catalogue = (
        "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_publication),"
        " (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()),"
        " (SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables)"
    )
    before = run(database, catalogue)
    reports(database, tmp_path, s={"table": "t", **LOG})
    assert run(database, catalogue) == before


def test_tables_of_one_name_in_two_schemas(database: str, tmp_path: Path) -> None:
    run(database, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE SCHEMA b", "CREATE TABLE b.t (id int PRIMARY KEY)")
    found = reports(database, tmp_path, s={"table": "b.t", **LOG})
    assert (found["b.t"].streams, found["t"].streams) == (("s",), ())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 kB"), (3 * 2**30, "3.0 GB"), (5 * 2**40, "5.0 TB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "3 seconds"),
        (600, "10 minutes"),
        (9 * 3600, "9 hours"),
        (3 * 86400, "3 days"),
        (1e12, "more than ten years"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert lasting(seconds) == text
