"""A database in which everything happens that `pgoutput` has a message for, and the recordings of it."""

from __future__ import annotations

from psycopg import Connection

from headwater.drivers.postgres import connect
from headwater.testing.postgres import PostgresServer
from tests.pgoutput_messages import Recording, recorded, slots

TABLES = """
CREATE TABLE "every ""type" (
    id bigint PRIMARY KEY, i2 smallint, i4 integer, o oid, f4 real, f8 double precision, b bool, n numeric,
    n2 numeric(12, 2), t text, v varchar(30), y bytea, u uuid, j json, jb jsonb, d date, ti time, ts timestamp,
    tz timestamptz);
CREATE TABLE whole (id int PRIMARY KEY, name text, big text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int, code text NOT NULL, name text);
CREATE UNIQUE INDEX by_index_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
CREATE TABLE only_inserts (name text);
ALTER TABLE only_inserts REPLICA IDENTITY NOTHING;
CREATE TABLE big (id int PRIMARY KEY, name text, big text);
ALTER TABLE big ALTER big SET STORAGE EXTERNAL;
ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE part (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE moods (id int PRIMARY KEY, m mood);
CREATE PUBLICATION inserts FOR TABLE only_inserts WITH (publish = 'insert');
CREATE PUBLICATION p FOR TABLE "every ""type", whole, by_index, big, parent, child, part, moods
    WITH (publish_via_partition_root = true)
"""

EVERY_TYPE = """
INSERT INTO "every ""type" VALUES
 (1, -32768, -2147483648, 4294967295, 'NaN', '-Infinity', true, 'NaN', 12.30, 'é', 'v', '\\x00ff',
  '00112233-4455-6677-8899-aabbccddeeff', '{"a": 1}', '{"a": 1}', '0044-03-15 BC', '24:00', 'infinity',
  '-infinity'),
 (2, 32767, 2147483647, 0, 1.5, 1e300, false, '-0.000001230', -0.07, '', '', '', NULL, 'null', '[]', '2000-01-01',
  '00:00', '2000-01-01 00:00:00.000001', '1999-12-31 23:59:59.999999+00'),
 (9223372036854775807, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL)
"""

NUMBERS = (
    "0", "0.00", "1", "-1", "10", "9999", "10000", "10001", "99990000", "0.1", "0.0001", "0.00010", "0.00001", "-0.5",
    "123456789.123456789", "1e50", "1e-50", "-1e131071", "1e-16383", "NaN", "Infinity", "-Infinity", "100000000000.0",
    "0.30000000000000000000", "12345.6", "1000.0001000",
)  # fmt: skip


def changes(connection: Connection) -> None:
    """Each statement in a transaction of its own, but for the blocks."""
    run = connection.execute
    run(EVERY_TYPE)
    run('UPDATE "every ""type" SET t = \'other\', n = n + 1 WHERE id = 1')
    run('UPDATE "every ""type" SET id = 3 WHERE id = 2')
    run('DELETE FROM "every ""type" WHERE id = 3')
    for number, value in enumerate(NUMBERS):
        run('INSERT INTO "every ""type" (id, n) VALUES (%s, %s::numeric)', (100 + number, value))
    for table in ("big", "whole"):
        run(f"INSERT INTO {table} VALUES (1, 'a', repeat('0123456789', 1000)), (2, 'b', NULL)")
        run(f"UPDATE {table} SET name = 'c'")
        run(f"UPDATE {table} SET id = id + 10")
        run(f"DELETE FROM {table} WHERE id = 12")
    run("INSERT INTO by_index VALUES (1, 'x', 'n'), (2, 'y', 'm')")
    run("UPDATE by_index SET code = 'z' WHERE id = 1")
    run("UPDATE by_index SET name = 'k' WHERE id = 2")
    run("DELETE FROM by_index WHERE id = 2")
    run("INSERT INTO part VALUES (1, '2024-05-05'), (2, '2025-05-05')")
    run("UPDATE part SET day = '2025-07-07' WHERE id = 1")
    run("INSERT INTO moods VALUES (1, 'happy')")
    run("INSERT INTO parent VALUES (1); ")
    run("INSERT INTO child VALUES (1, 1)")
    run("TRUNCATE parent CASCADE")
    with connection.transaction():
        run("SELECT pg_logical_emit_message(true, 'app', 'inside')")
        run("INSERT INTO parent VALUES (5)")
        run("ALTER TABLE parent ADD note text")
        run("INSERT INTO parent VALUES (6, 'new')")
        run("UPDATE big SET name = 'd'")
    run("SELECT pg_logical_emit_message(false, 'app', 'alone')")
    _with_origin(connection)


def _with_origin(connection: Connection) -> None:
    connection.execute("SELECT pg_replication_origin_create('elsewhere')")
    connection.execute("SELECT pg_replication_origin_session_setup('elsewhere')")
    connection.execute("INSERT INTO parent VALUES (7, 'from elsewhere')")
    connection.execute("SELECT pg_replication_origin_session_reset()")
    connection.execute("SELECT pg_replication_origin_drop('elsewhere')")


def streamed(connection: Connection) -> None:
    """A large transaction with savepoints that are rolled back; then one that is rolled back as a whole."""
    run = connection.execute
    with connection.transaction():
        run("INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1000, 1499) i")
        with connection.transaction(force_rollback=True):
            run("INSERT INTO big SELECT i, repeat('y', 100) FROM generate_series(2000, 2999) i")
        with connection.transaction():
            run("UPDATE big SET name = 'sub' WHERE id BETWEEN 1000 AND 1009")
        with connection.transaction(force_rollback=True):
            run("TRUNCATE moods")
        run("DELETE FROM big WHERE id = 1499")
    with connection.transaction(force_rollback=True):
        run("INSERT INTO big SELECT i, repeat('z', 100) FROM generate_series(4000, 4999) i")


def record(server: PostgresServer, url: str) -> dict[str, Recording]:
    """`text`, `binary` (protocol 1), `inserts` (of a table without identity) and `streamed` (protocol 2, binary)."""
    database = url.rsplit("/", 1)[1]
    server.execute(*[part for part in TABLES.split(";\n") if part.strip()], database=database)
    server.execute(f"ALTER DATABASE {database} SET logical_decoding_work_mem = '64kB'")
    slots(server, database, ["text", "binary", "inserts", "streamed"])
    with connect(url, application="headwater tests") as connection:
        connection.execute("INSERT INTO only_inserts VALUES ('a'), (NULL)")
        changes(connection)
        streamed(connection)
    return {
        "text": recorded(url, "text", "p"),
        "binary": recorded(url, "binary", "p", binary=True),
        "inserts": recorded(url, "inserts", "inserts"),
        "streamed": recorded(url, "streamed", "p", version=2, binary=True),
    }
