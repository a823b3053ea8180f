"""The receiver of a replication connection, with the compiled loop and through psycopg, on a real server."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest

from headwater.drivers import postgres_receiver
from headwater.drivers.postgres import connect
from headwater.drivers.postgres_receiver import DENSE, LONG_NAP, NAP, Pace, Receiver, addresses
from headwater.errors import NotConnected
from headwater.sources.log_postgres.stream import Stream
from headwater.testing.postgres import PostgresServer
from headwater.wire.pgoutput import kinds, message
from tests.pgoutput_messages import recorded, slots

pytestmark = pytest.mark.needs("postgres")

Start = Callable[[], psycopg.Connection]


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.needs("native")), "psycopg"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "psycopg":
        monkeypatch.setattr(postgres_receiver, "_native", lambda pgconn: None)
    return str(request.param)


@pytest.fixture
def start(way: str, database: str, postgres_server: PostgresServer) -> Iterator[Start]:
    """Starts the log of the database, from the slot's beginning, each time."""
    opened: list[psycopg.Connection] = []

    def begin() -> psycopg.Connection:
        connection = connect(database, application="headwater tests", replication=True)
        opened.append(connection)
        options = "proto_version '1', publication_names 'p', messages 'true'"
        connection.pgconn.exec_(f"START_REPLICATION SLOT s LOGICAL 0/0 ({options})".encode())
        return connection

    name = database.rsplit("/", 1)[1]
    postgres_server.execute("CREATE TABLE t (id int, name text)", "CREATE PUBLICATION p FOR TABLE t", database=name)
    slots(postgres_server, name, ["s", "other"])
    yield begin
    for connection in opened:
        connection.close()


def run(database: str, statement: str) -> None:
    with connect(database, application="headwater tests") as connection:
        connection.execute(statement)


def frames_until(receiver: Receiver, end: bytes, *, budget: int = 1 << 20, seconds: float = 30) -> list[bytes]:
    """All frames up to a logical message with this content, keepalives left out."""
    found: list[bytes] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        received = receiver.receive(budget, 0.2)
        assert received is not None
        data, ends = received
        new = [bytes(data[a:b]) for a, b in itertools.pairwise([0, *ends.tolist()])]
        found += new
        if any(frame.endswith(b"\0" + len(end).to_bytes(4) + end) for frame in new):
            return [frame for frame in found if frame[:1] == b"w"]
    raise AssertionError(f"{end!r} has not come within {seconds} s; {len(found)} frames have")


FILL = "INSERT INTO t SELECT i, repeat('x', i % 2000) FROM generate_series(1, 20000) i"
END = "SELECT pg_logical_emit_message(false, 'tests', 'end')"


@pytest.mark.parametrize("budget", [1, 5_000, 1 << 24])
def test_every_frame_comes_once_and_in_order(start: Start, database: str, budget: int) -> None:
    run(database, FILL)
    run(database, "INSERT INTO t VALUES (0, repeat('y', 3000000))")  # far beyond libpq's first buffer
    expected = recorded(database, "other", "p")
    run(database, END)
    receiver = Receiver(start().pgconn)
    frames = frames_until(receiver, b"end", budget=budget)
    assert [frame[25:] for frame in frames if frame[25:26] != b"M"] == [f[25:] for f in expected.frames]


def test_f40_a_budget_is_kept(start: Start, database: str) -> None:
    run(database, FILL)
    receiver = Receiver(start().pgconn)
    sizes: list[int] = []
    while sum(sizes) < 10_000_000:
        received = receiver.receive(100_000, 1.0)
        assert received is not None
        data, ends = received
        assert len(data) == (ends[-1] if len(ends) else 0)
        assert len(ends) < 2 or ends[-2] < 100_000
        sizes.append(len(data))
    assert max(sizes) >= 100_000


def test_nothing_comes_from_an_idle_server(start: Start, database: str) -> None:
    receiver = Receiver(start().pgconn)
    run(database, END)
    frames_until(receiver, b"end")
    began = time.monotonic()
    received = receiver.receive(1000, 0.05)
    while received is not None and len(received[1]):  # a keepalive behind the message
        began = time.monotonic()
        received = receiver.receive(1000, 0.05)
    assert received is not None
    assert len(received[0]) == 0
    assert time.monotonic() - began >= 0.045


