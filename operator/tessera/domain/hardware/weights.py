"""Shares of a GPU: what a slice is billed, and what it is worth when hardware is chosen."""

from decimal import Decimal

from tessera.domain.hardware.device import Hardware


def billing_weight(hardware: Hardware) -> Decimal:
    """Share of a GPU that a slice is billed: (c/7 + m/8) / 2; whole GPUs count 1 each.

    Products that are cut into four count c/4 and m/4.
    """
    compute = hardware.compute_slices, hardware.compute_slices_of_gpu
    memory = hardware.memory_slices, hardware.memory_slices_of_gpu
    return slice_weight(compute, memory) * hardware.devices


def slice_weight(compute: tuple[int, int], memory: tuple[int, int]) -> Decimal:
    """The same by slices of compute and of memory, each with how many of them a GPU has."""
    return (Decimal(compute[0]) / compute[1] + Decimal(memory[0]) / memory[1]) / 2


def selection_weight(hardware: Hardware, partitioned_gpus: int, weights: Decimal) -> Decimal:
    """Share of a GPU that a slice is worth when hardware is chosen.

    The GPUs that are cut (`cut_gpus` of them) are spread over their slices (together of billing
    weight `weights`), so that what a layout strands is paid by the slices that it yields.
    """
    if hardware.profile is None:
        return Decimal(hardware.devices)
    return billing_weight(hardware) * partitioned_gpus / weights
