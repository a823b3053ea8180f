"""What a binary COPY sends, a buffer at a time, read without one Python call for each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from headwater.drivers.postgres import translated
from headwater.drivers.postgres_receiver import Receiver

if TYPE_CHECKING:
    import psycopg

PIECE = 2 * 2**20
"""Bytes that are handed on at a time: few enough to be decoded within a processor's cache."""
_WAIT = 60.0


def copied(connection: psycopg.Connection, sql: str) -> Iterator[memoryview]:
    """The bytes of `COPY (sql) TO STDOUT (FORMAT binary)`. A connection that is left in the middle is of no more use.

    Raises as `drivers.postgres.execute` does.
    """
    from psycopg import Error, errors, pq

    pgconn = connection.pgconn
    try:
        result = pgconn.exec_(f"COPY ({sql}) TO STDOUT (FORMAT binary)".encode())
        if result.status != pq.ExecStatus.COPY_OUT:
            raise errors.error_from_result(result)
        receiver = Receiver(pgconn)
        while (received := receiver.receive(PIECE, _WAIT)) is not None:
            if len(received[1]):
                yield received[0]
        while (ending := pgconn.get_result()) is not None:
            if ending.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(ending)
    except Error as error:
        raise translated(error, "") from error
