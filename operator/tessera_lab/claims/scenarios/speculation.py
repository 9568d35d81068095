"""Claims about speculative decoding on the engine machine."""

from tessera_lab.claims.formulas import reduction
from tessera_lab.claims.scenarios.setups import (
    detail,
    drafting,
    engine,
    fixed_mix,
    hardware,
    play_load,
    shape,
)
from tessera_lab.claims.verdict import Conditions, ScenarioResult
from tessera_lab.engine.play import play
from tessera_lab.engine.speculation import Speculation


def _gain(conditions: Conditions, streams: int, speculation: Speculation) -> float:
    """Return how many times as many tokens so many requests at once get with a draft model."""
    load = fixed_mix(conditions.integer("promptTokens"), conditions.integer("outputTokens"))
    requests = load.draw(streams)
    plain = engine(conditions, max_num_seqs=streams)
    drafted = engine(
        conditions,
        max_num_seqs=streams,
        speculation=speculation,
        draft=shape(conditions, "draft"),
    )
    return play(plain, requests).seconds / play(drafted, requests).seconds


def by_temperature(conditions: Conditions) -> ScenarioResult:
    """H23: the gain at three temperatures."""
    cost = _with_acceptance(conditions, 0.0)
    figures, details = {}, []
    for name, temperature in (
        ("greedy", "greedyTemperature"),
        ("temperature 0.3-0.7", "middleTemperature"),
        ("temperature 0.8-1.0", "highTemperature"),
    ):
        speculation = Speculation.at_temperature(
            conditions.number(temperature),
            draft_tokens=cost.draft_tokens,
            draft_cost=cost.draft_cost,
        )
        figures[name] = _gain(conditions, conditions.integer("streams"), speculation)
        details.append(detail(f"acceptance {name}", speculation.acceptance, "share"))
    return ScenarioResult(figures, (*details, detail("draft cost", cost.draft_cost, "share")))


def without_gain(conditions: Conditions) -> ScenarioResult:
    """H24: the gain at a low acceptance, and with many sequences."""
    low = _with_acceptance(conditions, conditions.number("lowAcceptance"))
    high = _with_acceptance(conditions, conditions.number("highAcceptance"))
    return ScenarioResult(
        {
            "low acceptance": _gain(conditions, conditions.integer("fewStreams"), low),
            "many sequences": _gain(conditions, conditions.integer("manyStreams"), high),
        },
        (detail("by the formula at low acceptance", low.speedup, "x"),),
    )


def _with_acceptance(conditions: Conditions, acceptance: float) -> Speculation:
    return drafting(conditions, hardware(conditions), None, acceptance)


def copilot(conditions: Conditions) -> ScenarioResult:
    """H39: first tokens of a small model, and complete responses of both."""
    rate, seats = conditions.number("rate"), conditions.integer("maxNumSeqs")
    large = play_load(conditions, engine(conditions, max_num_seqs=seats), rate)
    # N-grams of the prompt draft without a model.
    ngrams = Speculation(
        acceptance=conditions.number("acceptance"),
        draft_tokens=conditions.integer("draftTokens"),
        draft_cost=conditions.number("draftCost"),
    )
    small = play_load(
        conditions,
        engine(
            conditions,
            model=shape(conditions, "smallModel"),
            device=hardware(conditions, count=1),
            max_num_seqs=seats,
            speculation=ngrams,
        ),
        rate,
    )
    return ScenarioResult(
        {"ttft": small.ttft(95), "reduction": reduction(large.latency(95), small.latency(95))},
        (
            detail("P95 latency of the large model", large.latency(95), "s"),
            detail("P95 latency of the small model", small.latency(95), "s"),
            detail("P95 TTFT of the large model", large.ttft(95), "s"),
            detail("2.8 s to 0.38 s", reduction(2.8, 0.38), "share"),
        ),
    )
