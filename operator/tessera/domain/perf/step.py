"""The formula of a step's time; simulations evaluate it for every step, so it is cheap."""

from dataclasses import dataclass, replace

from tessera.api.variant_status import SpeedSource
from tessera.domain.perf.experts import ExpertsTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """The part of a step that speculative decoding adds."""

    tokens: float
    """Tokens drafted for each decoding sequence, which the same step verifies; whole in a plan, and
    a mean where drafts are measured."""
    accepted: float
    """Mean of these that are accepted."""
    step: "StepTime | None" = None
    """Of the draft model; None where drafts have no model, such as n-grams of the prompt."""
    cost: float = 1.0
    """Time of a draft step as a share of `step`, which may be that of another model."""

    def seconds(
        self, *, decoding: float, kv_tokens: float, prefill_tokens: float, prefill_pairs: float
    ) -> float:
        """Return the seconds of drafting; the first draft step reads the prompts as well."""
        if self.step is None:
            return 0.0
        first = self.step.seconds(
            decoding=decoding,
            kv_tokens=kv_tokens,
            prefill_tokens=prefill_tokens,
            prefill_pairs=prefill_pairs,
        )
        if not decoding or self.tokens <= 1:
            return self.cost * first
        later = self.step.seconds(decoding=decoding, kv_tokens=kv_tokens)
        return self.cost * (first + (self.tokens - 1) * later)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionError:
    """The error of predicted step times: root mean square of predicted over measured, less one."""

    decode: float
    """Of steps that only decode, as a share: 0.04 is 4 %."""
    prompts: float
    """Of steps that only read a prompt, as a share."""
    rows: int
    """Measured steps that it was computed from; 0 where it is that of other models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Coefficients of the seconds of one engine step, linear in the resident tokens.

    With windows they are linear up to a mean length of the window and from there on. The simulator
    skips runs of equal steps and relies on that.
    """

    weights: float
    """Reading the weights that every token uses."""
    kv_token: float
    """Reading the cache of one resident token."""
    token: float
    """Computing one token."""
    unoverlapped: float = 0.0
    """Share of the shorter of reading and computing that the longer does not hide."""
    experts: ExpertsTime | None = None
    """Reading and computing the experts of a mixture, beyond all other weights."""
    pair: float = 0.0
    """Attention of one token of a prompt to one before it; a prompt of n tokens has n x n pairs."""
    window: float = 0.0
    """Tokens of the window that some layers attend to; 0 where none has a window."""
    windowed_token: float = 0.0
    """As `kv_token`, in the layers with a window."""
    windowed_pair: float = 0.0
    """As `pair`, in the layers with a window."""
    exchange: float = 0.0
    """Sending one token's activations between tensor-parallel devices."""
    sequence: float = 4.4e-6
    """Scheduling and sampling one sequence."""
    fixed: float = 0.6e-3
    """Overhead of every step, with the launches of all layers and all-reduces."""
    source: SpeedSource = "Roofline"
    error: PredictionError | None = None
    """Error of the prediction; None of a step time that was given."""
    drafting: Drafting | None = None

    @property
    def decode_tokens(self) -> int:
        """Return the tokens that a step computes of each decoding sequence."""
        return 1 if self.drafting is None else 1 + round(self.drafting.tokens)

    @property
    def tokens_per_step(self) -> float:
        """Return the mean tokens that a step yields of each decoding sequence."""
        return 1.0 if self.drafting is None else 1 + self.drafting.accepted

    def seconds(
        self,
        *,
        decoding: float,
        kv_tokens: float,
        prefill_tokens: float = 0,
        prefill_pairs: float = 0,
    ) -> float:
        """Return the seconds of a step of `decoding` sequences and chunks of prompts.

        What is not whole is the mean of many steps. `attention_pairs` counts the pairs of a chunk.
        """
        drafting = self.drafting
        tokens = decoding + prefill_tokens
        if drafting is not None:
            tokens += decoding * drafting.tokens
        reading, computing = self.weights, self.token * tokens
        if reading < computing:
            reading, computing = computing, reading
        seconds = (
            reading
            + self.unoverlapped * computing
            + self.kv_token * kv_tokens
            + self.pair * prefill_pairs
            + self.exchange * tokens
            + self.sequence * decoding
            + self.fixed
        )
        if self.window:
            # By the mean length: a sequence below it reads less, so this is never too fast.
            read = min(kv_tokens, self.window * decoding + prefill_tokens)
            pairs = min(prefill_pairs, 2 * self.window * prefill_tokens)
            seconds += self.windowed_token * read + self.windowed_pair * pairs
        if self.experts is not None:
            seconds += self.experts.seconds(tokens, prefill_tokens)
        if drafting is None:
            return seconds
        return seconds + drafting.seconds(
            decoding=decoding,
            kv_tokens=kv_tokens,
            prefill_tokens=prefill_tokens,
            prefill_pairs=prefill_pairs,
        )

    def attention_seconds(self, tokens: float, pairs: float) -> float:
        """Return the seconds in which so many tokens of prompts attend to those before them."""
        return self.pair * pairs + self.windowed_pair * min(pairs, 2 * self.window * tokens)

    def decode_gain(self, sequences: float, kv_tokens: float) -> float:
        """Return how many times as fast so many sequences decode as without drafting."""
        plain = replace(self, drafting=None).seconds(decoding=sequences, kv_tokens=kv_tokens)
        return self.tokens_per_step * plain / self.seconds(decoding=sequences, kv_tokens=kv_tokens)

    def prefill_seconds(self, tokens: int, chunk: int, cached: int = 0) -> float:
        """Return the seconds of reading a prompt alone, in chunks, beyond its `cached` tokens."""
        starts = range(cached, tokens, chunk)
        return sum(self._chunk_seconds(start, min(start + chunk, tokens)) for start in starts)

    def _chunk_seconds(self, start: int, end: int) -> float:
        tokens = end - start
        return self.seconds(
            decoding=0,
            kv_tokens=end,
            prefill_tokens=tokens,
            prefill_pairs=attention_pairs(tokens, start),
        )

    def with_accepted(self, accepted: float) -> "StepTime":
        """Return the step with another mean of accepted drafts; without drafting there is none."""
        if self.drafting is None:
            return self
        return replace(self, drafting=replace(self.drafting, accepted=accepted))

    def scaled(
        self, ratio: float, source: SpeedSource, error: PredictionError | None = None
    ) -> "StepTime":
        """Return a copy whose every step takes `ratio` times as long, with its own error."""
        return replace(self.stretched(ratio, ratio), source=source, error=error)

    def stretched(self, decoding: float, prompts: float) -> "StepTime":
        """Return a copy whose parts of decoding and of prompts take so many times as long."""
        drafting = self.drafting
        if drafting is not None and drafting.step is not None:
            drafting = replace(drafting, step=drafting.step.stretched(decoding, prompts))
        return replace(
            self,
            weights=self.weights * decoding,
            experts=self.experts and self.experts.scaled(decoding, prompts),
            kv_token=self.kv_token * decoding,
            windowed_token=self.windowed_token * decoding,
            sequence=self.sequence * decoding,
            fixed=self.fixed * decoding,
            token=self.token * prompts,
            pair=self.pair * prompts,
            windowed_pair=self.windowed_pair * prompts,
            exchange=self.exchange * prompts,
            drafting=drafting,
        )


def attention_pairs(tokens: int, before: int) -> int:
    """Return the pairs that `StepTime.pair` counts, of a chunk after `before` tokens of its prompt.

    Chunks from the first token to the last have as many together as the prompt: n x n.
    """
    return tokens * (tokens + 2 * before)
