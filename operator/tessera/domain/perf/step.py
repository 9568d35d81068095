"""The form of a step's time: cheap, since simulations ask for it in every step."""

from dataclasses import dataclass, replace

from tessera.api.inference_service import SpeedSource


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one engine step as a function of what is in it.

    With the same sequences decoding, it grows by the same with every token in the cache; skipping
    equal steps rests on that.
    """

    weights: float
    """Reading the weights that a single token uses."""
    kv_token: float
    """Reading the cache of one resident token."""
    token: float
    """Computing one token."""
    unoverlapped: float = 0.0
    """Of the lesser of reading and computing, the share that the greater does not hide."""
    other_experts: float = 0.0
    """Reading the weights that a single token leaves alone."""
    unread_share: float = 0.0
    """Share of the weights that a token leaves alone; more tokens wake more experts."""
    pair: float = 0.0
    """Attention of a prompt's token to one before it; a prompt of n has n x n counted."""
    exchange: float = 0.0
    """Sending one token's activations between tensor-parallel devices."""
    sequence: float = 4.4e-6
    """Scheduling and sampling one sequence."""
    fixed: float = 0.6e-3
    """What every step costs, launches of all layers and all-reduces included."""
    source: SpeedSource = "roofline"

    def seconds(
        self, *, decoding: int, kv_tokens: int, prefill_tokens: int = 0, prefill_pairs: int = 0
    ) -> float:
        """Time of a step of `decoding` sequences with `kv_tokens` resident and chunks of prompts.

        A chunk from position `a` to `b` has `b - a` tokens and `b*b - a*a` pairs.
        """
        tokens = decoding + prefill_tokens
        reading, computing = self.weights, self.token * tokens
        if self.other_experts and tokens:
            reading += self.other_experts * (1 - self.unread_share ** (tokens - 1))
        if reading < computing:
            reading, computing = computing, reading
        return (
            reading
            + self.unoverlapped * computing
            + self.kv_token * kv_tokens
            + self.pair * prefill_pairs
            + self.exchange * tokens
            + self.sequence * decoding
            + self.fixed
        )

    def prefill_seconds(self, tokens: int, chunk: int, cached: int = 0) -> float:
        """Time in which a prompt is read alone, `chunk` tokens a step, the first `cached` known."""
        starts = range(cached, tokens, chunk)
        return sum(self._chunk_seconds(start, min(start + chunk, tokens)) for start in starts)

    def _chunk_seconds(self, start: int, end: int) -> float:
        return self.seconds(
            decoding=0,
            kv_tokens=end,
            prefill_tokens=end - start,
            prefill_pairs=end * end - start * start,
        )

    def scaled(self, ratio: float, source: SpeedSource) -> "StepTime":
        """Every step so many times as long."""
        return replace(
            self,
            weights=self.weights * ratio,
            other_experts=self.other_experts * ratio,
            kv_token=self.kv_token * ratio,
            token=self.token * ratio,
            pair=self.pair * ratio,
            exchange=self.exchange * ratio,
            sequence=self.sequence * ratio,
            fixed=self.fixed * ratio,
            source=source,
        )
