"""Pays for rows at a gateway: money is reserved before a row is sent, and settled after its end."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import aiohttp

from tessera.batch_runner.answers.ledger import Ledger
from tessera.batch_runner.errors import BudgetExceededError, FencedError
from tessera.batch_runner.input.manifest import InputManifest
from tessera.batch_runner.input.rows import BatchRow
from tessera.domain.batch.names import EMBEDDING_URL
from tessera.domain.charge.batch_rows import (
    MAX_BLOCKS,
    BatchAnswer,
    BatchMessage,
    BatchOutcome,
    BlockUse,
    RowPurse,
    RowTokens,
)

# That a row waits for what others have reserved, while none runs.
WAIT_SECONDS = 30.0
_RETRY_SECONDS = 0.5
# Between two messages while rows run.
_ASK_SECONDS = 1.0
# Between two messages at most: a gateway frees what is reserved for a runner that is silent.
_TELL_SECONDS = 60.0
# For a gateway that does not answer.
GATEWAY_SECONDS = 60.0
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_LAST_SECONDS = 2.0
# An estimate of tokens is a quarter of the bytes, and no token has less than one.
_BOUND, _TEMPLATE_TOKENS = 4, 64

Tell: TypeAlias = Callable[[BatchMessage], Awaitable[BatchAnswer]]


class RowPayer:
    """Has the money of one attempt."""

    def __init__(
        self,
        tell: Tell,
        attempt: BatchMessage,
        manifest: InputManifest,
        ledger: Ledger,
        work: Path,
    ) -> None:
        """Take `tell`, which brings messages to a gateway, and a message with the attempt alone."""
        self._send, self._attempt, self._needed = tell, attempt, work / "needed"
        self._manifest, self._ledger = manifest, ledger
        self._purse = RowPurse()
        self._used, self._changed = Counter[int](), set[int]()
        self._cut_input, self._cut_output = Counter[int](), Counter[int]()
        self._turn, self._ended, self._asked_at = asyncio.Lock(), asyncio.Event(), float("-inf")

    async def open(self) -> None:
        """Settle what an earlier attempt did not, and see that there is money for a row.

        Raises BudgetExceededError and FencedError.
        """
        settled = dict((await self._tell(opens=True)).settled)
        for number in range(len(self._manifest.shards)):
            rows = self._use(number).rows
            if len(rows) > settled.get(number, 0):
                await self._obtain(sum(self._purse.cost(*tokens) for _, *tokens in rows))
                self._changed.add(number)
                await self._tell()
        await self._obtain(max(self._usual(), await asyncio.to_thread(self._refused)))

    async def run(self, every_seconds: float = _TELL_SECONDS) -> None:
        """Tell a gateway now and then that this attempt lives, however long its rows run.

        What is reserved stays. Raises FencedError.
        """
        while True:
            await asyncio.sleep(every_seconds)
            async with self._turn:
                if self._purse.reserved:
                    # A gateway that is away is no reason to leave what runs.
                    with suppress(BudgetExceededError):
                        await self._tell(want=max(1, self._purse.reserved - self._purse.used))

    async def close(self) -> None:
        """Settle what is left, and return what is reserved, if a gateway answers soon."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._tell()
                while self._changed:
                    await self._tell()
        except (TimeoutError, BudgetExceededError, FencedError):
            # The next attempt settles the rows, and its first message frees the rest.
            return

    def first_limit(self, row: BatchRow) -> int:
        """Return the tokens that each choice of an answer may have when it is sent first."""
        if row.url == EMBEDDING_URL:
            return 0
        least = row.body.get("min_tokens")
        limit = self._purse.first_limit(row.max_tokens)
        return max(limit, 1, least if isinstance(least, int) else 0)

    def next_limit(self, row: BatchRow, limit: int) -> int:
        """Return the same once an answer of so many was cut."""
        return self._purse.next_limit(limit, row.max_tokens)

    async def take(self, row: BatchRow, prompt_tokens: int, limit: int) -> int:
        """Take the most nano-units of a row, perhaps after a wait, and return them.

        `prompt_tokens` is an estimate. Raises what `open` does.
        """
        nanos = self._purse.cost(_bound(prompt_tokens), limit * row.choices)
        async with self._turn:
            try:
                await self._obtain(nanos)
            except BudgetExceededError:
                with suppress(OSError):
                    await asyncio.to_thread(self._needed.write_text, str(nanos))
                raise
            self._purse.take(nanos)
        return nanos

    def end(self, nanos: int) -> None:
        """Take back what was taken for a row that is at the engine no more."""
        self._purse.end(nanos, 0)
        self._ended.set()

    def answered(self, block: int, row: BatchRow, tokens: tuple[int, int]) -> None:
        """Pay for an answer that is recorded now; `tokens` are those of its prompt and its own."""
        if row.url != EMBEDDING_URL:
            self._purse.lengths.add(tokens[1] // row.choices)
        self._pay(block, self._purse.cost(*tokens))

    def cut(self, block: int, tokens: tuple[int, int]) -> None:
        """Pay for an answer that was cut."""
        self._cut_input[block] += tokens[0]
        self._cut_output[block] += tokens[1]
        self._pay(block, self._purse.cost(*tokens) - self._purse.per_row)

    def _pay(self, block: int, nanos: int) -> None:
        self._purse.end(0, nanos)
        self._used[block] += nanos
        self._changed.add(block)

    def _usual(self) -> int:
        """Return the most nano-units of a usual row."""
        manifest = self._manifest
        rows = max(1, manifest.rows)
        limit = self._purse.first_limit(manifest.max_tokens // rows or None)
        return self._purse.cost(_bound(manifest.input_tokens // rows), limit)

    def _refused(self) -> int:
        """Return what the row needs that was refused last: less starts no node."""
        try:
            return int(self._needed.read_text())
        except (OSError, ValueError):
            return 0

    async def _obtain(self, nanos: int) -> None:
        """Wait until so much is free, which only this caller takes."""
        since = time.monotonic()
        while self._purse.room < nanos:
            self._ended.clear()
            is_idle = not self._purse.running
            if not is_idle and time.monotonic() - self._asked_at < _ASK_SECONDS:
                await self._wait_for_end()
                continue
            self._asked_at = time.monotonic()
            want = self._purse.wanted(nanos, self._manifest.rows - self._ledger.counts().done)
            try:
                answer = await self._tell(need=nanos if is_idle else 0, want=want)
            except BudgetExceededError:
                # What runs is paid, whether a gateway answers or not.
                if is_idle:
                    raise
                continue
            if not is_idle or self._purse.room >= nanos:
                continue
            is_over = answer.outcome is BatchOutcome.EXCEEDED
            if is_over or time.monotonic() - since >= WAIT_SECONDS:
                raise BudgetExceededError(answer.message)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _wait_for_end(self) -> None:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            return

    async def _tell(self, *, need: int = 0, want: int = 0, opens: bool = False) -> BatchAnswer:
        """Tell of the blocks that changed, and take what is reserved then."""
        numbers = sorted(self._changed)[:MAX_BLOCKS]
        used = Counter({number: self._used.pop(number, 0) for number in numbers})
        self._changed.difference_update(numbers)
        spent = used.total()
        rest = self._purse.used - spent
        message = self._attempt.model_copy(
            update={
                "blocks": tuple(map(self._use, numbers)),
                "need": need and need + rest,
                "want": want and want + rest,
                "opens": opens,
            }
        )
        try:
            answer = await self._send(message)
        except BaseException:
            self._used.update(used)
            self._changed.update(numbers)
            raise
        if answer.outcome is BatchOutcome.FENCED:
            raise FencedError(f"{answer.message}; nothing is published")
        self._purse.answered(answer, spent)
        return answer

    def _use(self, number: int) -> BlockUse:
        """Return what the rows of a block used, as far as they are answered."""
        shard, tokens = self._manifest.shards[number], self._ledger.tokens
        rows = ((row, *tokens(shard.first_row + row)) for row in range(shard.rows))
        return BlockUse(
            number=number,
            rows=tuple(RowTokens(*row) for row in rows if row[1] or row[2]),
            cut_input=self._cut_input[number],
            cut_output=self._cut_output[number],
        )


def gateway_tell(session: aiohttp.ClientSession, url: str, token: Path) -> Tell:
    """Return what brings messages to a gateway, and waits while none answers.

    Raises BudgetExceededError once none did for GATEWAY_SECONDS, or one refuses the message: no
    node waits for a gateway.
    """

    async def tell(message: BatchMessage) -> BatchAnswer:
        since = time.monotonic()
        while True:
            try:
                return await _tell_once(session, f"{url}/batches/charges", token, message)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                if time.monotonic() - since >= GATEWAY_SECONDS:
                    text = f"no gateway at {url} takes what rows used: {error}"
                    raise BudgetExceededError(text) from error
            await asyncio.sleep(_RETRY_SECONDS)

    return tell


async def _tell_once(
    session: aiohttp.ClientSession, url: str, token: Path, message: BatchMessage
) -> BatchAnswer:
    bearer = (await asyncio.to_thread(token.read_text)).strip()
    headers = {"Authorization": f"Bearer {bearer}"}
    body = message.model_dump_json(by_alias=True).encode()
    async with session.post(url, data=body, headers=headers, timeout=_TIMEOUT) as response:
        content = await response.read()
        if response.status in (400, 401, 403, 404, 413):
            text = content[:500].decode(errors="replace")
            raise BudgetExceededError(f"the gateway at {url} answers {response.status}: {text}")
        response.raise_for_status()
    try:
        return BatchAnswer.model_validate_json(content)
    except ValueError as error:
        raise BudgetExceededError(f"the gateway at {url} is of another version") from error


def _bound(prompt_tokens: int) -> int:
    """Return what a prompt has at most whose tokens are estimated."""
    return _BOUND * prompt_tokens + _TEMPLATE_TOKENS
