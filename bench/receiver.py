"""The least that makes a log durable: receive, append to a file, fsync. What is left of a latency is the tool's own.

`python -m bench.receiver URL SLOT PUBLICATION DIRECTORY COUNT`: as `bench.subject follow`, with a file for a bus. No
decoding but of the key, no mapping, no index, no reader, no sink.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from select import select

import numpy as np
import psycopg

from bench.postgres import PROTOCOL

INSERT = b"I"
DATA = 25
"""Bytes of the XLogData header."""
KEY = struct.Struct(">1sI1sHcIq")
"""Insert: letter, table, `N`, columns; then the first column: `b`, length, an int8."""


def received(connection: psycopg.Connection) -> Iterator[list[bytes]]:
    """What has arrived together; waits for it."""
    pgconn = connection.pgconn
    while True:
        select([pgconn.socket], [], [])
        pgconn.consume_input()
        found = []
        while (size := pgconn.get_copy_data(1)[0:2])[0] > 0:
            found.append(bytes(size[1]))
        if found:
            yield found


def keys(messages: list[bytes]) -> list[int]:
    return [KEY.unpack_from(m, DATA)[6] for m in messages if m[:1] == b"w" and m[DATA : DATA + 1] == INSERT]


def main(url: str, slot: str, publication: str, directory: str, count: str) -> None:
    home = Path(directory)
    chosen = ", ".join(f"{name} '{value}'" for name, value in {**PROTOCOL, "publication_names": publication}.items())
    connection = psycopg.connect(f"{url}?replication=database", autocommit=True)
    connection.pgconn.send_query(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({chosen})".encode())
    connection.pgconn.get_result()
    file = os.open(home / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    (home / "ready").touch()
    ids: list[int] = []
    moments: list[int] = []
    for messages in received(connection):
        os.write(file, b"".join(messages))
        os.fdatasync(file)
        found = keys(messages)
        ids += found
        moments += [time.time_ns()] * len(found)
        if len(ids) >= int(count):
            break
    np.savez(home / "readable.npz", id=np.array(ids), moment=np.array(moments))


if __name__ == "__main__":
    main(*sys.argv[1:])
