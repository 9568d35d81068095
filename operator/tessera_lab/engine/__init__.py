"""A deterministic model of an inference engine: what a replica does with requests, and when.

`core` schedules, step by step; `block_pool` is its KV cache; `timeline` runs it on simulated time
and skips equal steps.
"""

from tessera_lab.engine.core import EngineCore
from tessera_lab.engine.timeline import ServedRequest, Timeline

__all__ = ["EngineCore", "ServedRequest", "Timeline"]
