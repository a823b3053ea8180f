"""The PostgreSQL that benchmarks share, its table of 1M rows, the loads that make its log, and the yardsticks."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.result import seconds
from headwater.drivers.postgres import connect
from headwater.testing.postgres import SETTINGS, PostgresServer

ROWS = 1_000_000
PER_COMMIT = 1_000
SINGLES = 200_000
"""Of the mixed load's row changes, those in transactions of their own."""
BEFORE_MIXED = 400_000
"""Rows that the mixed load finds."""

SERVER = {
    "synchronous_commit": "on",
    "fsync": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "32GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "wal_buffers": "16MB",
}
"""Beside the fixture's own settings: neither checkpoints nor vacuum run into a measurement."""

COLUMNS = {
    "id": ("bigint PRIMARY KEY", "int64"),
    "user_id": ("integer NOT NULL", "int32"),
    "course_key": ("varchar(80) NOT NULL", "string"),
    "mode": ("varchar(20)", "string"),
    "price": ("numeric(10,2)", "decimal(10,2)"),
    "active": ("boolean", "bool"),
    "created": ("timestamptz", "timestamp"),
    "email": ("varchar(120)", "string"),
    "score": ("double precision", "float64"),
    "note": ("text", "string"),
}
"""Column -> type in PostgreSQL, type in the contract."""

VALUES = """
    n, n % 100003, 'course-v1:Org+C' || n % 200 || '+2026', CASE WHEN n % 3 = 0 THEN NULL ELSE 'verified' END,
    (n % 50000) / 100.0, n % 2 = 0, '2026-01-01'::timestamptz + n * interval '1 ms', 'learner' || n || '@example.com',
    n / 7.0::float8, substr(repeat(md5(n::text), 4), 1, 110)
"""

SQL = f"""
CREATE TABLE enrollment ({", ".join(f"{name} {kinds[0]}" for name, kinds in COLUMNS.items())});
CREATE FUNCTION one(n bigint) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO enrollment SELECT {VALUES}; END $$;
CREATE PROCEDURE inserts(low int, high int, per_commit int) LANGUAGE plpgsql AS $$
BEGIN
    WHILE low <= high LOOP
        INSERT INTO enrollment SELECT {VALUES} FROM generate_series(low, least(low + per_commit - 1, high)) n;
        COMMIT;
        low := low + per_commit;
    END LOOP;
END $$;
CREATE PROCEDURE updates(low int, high int, per_commit int) LANGUAGE plpgsql AS $$
BEGIN
    WHILE low <= high LOOP
        UPDATE enrollment SET score = score + 1, mode = 'audit'
            WHERE id BETWEEN low AND least(low + per_commit - 1, high);
        COMMIT;
        low := low + per_commit;
    END LOOP;
END $$;
-- of each 20 changes: 10 inserts of new keys from `low` on, 7 updates and 3 deletes of old ones from `old` on
CREATE PROCEDURE mixed(low int, old int, transactions int, twenties int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. transactions LOOP
        INSERT INTO enrollment SELECT {VALUES} FROM generate_series(low, low + 10 * twenties - 1) n;
        UPDATE enrollment SET score = score + 1, mode = 'audit' WHERE id BETWEEN old AND old + 7 * twenties - 1;
        DELETE FROM enrollment WHERE id BETWEEN old + 7 * twenties AND old + 10 * twenties - 1;
        COMMIT;
        low := low + 10 * twenties;
        old := old + 10 * twenties;
    END LOOP;
END $$;
CREATE PROCEDURE singles(low int, old int, twenties int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. twenties LOOP
        FOR n IN low .. low + 9 LOOP INSERT INTO enrollment SELECT {VALUES}; COMMIT; END LOOP;
        FOR n IN old .. old + 6 LOOP
            UPDATE enrollment SET score = score + 1, mode = 'audit' WHERE id = n;
            COMMIT;
        END LOOP;
        FOR n IN old + 7 .. old + 9 LOOP DELETE FROM enrollment WHERE id = n; COMMIT; END LOOP;
        low := low + 10;
        old := old + 10;
    END LOOP;
END $$;
"""
QUICKLY = "SET synchronous_commit = off"
MIX = f"50% inserts, 35% updates, 15% deletes; {SINGLES:,} in transactions of one row, the rest of 1,000 rows"


