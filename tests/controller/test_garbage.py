"""The collector does not go through what stays again and again."""

import asyncio
import gc

from tessera.controller.garbage import freeze_survivors


class _Loop:
    """Refers to itself, so that only the collector finds it."""

    def __init__(self) -> None:
        self.me = self


async def test_what_outlives_a_collection_is_spared_until_the_end() -> None:
    before = gc.get_freeze_count()
    sparing = asyncio.create_task(freeze_survivors())
    await asyncio.sleep(0)
    kept = [_Loop() for _ in range(1000)]
    gc.collect()
    assert gc.get_freeze_count() - before >= len(kept)
    kept.clear()
    assert gc.collect() < 1000
    sparing.cancel()
    await asyncio.gather(sparing, return_exceptions=True)
    assert gc.get_freeze_count() == 0
    assert gc.collect() >= 1000
