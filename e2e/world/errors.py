"""What a world says instead of a traceback."""

import sys


class WorldError(Exception):
    """The world cannot be started or reached; the text is for the person at the terminal."""


def require_linux() -> None:
    if sys.platform != "linux":
        raise WorldError("the world needs Linux: its pods live on 127.0.0.0/8, one address each")
