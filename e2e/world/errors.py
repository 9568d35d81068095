"""What a world says instead of a traceback."""

import sys

AGAIN = "run the same command again, it goes on where it stopped"
# What pip, Go and the kernel write, and what a reader can do then.
_CAUSES = {
    f"the disk is full: free 10 GB, and {AGAIN}": ("no space left on device", "quota exceeded"),
    f"no package source can be reached: check the network or the proxy, and {AGAIN}": (
        *("no such host", "dial tcp", "i/o timeout", "name resolution", "network is unreachable"),
        *("newconnectionerror", "connecttimeouterror", "proxyerror", "readtimeouterror"),
    ),
}


class WorldError(Exception):
    """The world cannot be started or reached; the text is for the person at the terminal."""


def advice(output: str) -> str:
    """Return what to do after a failed build or installation, from what it wrote."""
    output = output.lower()
    return next(
        (text for text, signs in _CAUSES.items() if any(sign in output for sign in signs)),
        f"see its last lines above; afterwards {AGAIN}",
    )


def require_linux() -> None:
    if sys.platform != "linux":
        raise WorldError("the world needs Linux: its pods live on 127.0.0.0/8, one address each")
