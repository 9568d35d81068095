"""GPUs and a model that Tessera does not ship, as entries of an installation."""

from typing import Any

A5000: dict[str, Any] = {
    "product": "NVIDIA-RTX-A5000",
    "capability": "8.6",
    "memoryMiB": 24_564,
    "bandwidthGBs": 768,
    "multiprocessors": 64,
    "bf16Tflops": 111,
}
ADA: dict[str, Any] = {
    "product": "NVIDIA-RTX-4000-SFF-Ada-Generation",
    "capability": "8.9",
    "memoryMiB": 20_475,
    "bandwidthGBs": 280,
    "multiprocessors": 48,
    "bf16Tflops": 153,
    "fp8Tflops": 307,
}
OWN: dict[str, Any] = {
    "model": "acme/llama-8b-ft",
    "parameters": 8_030_261_248,
    "layers": 32,
    "attentionHeads": 32,
    "kvHeads": 8,
    "headDim": 128,
    "maxPositionEmbeddings": 131_072,
}
