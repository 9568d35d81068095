"""Stands in for pynvml in a process of its own: the real package over a library elsewhere."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_here = str(Path(__file__).parent)
_spec = PathFinder.find_spec(
    "pynvml", [entry for entry in sys.path if Path(entry or ".") != Path(_here)]
)
assert _spec is not None
assert _spec.origin is not None
exec(compile(Path(_spec.origin).read_text(encoding="utf-8"), _spec.origin, "exec"))  # noqa: S102

from fakegpu.library import Library  # noqa: E402  # it reads the structs of this very module
from fakegpu.remote import SOCKET, NvmlClient  # noqa: E402

nvmlLib = Library(NvmlClient(os.environ[SOCKET]).call)  # noqa: N816  # the real package's own name
