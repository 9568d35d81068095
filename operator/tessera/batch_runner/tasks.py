"""Coroutines side by side, whose errors are raised as they are."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

TaskCoroutine = Coroutine[Any, Any, None]


async def run_until_first(*coroutines: TaskCoroutine) -> None:
    """Until one ends; the others are cancelled."""
    await _run(coroutines, asyncio.FIRST_COMPLETED)


async def run_all(coroutines: Iterable[TaskCoroutine]) -> None:
    """Until all have ended; the first error ends the others."""
    await _run(coroutines, asyncio.FIRST_EXCEPTION)


async def _run(coroutines: Iterable[TaskCoroutine], return_when: str) -> None:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=return_when)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
