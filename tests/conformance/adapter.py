"""A LoRA adapter of random weights for the tiny model, in the layout of PEFT's files."""

import json
import random
import struct
from pathlib import Path

RANK = 8
_HIDDEN, _LAYERS = 128, 2
_PROJECTIONS = {"q_proj": 128, "v_proj": 64}
# Bytes of a bfloat16.
_NUMBER = 2


def make(folder: Path) -> Path:
    """Write the adapter's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(_PROJECTIONS),
        "base_model_name_or_path": "tiny",
        "modules_to_save": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(_weights())
    return folder


def _weights() -> bytes:
    """Return the length of the header, the header, and the numbers in order."""
    header: dict[str, object] = {}
    numbers, end = [], 0
    draw = random.Random(1)  # noqa: S311 - weights, not secrets
    for layer in range(_LAYERS):
        for name, width in _PROJECTIONS.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("lora_A", [RANK, _HIDDEN]), ("lora_B", [width, RANK])):
                count = shape[0] * shape[1]
                offsets = [end, end + count * _NUMBER]
                header[f"{place}.{part}.weight"] = {
                    "dtype": "BF16",
                    "shape": shape,
                    "data_offsets": offsets,
                }
                end += count * _NUMBER
                # A bfloat16 is the upper half of a float.
                numbers += [struct.pack("<f", draw.gauss(0, 0.1))[2:] for _ in range(count)]
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + b"".join(numbers)
