"""What a profile of a replica says: latencies at a load, and the load that keeps an SLO.

Policies that measure or fit such a profile get it from the step time of the simulated engine
itself, which is more than they would know.
"""

from bisect import bisect_left
from functools import partial

from tessera_lab.fleet.observation import ReplicaModel


def step_seconds(
    model: ReplicaModel, *, running: float, kv_tokens: float, chunk: float, prompt: float
) -> float:
    """Return the seconds of a step that reads a chunk of prompts of a mean length."""
    return model.step.seconds(
        decoding=running, kv_tokens=kv_tokens, prefill_tokens=chunk, prefill_pairs=chunk * prompt
    )


def predicted_ttft(
    model: ReplicaModel, *, running: float, kv_tokens: float, queued: float, prompt: float
) -> float:
    """Return the seconds until a prompt behind `queued` tokens is read, in full chunks."""
    step = partial(step_seconds, model, running=running, kv_tokens=kv_tokens, prompt=prompt)
    full, rest = divmod(queued + prompt, model.max_num_batched_tokens)
    return full * step(chunk=model.max_num_batched_tokens) + (step(chunk=rest) if rest else 0.0)


def max_concurrency(
    model: ReplicaModel, prompt: float, output: float, slo: tuple[float, float]
) -> int:
    """Return the most requests at once that keep mean TTFT and ITL; at least 1."""
    context = prompt + output / 2
    batched = model.max_num_batched_tokens
    # Beyond the last, prompts come faster than their share of the steps reads them.
    limits = (model.kv_tokens / context, model.max_num_seqs, output * batched / (prompt + output))
    return 1 + bisect_left(
        range(2, int(min(limits)) + 1),
        True,
        key=lambda running: not _keeps(model, running, prompt, output, slo),
    )


def max_request_rate(
    model: ReplicaModel, prompt: float, output: float, slo: tuple[float, float]
) -> float:
    """Return the requests per second of a replica at `max_concurrency`, by Little's law.

    It is the rate of one request at a time where even that is too slow.
    """
    prompt, output = max(1.0, prompt), max(1.0, output)
    running = max_concurrency(model, prompt, output, slo)
    return running / (output * mixed_step(model, running, prompt, output))


def mixed_step(model: ReplicaModel, running: float, prompt: float, output: float) -> float:
    """Return the seconds of a step of steady load, with its share of new prompts."""
    return step_seconds(
        model,
        running=running,
        kv_tokens=running * (prompt + output / 2),
        chunk=_prefill_share(model, running, prompt, output),
        prompt=prompt,
    )


def _prefill_share(model: ReplicaModel, running: float, prompt: float, output: float) -> float:
    return min(running * prompt / output, model.max_num_batched_tokens)


def _keeps(
    model: ReplicaModel, running: int, prompt: float, output: float, slo: tuple[float, float]
) -> bool:
    ttft, itl = slo
    if mixed_step(model, running, prompt, output) > itl:
        return False
    waiting = predicted_ttft(
        model,
        running=running,
        kv_tokens=running * (prompt + output / 2),
        queued=_prefill_share(model, running, prompt, output),
        prompt=prompt,
    )
    return waiting <= ttft
