"""Checks names and comments, and that classes and functions stay small.

`python tools/check_words.py` prints one line per violation and exits with 1 if there is any;
`--figures` prints shares and counts per package instead.
"""

import argparse
import ast
import gc
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

ROOT = Path(__file__).resolve().parent.parent

# Participles and pronouns say nothing of what a name holds.
_BANNED = "told found one ones mine theirs ours there made still held kept gone"
BANNED = frozenset(re.findall(r"\w+", _BANNED))

# An f-string that puts a number before one of these says "1 replicas"; `counted` agrees in number.
_NOUNS = (
    "attempts batches budgets bytes cores cycles devices engines errors files GPUs groups hours "
    "instances jobs lines minutes namespaces nodes objects pods pools prompts replicas requests "
    "rows seconds sequences services sessions slices steps streams tokens windows writes"
)
COUNTED_NOUNS = frozenset(re.findall(r"\w+", _NOUNS))

# A class with more has several subjects.
MAX_METHODS = 20
OPERATOR = "operator/tessera"

# A longer body does several things; its lines are counted from its first statement to its end.
MAX_BODY = 75
# These two decisions pass every input of a service on; they may shrink only.
LONG_BODIES = {"_plan_service": 89}

# Texts begin with a subject in these rooms, and not with whose or of what something is.
SUBJECT_ROOMS = (
    "batch_runner", "cli", "node_agent", "domain/batch", "domain/budget", "domain/hardware",
    "domain/layout", "domain/mig", "domain/mig_backends", "domain/placement", "domain/repartition",
    "domain/scaling",
)  # fmt: skip

# Reasons stand at the line that they explain.
COMMENTS_PER_KLOC = 10

# The product and the lab; names alone are checked in the rest too.
PRODUCT = "operator"
REST = ("tests", "e2e", "tools")

API_FOLDER = "operator/tessera/api"
GLOSSARY = "docs/glossary.md"

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True, slots=True)
class Module:
    """A source file: its path from the root, its text, its syntax tree and all nodes of that."""

    path: str
    text: str
    tree: ast.Module
    nodes: Sequence[ast.AST]


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """A place and what is wrong there."""

    path: str
    line: int
    message: str

    @override
    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def modules(root: Path, *folders: str) -> list[Module]:
    """Parse every module of the folders, by path."""
    return [
        Module(str(path.relative_to(root)), text, tree, tuple(ast.walk(tree)))
        for folder in folders
        for path in sorted((root / folder).rglob("*.py"))
        for text in [path.read_text(encoding="utf-8")]
        for tree in [ast.parse(text)]
    ]


