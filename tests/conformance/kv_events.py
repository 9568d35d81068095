"""What a real vLLM holds in its prefix cache, by the events that it publishes."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

PRINTER = Path(__file__).parent / "kv_event_printer.py"
_WAIT_SECONDS = 60

_Key = tuple[int | None, tuple[int, ...]]


class HeldBlocks:
    """The blocks of tokens in the cache of one engine."""

    def __init__(self) -> None:
        self.stored = self.removed = 0
        """Blocks in all events."""
        self._by_key: dict[_Key, int] = {}
        """Hashes, by the hash of the block before and the tokens."""
        self._keys: dict[int, _Key] = {}
        self._news = asyncio.Event()

    def apply(self, event: dict[str, Any]) -> None:
        """Take an event."""
        match event["type"]:
            case "BlockStored":
                parent, size = event["parent_block_hash"], event["block_size"]
                for number, block in enumerate(event["block_hashes"]):
                    tokens = tuple(event["token_ids"][number * size : (number + 1) * size])
                    self._by_key[parent, tokens] = block
                    self._keys[block] = (parent, tokens)
                    self.stored += 1
                    parent = block
            case "BlockRemoved":
                for block in event["block_hashes"]:
                    # A block that was computed twice at the same time is removed twice.
                    if (key := self._keys.pop(block, None)) is not None:
                        del self._by_key[key]
                    self.removed += 1
            case "AllBlocksCleared":
                self._by_key.clear()
                self._keys.clear()
            case unknown:
                raise AssertionError(unknown)
        self._news.set()

    def tokens_of(self, token_ids: Sequence[int], block_size: int) -> int:
        """Return how many tokens at the beginning of these are in full blocks that it holds."""
        parent: int | None = None
        for start in range(0, len(token_ids) - block_size + 1, block_size):
            block = self._by_key.get((parent, tuple(token_ids[start : start + block_size])))
            if block is None:
                return start
            parent = block
        return len(token_ids) // block_size * block_size

    async def until_held(self, token_ids: Sequence[int], block_size: int) -> None:
        """Wait until it holds all full blocks of these tokens, which an engine has computed."""
        full = len(token_ids) // block_size * block_size
        await self._until(lambda: self.tokens_of(token_ids, block_size) == full)

    async def until_cleared(self) -> None:
        """Wait until it holds nothing."""
        await self._until(lambda: not self._keys)

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(_WAIT_SECONDS):
            while not reached():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def followed(venv: Path, port: int) -> AsyncIterator[HeldBlocks]:
    """Follow the engine that publishes its events to a port of this machine."""
    process = await asyncio.create_subprocess_exec(
        str(venv / "bin" / "python"),
        str(PRINTER),
        f"tcp://127.0.0.1:{port}",
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    blocks = HeldBlocks()
    reading = asyncio.create_task(_read(process, blocks))
    try:
        yield blocks
    finally:
        process.kill()
        await process.wait()
        # Raises what it found wrong.
        await reading


async def _read(process: asyncio.subprocess.Process, blocks: HeldBlocks) -> None:
    assert process.stdout is not None
    numbers = itertools.count()
    async for line in process.stdout:
        number, events = json.loads(line)
        assert number == next(numbers), "events are missing"
        for event in events:
            blocks.apply(event)
