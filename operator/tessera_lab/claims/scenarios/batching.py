"""Claims about batching, utilization and latency on the engine machine."""

from tessera_lab.claims.formulas import monthly_requests, usd_per_request
from tessera_lab.claims.scenarios.setups import (
    at_share,
    detail,
    engine,
    hardware,
    play_load,
    prices,
    rate_within,
    throughput_detail,
)
from tessera_lab.claims.verdict import Conditions, ScenarioResult
from tessera_lab.engine.play import PlayedLoad
from tessera_lab.engine.setup import EngineSetup


def _static(conditions: Conditions, condition: str = "baselineBatch") -> EngineSetup:
    return engine(conditions, static_batch=conditions.integer(condition))


def _continuous(conditions: Conditions, condition: str = "maxNumSeqs") -> EngineSetup:
    return engine(conditions, max_num_seqs=conditions.integer(condition))


def _throughputs(before: PlayedLoad, after: PlayedLoad) -> ScenarioResult:
    """Return how many times as many tokens come out, with both rates beside it."""
    ratio = after.output_tokens_per_second / before.output_tokens_per_second
    return ScenarioResult(
        {"throughput": ratio},
        (throughput_detail("baseline", before), throughput_detail("with it", after)),
    )


def more_traffic(conditions: Conditions) -> ScenarioResult:
    """H05: requests per second of which 95 % are complete in time."""
    limit = conditions.number("latencySeconds")

    def rate(setup: EngineSetup) -> float:
        start = play_load(conditions, setup).requests_per_second
        return rate_within(lambda r: play_load(conditions, setup, r).latency(95) <= limit, start)

    before, after = rate(_static(conditions)), rate(_continuous(conditions))
    return ScenarioResult(
        {"traffic": after / before if before else float("inf")},
        (
            detail("baseline", before, "requests/s"),
            detail("with it", after, "requests/s"),
            detail("10,000 a minute", monthly_requests(10_000) / 1e6, "million a month"),
            detail("each at 500,000 USD", usd_per_request(500_000, 10_000), "USD"),
        ),
    )


def over_serial_or_static(conditions: Conditions) -> ScenarioResult:
    """H06, H10: continuous batching over static batches of `baselineBatch`."""
    before, after = _static(conditions), _continuous(conditions)
    return _throughputs(play_load(conditions, before), play_load(conditions, after))


def same_slots(conditions: Conditions) -> ScenarioResult:
    """H07: continuous over static batching with equal slots."""
    before, after = _static(conditions, "slots"), _continuous(conditions, "slots")
    return _throughputs(play_load(conditions, before), play_load(conditions, after))


def in_production(conditions: Conditions) -> ScenarioResult:
    """H08: the same with saving and mean latency under load."""
    before, after = _static(conditions, "slots"), _continuous(conditions, "slots")
    static = play_load(conditions, before)
    result = _throughputs(static, play_load(conditions, after))
    ratio = result.figures["throughput"]
    rate = static.requests_per_second
    latencies = [at_share(conditions, setup, rate).mean_latency for setup in (before, after)]
    figures = {
        "throughput": ratio,
        "saving": 1 - 1 / ratio,
        "latency": latencies[0] / latencies[1],
    }
    means = (detail("static", latencies[0], "s"), detail("continuous", latencies[1], "s"))
    return ScenarioResult(figures, (*result.details, *means))


def slot_occupancy(conditions: Conditions) -> ScenarioResult:
    """H11: share of the slots' steps that give a token."""
    occupancy = {}
    for name, setup in (
        ("static", _static(conditions, "slots")),
        ("continuous", _continuous(conditions, "slots")),
    ):
        rate = play_load(conditions, setup).requests_per_second
        occupancy[name] = at_share(conditions, setup, rate).slot_occupancy
    return ScenarioResult(occupancy)


def operations_used(conditions: Conditions) -> ScenarioResult:
    """H12: model FLOPs utilization of static batches and of a full engine."""
    static = play_load(conditions, _static(conditions))
    tuned = play_load(conditions, _continuous(conditions))
    return ScenarioResult(
        {"static": static.mfu, "tuned": tuned.mfu},
        (throughput_detail("static", static), throughput_detail("tuned", tuned)),
    )


def cost_by_use(conditions: Conditions) -> ScenarioResult:
    """H13: cost per token of a paid replica at low and at high load."""
    setup, hourly = _continuous(conditions), prices(conditions).on_demand
    rate = play_load(conditions, setup).requests_per_second
    low, high = (
        play_load(conditions, setup, rate * conditions.number(share))
        for share in ("lowShare", "highShare")
    )
    costs = [played.usd_per_million(hourly) for played in (low, high)]
    return ScenarioResult(
        {"cost": costs[0] / costs[1]},
        (
            *(detail(*both, "USD/M") for both in zip(("low", "high"), costs, strict=True)),
            detail("P95 TPOT low", 1e3 * (low.tpot(95) or 0.0), "ms"),
            detail("P95 TPOT high", 1e3 * (high.tpot(95) or 0.0), "ms"),
        ),
    )


def streamed_first_token(conditions: Conditions) -> ScenarioResult:
    """H38: the first token's share of the latency."""
    setup = _continuous(conditions)
    played = at_share(conditions, setup, play_load(conditions, setup).requests_per_second)
    ttft = _mean_ttft(played)
    return ScenarioResult(
        {"reduction": 1 - ttft / played.mean_latency},
        (detail("mean TTFT", ttft, "s"), detail("mean latency", played.mean_latency, "s")),
    )


def first_token_delay(conditions: Conditions) -> ScenarioResult:
    """H43: what other requests add to the first token."""
    setup = _continuous(conditions)
    rate = play_load(conditions, setup).requests_per_second
    busy = _mean_ttft(at_share(conditions, setup, rate))
    alone = _mean_ttft(play_load(conditions, setup, 1e-3))
    return ScenarioResult(
        {"delay": busy - alone},
        (detail("mean TTFT", busy, "s"), detail("alone", alone, "s")),
    )


def right_size_first(conditions: Conditions) -> ScenarioResult:
    """H44: a smaller GPU with continuous batching against a larger one with static batches."""
    large = hardware(conditions, "baselineGpu")
    static = engine(conditions, device=large, static_batch=conditions.integer("baselineBatch"))
    before = play_load(conditions, static)
    after = play_load(conditions, _continuous(conditions))
    costs = (
        before.usd_per_million(prices(conditions, "baselineGpu").on_demand),
        after.usd_per_million(prices(conditions).on_demand),
    )
    both = zip(("before", "after"), costs, strict=True)
    details = tuple(detail(name, cost, "USD/M") for name, cost in both)
    return ScenarioResult({"saving": 1 - costs[1] / costs[0]}, details)


def _mean_ttft(played: PlayedLoad) -> float:
    return sum(request.ttft_seconds or 0.0 for request in played.served) / len(played.served)
