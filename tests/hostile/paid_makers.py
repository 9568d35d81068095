"""Every function that makes something paid, read from the code, and which of them ran."""

import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import tessera
from tessera.api.api_resource import ApiResource
from tessera.resources import api_resources

_ROOT = Path(tessera.__file__).parent
# What builds a manifest: its kind is among the arguments.
_BUILDERS = frozenset({"manifest", "owned_manifest", "partial_manifest", "ObjectManifest"})
_BUILDERS_MODULE = "resources/manifest.py"


class Maker(NamedTuple):
    """A function, by its file below `tessera` and its name."""

    path: str
    name: str


def sources() -> Mapping[str, str]:
    """Return the code of `resources` and `reconcile`, by its file below `tessera`."""
    files = (*_ROOT.glob("resources/**/*.py"), *_ROOT.glob("reconcile/**/*.py"))
    return {str(file.relative_to(_ROOT)): file.read_text(encoding="utf-8") for file in files}


def paid_makers(code: Mapping[str, str], paid: Collection[str]) -> frozenset[Maker]:
    """Return the functions that build a manifest of a paid kind, and who calls them.

    Callers are followed through `resources` to the functions of `reconcile`. A kind that is no
    constant may be any.
    """
    kinds = {
        name: value.kind
        for name, value in vars(api_resources).items()
        if isinstance(value, ApiResource)
    }
    free = {name for name, kind in kinds.items() if kind not in paid}
    calls = {maker: list(_calls(node)) for maker, node in _functions(code)}
    makers = {
        maker
        for maker, builder_calls in calls.items()
        if maker.path != _BUILDERS_MODULE
        and any(
            _name(call.func) in _BUILDERS and not _names_kind(call, free) for call in builder_calls
        )
    }
    followed = set(makers)
    while followed:
        names = {each.name for each in followed if each.path.startswith("resources/")}
        followed = {
            maker
            for maker, builder_calls in calls.items()
            if names & {_name(call.func) for call in builder_calls}
        } - makers
        makers |= followed
    return frozenset(makers)


@contextmanager
def functions_that_run() -> Iterator[set[Maker]]:
    """Record which functions of Tessera this thread calls."""
    called = set[Maker]()
    root = f"{_ROOT}/"

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            called.add(Maker(code.co_filename.removeprefix(root), code.co_name))

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(None)


def _functions(code: Mapping[str, str]) -> Iterator[tuple[Maker, ast.AST]]:
    for path, text in code.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Maker(path, node.name), node


def _calls(function: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Call))


def _names_kind(call: ast.Call, names: Iterable[str]) -> bool:
    arguments = (*call.args, *(keyword.value for keyword in call.keywords))
    return not {_name(argument) for argument in arguments}.isdisjoint(names)


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
