"""Lets vLLM's argument parser and metrics be imported from its source alone.

They need PyTorch and a hundred packages to import and none of them to say what flags there are.
Whatever is missing is a stub: a class that may be called, subclassed, used as a decorator, as a
type and as a number, and gives another stub for every attribute.
"""

import importlib.metadata
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, ClassVar

import pydantic
from pydantic_core import core_schema
from typing_extensions import override

# What the parser's types and bounds are made of, and what is read besides vLLM itself.
_REAL = frozenset(
    {"annotated_types", "pydantic", "pydantic_core", "regex", "typing_extensions"}
    | {"typing_inspection", "yaml"}
)
# What platforms other than the CPU have: vLLM chooses its platform by what is there.
_ABSENT = frozenset({"amdsmi", "libtpu", "pynvml", "vllm_xpu_kernels"})
# Parts of vLLM that import models and kernels.
_HEAVY = ("vllm.v1.executor",)
_VERSION = "99.0.0"


class _StubType(type(typing.Protocol)):  # type: ignore[misc]  # ABCs have stubs as bases
    """The type of stubs: everything that is done to a stub gives a stub, nothing or False."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = _stub(name)
        type.__setattr__(cls, name, attribute)
        return attribute

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        if not cls.__dict__.get("_is_stub"):
            return super().__call__(*arguments, **named)
        decorates = len(arguments) == 1 and not named and _is_definition(arguments[0])
        return arguments[0] if decorates else _stub("result")

    @override
    def __eq__(cls, other: object) -> bool:
        return isinstance(other, _StubType) and cls.__name__ == other.__name__

    @override
    def __hash__(cls) -> int:
        return id(cls)

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __len__(cls) -> int:
        return 0

    def __getitem__(cls, _: object) -> Any:
        return cls

    def __instancecheck__(cls, instance: object) -> bool:
        return type.__instancecheck__(cls, instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return type.__subclasscheck__(cls, subclass)


def _no(*_: object) -> bool:
    return False


def _zero(_: object) -> int:
    return 0


def _same(cls: Any, *_: object) -> Any:
    return cls


for _operator in ("bool", "contains", "lt", "gt", "le", "ge", "exit"):
    setattr(_StubType, f"__{_operator}__", _no)
for _operator in ("int", "index", "float"):
    setattr(_StubType, f"__{_operator}__", _zero)
for _operator in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "enter", "neg"):
    setattr(_StubType, f"__{_operator}__", _same)
    setattr(_StubType, f"__r{_operator}__", _same)


def _is_definition(value: object) -> bool:
    return isinstance(value, (types.FunctionType, staticmethod, classmethod)) or (
        isinstance(value, type) and not isinstance(value, _StubType)
    )


def _stub(name: str) -> Any:
    def any_schema(*_: object) -> Any:
        return core_schema.any_schema()

    return _StubType(
        name,
        (),
        {
            "_is_stub": True,
            "__module__": "stub",
            "__version__": _VERSION,
            "__init_subclass__": classmethod(lambda _, **__: None),
            "__class_getitem__": classmethod(_same),
            "__get_pydantic_core_schema__": classmethod(any_schema),
        },
    )


class _StubModule(types.ModuleType):
    __version__ = _VERSION
    __path__: ClassVar[list[str]] = []  # type: ignore[misc]  # of all instances

    @override
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = _stub(name)
        setattr(self, name, attribute)
        return attribute


class _StubFinder(MetaPathFinder, Loader):
    """Finds a stub for every module that is neither real nor in the source of vLLM."""

    @override
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package in _ABSENT or package in _REAL or package in sys.stdlib_module_names:
            return None
        if package.startswith("_") or (package == "vllm" and not name.startswith(_HEAVY)):
            spec = PathFinder.find_spec(name, path, target)
            if spec is not None or package != "vllm":
                return spec
        return ModuleSpec(name, self, is_package=True)

    @override
    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StubModule(spec.name)

    @override
    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install(source: Path, version: str) -> None:
    """Make `import vllm` take the source, as the CPU build of the version."""
    sys.path.insert(0, str(source))
    sys.meta_path.insert(0, _StubFinder())
    # Only fields, types and defaults are read: what validators would compute needs a machine.
    for decorator in ("model_validator", "field_validator"):
        setattr(pydantic, decorator, lambda *_, **__: lambda function: function)
    setattr(importlib.metadata, "version", _versions(importlib.metadata.version, version))  # noqa: B010


def _versions(installed: Callable[[str], str], vllm: str) -> Callable[[str], str]:
    def version(package: str) -> str:
        if package == "vllm":
            return f"{vllm}+cpu"
        try:
            return installed(package)
        except importlib.metadata.PackageNotFoundError:
            return _VERSION

    return version
