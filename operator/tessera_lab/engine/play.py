"""A load on one engine in simulated time, and the highest rate that keeps the objectives."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tessera.api.text import counted
from tessera.domain.hardware.power import replica_power
from tessera.domain.perf import footprint
from tessera.domain.perf.roofline import peak_flops
from tessera.domain.perf.utilization import mfu
from tessera_lab.engine.core import EngineCore
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.engine.setup import BLOCK_TOKENS, EngineSetup, EngineSetupError, KvCache
from tessera_lab.engine.static_batch import StaticBatchEngine
from tessera_lab.engine.timeline import ServedRequest, Timeline
from tessera_lab.engine.waste import block_token_steps, cached_token_steps, slot_waste
from tessera_lab.load.distribution import nearest_rank

Objective = Literal["TTFT", "TPOT"]
# Seconds; the load that shows whether a queue grows is as long as 20 of them.
MAX_OBJECTIVE = 60.0
_HOUR = 3600.0
# Where the search for the highest rate begins, in units of the throughput of all at once.
_LOWEST = 1e-4
# A trial of a rate lasts at least so many times the latency, in which the running requests add up,
# and the TTFT objective, in which a queue does. Its first part does not count.
_LATENCIES, _OBJECTIVES, _SETTLING_SHARE = 8.0, 20.0, 0.25


class TimedRequest(NamedTuple):
    """A request and its arrival in seconds."""

    at: float
    request: EngineRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedLoad:
    """What an engine did with a load; percentiles are by nearest rank, such as `ttft(95)`."""

    setup: EngineSetup
    served: tuple[ServedRequest, ...]
    """In the order of their ends; at least one."""
    rejected: int
    """Requests that are longer than `max_model_len`."""
    started_at: float
    """Moment of the first arrival."""
    busy_seconds: float
    steps: int
    slot_steps: int
    """Requests that a step worked on, summed over the steps."""
    kv_waste: float | None
    """Share of the reserved KV cache without a token of an unfinished request, over the steps of
    the outputs and as if nothing were shared; None without a KV cache."""
    idle_slot_steps: int = 0
    """Slot steps of complete requests that waited for the longest of their static batch."""
    padded_tokens: int = 0
    """Prompt tokens that static batches computed as padding."""

    @property
    def seconds(self) -> float:
        """Return the time from the first arrival to the last end."""
        return self.served[-1].ended_at - self.started_at

    @property
    def output_tokens(self) -> int:
        return sum(request.output_tokens for request in self.served)

    @property
    def input_tokens(self) -> int:
        return sum(request.request.prompt_tokens for request in self.served)

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    @property
    def input_tokens_per_second(self) -> float:
        return self.input_tokens / self.seconds

    @property
    def requests_per_second(self) -> float:
        return len(self.served) / self.seconds

    @property
    def slot_occupancy(self) -> float:
        """Return the share of the slots that worked on a request, over all steps."""
        return self.slot_steps / (self.steps * self.setup.slots)

    @property
    def mfu(self) -> float:
        """Return the share of the peak operations that useful tokens took while it was busy.

        Padding, rejected drafts, cached tokens and what was computed twice do not count.
        """
        shape, hardware = self.setup.shape, self.setup.hardware
        tokens = pairs = 0
        for request in self.served:
            last = request.request.prompt_tokens + request.output_tokens - 1
            tokens += last - request.cached_tokens
            pairs += last**2 - request.cached_tokens**2
        width = shape.attention_heads * shape.head_dim
        flops = 2 * footprint.active_parameters(shape) * tokens + 2 * shape.layers * width * pairs
        peak = peak_flops(shape, self.setup.precision, hardware) * hardware.devices
        return mfu(flops / self.busy_seconds, peak)

    @property
    def cached_share(self) -> float:
        """Return the share of the prompts' tokens that the prefix cache had."""
        return sum(request.cached_tokens for request in self.served) / self.input_tokens

    @property
    def preemptions(self) -> int:
        return sum(request.preemptions for request in self.served)

    @property
    def mean_latency(self) -> float:
        return sum(_latency(request) for request in self.served) / len(self.served)

    def ttft(self, percent: int) -> float:
        """Return seconds from the arrival to the first token."""
        return _ttft(self.served, percent)

    def tpot(self, percent: int) -> float | None:
        """Return seconds from token to token; None where no output has two."""
        return _tpot(self.served, percent)

    def latency(self, percent: int) -> float:
        """Return seconds from the arrival to the end."""
        return _percentile([_latency(request) for request in self.served], percent)

    @property
    def joules_per_token(self) -> float | None:
        """Return the energy of an output token; None where the watts of the GPU are not known.

        The replica's share of its GPUs draws its idle watts all the time, and the rest while the
        engine steps.
        """
        watts = replica_power(self.setup.hardware)
        if watts is None:
            return None
        busy = (watts.max_watts - watts.idle_watts) * self.busy_seconds
        return (watts.idle_watts * self.seconds + busy) / self.output_tokens

    def usd_per_million(self, hourly: float) -> float:
        """Return the price of a million output tokens; `hourly` is of the whole replica."""
        return usd_per_million(hourly, self.output_tokens_per_second)


