"""Measured engine steps: published ones, and those of a real engine.

Published are AIConfigurator's estimates of vLLM's steps from its measured operator tables, kernels
alone, in the shared data beside the checkout. The real engine is vLLM on an H100:
`tools/bench_steps.py`.
"""

import csv
import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf.roofline import Arithmetic
from tessera.domain.perf.sources import predict_step_time
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.table import SpeedTable

ROWS = Path(__file__).parents[2] / "shared/traces/perf_aiconfigurator_vllm.csv.gz"
ENGINE_ROWS = Path(__file__).parents[1] / "docs/figures/steps-h100.json"
_ENGINE_PRODUCT = "NVIDIA-H100-80GB-HBM3"
_NAMES = {
    "meta-llama/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Meta-Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
}


def _gpu(product: str, bandwidth_gbs: float, bf16: float, fp8: float | None) -> Hardware:
    """A whole GPU with the peaks of its data sheet, in 1e9 bytes and 1e12 operations a second."""
    return Hardware(
        product=product,
        profile=None,
        devices=1,
        memory_mib=0,
        bandwidth=bandwidth_gbs * 1e9,
        bf16_flops=bf16 * 1e12,
        fp8_flops=None if fp8 is None else fp8 * 1e12,
        compute_slices=7,
        memory_slices=8,
    )


SYSTEMS = {
    "a100_sxm": _gpu("NVIDIA-A100", 2039, 312, None),
    "h100_sxm": _gpu("NVIDIA-H100", 3350, 989, 1979),
    "h200_sxm": _gpu("NVIDIA-H200", 4800, 989, 1979),
    "l40s": _gpu("NVIDIA-L40S", 864, 362, 733),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured step."""

    model: str
    hardware: Hardware
    precision: str | None
    phase: str
    batch: int
    context: int
    seconds: float

    @property
    def shape(self) -> ModelShape:
        return models()[_NAMES.get(self.model, self.model)]

    @property
    def family(self) -> str:
        """Prefix of the product that the speed table has."""
        return next(
            system.product
            for system in SYSTEMS.values()
            if self.hardware.product.startswith(system.product)
        )

    @property
    def kind(self) -> Arithmetic:
        return "fp8" if self.precision else "bf16"

    @property
    def group(self) -> str:
        name, hardware = self.model.rpartition("/")[2], self.hardware
        return f"{name} {self.kind} {hardware.devices}x {hardware.product}"

    def step(self, speed_table: SpeedTable) -> StepTime:
        """The step time by the shares of a table."""
        return predict_step_time(speed_table, self.shape, self.precision, self.hardware)

    def predicted(self, speed_table: SpeedTable) -> float:
        """What a table says of it, in seconds."""
        step = self.step(speed_table)
        tokens = self.batch * self.context
        if self.phase == "decode":
            return step.seconds(decoding=self.batch, kv_tokens=tokens)
        pairs = tokens * self.context
        return step.seconds(
            decoding=0, kv_tokens=tokens, prefill_tokens=tokens, prefill_pairs=pairs
        )

    def relative_error(self, speed_table: SpeedTable) -> float:
        """Relative error."""
        return self.predicted(speed_table) / self.seconds - 1


def read(path: Path) -> list[Row]:
    """All rows, in the file's order."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        return [_row(fields) for fields in csv.DictReader(text)]


def read_engine() -> list[Row]:
    """The steps of the real engine."""
    hardware = whole_gpu_hardware(products()[_ENGINE_PRODUCT], 1)
    rows = json.loads(ENGINE_ROWS.read_text(encoding="utf-8"))["rows"]
    return [
        Row(
            model=row["model"],
            hardware=hardware,
            precision=row["precision"],
            phase=row["phase"],
            batch=row["batch"],
            context=row["context"],
            seconds=row["ms"] / 1e3,
        )
        for row in rows
    ]


def _row(fields: dict[str, str]) -> Row:
    hardware = SYSTEMS[fields["system"]]
    return Row(
        model=fields["model"],
        hardware=replace(hardware, devices=int(fields["tp"])),
        precision="fp8" if fields["gemm_dtype"] == "fp8" else None,
        phase=fields["phase"],
        batch=int(fields["batch"]),
        context=int(fields["context_tokens"]),
        seconds=float(fields["ms_per_step"]) / 1e3,
    )


def split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Three quarters to fit on and the rest, drawn by the seed."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311 - not a secret
    fitted = set(order[: len(rows) * 3 // 4])
    held_out = [row for i, row in enumerate(rows) if i not in fitted]
    return [row for i, row in enumerate(rows) if i in fitted], held_out
