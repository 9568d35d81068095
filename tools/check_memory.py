"""Checks that nothing in the domain remembers one call for the next, besides `incremental.py`.

A function that this reuses takes what it reads and no Snapshot, of which nothing is compared.

`python tools/check_memory.py` prints one line per violation and exits with 1 if there is any.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from check_words import ROOT, Module, Violation, modules

DOMAIN = "operator/tessera/domain"
MEMORY = f"{DOMAIN}/incremental.py"

_MEMOS = {
    *("contextvars", "weakref"),
    *("functools.cache", "functools.cached_property", "functools.lru_cache"),
}
# What it reads of the fleet beside its inputs changes it only while it is planned in every cycle.
_READERS = {"plan_service"}
_CONTAINERS = {"dict", "list", "set", "defaultdict", "deque", "Counter", "OrderedDict"}
_DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
_WRITES = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem"),
    *("popleft", "remove", "setdefault", "subtract", "update"),
}


def violations(root: Path) -> list[Violation]:
    """Return all violations, by place."""
    return sorted(
        Violation(module.path, line, message)
        for module in modules(root, DOMAIN)
        if module.path != MEMORY
        for line, message in _faults(module)
    )


def _faults(module: Module) -> Iterator[tuple[int, str]]:
    containers = set(_module_containers(module.tree))
    for node in ast.walk(module.tree):
        message = _import_fault(node) or _definition_fault(node)
        if message is None and (name := _written_name(node)) in containers:
            message = f"{name} of the module is written"
        if message is not None and isinstance(node, ast.stmt | ast.expr):
            yield node.lineno, message


def _import_fault(node: ast.AST) -> str | None:
    match node:
        case ast.ImportFrom(module="functools", names=names):
            modules_or_memos = [f"functools.{alias.name}" for alias in names]
        case ast.ImportFrom(module=str(name)):
            modules_or_memos = [name]
        case ast.Import(names=names):
            modules_or_memos = [alias.name for alias in names]
        case ast.Attribute(value=ast.Name("functools"), attr=name):
            modules_or_memos = [f"functools.{name}"]
        case _:
            return None
    forbidden = sorted(_MEMOS.intersection(modules_or_memos))
    return f"{forbidden[0]} keeps state between calls" if forbidden else None


def _definition_fault(node: ast.AST) -> str | None:
    match node:
        case ast.Global(names=names):
            return f"global {', '.join(names)}"
        # A KV cache is memory of a GPU.
        case ast.ClassDef(name=name) if name.endswith("Cache") and not name.endswith("KvCache"):
            return f"class {name}: results are kept by domain/incremental.py"
        case ast.FunctionDef(args=arguments) if _is_constant(node) and ast.unparse(arguments):
            return f"constant {node.name} has arguments"
        case ast.FunctionDef(name=name) if _is_reused(node) and name not in _READERS:
            parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            if any(each.annotation and _names_snapshot(each.annotation) for each in parameters):
                return f"{name} is reused, and a Snapshot is not compared: take what it reads"
    return None


def _is_reused(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(node).startswith("reused") for node in function.decorator_list)


def _names_snapshot(annotation: ast.expr) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == "Snapshot" for node in ast.walk(annotation)
    )


def _is_constant(function: ast.FunctionDef) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == "constant" for node in function.decorator_list
    )


def _module_containers(tree: ast.Module) -> Iterator[str]:
    """Yield the names of mutable containers that the module creates when it is imported."""
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        if isinstance(node.value, _DISPLAYS) or _creates_container(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _creates_container(value: ast.expr) -> bool:
    if not isinstance(value, ast.Call):
        return False
    function = value.func.value if isinstance(value.func, ast.Subscript) else value.func
    return isinstance(function, ast.Name) and function.id in _CONTAINERS


def _written_name(node: ast.AST) -> str | None:
    """Return the variable whose content a node changes; None for other nodes."""
    match node:
        case ast.Subscript(value=ast.Name(name), ctx=ast.Store() | ast.Del()):
            return name
        case ast.AugAssign(target=ast.Name(name)):
            return name
        case ast.Call(func=ast.Attribute(value=ast.Name(name), attr=method)) if method in _WRITES:
            return name
    return None


def main() -> None:
    """Print the violations and exit with 1 if there is any."""
    found_violations = violations(ROOT)
    for violation in found_violations:
        print(violation)
    sys.exit(bool(found_violations))


if __name__ == "__main__":
    main()
