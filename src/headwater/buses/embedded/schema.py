"""The tables of bus.db, their format version, and the steps that bring an older file up to date.

`PRAGMA user_version` is the format; `application_id` says that the file is a bus. An order (epoch, commit, index) is
stored as 16 bytes, big-endian, so that SQLite compares it as the triple. Times are microseconds since 1970, UTC.
Record batches are Arrow IPC messages without their schema, which is stored once in `shape`; those of large appends lie
in files (`files`), the others as blobs in tables of their own, so that looking through the rows beside them touches no
overflow page.
"""

from __future__ import annotations

APPLICATION_ID = 0x48445754  # "HDWT"
FORMAT = 2

_FILES = "CREATE INDEX segment_file ON segment (file, place, nbytes) WHERE file IS NOT NULL"
_BEYOND = "SELECT g.id FROM segment g JOIN stream s ON s.id = g.stream WHERE g.base >= s.head"

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        # Format 1 wrote large appends in several transactions, and a crash could leave some of them beyond a head.
        f"DELETE FROM records WHERE segment IN ({_BEYOND})",
        f"DELETE FROM segment WHERE id IN ({_BEYOND})",
        "ALTER TABLE segment ADD COLUMN file INTEGER",
        "ALTER TABLE segment ADD COLUMN place INTEGER",
        _FILES,
    )
}
"""Format -> the statements that make it the next format; all steps run in one transaction."""

TABLES = (
    """CREATE TABLE stream (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        incarnation TEXT NOT NULL,
        contract TEXT NOT NULL,
        version INTEGER NOT NULL,
        source TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        max_bytes INTEGER,
        head INTEGER NOT NULL DEFAULT 0,
        floor INTEGER NOT NULL DEFAULT 0,
        compacted INTEGER NOT NULL DEFAULT 0,
        gone INTEGER NOT NULL DEFAULT 0,
        nbytes INTEGER NOT NULL DEFAULT 0,
        newest BLOB,
        last_append INTEGER,
        paused TEXT,
        resuming INTEGER NOT NULL DEFAULT 0,
        parked INTEGER NOT NULL DEFAULT 0,
        parked_bytes INTEGER NOT NULL DEFAULT 0,
        rejected INTEGER NOT NULL DEFAULT 0
    )""",
    # head: the next offset. floor: below it, retention dropped events. compacted: below it, each key has one event.
    # gone: below it, deletes were forgotten.
    "CREATE TABLE branch (stream INTEGER NOT NULL, incarnation TEXT NOT NULL, upto INTEGER NOT NULL,"
    " PRIMARY KEY (stream, incarnation)) WITHOUT ROWID",
    "CREATE TABLE shape (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, schema BLOB NOT NULL)",
    """CREATE TABLE segment (
        id INTEGER PRIMARY KEY,
        stream INTEGER NOT NULL,
        base INTEGER NOT NULL,
        next INTEGER NOT NULL,
        count INTEGER NOT NULL,
        deletes INTEGER NOT NULL,
        min_time INTEGER NOT NULL,
        max_time INTEGER NOT NULL,
        appended INTEGER NOT NULL,
        min_order BLOB NOT NULL,
        max_order BLOB NOT NULL,
        shape INTEGER NOT NULL,
        type TEXT,
        version INTEGER NOT NULL,
        source TEXT NOT NULL,
        seed BLOB NOT NULL,
        content_ids INTEGER NOT NULL,
        codec TEXT NOT NULL,
        nbytes INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        file INTEGER,
        place INTEGER
    )""",
    # appended: when the newest of its events was appended. file, place: where the records lie, unless they are a blob.
    _FILES,
    "CREATE UNIQUE INDEX segment_place ON segment (stream, base)",
    "CREATE TABLE records (segment INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE position (source TEXT PRIMARY KEY, epoch INTEGER NOT NULL, place TEXT NOT NULL,"
    " token BLOB NOT NULL) WITHOUT ROWID",
    # place: the commit, as decimal text, since it may need 64 bits without a sign.
    """CREATE TABLE reader (
        stream INTEGER NOT NULL,
        name TEXT NOT NULL,
        declared INTEGER NOT NULL DEFAULT 0,
        released INTEGER NOT NULL DEFAULT 0,
        next INTEGER,
        committed INTEGER,
        PRIMARY KEY (stream, name)
    ) WITHOUT ROWID""",
    "CREATE TABLE note (id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,"
    " place INTEGER NOT NULL, time INTEGER NOT NULL)",
    "CREATE INDEX note_stream ON note (stream)",
    "CREATE TABLE parked (id INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER NOT NULL, meta TEXT NOT NULL,"
    " nbytes INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE INDEX parked_stream ON parked (stream)",
    "CREATE TABLE refused (id INTEGER PRIMARY KEY, meta TEXT NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL)",
    """CREATE TABLE rejected (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        stream INTEGER NOT NULL,
        batch INTEGER NOT NULL,
        row INTEGER NOT NULL,
        source TEXT NOT NULL,
        place BLOB NOT NULL,
        key TEXT,
        field TEXT NOT NULL,
        expected TEXT NOT NULL,
        got TEXT NOT NULL,
        time INTEGER NOT NULL
    )""",
    "CREATE INDEX rejected_stream ON rejected (stream, key)",
    "CREATE INDEX rejected_batch ON rejected (batch)",
)
