"""Predicted seconds: until the first token of a request, and of the work that it is."""

from dataclasses import dataclass, replace

from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.perf.step import StepTime, attention_pairs
from tessera.domain.picking.replica_state import ReplicaState

# vLLM's defaults for an API server on most GPUs.
DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_BATCHED_TOKENS = 2048

# An adapter of rank 16 for a model of 8 billion weights has 42 million weights of 2 bytes; a local
# disk reads these 84 MB with 1 GB/s, and PCIe 4.0 copies them to the GPU in 4 ms.
ADAPTER_LOAD_SECONDS = 0.1

_MEANS_WEIGHT = 1 / 32
# One answer, whose engine may count what it likes, moves a mean by a tenth at most.
_MAX_OF_MEAN = 4.0
# Of a prompt: dense code has 3 bytes a token, and long words of few languages have 8.
MOST_TOKENS_PER_BYTE = 1 / 3
_LEAST_TOKENS_PER_BYTE = 1 / 8

# What may wait in an engine, relative to the sequences that it runs at once.
_EXCESS = 0.05
# Of its sequences: without it, those that yield let others wait where these need nearly all.
_KEPT_FREE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMeans:
    """Mean sizes of a model's recent requests, for those that the gateway knows the number of."""

    prompt_tokens: float = 512.0
    output_tokens: float = 128.0
    """0 of a pooling model, and stays so."""
    tokens_per_byte: float = MOST_TOKENS_PER_BYTE
    """Of prompts in the text of their requests."""
    going_on: float = 0.5
    """Share of requests from which another one goes on, 0 to 1; only several gateways count it."""

    def gone_on(self, goes_on: bool) -> "RequestMeans":
        """Return the means with one more request, which goes on from another one or does not."""
        share = self.going_on + (goes_on - self.going_on) * _MEANS_WEIGHT
        return replace(self, going_on=share)

    def after(
        self, prompt_tokens: int, output_tokens: int, prompt_bytes: int | None = None
    ) -> "RequestMeans":
        """Return the means with one more request, which weighs 1/32.

        Of each size it counts as four means at most. `prompt_bytes` is None where a prompt is not
        text alone.
        """
        per_byte = self.tokens_per_byte
        if prompt_bytes:
            sample = max(_LEAST_TOKENS_PER_BYTE, prompt_tokens / prompt_bytes)
            per_byte += (min(sample, MOST_TOKENS_PER_BYTE) - per_byte) * _MEANS_WEIGHT
        return RequestMeans(
            prompt_tokens=_moved(self.prompt_tokens, prompt_tokens),
            output_tokens=self.output_tokens and _moved(self.output_tokens, output_tokens),
            tokens_per_byte=per_byte,
            going_on=self.going_on,
        )

    @property
    def resident_tokens(self) -> float:
        """Return the cached tokens of a mean request half way through its answer."""
        return self.prompt_tokens + self.output_tokens / 2


def predicted_ttft(
    state: ReplicaState,
    step: StepTime,
    request: RequestShape,
    means: RequestMeans,
    now: float,
    cached_tokens: int = 0,
) -> float:
    """Return the seconds until the first token, if the request were sent now.

    First the prompts before it and then its own are read, in chunks beside the running sequences.
    Without room for another sequence, as many must end as are too many, one after the other at the
    pace of a full engine. The step under way ends before: half a step on average.
    """
    running, queued = state.load(now)
    queued_tokens = state.prefill_tokens + (queued - state.awaiting) * means.prompt_tokens
    kv_tokens = int(running * means.resident_tokens)
    own_tokens = max(1, request.input_tokens - cached_tokens)
    tokens = own_tokens + int(queued_tokens)
    step_tokens = state.replica.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    chunk = max(1, step_tokens - running * step.decode_tokens)

    seconds = step.attention_seconds(own_tokens, attention_pairs(own_tokens, cached_tokens))
    chunks, rest = divmod(tokens, chunk)
    last_step = step.seconds(decoding=running, kv_tokens=kv_tokens, prefill_tokens=rest)
    step_under_way = last_step
    if rest:
        seconds += last_step
    if chunks:
        full_step = step.seconds(decoding=running, kv_tokens=kv_tokens, prefill_tokens=chunk)
        seconds += chunks * full_step
        if queued:
            step_under_way = full_step
    excess = running + queued + 1 - state.max_sequences
    if excess > 0:
        decode_step = step.seconds(decoding=running, kv_tokens=kv_tokens)
        steps = means.output_tokens / step.tokens_per_step
        seconds_per_end = steps * decode_step / state.max_sequences
        seconds = max(seconds, excess * seconds_per_end + seconds * own_tokens / tokens)
    if running or queued:
        seconds += step_under_way / 2
    if queued:
        seconds += step.attention_seconds(queued_tokens, queued_tokens * queued_tokens / queued)
    if request.adapter is not None and not state.has_adapter(request.adapter):
        seconds += ADAPTER_LOAD_SECONDS
    return seconds


