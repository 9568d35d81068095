"""State of an engine that changes while it runs: adapters, sleep, liveness."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera_lab.sim.runner import EngineRunner

AWAKE = "awake"
# By the level of sleep, as the metric names them.
SLEEP_STATES = {0: AWAKE, 1: "weights_offloaded", 2: "discard_all"}
# What sleeps and can be woken by itself.
_SLEEP_TAGS = frozenset({"weights", "kv_cache"})


@dataclass(slots=True)
class EngineState:
    """The state of one engine beside its queue."""

    runner: EngineRunner
    adapter_paths: dict[str, str]
    """Paths of its adapters by name."""
    alive: bool = True
    shows_nan: bool = False
    """Whether its counters and gauges are NaN."""
    sleep_state: str = AWAKE
    sleeping_tags: set[str] = field(default_factory=set)
    """Tags that are asleep."""
    _adapters_seen_at: dict[tuple[str, str], float] = field(default_factory=dict)

    def sleep(self, level: int) -> None:
        """Stop taking steps and drop the prefix cache."""
        self.runner.pause()
        self.runner.reset_prefix_cache()
        self.sleep_state = SLEEP_STATES[level]
        self.sleeping_tags = set(_SLEEP_TAGS)

    def wake(self, tags: list[str] | None) -> bool:
        """Wake the tags, or everything; return whether nothing sleeps any more."""
        self.sleeping_tags -= _SLEEP_TAGS if tags is None else set(tags)
        if self.sleeping_tags:
            return False
        self.sleep_state = AWAKE
        self.runner.resume()
        return True

    def adapters_seen_at(self) -> Mapping[tuple[str, str], float]:
        """Return when each pair of running and waiting adapters was last observed."""
        running, waiting = self.runner.adapters()
        self._adapters_seen_at[",".join(sorted(running)), ",".join(sorted(waiting))] = time.time()
        return self._adapters_seen_at
