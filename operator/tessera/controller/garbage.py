"""The collector of cycles looks at what is new.

A fleet of 2,000 services is a million objects that stay. A full collection goes through all of
them, and the event loop stands still meanwhile, for the better part of a second.
"""

import asyncio
import gc
from collections.abc import Mapping

_UNFREEZE_SECONDS = 3600.0


async def freeze_survivors() -> None:
    """What outlives a full collection is not looked at again, but for once an hour: a cycle that
    is left only then is found too. Runs until it is cancelled."""
    gc.callbacks.append(_freeze)
    try:
        while True:
            await asyncio.sleep(_UNFREEZE_SECONDS)
            gc.unfreeze()
    finally:
        gc.callbacks.remove(_freeze)
        gc.unfreeze()


def _freeze(phase: str, details: Mapping[str, int]) -> None:
    if phase == "stop" and details["generation"] == 2:
        gc.freeze()