def delay_seconds(
    state: ReplicaState,
    step: StepTime,
    request: RequestShape,
    means: RequestMeans,
    now: float,
    cached_tokens: int,
) -> float:
    """Return by how much all requests on a replica take longer, if the request were sent now.

    They wait while its prompt is read, and each step of its answer is longer for all, itself
    included. The answer has the mean length, at most the request's own maximum.
    """
    running, queued = state.load(now)
    requests, resident = running + queued, means.resident_tokens
    own_tokens = max(1, request.input_tokens - cached_tokens)
    output_tokens = min(means.output_tokens, request.max_output_tokens)
    without = step.seconds(decoding=requests, kv_tokens=int(requests * resident))
    with_it = step.seconds(decoding=requests + 1, kv_tokens=int((requests + 1) * resident))
    longer = (requests + 1) * with_it - requests * without
    reading = requests * own_tokens * token_seconds(state.replica, step)
    return reading + output_tokens / step.tokens_per_step * longer


def seconds_per_token(state: ReplicaState, means: RequestMeans, now: float) -> float | None:
    """Return the seconds of a token while a replica decodes all that it has; None if not known."""
    step = state.replica.step_time
    if step is None:
        return None
    sequences = max(1, min(sum(state.load(now)), state.max_sequences))
    seconds = step.seconds(decoding=sequences, kv_tokens=int(sequences * means.resident_tokens))
    return seconds / step.tokens_per_step


def has_room(state: ReplicaState, means: RequestMeans, now: float) -> bool:
    """Return whether a replica would start one more request soon.

    Others wait in the gateway's queue, since that of an engine is not fair. Just enough waits in
    the engine to keep it busy: two steps of prompts, or two prompts where these are longer, and 5 %
    of its sequences. Room that other gateways and direct clients use does not count. Where direct
    clients wait in the engine, half of it is the gateway's.
    """
    step_tokens = state.replica.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    prompt_room = 2 * max(step_tokens, means.prompt_tokens)
    _, queued = state.load(now)
    foreign_queued = queued - state.awaiting
    prompts = prompt_room - foreign_queued * means.prompt_tokens
    if _is_crowded(state, foreign_queued):
        prompts = max(prompts, prompt_room / 2)
    return state.prefill_tokens < prompts and has_sequence_room(state, now)


def has_sequence_room(state: ReplicaState, now: float) -> bool:
    """Return whether a replica takes one more sequence, however many prompts it reads before."""
    running, queued = state.load(now)
    foreign = running + queued - state.requests
    sequence_room = max((1 + _EXCESS) * state.max_sequences, state.max_sequences + 1)
    room = sequence_room - foreign
    if _is_crowded(state, queued - state.awaiting):
        room = max(room, sequence_room / 2)
    return state.requests < room


def _is_crowded(state: ReplicaState, foreign_queued: int) -> bool:
    """Return whether direct clients wait in an engine: no gateway lets so much wait there."""
    return foreign_queued > 2 * _EXCESS * state.max_sequences + 1


