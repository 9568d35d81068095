"""`python -m demo [NAME]`: start a world, install the chart, play the scenes of a demo."""

import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130


def main() -> int:
    """Run a demo; exit with 1 when a step fails, naming it, and with 130 when it is ended."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        # Ctrl-C may come while the packages are imported, which takes a second.
        from demo import command  # noqa: PLC0415

        return command.run()
    except KeyboardInterrupt:
        print(
            "demo: interrupted; nothing of it is left, and make demo starts it again",
            file=sys.stderr,
        )
        return _INTERRUPTED


def _interrupt(_: int, __: FrameType | None) -> None:
    """End the run once: what ends the world is not interrupted again."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
