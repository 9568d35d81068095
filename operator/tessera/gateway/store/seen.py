"""The highest sums of charges that a gateway saw, on its volume: no backup makes them lower."""

import asyncio
import logging
from pathlib import Path

import msgspec

from tessera.domain.charge.exchange import AccountKey

log = logging.getLogger("tessera.gateway")

_WRITE_SECONDS = 5.0
_FILE = "charges-seen.json"


class SeenCharges:
    """Keeps what `GatewayCharges.seen` has for the next process on the volume."""

    def __init__(self, folder: Path) -> None:
        """Read what the process before left; a file that cannot be read counts as empty."""
        self._path, self._written = folder / _FILE, b""
        self.settled: dict[AccountKey, int] = {}
        """Nano-units by account; a gateway changes it."""
        try:
            rows = msgspec.json.decode(self._path.read_bytes(), type=list[tuple[str, int, int]])
            self.settled = {AccountKey(scope, start): nanos for scope, start, nanos in rows}
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            log.error("%s is not read, and charges may be lent again: %s", self._path, error)

    async def run(self) -> None:
        """Write what changed until it is cancelled."""
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            rows = [(scope, start, nanos) for (scope, start), nanos in self.settled.items()]
            try:
                await asyncio.to_thread(self.write, rows)
            except OSError as error:
                log.error("%s is not written: %s", self._path, error)

    def write(self, rows: list[tuple[str, int, int]]) -> None:
        """Replace the file by rows of key, start of the window, and nano-units; raises OSError."""
        content = msgspec.json.encode(rows)
        if content != self._written:
            temporary = self._path.with_suffix(".new")
            temporary.write_bytes(content)
            temporary.replace(self._path)
            self._written = content
