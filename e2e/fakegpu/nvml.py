"""pynvml over GPUs that exist only here; every call returns a module of its own."""

import importlib.util
import itertools
import sys
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType

from fakegpu.driver import Session
from fakegpu.library import Call, Library
from fakegpu.silicon import Silicon

_numbers = itertools.count(1)


def nvml(silicon: Silicon, module: ModuleType | None = None) -> ModuleType:
    """What `import pynvml` would give on a node with this silicon, in a process of its own.

    A module that was given for another silicon, and is used no more, saves time.
    """
    if module is None:
        return bound(Session(silicon).call)
    bind(module, Session(silicon).call)
    return module


def bound(call: Call) -> ModuleType:
    """The package over these calls; a copy, since it keeps its state in globals."""
    path, code = _source()
    found = ModuleType(f"pynvml_{next(_numbers)}")
    found.__file__ = path
    sys.modules[found.__name__] = found  # pynvml looks itself up there for its exceptions
    try:
        exec(code, found.__dict__)  # noqa: S102  # the package that is installed
    finally:
        del sys.modules[found.__name__]
    bind(found, call)
    return found


def bind(module: ModuleType, call: Call) -> None:
    """The module makes these calls from now on."""
    vars(module)["nvmlLib"] = Library(call)
    vars(module)["_nvmlGetFunctionPointer_cache"].clear()


@cache
def _source() -> tuple[str, CodeType]:
    spec = importlib.util.find_spec("pynvml")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    return spec.origin, compile(text, spec.origin, "exec")
