"""A random model just large enough that the engine on one core is the limit, not its client."""

import json
import subprocess
from pathlib import Path
from typing import Any

from demo.engine import MAKE_MODEL

NAME = "random-75m"
# A step with one sequence takes some 10 ms on a core of today, a prompt of 100 tokens some 50.
SIZES: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}


def make_model(venv: Path, folder: Path) -> Path:
    """The tiny model's tokenizer with these sizes; the engine fills in the weights itself."""
    process = subprocess.run(
        [str(venv / "bin" / "python"), str(MAKE_MODEL), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(f"the model could not be created: {process.stderr[-1000:]}")
    _update_json(folder / "config.json", SIZES)
    _update_json(
        folder / "tokenizer_config.json", {"model_max_length": SIZES["max_position_embeddings"]}
    )
    return folder


def _update_json(file: Path, values: dict[str, Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | values, indent=1), encoding="utf-8")
