"""What a runner says to a gateway while its rows run."""

import asyncio
from pathlib import Path

import pytest

from tessera.batch_runner.answers.ledger import Ledger
from tessera.batch_runner.input.manifest import InputManifest, build_shards
from tessera.batch_runner.input.rows import BatchRow
from tessera.batch_runner.payment import RowPayer
from tessera.domain.charge.batch_rows import BatchAnswer, BatchMessage, BatchOutcome

pytestmark = pytest.mark.anyio

ROW = BatchRow(custom_id="a", url="/v1/chat/completions", body={"max_tokens": 10})


async def test_a_runner_whose_rows_take_long_says_that_it_lives_and_keeps_its_money(
    tmp_path: Path,
) -> None:
    sent, messages = list[BatchMessage](), asyncio.Semaphore(0)

    async def tell(message: BatchMessage) -> BatchAnswer:
        sent.append(message)
        messages.release()
        reserved = max(message.need, message.want)
        return BatchAnswer(outcome=BatchOutcome.GRANTED, reserved=reserved, output=10**6)

    manifest = InputManifest(
        rows=10,
        bytes=1,
        sha256="0",
        url=ROW.url,
        input_tokens=10,
        max_tokens=100,
        shards=build_shards([0], 10),
    )
    attempt = BatchMessage(batch="night", uid="uid-1", attempt=1, model="tiny")
    payer = RowPayer(tell, attempt, manifest, Ledger(10), tmp_path)
    await payer.open()
    taken = await payer.take(ROW, 10, 10)
    payer.answered(0, ROW, (7, 4))
    reserved, before = sent[-1].want, len(sent)

    async with asyncio.timeout(10):
        living = asyncio.create_task(payer.run(0.01))
        for _ in range(before + 2):
            await messages.acquire()
        living.cancel()

    # The charge of the row is paid out of it, and nothing of the rest is returned.
    first, second = sent[before : before + 2]
    assert [block.number for block in first.blocks] == [0]
    assert first.want == reserved - 4
    assert (second.want, second.blocks) == (first.want, ())
    assert taken == 10
