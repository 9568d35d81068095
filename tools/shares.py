"""Means of the shares of GPU families, which hardware without measurements gets."""

import math
from collections.abc import Iterable, Sequence

from tessera.domain.perf.roofline import ExpertKernel
from tessera.domain.perf.table import ExpertFamily, ExpertShares, ExpertTable


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean in which a half and a double cancel, to four digits."""
    numbers = list(values)
    return float(f"{math.exp(sum(map(math.log, numbers)) / len(numbers)):.4g}")


def usual_experts(families: Sequence[ExpertFamily]) -> dict[ExpertKernel, ExpertShares]:
    """Return the means of each kernel of experts."""
    return {
        kernel: ExpertShares(
            **{
                name: geometric_mean(getattr(family.kernels[kernel], name) for family in known)
                for name in ExpertShares.model_fields
            }
        )
        for kernel in dict.fromkeys(kernel for family in families for kernel in family.kernels)
        if (known := [family for family in families if kernel in family.kernels])
    }


def without_family(experts: ExpertTable, product: str) -> ExpertTable:
    """Return the shares as they are where the family of a product was not measured."""
    families = tuple(each for each in experts.families if not product.startswith(each.family))
    return experts.model_copy(update={"families": families, "usual": usual_experts(families)})
