"""Environment variables in place of the hardware that real engines inspect."""

from collections.abc import Mapping

from tessera_lab.sim.errors import EngineExit

# A GPU product, or `product/profile` for a MIG slice; without it a whole A100 with 80 GB.
DEVICE = "TESSERA_SIM_DEVICE"
# How many of them the engine sees; without it as many as it asks for.
DEVICES = "TESSERA_SIM_DEVICES"
# A ModelShape as JSON, for a model that nothing else describes.
SHAPE = "TESSERA_SIM_SHAPE"
# Seconds of a step's parts as JSON, where they were measured; without it they are predicted.
SPEED = "TESSERA_SIM_SPEED"
# For so long the port stays closed; without it 0.2.
START_SECONDS = "TESSERA_SIM_START_SECONDS"
# Probability that a drafted token is accepted, below 1; without it nothing is drafted.
ACCEPTANCE = "TESSERA_SIM_ACCEPTANCE"
# A file of prompts with their answers, and the share answered wrongly, as JSON.
ANSWERS = "TESSERA_SIM_ANSWERS"
# The engine's own variable for its key.
API_KEY = "VLLM_API_KEY"
DEV_MODE = "VLLM_SERVER_DEV_MODE"
RUNTIME_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
LONG_CONTEXT = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"

DEFAULT_DEVICE = "NVIDIA-A100-SXM4-80GB"
DEFAULT_START_SECONDS = 0.2


def read_number(env: Mapping[str, str], name: str, default: float) -> float:
    """Return a number of at least 0; raise EngineExit for any other text."""
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not value >= 0:
        raise EngineExit(1, f"{name}={text} is not a number of at least 0")
    return value


def read_flag(env: Mapping[str, str], name: str) -> bool:
    """Return whether one of the engine's own variables is on."""
    return env.get(name, "").lower() in ("1", "true")
