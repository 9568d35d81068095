"""Writes a copy of a model whose projections have weights of integers, as compressed-tensors has.

Arguments: SOURCE TARGET BITS. The engine computes with 8 bits in any case; with fewer, rounding
alone loses more, as a quantization that went wrong does. Runs in the engine's environment.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def quantize(weights: dict[str, torch.Tensor], bits: int) -> dict[str, torch.Tensor]:
    """Return the tensors; each output channel of a projection has a scale of its own."""
    most = 2 ** (bits - 1) - 1
    tensors = {}
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        values = weight.float()
        scale = (values.abs().amax(1, keepdim=True) / most).clamp(min=1e-8)
        tensors[name] = (values / scale).round().clamp(-most, most).to(torch.int8)
        tensors[f"{name}_scale"] = scale.to(torch.bfloat16)
    return tensors


def main() -> None:
    """Quantize the weights, and write the configuration that says so."""
    source, target, bits = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    shutil.copytree(source, target, dirs_exist_ok=True)
    file = target / "model.safetensors"
    save_file(quantize(load_file(file), bits), file, metadata={"format": "pt"})
    scheme = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**scheme, "strategy": "channel", "dynamic": False},
        "input_activations": {**scheme, "strategy": "token", "dynamic": True},
    }
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
