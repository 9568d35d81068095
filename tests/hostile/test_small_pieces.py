"""What comes in very small pieces takes as much memory as its bytes."""

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from tessera.adapters.clock import CLOCK
from tessera.gateway.http.engine_connection import EngineConnection

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
