"""The least seconds of an engine that a request takes, as parts of the steps that serve it."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.perf.experts import ExpertsTime
from tessera.domain.perf.step import attention_pairs
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.trace import Trace


class StepUse(NamedTuple):
    """What requests take of the steps that serve them, summed over these steps."""

    tokens: int = 0
    """Tokens computed, of prompts and one for each decoded token."""
    sequences: int = 0
    """Places among the running sequences."""
    decoding: int = 0
    """Those of them that decode."""
    kv_tokens: int = 0
    pairs: int = 0


class RequestUse(NamedTuple):
    """What one request takes, until its first token and afterwards."""

    prompt: StepUse
    decode: StepUse


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPrices:
    """Seconds of a step for each thing that it does; a step takes at least the sum of them.

    The part of a step that does not depend on what it does is spread over the tokens, sequences or
    cached tokens that it could have at most. The proof is in docs/bound.md.
    """

    token: float
    sequence: float
    decoding: float
    kv_token: float
    pair: float

    def seconds(self, use: StepUse) -> float:
        return (
            self.token * use.tokens
            + self.sequence * use.sequences
            + self.decoding * use.decoding
            + self.kv_token * use.kv_tokens
            + self.pair * use.pairs
        )


def request_use(
    input_tokens: int, output_tokens: int, step_tokens: int, cached: int = 0
) -> RequestUse:
    """Return the least that a request takes of steps of at most `step_tokens` tokens."""
    tokens = input_tokens - cached
    chunks = -(-tokens // step_tokens)
    # Each chunk reads the cache up to its end; the ends are lowest if the first chunk is short.
    read = chunks * input_tokens - step_tokens * chunks * (chunks - 1) // 2
    prompt = StepUse(tokens, chunks, 0, read, attention_pairs(tokens, cached))
    steps = output_tokens - 1
    context = steps * input_tokens + steps * (steps + 1) // 2
    return RequestUse(prompt, StepUse(steps, steps, steps, context, 0))


def step_prices(replica: ReplicaModel, *, shared_prefixes: bool = False) -> list[StepPrices]:
    """Return prices of which each is a lower bound of every step of the replica.

    What layers with a window read and attend to is left out: it is not a sum over requests.
    """
    step = replica.step
    tokens = replica.max_num_batched_tokens
    prices = []
    for hidden in (True, False):
        weight = step.unoverlapped if hidden else 1.0
        rest = 1 + step.unoverlapped - weight
        first_expert, expert_token = _expert_prices(step.experts, tokens, hidden=hidden)
        every = rest * step.weights + first_expert + step.fixed
        for by_token, by_sequence, by_kv_token in _spreads(replica, shared_prefixes):
            token = weight * step.token + expert_token + step.exchange + every * by_token
            prices.append(
                StepPrices(
                    token=token,
                    sequence=every * by_sequence,
                    # A preempted request computes its input again and decodes one token less, which
                    # must not be dearer.
                    decoding=min(step.sequence, token),
                    kv_token=step.kv_token + every * by_kv_token,
                    pair=step.pair,
                )
            )
    return prices


def _expert_prices(
    experts: ExpertsTime | None, tokens: int, *, hidden: bool
) -> tuple[float, float]:
    """Return the least seconds of the experts for each step and for each of its tokens."""
    if experts is None:
        return 0.0, 0.0
    weight = experts.unoverlapped if hidden else 1.0
    rest = 1 + experts.unoverlapped - weight
    # Tokens read further experts, at least along the chord of the concave share that they read.
    first = experts.read * (1 - experts.unread_share)
    further = 0.0
    if tokens > 1:
        whole = experts.read * (1 - experts.unread_share**tokens)
        further = min((whole - first) / (tokens - 1), first)
    return rest * (first - further), rest * further + weight * experts.token


def _spreads(replica: ReplicaModel, shared_prefixes: bool) -> Iterator[tuple[float, float, float]]:
    yield 1 / replica.max_num_batched_tokens, 0.0, 0.0
    yield 0.0, 1 / replica.max_num_seqs, 0.0
    # A shared prefix is read by each of its requests but stored once.
    if not shared_prefixes:
        yield 0.0, 0.0, 1 / replica.kv_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceWork:
    """The least engine seconds of each request of a trace."""

    prompt: "array[float]"
    """Up to the first token."""
    decode: "array[float]"
    """After it."""

    @property
    def total(self) -> float:
        return sum(self.prompt) + sum(self.decode)


def trace_work(trace: Trace, replica: ReplicaModel) -> TraceWork:
    """Return the least work of each request, by the prices that make the sum greatest.

    Requests beyond `max_model_len` are rejected and take none. What prompts share is computed once,
    as if every replica had it.
    """
    uses = list(_uses(trace, replica))
    total = StepUse(*map(sum, zip(StepUse(), *(part for use in uses for part in use), strict=True)))
    options = step_prices(replica, shared_prefixes=trace.prefixes is not None)
    prices = max(options, key=lambda prices: prices.seconds(total))
    return TraceWork(
        prompt=array("d", (prices.seconds(use.prompt) for use in uses)),
        decode=array("d", (prices.seconds(use.decode) for use in uses)),
    )


def _uses(trace: Trace, replica: ReplicaModel) -> Iterator[RequestUse]:
    nothing = RequestUse(StepUse(), StepUse())
    names = set[int]()
    prefixes: Sequence[tuple[int, ...]] = trace.prefixes or ((),) * len(trace)
    # Which request computes a shared prefix is open, so only what does not depend on it counts: a
    # request has at least one chunk, of which its last token is.
    step_tokens = replica.max_model_len if trace.prefixes else replica.max_num_batched_tokens
    for input_tokens, output_tokens, prefix in zip(
        trace.input_tokens, trace.output_tokens, prefixes, strict=True
    ):
        if input_tokens + output_tokens > replica.max_model_len:
            yield nothing
            continue
        known = next((at for at, name in enumerate(prefix) if name not in names), len(prefix))
        names.update(prefix)
        # The last token of a prompt is always computed.
        cached = min(known * trace.prefix_tokens, input_tokens - 1)
        yield request_use(input_tokens, output_tokens, step_tokens, cached)
