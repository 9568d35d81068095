"""What comes in very small pieces takes as much memory as its bytes."""

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl

from tessera.adapters.clock import CLOCK
from tessera.gateway.http.engine_connection import EngineConnection
from tessera.gateway.http.protocol import JOINED_BYTES, _Writing

# Of two bytes each.
PIECES = 30_000


@contextmanager
def allocated() -> Iterator[list[int]]:
    """Yield a list that gets the bytes which the block left."""
    gc.collect()
    tracemalloc.start()
    sizes = list[int]()
    try:
        yield sizes
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


def receive(connection: EngineConnection, pieces: int) -> None:
    for _ in range(pieces // 100):
        connection.data_received(b"2\r\nab\r\n" * 100)


async def test_pieces_of_an_engine_that_nobody_takes_yet_cost_their_bytes() -> None:
    connection = EngineConnection(CLOCK)
    connection.data_received(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
    with allocated() as sizes:
        receive(connection, PIECES)
    assert sizes[0] < 2 * 2 * PIECES + 2**14
    connection.data_received(b"0\r\n\r\n")
    assert await connection.read(2**20) == b"ab" * PIECES


async def test_pieces_of_a_whole_answer_cost_their_bytes() -> None:
    connection = EngineConnection(CLOCK)
    connection.data_received(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
    reading = asyncio.create_task(connection.read(2**20))
    await asyncio.sleep(0)
    with allocated() as sizes:
        for _ in range(PIECES):
            connection.data_received(b"2\r\nab\r\n")
    assert sizes[0] < 2 * 2 * PIECES + 2**14
    connection.data_received(b"0\r\n\r\n")
    assert await reading == b"ab" * PIECES


class SlowTransport:
    """A transport whose client reads nothing until it is told to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.pieces))

    def is_closing(self) -> bool:
        return False


async def test_pieces_that_a_client_does_not_read_are_joined() -> None:
    token, transport = b"data: ab\n\n", SlowTransport()
    writing = _Writing.__new__(_Writing)
    writing.loop, writing.transport = asyncio.get_running_loop(), cast("Any", transport)
    writing.flow = FlowControl(writing.transport)
    writing._written_bytes, writing._unsent, writing._look = 0, bytearray(), None
    sent = b""
    for _ in range(5000):
        writing._write(token)
        sent += token
    # The event loop takes 0.9 KiB for each that waits.
    assert len(transport.pieces) < 2 * JOINED_BYTES // len(token)
    assert writing._waiting_bytes == len(sent)
    received = b"".join(transport.pieces)
    transport.pieces.clear()
    # Little waits now, and no event says so.
    writing._send_if_read()
    assert received + b"".join(transport.pieces) == sent
