"""The garbage collector does not scan long-lived objects again and again."""

import asyncio
import gc

from tessera.adapters.garbage import freeze_survivors


class _ReferenceCycle:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.me = self


async def test_survivors_of_a_collection_are_frozen_until_the_end() -> None:
    before = gc.get_freeze_count()
    task = asyncio.create_task(freeze_survivors())
    await asyncio.sleep(0)
    survivors = [_ReferenceCycle() for _ in range(1000)]
    gc.collect()
    assert gc.get_freeze_count() - before >= len(survivors)
    survivors.clear()
    assert gc.collect() < 1000
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gc.get_freeze_count() == 0
    assert gc.collect() >= 1000
