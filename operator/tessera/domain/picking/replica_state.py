"""What one gateway knows of a replica; it changes with every request and every poll."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.picking.health import HEALTHY, ReplicaHealth, after_failure

# An older poll of an engine says nothing of its load.
MAX_POLL_AGE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """The load that an engine reported."""

    running: int
    waiting: int
    kv_usage: float | None = None
    """Share of its KV cache in use, 0 to 1."""
    adapters: frozenset[str] = frozenset()
    """LoRA adapters of its running and waiting requests."""
    kv_tokens: int | None = None
    """Tokens that its KV cache has room for."""
    observed_at: float
    """Monotonic clock of the machine, in seconds."""


@dataclass(slots=True, kw_only=True)
class ReplicaState:
    """Load and health of one replica; the gateway keeps one per pod UID.

    The load of an engine is what it reported, plus what the gateway sent and minus what ended
    since.
    """

    replica: EngineReplica
    ready_at: float | None
    """Monotonic seconds; None while it is not ready."""
    requests: int = 0
    """Sent and not ended."""
    awaiting: int = 0
    """Those of them without a first token."""
    prefill_tokens: int = 0
    """Prompt tokens of those without a first token."""
    read_until: float = 0.0
    """When it has read all prompts that the gateway sent, as predicted; monotonic seconds."""
    yielding: int = 0
    """Those of the requests that yield to others."""
    engine: EngineLoad | None = None
    foreign_running: int = 0
    """Requests of other gateways and direct clients, at the last poll."""
    foreign_waiting: int = 0
    max_sequences: float = float("inf")
    """Requests that the engine runs at once, by `max_num_seqs` and its KV cache."""
    health: ReplicaHealth = HEALTHY

    @classmethod
    def create(cls, replica: EngineReplica, *, now: float, utc_now: datetime) -> Self:
        """Return the state of a replica without any request."""
        state = cls(replica=replica, ready_at=None)
        state.update(replica, now=now, utc_now=utc_now)
        return state

    def update(self, replica: EngineReplica, *, now: float, utc_now: datetime) -> None:
        """Take the replica's new description from a new directory."""
        if replica.ready_since is None:
            self.ready_at = None
        elif self.ready_at is None or replica.ready_since != self.replica.ready_since:
            # Clocks of machines differ: a replica was never ready in the future.
            self.ready_at = now - max(0.0, (utc_now - replica.ready_since).total_seconds())
        self.replica = replica
        self._limit_sequences()

    def is_open(self, now: float) -> bool:
        """Return whether it is ready, stays and is not ejected."""
        ready = self.ready_at is not None and not self.replica.leaving
        return ready and self.health.ejected_until <= now

    def load(self, now: float) -> tuple[int, int]:
        """Return the requests that run and those that wait for their first token."""
        running, waiting = self.requests - self.awaiting, self.awaiting
        if self.engine is not None and now - self.engine.observed_at <= MAX_POLL_AGE_SECONDS:
            running += self.foreign_running
            waiting += self.foreign_waiting
        return running, waiting

    def has_adapter(self, adapter: str) -> bool:
        """Return whether the engine works with a LoRA adapter already."""
        return self.engine is not None and adapter in self.engine.adapters

    def sent(self, prefill_tokens: int, *, read_until: float = 0.0, yields: bool = False) -> None:
        """Count a request that was sent, with the prompt tokens that the engine must compute.

        It has read them at `read_until`.
        """
        self.read_until = read_until
        self.requests += 1
        self.yielding += yields
        self.awaiting += 1
        self.prefill_tokens += prefill_tokens

    def first_token(self, prefill_tokens: int) -> None:
        """Count the first token of a request, with the tokens given to `sent`."""
        self.awaiting -= 1
        self.prefill_tokens -= prefill_tokens

    def ended(self, unanswered_prefill_tokens: int | None = None, *, yields: bool = False) -> None:
        """Count the end of a request; without a first token, with the tokens given to `sent`."""
        self.requests -= 1
        self.yielding -= yields
        if unanswered_prefill_tokens is not None:
            self.first_token(unanswered_prefill_tokens)

    def failed(self, now: float, *, suspect: str | None = None) -> None:
        """Count a failure of the replica; its request ends by `ended` as well.

        The suspect is the tenant whose request may have caused it.
        """
        self.health = after_failure(self.health, now, suspect=suspect)

    def succeeded(self) -> None:
        """Forget all failures."""
        self.health = HEALTHY

    def polled(self, engine: EngineLoad) -> None:
        """Take a reading of the engine."""
        self.engine = engine
        self.foreign_waiting = max(0, engine.waiting - self.awaiting)
        total = engine.running + engine.waiting
        self.foreign_running = max(0, total - self.requests - self.foreign_waiting)
        self._limit_sequences()

    def _limit_sequences(self) -> None:
        limit = float(self.replica.max_num_seqs or "inf")
        engine = self.engine
        if engine is not None and engine.running and engine.kv_usage:
            # As many as fill the cache, each with the mean of those that run.
            limit = min(limit, max(engine.running, engine.running // engine.kv_usage))
        self.max_sequences = limit