def test_memory_outlives_the_connection(start: Start, database: str) -> None:
    run(database, END)
    connection = start()
    receiver = Receiver(connection.pgconn)
    received = receiver.receive(1 << 20, 10)
    connection.close()
    assert received is not None
    del receiver
    data, ends = received
    assert set(kinds(data, ends).tolist()) <= {0, ord("M")}


def test_a_stream_that_the_server_ends_is_none(start: Start, database: str, postgres_server: PostgresServer) -> None:
    run(database, END)
    connection = start()
    receiver = Receiver(connection.pgconn)
    frames_until(receiver, b"end")
    postgres_server.execute(f"SELECT pg_terminate_backend({connection.pgconn.backend_pid}, 10000)")
    deadline = time.monotonic() + 60
    while (received := receiver.receive(1000, 0.1)) is not None:
        assert time.monotonic() < deadline, received
    assert receiver.receive(1000, 0.1) is None
    result = connection.pgconn.get_result()
    said = connection.pgconn.error_message + (result.error_message if result is not None else b"")
    assert b"terminating connection due to administrator command" in said


def test_a_connection_that_was_closed_is_none(start: Start) -> None:
    connection = start()
    receiver = Receiver(connection.pgconn)
    connection.pgconn.finish()
    assert receiver.receive(1000, 0.0) is None


def test_it_waits_without_the_lock_of_the_interpreter(start: Start, database: str) -> None:
    receiver = Receiver(start().pgconn)
    sender = threading.Thread(target=run, args=(database, END))
    sender.start()
    frames = frames_until(receiver, b"end")
    sender.join()
    assert message(memoryview(frames[-1])).content == b"end"


def test_addresses_are_those_of_the_library_in_use(way: str) -> None:
    if way == "compiled":
        found = addresses()
        assert found is not None
        assert all(found.values())
        assert len(set(found.values())) == 3


def test_a_stream_is_let_gather_only_while_it_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = [100.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    pace = Pace()

    def receive(messages: int, after: float, *, plenty: bool = False, hurried: bool = True) -> int:
        clock[0] += after
        pace.rest(hurried=hurried)
        pace.got(messages, plenty=plenty)
        return len(slept)

    assert [receive(4, 0.001) for _ in range(20)] == [0] * 20  # 1,000 commits a second: each at once
    assert receive(int(DENSE) + 1, 0.0001) == 0
    assert receive(20, 0.0001) == 1
    assert receive(0, 0.0003) == 2
    assert receive(4, 0.0001) == 2  # nothing came: at once again
    assert receive(1000, 0.0001, plenty=True) == 2
    assert receive(1000, 0.0001, plenty=True) == 2  # much at once: goes on at once
    assert receive(1, 1.0) == 2
    assert receive(1, 1.0, hurried=False) == 3
    assert receive(1000, 0.0001, plenty=True, hurried=False) == 4
    assert receive(1000, 0.0001, hurried=False) == 4
    assert slept == [NAP, NAP, LONG_NAP, LONG_NAP]


def test_a_backlog_is_taken_in_pieces_as_large_as_asked_for(start: Start, database: str) -> None:
    connection = start()
    stream = Stream(connection, Receiver(connection.pgconn), 0, ended=lambda: NotConnected("ended"))
    try:
        with ThreadPoolExecutor(1) as pool:
            taking = pool.submit(stream.take, 30, 20_000)
            for number in range(60):
                run(database, f"INSERT INTO t VALUES ({number}, repeat('x', 500))")
            taken = taking.result()
        assert taken is not None
        assert len(taken[0]) >= 20_000
        run(database, "INSERT INTO t VALUES (60, 'the last')")
        began = time.monotonic()
        assert stream.take(0.3, 1 << 30) is not None  # there is never so much: what came in that time
        assert time.monotonic() - began >= 0.3
    finally:
        stream.close()


def test_ends_are_offsets_in_the_buffer(start: Start, database: str) -> None:
    run(database, FILL)
    received = Receiver(start().pgconn).receive(50_000, 10)
    assert received is not None
    data, ends = received
    assert ends.dtype == np.int64
    assert np.all(np.diff(ends) > 0)
    assert len(data) == ends[-1]
