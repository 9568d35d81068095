"""pynvml over GPUs that exist only here; every call returns a module of its own."""

import importlib.util
import itertools
import sys
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType

from fakegpu.gpu_driver import GpuDriver
from fakegpu.library import Call, Library
from fakegpu.nvml_session import NvmlSession

_numbers = itertools.count(1)


def nvml(driver: GpuDriver, module: ModuleType | None = None) -> ModuleType:
    """What `import pynvml` would give on a node with these GPUs, in a process of its own.

    Reusing a module that was given for other GPUs saves time.
    """
    if module is None:
        return load_pynvml(NvmlSession(driver).call)
    bind(module, NvmlSession(driver).call)
    return module


def load_pynvml(call: Call) -> ModuleType:
    """The package over these calls; a copy, since it keeps its state in globals."""
    path, code = _source()
    module = ModuleType(f"pynvml_{next(_numbers)}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # pynvml looks itself up there for its exceptions
    try:
        exec(code, module.__dict__)  # noqa: S102  # the package that is installed
    finally:
        del sys.modules[module.__name__]
    bind(module, call)
    return module


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
