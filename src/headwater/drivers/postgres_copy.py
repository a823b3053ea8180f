"""What a binary COPY sends, a large piece at a time, read without one Python call for each row.

A piece is waited for as a whole, outside the GIL: whatever is done with it is then done seldom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from headwater import native
from headwater.drivers.postgres import translated
from headwater.drivers.postgres_receiver import addresses

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGconn

PIECE = 8 * 2**20
"""Bytes that are handed on at a time, and perhaps one row more: what two readers hold of them is in memory."""


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
        gather = _native(pgconn) or _by_psycopg(pgconn)
        ended = False
        while not ended:
            data, ended = gather(PIECE)
            if len(data):
                yield data
        while (ending := pgconn.get_result()) is not None:
            if ending.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(ending)
    except Error as error:
        raise translated(error, "") from error


Gather = Callable[[int], tuple[memoryview, bool]]
"""Up to so many bytes, and whether nothing comes after them."""


def _native(pgconn: PGconn) -> Gather | None:
    module = native.compiled("headwater.drivers.postgres_native")
    found = addresses() if module is not None else None
    if module is None or found is None:
        return None
    module.bind_library(found)
    pointer = pgconn.pgconn_ptr  # type: ignore[attr-defined]
    return lambda budget: module.gather(pointer, budget)


def _by_psycopg(pgconn: PGconn) -> Gather:
    from psycopg import OperationalError

    def gather(budget: int) -> tuple[memoryview, bool]:
        data = bytearray()
        while len(data) < budget:
            try:
                size, payload = pgconn.get_copy_data(0)
            except OperationalError:
                return memoryview(data), True  # the reason is the statement's result
            if size <= 0:
                return memoryview(data), True
            data += payload
        return memoryview(data), False

    return gather
