"""Shares of a GPU: the billing weight of a slice, and its weight when hardware is compared."""

from decimal import Decimal

from tessera.domain.hardware.device import Hardware


def billing_weight(hardware: Hardware) -> Decimal:
    """Return the share of a GPU that hardware is billed: (c/7 + m/8) / 2; whole GPUs count 1 each.

    Products with four compute and four memory slices count c/4 and m/4.
    """
    compute = hardware.compute_slices, hardware.compute_slices_of_gpu
    memory = hardware.memory_slices, hardware.memory_slices_of_gpu
    return slice_weight(compute, memory) * hardware.devices


def slice_weight(compute: tuple[int, int], memory: tuple[int, int]) -> Decimal:
    """Return the billing weight of a slice from pairs of its slices and those of the GPU."""
    return (Decimal(compute[0]) / compute[1] + Decimal(memory[0]) / memory[1]) / 2


def selection_weight(hardware: Hardware, partitioned_gpus: int, weights: Decimal) -> Decimal:
    """Return the share of a GPU that hardware counts when prices are compared.

    `weights` is the billing weight of all slices on the `partitioned_gpus`.
    """
    if hardware.profile is None:
        return Decimal(hardware.devices)
    # The partitioned GPUs are spread over their slices, so the slices carry the stranded cost. No
    # price is compared below what is billed, however few GPUs a node says it has.
    billed = billing_weight(hardware)
    return max(billed, billed * partitioned_gpus / weights)
