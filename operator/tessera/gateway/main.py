"""`tessera-gateway`: one URL for all models, in a supervisor and several workers."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError

from tessera.gateway.processes import GatewayCommands, keep_running, python_module
from tessera.settings import GatewaySettings

log = logging.getLogger("tessera")

# Beyond the time of its streams, for a worker to end by itself.
_EXIT_SECONDS = 10.0


def main() -> None:
    """Run the gateway; the entry point of its image."""
    parser = argparse.ArgumentParser(prog="tessera-gateway", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address of all ports")
    arguments = parser.parse_args()
    settings = read_settings()
    asyncio.run(run(settings, arguments.host))


def read_settings() -> GatewaySettings:
    """Return the settings, and set up logging; exit with one sentence if they are invalid."""
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
        )
        sys.exit(f"tessera-gateway: invalid environment: {details}")
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    log.setLevel(settings.log_level.upper())
    return settings


async def run(settings: GatewaySettings, host: str) -> None:
    """Run the processes until SIGTERM or SIGINT; then drain them."""
    stop = asyncio.Event()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(stop_signal, stop.set)
    commands = GatewayCommands(
        supervisor=python_module("tessera.gateway.run_supervisor", "--host", host),
        worker=python_module("tessera.gateway.run_worker", "--host", host),
        workers=settings.workers,
    )
    drain_seconds = settings.announce_seconds + settings.drain_seconds + _EXIT_SECONDS
    # The path of a socket has at most 107 bytes, which other folders may exceed.
    with tempfile.TemporaryDirectory(prefix="tessera-", dir="/tmp") as folder:
        environment = {**os.environ, "TESSERA_LINK": str(Path(folder) / "link")}
        await keep_running(commands, environment, stop, drain_seconds)


if __name__ == "__main__":
    main()