def usd_per_million(hourly: float, tokens_per_second: float) -> float:
    """Return the price of a million tokens at a steady rate."""
    return hourly / (tokens_per_second * _HOUR) * 1e6


def play(setup: EngineSetup, requests: Iterable[TimedRequest]) -> PlayedLoad:
    """Serve a load, which is in the order of arrival, to its end.

    Equal input gives equal output. Raises EngineSetupError where no request fits `max_model_len`.
    """
    load = list(requests)
    if setup.static_batch is not None:
        return _play_static(setup, setup.static_batch, load)
    timeline = Timeline(EngineCore(setup.limits, setup.step_time, setup.speculation))
    served = _serve(timeline, load, setup.max_model_len)
    counts = timeline.engine.counts
    return PlayedLoad(
        setup=setup,
        served=served,
        rejected=len(load) - len(served),
        started_at=load[0].at,
        busy_seconds=timeline.busy_seconds,
        steps=counts.steps,
        slot_steps=counts.slot_steps,
        kv_waste=_continuous_kv_waste(setup, served),
    )


def _play_static(setup: EngineSetup, size: int, load: Sequence[TimedRequest]) -> PlayedLoad:
    recompute = setup.kv_cache is KvCache.NONE
    engine = StaticBatchEngine(
        size,
        setup.step_time,
        max_model_len=setup.max_model_len,
        kv_tokens=math.inf if recompute else setup.memory.kv_tokens,
        slot_tokens=setup.max_model_len if setup.kv_cache is KvCache.CONTIGUOUS else None,
        recompute=recompute,
    )
    served = _serve(engine, load, setup.max_model_len)
    return PlayedLoad(
        setup=setup,
        served=served,
        rejected=len(load) - len(served),
        started_at=load[0].at,
        busy_seconds=engine.busy_seconds,
        steps=engine.steps,
        slot_steps=engine.slot_steps - engine.idle_slot_steps,
        kv_waste=None
        if recompute
        else slot_waste(engine.cached_token_steps, engine.reserved_token_steps),
        idle_slot_steps=engine.idle_slot_steps,
        padded_tokens=engine.padded_tokens,
    )


def _serve(
    engine: Timeline | StaticBatchEngine, load: Sequence[TimedRequest], max_model_len: int
) -> tuple[ServedRequest, ...]:
    served: list[ServedRequest] = []
    for at, request in load:
        served += engine.advance(at)
        engine.submit(request, at)
    served += engine.advance(math.inf)
    if not served:
        raise EngineSetupError(
            f"none of {counted(len(load), 'request')} fits max_model_len {max_model_len}: raise it"
        )
    return tuple(served)


def _continuous_kv_waste(setup: EngineSetup, served: Iterable[ServedRequest]) -> float:
    lengths = [(each.request.prompt_tokens, each.output_tokens) for each in served]
    if setup.kv_cache is KvCache.CONTIGUOUS:
        reserved = sum(output * setup.max_model_len for _, output in lengths)
    else:
        reserved = sum(block_token_steps(*both, BLOCK_TOKENS) for both in lengths)
    return slot_waste(sum(cached_token_steps(*both) for both in lengths), reserved)


