"""Derive the shares of the kernels of experts from their measured times: `make derive-experts`.

Fits on kernels of one device that has all experts, by relative least squares, prints the errors
and writes the part `experts` of `data/speed.json`. Prompts are slower than these kernels
(`expert_prompts.py`). The tables come from a package in an environment of its own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrate import write
from environments import environment
from expert_prompts import EXPERTS, FAMILY, TOKENS_PER_EXPERT, prompt_floor, with_floor
from shares import fit_shares, rms, usual_experts
from tessera.domain.hardware.device import Hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.perf.roofline import ExpertKernel
from tessera.domain.perf.table import (
    ExpertFamily,
    ExpertShares,
    ExpertTable,
    PromptFloor,
    shipped_speed_table,
)

READER = Path(__file__).with_name("expert_rows.py")
SOURCE = (
    "derived from the measured kernels of experts in aiconfigurator-core {version} (PyPI, "
    "Apache-2.0), of vLLM 0.24 and on the A100 0.14: kernels alone, of one GPU with all experts"
)
# Bits of a weight with its share of the scales.
BITS: Mapping[ExpertKernel, float] = {
    "Bf16": 16,
    "Fp8": 8,
    "Fp8Blocks": 8,
    "Int4": 4 + 16 / 128,
    "Mxfp4": 4 + 8 / 32,
}
# Width between the layers and within an expert, and experts, of shapes that are not as others:
# those of two matrices, and one whose tokens share half of the groups of experts.
LEFT_OUT = {(2688, 1856, 128), (2048, 5120, 512), (1024, 2688, 512), (4096, 2688, 512)}
LEFT_OUT |= {(7168, 2048, 256)}
# Repeated kernels find experts in the L2 cache, so rows that read less than this many are left out.
_CACHES = 1.5
# Tokens up to which a step counts as decoding in the printed errors.
_DECODE = 256
# Of tables whose tokens choose experts unevenly, only rows that wake as many as are known: those of
# a single token, and those of so many that each expert has this many of them.
_TOKENS_PER_EXPERT = 8
_GUESSES = {"weights": 0.8, "compute": 0.5, "unhidden": 0.4, "layer_micros": 20.0}

_TRITON = "vllm_fp8moe_triton"
_UNQUANTIZED = "vllm_unquantizedfusedmoe_"
_MARLIN = ("int4_wo", "vllm_compressedtensorswna16marlinmoe_marlin")
_OPEN = ("w4a16_mxfp4", "vllm_gptossmxfp4moe_")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Tables of one GPU: which of them has the kernel that vLLM takes."""

    family: str
    product: str
    version: str
    """Of vLLM."""
    cache_mib: int
    """Size of the L2 cache."""
    kernels: Mapping[ExpertKernel, tuple[str, str]]
    """Kind of weights, and how the kernel's name begins."""
    balanced: bool = True
    """Whether tokens choose experts evenly, which says how many are read."""


