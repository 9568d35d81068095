"""The texts below the members of an enum, which reference pages print."""

import ast
import inspect
import textwrap
from enum import Enum
from itertools import pairwise


def member_texts(kind: type[Enum]) -> dict[str, str]:
    """Return the text of each member that has one, in one line, by the name of the member."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 - the source of a class
    return {
        ast.unparse(member.targets[0]): " ".join(str(text.value.value).split())
        for member, text in pairwise(definition.body)
        if isinstance(member, ast.Assign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
