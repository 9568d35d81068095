"""Settings of Python's garbage collector for a large, long-lived heap.

A fleet of 2,000 services is a million objects that stay. A full collection goes through all of them
and stops the event loop for most of a second.
"""

import asyncio
import gc
from collections.abc import Mapping

_UNFREEZE_SECONDS = 3600.0


async def freeze_survivors(unfreeze_seconds: float | None = _UNFREEZE_SECONDS) -> None:
    """Freeze what outlives a full collection; unfreeze once an hour. Runs until canceled.

    Cycles among frozen objects are collected only after the unfreeze; with None, never: then
    nothing ever stops the event loop for long.
    """
    gc.callbacks.append(_freeze)
    try:
        while unfreeze_seconds is not None:
            await asyncio.sleep(unfreeze_seconds)
            gc.unfreeze()
        await asyncio.Event().wait()
    finally:
        gc.callbacks.remove(_freeze)
        gc.unfreeze()


def _freeze(phase: str, details: Mapping[str, int]) -> None:
    if phase == "stop" and details["generation"] == 2:
        gc.freeze()
