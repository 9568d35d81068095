"""The steps of engines at a load that was measured."""

import math
from typing import NamedTuple

from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.sizing.sizing import ReplicaFit

# They change the share of time in which an engine is busy by less than 0.01 more.
_ITERATIONS = 50


class PredictedSteps(NamedTuple):
    """Both kinds of steps at some load, in seconds."""

    decode: float
    """One that reads no prompt."""
    mixed: float
    """One that reads a chunk of a prompt as well."""
    mixed_share: float
    """Share of the steps that do."""
    gaps: float
    """Gaps between two tokens of an answer that a step ends."""

    @property
    def mean(self) -> float:
        """Return the mean time of a step."""
        return self.mixed_share * self.mixed + (1 - self.mixed_share) * self.decode

    @property
    def busy_share(self) -> float:
        """Return the share of the time in which an engine steps.

        It is idle while no request decodes, as many as a Poisson distribution says, and no prompt
        is read.
        """
        busy = 1.0
        for _ in range(_ITERATIONS):
            busy = 1 - math.exp(-self.gaps * busy) * (1 - self.mixed_share * busy)
        return busy


def predicted_steps(
    fit: ReplicaFit, load: SpeedReading, sequences: float | None, prefill_tokens: float | None
) -> PredictedSteps | None:
    """Return the steps of engines with so many sequences and tokens of prompts in a step.

    `load` says how long the requests are; None where it does not.
    """
    resident = load.resident_tokens(fit.memory.kv_tokens)
    if not sequences or resident is None:
        return None
    decoding = max(1, round(sequences))
    kv_tokens = round(decoding * resident)
    decode = fit.step.seconds(decoding=decoding, kv_tokens=kv_tokens)
    free_tokens = fit.limits.max_num_batched_tokens - decoding * fit.step.decode_tokens
    prompt = load.prompt_tokens or 0.0
    chunk = min(prompt, free_tokens)
    if chunk < 1 or not prefill_tokens:
        return PredictedSteps(decode, decode, 0.0, sequences)
    mixed = fit.step.seconds(
        decoding=decoding,
        kv_tokens=kv_tokens,
        prefill_tokens=round(chunk),
        prefill_pairs=round(chunk * prompt),
    )
    # The first token of each answer ends no gap.
    gaps = max(0.0, sequences - prefill_tokens / prompt)
    return PredictedSteps(decode, mixed, min(1.0, prefill_tokens / chunk), gaps)
