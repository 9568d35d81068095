"""Counts code lines of Python: without blank lines, comments, docstrings and imports.

`python tools/code_lines.py PATH...` prints the lines of each file or folder. A string that stands
as a statement, such as the text of a field, is a docstring.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER),
    *(tokenize.INDENT, tokenize.DEDENT),
}


def code_lines(source: str) -> int:
    """Return the number of lines of a module that have code."""
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print the lines of each path, and of all."""
    total = 0
    for path in map(Path, sys.argv[1:]):
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        lines = sum(code_lines(file.read_text(encoding="utf-8")) for file in files)
        print(f"{lines:>7,} {path}")
        total += lines
    print(f"{total:>7,} lines")


if __name__ == "__main__":
    main()
