"""The inference engine as a pure machine: what a replica does with requests, and when.

`machine` schedules, step by step; `blocks` is its KV cache; `timeline` runs it on simulated time
and skips equal steps. `waves` is what came before continuous batching, for comparison.
"""

from tessera_lab.engine.core import EngineCore
from tessera_lab.engine.timeline import ServedRequest, Timeline

__all__ = ["EngineCore", "ServedRequest", "Timeline"]
