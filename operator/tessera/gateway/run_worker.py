"""The process of one worker; `tessera-gateway` starts it."""

import argparse
import sys

from tessera.gateway.journal import JOURNALS
from tessera.gateway.main import read_settings
from tessera.gateway.worker import WorkerOptions, run


def main() -> None:
    """Serve requests until SIGTERM."""
    parser = argparse.ArgumentParser(prog="tessera-gateway worker", description=__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address of the API")
    arguments = parser.parse_args()
    settings = read_settings()
    if settings.link is None:
        sys.exit("tessera-gateway worker: TESSERA_LINK is not set")
    try:
        run(
            WorkerOptions(
                host=arguments.host,
                port=settings.port,
                link=settings.link,
                journals=settings.state_directory / JOURNALS,
                tls_directory=settings.tls_directory,
                announce_seconds=settings.announce_seconds,
                drain_seconds=settings.drain_seconds,
            )
        )
    except OSError as error:
        sys.exit(f"tessera-gateway worker: {error}")


if __name__ == "__main__":
    main()