def shared_class_names(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield classes whose name another class has, in the product or in the lab."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for source in sources:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                places[node.name].append((source.path, node.lineno))
    for name, homes in places.items():
        for path, line in homes[1:]:
            yield Violation(path, line, f"class {name} is defined in {homes[0][0]} too")


def banned_names(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield functions, parameters and locals that are called by a banned word."""
    for source in sources:
        for node in source.nodes:
            if isinstance(node, _Function):
                for line, name in sorted({*_bindings(node), (node.lineno, node.name.strip("_"))}):
                    if name in BANNED:
                        yield Violation(source.path, line, f"{node.name}: a name is {name!r}")


def _bindings(function: _Function) -> Iterator[tuple[int, str]]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in [*named, *filter(None, [arguments.vararg, arguments.kwarg])]:
        yield argument.lineno, argument.arg
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Lambda):
            yield from ((argument.lineno, argument.arg) for argument in node.args.args)
        elif isinstance(node, ast.MatchAs | ast.MatchStar | ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def uncounted_nouns(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield f-strings in which a number stands before a plural: with 1 they are wrong."""
    for source in sources:
        for node in source.nodes:
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, text in zip(node.values, node.values[1:], strict=False):
                if not (isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant)):
                    continue
                word = re.match(r" ([A-Za-z]+)\b(?!/)", str(text.value))  # tokens/s is a unit
                if word and word[1] in COUNTED_NOUNS:
                    message = f"'{{…}} {word[1]}' is wrong for 1: use counted()"
                    yield Violation(source.path, node.lineno, message)


def strings_after_constants(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield strings that explain the constant above them: no tool shows them, a comment reads."""
    for source in sources:
        for before, node in zip(source.tree.body, source.tree.body[1:], strict=False):
            if _is_text(node) and isinstance(before, ast.Assign | ast.AnnAssign):
                yield Violation(source.path, node.lineno, "a string explains a constant")


def large_classes(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield the classes of the operator with more than `MAX_METHODS` methods."""
    for source in sources:
        for node in source.nodes if source.path.startswith(f"{OPERATOR}/") else ():
            if isinstance(node, ast.ClassDef):
                count = sum(isinstance(statement, _Function) for statement in node.body)
                if count > MAX_METHODS:
                    message = f"class {node.name} has {count} methods, at most {MAX_METHODS}"
                    yield Violation(source.path, node.lineno, message)


def long_functions(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield functions with more than `MAX_BODY` lines of body."""
    for source in sources:
        for node in source.nodes:
            if not isinstance(node, _Function):
                continue
            first = node.body[1 if _is_text(node.body[0]) and len(node.body) > 1 else 0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            limit = LONG_BODIES.get(node.name, MAX_BODY)
            if lines > limit:
                message = f"{node.name} has a body of {lines} lines, at most {limit}"
                yield Violation(source.path, node.lineno, message)


def texts_without_subject(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield comments and texts of fields that begin with "Of", in the rooms that have none."""
    rooms = tuple(f"{OPERATOR}/{room}/" for room in SUBJECT_ROOMS)
    for source in sources:
        if not source.path.startswith(rooms):
            continue
        before = ""
        for number, line in enumerate(map(str.strip, source.text.splitlines()), start=1):
            # A comment of several lines may have such a line within.
            if line.startswith('"""Of ') or (line.startswith("# Of ") and before[:1] != "#"):
                yield Violation(source.path, number, "a text begins with 'Of'")
            before = line


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def too_few_comments(sources: Sequence[Module]) -> Iterator[Violation]:
    """Yield the product if it has fewer comments per 1,000 lines than `COMMENTS_PER_KLOC`."""
    per_kloc = _per_kloc(sources)
    if per_kloc < COMMENTS_PER_KLOC:
        message = f"{per_kloc:.1f} comments per 1,000 lines, at least {COMMENTS_PER_KLOC}"
        yield Violation("operator", 0, message)


def _per_kloc(sources: Sequence[Module]) -> float:
    lines = sum(source.text.count("\n") for source in sources)
    return 1000 * sum(_comments(source.text) for source in sources) / max(1, lines)


def _comments(text: str) -> int:
    """Count comment lines, directives for tools apart."""
    return sum(
        token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|pragma|!)", token.string)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )


def missing_nouns(sources: Sequence[Module], glossary: str) -> Iterator[Violation]:
    """Yield types of the API that the glossary does not name."""
    for source in sources:
        if not source.path.startswith(f"{API_FOLDER}/"):
            continue
        for node in source.tree.body:
            if (
                isinstance(node, ast.ClassDef)
                and not node.name.startswith("_")
                and f"`{node.name}`" not in glossary
            ):
                yield Violation(source.path, node.lineno, f"{GLOSSARY} has no `{node.name}`")


def violations(root: Path) -> list[Violation]:
    """Return everything that is wrong below `root`, by place."""
    sources, others = modules(root, PRODUCT), modules(root, *REST)
    checks: Sequence[Callable[[Sequence[Module]], Iterator[Violation]]] = (
        shared_class_names,
        uncounted_nouns,
        strings_after_constants,
        large_classes,
        texts_without_subject,
        too_few_comments,
    )
    glossary = (root / GLOSSARY).read_text(encoding="utf-8")
    return sorted(
        {
            *(violation for check in checks for violation in check(sources)),
            *banned_names([*sources, *others]),
            *long_functions([*sources, *others]),
            *missing_nouns(sources, glossary),
        }
    )


def figures(root: Path) -> Mapping[str, object]:
    """Return what the rules are about, as numbers."""
    sources = modules(root, PRODUCT)
    functions = [n for s in sources for n in s.nodes if isinstance(n, _Function)]
    banned = [f for f in functions if any(name in BANNED for _, name in _bindings(f))]
    loops = [f for f in functions if any(name == "one" for _, name in _bindings(f))]
    classes = [n.name for s in sources for n in s.nodes if isinstance(n, ast.ClassDef)]
    shared = [name for name in classes if classes.count(name) > 1]
    return {
        "lines": sum(source.text.count("\n") for source in sources),
        "functions": len(functions),
        "functions with a banned name": f"{len(banned)} ({len(banned) / len(functions):.1%})",
        "functions with a `one`": f"{len(loops)} ({len(loops) / len(functions):.1%})",
        "classes": len(classes),
        "classes that share a name": f"{len(shared)} ({len(shared) / len(classes):.1%})",
        "comments per 1,000 lines": f"{_per_kloc(sources):.1f}",
        "strings after constants": sum(1 for _ in strings_after_constants(sources)),
    }


def main() -> None:
    """Print violations or figures."""
    # Millions of nodes live to the end; looking through them for garbage takes half of the time.
    gc.disable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    if options.figures:
        for name, value in figures(options.root).items():
            print(f"{name:32} {value}")
        return
    wrong = violations(options.root)
    for violation in wrong:
        print(violation)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