def _latency(request: ServedRequest) -> float:
    return request.ended_at - request.arrived_at


def _ttft(served: Iterable[ServedRequest], percent: int) -> float:
    return _percentile([request.ttft_seconds or 0.0 for request in served], percent)


def _tpot(served: Iterable[ServedRequest], percent: int) -> float | None:
    spans = [span for request in served if (span := request.tpot_seconds) is not None]
    return _percentile(spans, percent) if spans else None


def _percentile(values: list[float], percent: int) -> float:
    return nearest_rank(sorted(values), percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The highest rate of a load at which an engine keeps its objectives for good."""

    rate: float
    """Requests per second; 0 where even rare requests miss an objective."""
    played: PlayedLoad
    """The load at this rate, from an idle engine on; of rare requests where it is 0."""
    limited_by: Objective
    """The objective that a higher rate misses."""

    @property
    def output_tokens_per_second(self) -> float:
        """Return the tokens at this rate, without the begin and the end of the played load."""
        requests = len(self.played.served) + self.played.rejected
        return self.rate * self.played.output_tokens / requests


def highest_rate(
    setup: EngineSetup,
    draw: Callable[[float], Sequence[TimedRequest]],
    ttft: float,
    itl: float,
    *,
    percent: int = 95,
    precision: float = 0.02,
) -> Capacity:
    """Return the highest rate at which percentiles of TTFT and TPOT keep objectives in seconds.

    `draw` returns the same requests at any rate per second, which are repeated until the engine is
    as full as it will ever be. Raises ValueError for objectives above `MAX_OBJECTIVE`.
    """
    if not (0 < ttft <= MAX_OBJECTIVE and 0 < itl <= MAX_OBJECTIVE):
        raise ValueError(f"objectives of {ttft:g} and {itl:g} s: write up to {MAX_OBJECTIVE:g} s")
    trial = _RateTrial(setup=setup, draw=draw, ttft=ttft, itl=itl, percent=percent)
    at_once = [TimedRequest(0.0, request) for _, request in draw(1.0)]
    rate = play(setup, at_once).requests_per_second
    low, high = _LOWEST * rate, math.inf
    best, missed = trial.run(low)
    if missed is not None:
        return Capacity(rate=0.0, played=best, limited_by=missed)
    while missed is None or high > low * (1 + precision):
        played, objective = trial.run(rate)
        if objective is None:
            low, best = rate, played
        else:
            high, missed = rate, objective
        # By the geometric mean, so that low rates are as precise as high ones.
        rate = 2 * low if high == math.inf else math.sqrt(low * high)
    return Capacity(rate=low, played=best, limited_by=missed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RateTrial:
    """Plays of a load at given rates, and whether they keep the objectives."""

    setup: EngineSetup
    draw: Callable[[float], Sequence[TimedRequest]]
    ttft: float
    itl: float
    percent: int

    def run(self, rate: float) -> tuple[PlayedLoad, Objective | None]:
        load = self.draw(rate)
        played = play(self.setup, load)
        # What a short load misses, a long one misses as well.
        missed = self._missed(played.served)
        if missed is not None:
            return played, missed
        period = len(load) / rate
        needed = max(_LATENCIES * played.latency(self.percent), _OBJECTIVES * self.ttft)
        rounds = math.ceil(needed / period)
        if rounds > 1:
            played = play(self.setup, _repeated(load, period, rounds))
        settled = played.started_at + _SETTLING_SHARE * rounds * period
        return played, self._missed(
            [request for request in played.served if request.arrived_at >= settled]
        )

    def _missed(self, served: Sequence[ServedRequest]) -> Objective | None:
        if not served:
            return None
        if _ttft(served, self.percent) > self.ttft:
            return "TTFT"
        return "TPOT" if (_tpot(served, self.percent) or 0.0) > self.itl else None


def _repeated(load: Sequence[TimedRequest], period: float, rounds: int) -> list[TimedRequest]:
    """Return the load again and again, in the order of arrival."""
    shifted = [(at + number * period, request) for number in range(rounds) for at, request in load]
    shifted.sort(key=lambda row: row[0])
    return [
        TimedRequest(at, replace(request, id=number))
        for number, (at, request) in enumerate(shifted)
    ]
