"""Coroutines side by side, whose errors are raised as they are."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

Job = Coroutine[Any, Any, None]


async def first_of(*jobs: Job) -> None:
    """Until one ends; the others are cancelled."""
    await _run(jobs, asyncio.FIRST_COMPLETED)


async def all_of(jobs: Iterable[Job]) -> None:
    """Until all have ended; the first error ends the others."""
    await _run(jobs, asyncio.FIRST_EXCEPTION)


async def _run(jobs: Iterable[Job], until: str) -> None:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=until)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
