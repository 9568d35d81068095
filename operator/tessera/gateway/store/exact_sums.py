"""Sums of stored whole numbers: they are exact, and no stored number can make them fail.

SQLite adds in 64 bits, and a sum that needs more is an error for its reader. Others choose
what is added, so each sum of a statement is one of these.
"""

from typing import Any

from sqlalchemy import ColumnElement, Dialect, Double, Text, cast, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

_HALF = 32


class _WholeNumber(TypeDecorator[int]):
    """Reads a sum as SQLite prints it, in two halves, or as PostgreSQL has it, as a decimal."""

    impl = Text
    cache_ok = True

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> int:
        if isinstance(value, str):
            high, low = value.split(":")
            return (int(high) << _HALF) + int(low)
        return int(value or 0)


class exact_sum(FunctionElement[int]):  # noqa: N801 - a function of SQL
    """The sum of a column of whole numbers; 0 without rows. Columns alone are read with it."""

    type = _WholeNumber()
    inherit_cache = True


@compiles(exact_sum)
def _plain_sum(element: exact_sum, compiler: SQLCompiler, **options: Any) -> str:
    return f"sum({compiler.process(element.clauses, **options)})"


@compiles(exact_sum, "sqlite")
def _halves(element: exact_sum, compiler: SQLCompiler, **options: Any) -> str:
    added = compiler.process(element.clauses, **options)
    mask = 2**_HALF - 1
    return f"printf('%d:%d', sum(({added}) >> {_HALF}), sum(({added}) & {mask}))"


def rough_sum(*columns: ColumnElement[int]) -> ColumnElement[float]:
    """Return the sum of columns by which groups are ordered: a float of 53 bits."""
    first, *others = (cast(column, Double) for column in columns)
    return func.sum(sum(others, start=first))
