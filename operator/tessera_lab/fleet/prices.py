"""What an hour of a GPU costs, by tier."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPrices:
    """USD per hour of one GPU."""

    on_demand: float
    reserved: float
    spot: float

    def times(self, factor: float) -> "GpuPrices":
        return GpuPrices(
            on_demand=self.on_demand * factor,
            reserved=self.reserved * factor,
            spot=self.spot * factor,
        )


# Sources stand in docs/tasks/simulate.md. Each is one reading of lists that change.
PRICE_SETS = {
    "aws-2026": {
        "NVIDIA-H100-80GB-HBM3": GpuPrices(on_demand=6.88, reserved=4.20, spot=1.60),
        "NVIDIA-A100-SXM4-80GB": GpuPrices(on_demand=3.43, reserved=2.16, spot=1.25),
    },
    "neo-2026": {
        "NVIDIA-H100-80GB-HBM3": GpuPrices(on_demand=2.95, reserved=1.79, spot=1.25),
    },
}
