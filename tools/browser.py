"""Looks at pages in Chromium: pictures of them, and what does not fit.

`python tools/browser.py PAGE... --out FOLDER` takes a picture of each page, wide and as on a phone,
light and dark. Scripts of the pages are off unless `--scripts` is given. It fails where something
is wider than the screen, or a text is cut by its picture.
"""

import argparse
import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# CSS pixels.
WIDE, PHONE = 1280, 390
_HEIGHT = 900
# Milliseconds that the scripts of a page have.
_SCRIPT_MS = 200
# Higher pictures are cut there.
_MAX_HEIGHT = 6000
# Files with numbers from here on are not the two that the program has.
_ABOVE = 10
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_FITS = (Path(__file__).parent / "browser_fit.js").read_text(encoding="utf-8")


class BrowserError(Exception):
    """Chromium ended, or refused a command; the text is its own."""


def program() -> str | None:
    """Return the path of Chromium, or None where the machine has none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """What a page is looked at with; the width in CSS pixels."""

    width: int = WIDE
    dark: bool = False
    scripts: bool = False

    @property
    def name(self) -> str:
        return f"{self.width}-{'dark' if self.dark else 'light'}"


class Browser:
    """One tab of a Chromium of its own, driven through pipes by the DevTools protocol."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._replies, replies = os.pipe()
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        arguments += ["--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"]
        arguments += ["--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"]
        # Chromium reads commands from its file 3 and writes replies to its file 4.
        files = [fcntl.fcntl(file, fcntl.F_DUPFD, _ABOVE) for file in (commands, replies)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, files), path, *arguments],
            pass_fds=files,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for file in (commands, replies, *files):
            os.close(file)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._commands)
        os.close(self._replies)
        self._profile.cleanup()

    def open(self, url: str, screen: Screen) -> None:
        """Load a page; return once it is loaded."""
        self._call("Page.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=screen.width,
            height=_HEIGHT,
            deviceScaleFactor=1,
            mobile=screen.width < WIDE,
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if screen.dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._call("Emulation.setScriptExecutionDisabled", value=not screen.scripts)
        self._call("Page.navigate", url=url)
        while self._receive().get("method") != "Page.loadEventFired":
            pass
        if screen.scripts:
            # Scripts choose colors once the page is loaded.
            wait = f"new Promise(done => setTimeout(done, {_SCRIPT_MS}))"
            self._call("Runtime.evaluate", expression=wait, awaitPromise=True)

    def faults(self) -> list[str]:
        """Return what does not fit in the open page, a line for each."""
        result = self._call("Runtime.evaluate", expression=_FITS, returnByValue=True)
        if "exceptionDetails" in result:
            raise BrowserError(json.dumps(result["exceptionDetails"]))
        return list(result["result"]["value"])

    def picture(self) -> bytes:
        """Return the whole open page as PNG, at most as high as fits in one."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "scale": 1}
        clip["height"] = min(size["height"], _MAX_HEIGHT)
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (reply := self._receive()).get("id") != self._last:
            pass
        if "error" in reply:
            raise BrowserError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not (read := os.read(self._replies, 1 << 16)):
                raise BrowserError("Chromium ended")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        reply: dict[str, Any] = json.loads(message)
        return reply


def screens(*, scripts: bool = False) -> Iterator[Screen]:
    """Yield wide and phone, each light and dark."""
    for width in (WIDE, PHONE):
        for dark in (False, True):
            yield Screen(width=width, dark=dark, scripts=scripts)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium; BrowserError where the machine has none."""
    if (path := program()) is None:
        raise BrowserError(f"no {PROGRAMS[0]}: install the package {PROGRAMS[0]}")
    with Browser(path) as opened:
        yield opened


def main() -> int:
    """Take the pictures; exit with 1 where something does not fit."""
    parser = argparse.ArgumentParser(prog="browser", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scripts", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    faults = []
    try:
        with browser() as opened:
            for page in options.pages:
                for screen in screens(scripts=options.scripts):
                    opened.open(page.resolve().as_uri(), screen)
                    picture = options.out / f"{page.stem}-{screen.name}.png"
                    picture.write_bytes(opened.picture())
                    faults += [f"{picture.name}: {fault}" for fault in opened.faults()]
    except BrowserError as error:
        sys.exit(f"browser: {error}")
    print("\n".join(faults) or f"browser: everything fits, see {options.out}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