@contextmanager
def running(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server with the table, empty, in database `bench`."""
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as directory:
        with PostgresServer(Path(directory) / "data", settings={**SERVER, **(settings or {})}) as server:
            server.create_database("bench")
            server.execute(SQL, database="bench")
            yield server


def about(server: PostgresServer, protocol: Mapping[str, str]) -> dict[str, str]:
    """For the report: what both sides ran with."""
    ((version,),) = server.execute("SHOW server_version")
    settings = ", ".join(f"{name}={value}" for name, value in {**SETTINGS, **SERVER}.items())
    return {
        "PostgreSQL": f"{version}, on the same machine, over TCP; {settings}",
        "table": ", ".join(f"{name} {kinds[0]}" for name, kinds in COLUMNS.items()),
        "row": f"{row_bytes(server):.0f} bytes by pg_column_size, tuple header included",
        "inserts": f"{PER_COMMIT:,} rows a transaction",
        "mixed load": f"{MIX}; {BEFORE_MIXED:,} rows before it",
        "pgoutput, both sides": ", ".join(f"{name}={value}" for name, value in protocol.items()),
        "Headwater": "its defaults (embedded bus: lz4, synchronous=FULL), one capture, a process of its own",
    }


def make_slot(server: PostgresServer, name: str) -> None:
    server.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')", database="bench")


def run_sql(server: PostgresServer, *statements: str) -> None:
    server.execute(*statements, database="bench")


def fill(server: PostgresServer, low: int, high: int) -> None:
    """Rows `low` to `high` in transactions of a thousand; not waited for one by one."""
    run_sql(server, QUICKLY, f"CALL inserts({low}, {high}, {PER_COMMIT})")


def update(server: PostgresServer, low: int, high: int) -> None:
    run_sql(server, QUICKLY, f"CALL updates({low}, {high}, {PER_COMMIT})")


def fill_mixed(server: PostgresServer) -> None:
    """`ROWS` row changes over `BEFORE_MIXED` rows; see `MIX`."""
    twenties, each = SINGLES // 20, PER_COMMIT // 20
    transactions = (ROWS - SINGLES) // PER_COMMIT
    run_sql(
        server,
        QUICKLY,
        f"CALL singles({BEFORE_MIXED + 1}, 1, {twenties})",
        f"CALL mixed({BEFORE_MIXED + 10 * twenties + 1}, {10 * twenties + 1}, {transactions}, {each})",
    )


def settled(server: PostgresServer) -> str:
    """Everything on disk, and the end of the log."""
    run_sql(server, "CHECKPOINT")
    ((place,),) = server.execute("SELECT pg_current_wal_flush_lsn()::text")
    return str(place)


def row_bytes(server: PostgresServer) -> float:
    ((size,),) = server.execute("SELECT avg(pg_column_size(e.*)) FROM enrollment e", database="bench")
    return float(size)


# yardsticks


def copy_and_drop(server: PostgresServer) -> float:
    """Seconds of `COPY (select ...) TO STDOUT (FORMAT binary)`, read and dropped."""

    def read() -> None:
        with connect(server.url_of("bench"), application="yardstick") as connection:
            with (
                connection.cursor() as cursor,
                cursor.copy(f"COPY (SELECT {', '.join(COLUMNS)} FROM enrollment) TO STDOUT (FORMAT binary)") as copy,
            ):
                for _ in copy:
                    pass

    return seconds(read)


def receive_and_drop(
    server: PostgresServer, slot: str, publication: str, until: str, protocol: Mapping[str, str]
) -> float:
    """Seconds of `pg_recvlogical -f /dev/null` up to an LSN, with these options of pgoutput."""
    options = {**protocol, "publication_names": publication}
    command = [
        str(server.binaries / "pg_recvlogical"), "--dbname", server.url_of("bench"), "--slot", slot, "--start",
        "--endpos", until, "--no-loop", "-f", "/dev/null",
        *(f"--option={name}={value}" for name, value in options.items()),
    ]  # fmt: skip
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))