def has_spare_room(state: ReplicaState, now: float) -> bool:
    """Return whether a replica has room for a request that yields, and then still for others.

    Unless its KV cache is full, an engine takes no sequence away and reads a prompt to its end,
    whatever comes: its priorities order what waits. So those that yield take at most half of the
    sequences that others leave, and none of the last quarter; and their prompts are read one at a
    time, while no other is. An idle replica has room for one at least.
    """
    running, queued = state.load(now)
    others = running + queued - state.yielding
    sequences = min(state.max_sequences, DEFAULT_MAX_NUM_SEQS)
    most = min((sequences - others) / 2, (1 - _KEPT_FREE) * sequences - others)
    if state.replica.step_time is not None:
        # When these are read is known: `read_until`.
        queued -= state.awaiting
    return not queued and now >= state.read_until and state.yielding < most


def read_until(state: ReplicaState, tokens: int, cached_tokens: int, now: float) -> float:
    """Return until when a replica reads its prompts, with one more that is sent now.

    It reads one after the other, each as `read_seconds` says.
    """
    return max(now, state.read_until) + read_seconds(state.replica, tokens, cached_tokens)


def still_reads_until(state: ReplicaState, now: float) -> float:
    """Return until when a replica reads its prompts, after a request ended or got its first token.

    Prompts of clients that left, and those that were shorter than predicted, are read no more.
    """
    return min(state.read_until, now + read_seconds(state.replica, state.prefill_tokens))


def read_seconds(replica: EngineReplica, tokens: int, cached_tokens: int = 0) -> float:
    """Return the seconds of reading so many tokens of a prompt alone; 0 for an unknown speed."""
    step = replica.step_time
    if step is None:
        return 0.0
    chunk = replica.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    chunks, rest = divmod(tokens, chunk)
    seconds = step.attention_seconds(tokens, attention_pairs(tokens, cached_tokens))
    if chunks:
        seconds += chunks * step.seconds(decoding=0, kv_tokens=0, prefill_tokens=chunk)
    if rest:
        seconds += step.seconds(decoding=0, kv_tokens=0, prefill_tokens=rest)
    return seconds


def is_late_alone(
    replica: EngineReplica, tokens: int, cached_tokens: int, objective_seconds: float
) -> bool:
    """Return whether an engine that reads no other prompt reads this one for too long.

    The step under way when it comes counts as a full one, as in what replicas are promised to
    carry. False for an unknown speed.
    """
    step = replica.step_time
    if step is None:
        return False
    chunk = replica.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    seconds = read_seconds(replica, tokens, cached_tokens)
    return seconds + chunk * token_seconds(replica, step) > objective_seconds


def work_seconds(replica: EngineReplica, request: RequestShape, means: RequestMeans) -> float:
    """Return the seconds of a busy replica that a request takes: its share of each step.

    The answer has the mean length, at most the request's own maximum. With an unknown speed, every
    token counts 1 ms: queues compare requests of one model only.
    """
    output_tokens = min(means.output_tokens, request.max_output_tokens)
    step = replica.step_time
    if step is None:
        return (request.input_tokens + output_tokens) * 1e-3
    sequences = replica.max_num_seqs or 1
    decode_step = step.seconds(decoding=sequences, kv_tokens=int(sequences * means.resident_tokens))
    steps = output_tokens / step.tokens_per_step
    return request.input_tokens * token_seconds(replica, step) + steps * decode_step / sequences


def token_seconds(replica: EngineReplica, step: StepTime) -> float:
    """Return the seconds of a token of a prompt in a step that reads nothing else."""
    chunk = replica.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    return step.seconds(decoding=0, kv_tokens=0, prefill_tokens=chunk) / chunk


def _moved(mean: float, tokens: int) -> float:
    return max(1.0, mean + (min(tokens, _MAX_OF_MEAN * mean) - mean) * _MEANS_WEIGHT)
