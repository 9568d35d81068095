"""Quantities as Kubernetes writes them."""

import math
from decimal import Decimal

from kubernetes.utils import parse_quantity


def number(quantity: str) -> Decimal:
    """The plain number; `1.5Gi` is 1610612736, and `1e3` is a thousand."""
    plain: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]  # partly typed package
    return plain


def divided(quantity: str, divisor: str) -> str:
    """A quantity in whole multiples of a divisor, rounded up as the downward API does."""
    unit = number(divisor) or Decimal(1)
    return str(math.ceil(number(quantity) / unit))
