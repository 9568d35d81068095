"""What hardware could do at most, and the share of it that an engine achieves."""

from dataclasses import dataclass

from tessera.domain.hardware.device import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwarePeaks:
    """Peak rates of one GPU or MIG slice."""

    name: str
    flops: float
    """Operations per second."""
    bandwidth: float
    """Bytes of memory per second."""


def hardware_peaks(hardware: Hardware, *, fp8: bool) -> HardwarePeaks | None:
    """Return the peaks at 16 or 8 bits; None where 8 bits are asked for and not supported."""
    flops = hardware.fp8_flops if fp8 else hardware.bf16_flops
    if flops is None:
        return None
    name = hardware.product + (f"/{hardware.profile}" if hardware.profile else "")
    return HardwarePeaks(name=name, flops=flops, bandwidth=hardware.bandwidth)


def mfu(achieved: float, peak: float) -> float:
    """Return the share of the peak operations that was achieved."""
    return achieved / peak
