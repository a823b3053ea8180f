"""The proxy does to a connection what its names say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.crash.proxy import HOST, Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(100):
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_it_carries_bytes_both_ways_and_resets_when_cut(echo: int) -> None:
    with Proxy(echo) as proxy, socket.create_connection((HOST, proxy.port), timeout=10) as client:
        client.sendall(b"one")
        assert client.recv(10) == b"one"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_a_stalled_connection_goes_on_where_it_was(echo: int) -> None:
    with Proxy(echo) as proxy, socket.create_connection((HOST, proxy.port), timeout=10) as client:
        proxy.stall()
        client.sendall(b"held")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(10)
        proxy.flow()
        client.settimeout(10)
        assert client.recv(10) == b"held"


def test_a_half_open_connection_neither_answers_nor_ends(echo: int) -> None:
    with Proxy(echo) as proxy, socket.create_connection((HOST, proxy.port), timeout=10) as client:
        client.sendall(b"one")
        assert client.recv(10) == b"one"
        assert proxy.half_open() == 1
        client.sendall(b"lost")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(10)
        with socket.create_connection((HOST, proxy.port), timeout=10) as another:
            another.sendall(b"two")
            assert another.recv(10) == b"two"
