"""Claims about prefix and response caches."""

import random

from tessera_lab.claims.formulas import reduction
from tessera_lab.claims.scenarios.setups import detail, draw, engine, fixed_mix, mix, play_load
from tessera_lab.claims.verdict import Conditions, ScenarioResult
from tessera_lab.engine.play import play

_HOURS_PER_DAY = 24


def prefix_and_responses(conditions: Conditions) -> ScenarioResult:
    """H28: what both caches save of the GPU's time."""
    prefix = conditions.integer("prefixTokens")
    own = conditions.integer("promptTokens") - prefix
    load = fixed_mix(own, conditions.integer("outputTokens"), prefix)
    seats = conditions.integer("maxNumSeqs")
    plain = engine(conditions, max_num_seqs=seats)
    cached = engine(conditions, max_num_seqs=seats, prefix_cache=True)
    requests = draw(conditions, load)
    asked = round(len(requests) * (1 - conditions.number("repeatShare")))
    before = play_load(conditions, plain, load=load).busy_seconds
    prefix_only = play_load(conditions, cached, load=load).busy_seconds
    after = play(cached, requests[:asked]).busy_seconds
    return ScenarioResult(
        {"saving": reduction(before, after)},
        (
            detail("prefix cache alone", reduction(before, prefix_only), "share"),
            detail("response cache alone", conditions.number("repeatShare"), "share"),
        ),
    )


def shared_prefix(conditions: Conditions) -> ScenarioResult:
    """H29: what a prefix cache saves of the GPU's time."""
    seats = conditions.integer("maxNumSeqs")
    plain = play_load(conditions, engine(conditions, max_num_seqs=seats))
    cached = play_load(conditions, engine(conditions, max_num_seqs=seats, prefix_cache=True))
    prompt = mix(conditions).system_tokens + conditions.integer("ownTokens")
    return ScenarioResult(
        {"saving": reduction(plain.busy_seconds, cached.busy_seconds)},
        (
            detail("cached share of the prompts", cached.cached_share, "share"),
            detail("prefix of the prompt", conditions.integer("prefixTokens") / prompt, "share"),
        ),
    )


def semantic_hits(conditions: Conditions) -> ScenarioResult:
    """H27: the share of queries that a cache answers."""
    rng = random.Random(conditions.integer("seed"))  # noqa: S311 - not a secret
    count, recent = conditions.integer("simulatedQueries"), conditions.integer("recent")
    gap_hours = _HOURS_PER_DAY / count
    max_age = conditions.number("maxAgeHours")
    stored_at: dict[int, float] = {}
    questions: list[int] = []
    hits = 0
    for number in range(count):
        at = number * gap_hours
        repeats = questions and rng.random() < conditions.number("duplicateShare")
        question = rng.choice(questions[-recent:]) if repeats else number
        stored = stored_at.get(question)
        recognized = rng.random() < conditions.number("recognized")
        if stored is not None and at - stored <= max_age and recognized:
            hits += 1
        else:
            stored_at[question] = at
        questions.append(question)
    daily = conditions.number("queriesPerDay")
    share = hits / count
    return ScenarioResult(
        {"hits": share}, (detail("calls that remain", daily * (1 - share), "a day"),)
    )
