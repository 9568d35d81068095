"""What is assumed of a load. Nothing heavy is imported, since options have these defaults."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverAssumptions:
    """What no measurement of a load says; each share is from 0 to below 1."""

    hit_share: float = 0.34
    """Requests that a response cache answers: `course` L9. 0.20 to 0.40 are quoted elsewhere."""
    small_share: float = 0.5
    """Requests that a small model answers: `engineering` L560; `management` L117 says 0.85."""
    batch_share: float = 0.1
    """Requests without a latency objective, which batches answer. No source has a figure."""
    wasted: float = 0.1
    """Work on spot nodes that interruptions waste, as in `tessera mix`."""
    temperature: float = 0.7
    """Sampling temperature, by which drafted tokens are accepted."""
    engineer_hour: float = 100.0
    """Price of an hour of operation. No source has a figure."""
