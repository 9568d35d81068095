"""Parts of a process that run as long as it does."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("tessera")

RESTART_SECONDS = 1.0


async def run_forever(
    name: str,
    run: Callable[[], Awaitable[None]],
    *,
    failed: Callable[[], None] = lambda: None,
) -> None:
    """Run forever: after an error, of which `failed` is told, or an end begin again.

    One part that fails must not take the others of its process along.
    """
    while True:
        try:
            await run()
        except Exception:
            failed()
            log.exception("%s: failed, starting it again", name)
        # Up to Python 3.12 a TaskGroup that fails while it is cancelled raises its errors alone.
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError
        await asyncio.sleep(RESTART_SECONDS)