_HOPPER: Mapping[ExpertKernel, tuple[str, str]] = {
    "Bf16": ("bfloat16", f"{_UNQUANTIZED}triton"),
    # Per tensor has only the kernel for activations of a fixed scale, which is another.
    "Fp8": ("fp8_block", _TRITON),
    "Fp8Blocks": ("fp8_block", _TRITON),
    "Int4": _MARLIN,
    "Mxfp4": _OPEN,
}
SYSTEMS = {
    "a100_sxm": System(
        family="NVIDIA-A100",
        product="NVIDIA-A100-SXM4-80GB",
        version="0.14.0",
        cache_mib=40,
        kernels={"Bf16": ("bfloat16", "vllm_fused_moe")},
        balanced=False,
    ),
    "h100_sxm": System(
        family="NVIDIA-H100",
        product="NVIDIA-H100-80GB-HBM3",
        version="0.24.0",
        cache_mib=50,
        kernels=_HOPPER,
    ),
    "h200_sxm": System(
        family="NVIDIA-H200",
        product="NVIDIA-H200",
        version="0.24.0",
        cache_mib=50,
        kernels=_HOPPER,
    ),
    "l40s": System(
        family="NVIDIA-L40S",
        product="NVIDIA-L40S",
        version="0.24.0",
        cache_mib=96,
        kernels={**_HOPPER, "Fp8": ("fp8", "vllm_modeloptfp8moe_triton")},
    ),
    "b200_sxm": System(
        family="NVIDIA-B200",
        product="NVIDIA-B200",
        version="0.24.0",
        cache_mib=126,
        kernels={
            "Bf16": ("bfloat16", f"{_UNQUANTIZED}flashinfer_trtllm"),
            "Fp8Blocks": ("fp8_block", "vllm_fp8moe_flashinfer_trtllm"),
            "Int4": _MARLIN,
            "Mxfp4": _OPEN,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A measured kernel, and the least that it takes to read and to compute at the peaks."""

    tokens: int
    read: float
    computing: float
    seconds: float

    def error(self, shares: ExpertShares) -> float:
        """Relative error of what shares say of it."""
        reading, computing = self.read / shares.weights, self.computing / shares.compute
        if reading < computing:
            reading, computing = computing, reading
        predicted = reading + shares.unhidden * computing + shares.layer_micros * 1e-6
        return predicted / self.seconds - 1


def kernel_rows(
    system: System, kernel: ExpertKernel, table: Sequence[Sequence[object]]
) -> list[KernelRow]:
    """Return the rows of one kernel; a row of `table` has the columns of `expert_rows.py`."""
    hardware = whole_gpu_hardware(products()[system.product], 1)
    dtype, name = system.kernels[kernel]
    rows = []
    for row in table:
        row_dtype, source, distribution, *numbers = row
        if row_dtype != dtype or not str(source).startswith(name):
            continue
        if distribution != ("balanced" if system.balanced else "power_law_1.01"):
            continue
        if (kernel_row := _kernel_row(system, hardware, kernel, numbers)) is not None:
            rows.append(kernel_row)
    return rows


def _kernel_row(
    system: System, hardware: Hardware, kernel: ExpertKernel, numbers: Sequence[object]
) -> KernelRow | None:
    tokens, hidden, inner, experts, used, milliseconds = (float(str(each)) for each in numbers)
    known = system.balanced or tokens == 1 or tokens * used >= _TOKENS_PER_EXPERT * experts
    if (hidden, inner, experts) in LEFT_OUT or not known:
        return None
    weights = 3 * hidden * inner
    read_bytes = min(experts, tokens * used) * weights * BITS[kernel] / 8
    if read_bytes < _CACHES * system.cache_mib * 2**20:
        return None
    fp8 = kernel in ("Fp8", "Fp8Blocks")
    peak = (hardware.fp8_flops if fp8 else None) or hardware.bf16_flops
    return KernelRow(
        int(tokens),
        read_bytes / hardware.bandwidth,
        2 * tokens * used * weights / peak,
        milliseconds / 1e3,
    )


def fit(rows: Sequence[KernelRow]) -> ExpertShares:
    """Return the shares with the smallest squares of relative errors."""

    def errors_of(shares: Mapping[str, float]) -> list[float]:
        tried = ExpertShares(**shares)
        return [row.error(tried) for row in rows]

    return ExpertShares(**fit_shares(_GUESSES, errors_of, digits=4))


def family(system: System, table: Sequence[Sequence[object]]) -> ExpertFamily:
    """Return the shares of a GPU's kernels, and print their errors."""
    kernels = {}
    for kernel in system.kernels:
        rows = kernel_rows(system, kernel, table)
        kernels[kernel] = shares = fit(rows)
        decode = rms(row.error(shares) for row in rows if row.tokens <= _DECODE)
        prompts = rms(row.error(shares) for row in rows if row.tokens > _DECODE)
        print(
            f"{system.family:14} {kernel:10} {len(rows):4} rows, decode {decode:6.1%}, "
            f"prompts {prompts:6.1%}: {shares.weights}, {shares.compute}, {shares.unhidden}, "
            f"{shares.layer_micros} us a layer"
        )
    return ExpertFamily(family=system.family, engine=system.version, kernels=kernels)


def read_tables(name: str) -> tuple[str, list[list[object]]]:
    """Return the package's version and its rows of a system."""
    python = environment("experts", with_dependencies=False) / "bin" / "python"
    command = [str(python), str(READER), name, SYSTEMS[name].version]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    version, *rows = (json.loads(line) for line in done.stdout.splitlines())
    return version, rows


def main() -> None:
    """Derive, print and write."""
    families, version = [], ""
    for name, system in SYSTEMS.items():
        version, table = read_tables(name)
        families.append(family(system, table))
    experts = ExpertTable(
        source=SOURCE.format(version=version),
        prompts=PromptFloor(
            family=FAMILY, row_nanos=0, tokens_per_expert=TOKENS_PER_EXPERT, experts=EXPERTS
        ),
        usual=usual_experts(families),
        families=tuple(families),
    )
    speed_table = shipped_speed_table().model_copy(update={"experts": experts})
    prompts = prompt_floor(speed_table)
    print(f"prompts: at least {prompts.row_nanos} ns for a token in an expert of a layer")
    write(with_floor(speed_table, prompts.row_nanos))
    print("`make calibrate` finds the errors", file=sys.stderr)


if __name__ == "__main__":
    main()
