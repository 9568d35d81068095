"""Quantities as Kubernetes writes them."""

import math
from decimal import Decimal

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal("1e3"), "M": Decimal("1e6"), "G": Decimal("1e9"), "T": Decimal("1e12"),
    "P": Decimal("1e15"), "E": Decimal("1e18"),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def number(quantity: str) -> Decimal:
    """The plain number; `1.5Gi` is 1610612736, and `1e3` is a thousand."""
    suffix = quantity.lstrip("+-0123456789.")
    if suffix not in _SUFFIXES:
        return Decimal(quantity)
    return Decimal(quantity.removesuffix(suffix)) * _SUFFIXES[suffix]


def divided(quantity: str, divisor: str) -> str:
    """A quantity in whole multiples of a divisor, rounded up as the downward API does."""
    unit = number(divisor) or Decimal(1)
    return str(math.ceil(number(quantity) / unit))
