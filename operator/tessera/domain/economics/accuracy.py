"""By how much a forecast was wrong, and which of its factors.

What a factor does to the tokens is a share of the logarithm of actual over forecast. Factors
multiply, so logarithms add up; in a sum of products each product has the weight of its logarithmic
mean, with which nothing remains unexplained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tessera.domain.economics.forecast import Factor, UsageFactors

# Of the tokens, and of the error: less than that is no cause to name.
_NEAR = 0.05
# The shortest 1 % of what users write is below this share of its mean. Where prompts are nearly
# equal, as documents cut to one length, nothing tells them from a text that the application adds.
_SHORTEST_SHARE = 0.25
# By which the shortest prompts may be shorter than expected, since the forecast is none of them.
_SLACK = 0.1
# Of a growth; where the shortest requests have no more of it, every request has none.
_MINOR_SHARE = 0.1
_INPUT = (Factor.PROMPT, Factor.HIDDEN, Factor.TURNS)


class ConversationInput(NamedTuple):
    """Input tokens of a request on average, as the conversations of senders show them."""

    hidden: float
    """What every request has."""
    history: float
    """Of earlier turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredUsage:
    """What was measured of a service; None is what the source does not show."""

    requests: float
    """A month, with those that were sent again."""
    input_tokens: float
    """Mean of a request."""
    output_tokens: float
    retries: float | None = None
    """How often a request was sent again, on average."""
    shortest_tokens: float | None = None
    """Input tokens of the shortest 1 % of requests."""
    conversations: ConversationInput | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorError:
    """How wrong a factor was; of several that the usage does not separate, their product or sum."""

    factors: tuple[Factor, ...]
    forecast: float
    actual: float
    effect: float
    """Natural logarithm of what it multiplied the tokens by."""

    @property
    def ratio(self) -> float:
        """By what it multiplied the tokens."""
        return math.exp(self.effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A forecast beside what came of it."""

    forecast_tokens: float
    """A month, at the likely values."""
    actual_tokens: float
    errors: tuple[FactorError, ...]
    """In the order of the factors; the ratios multiply to that of the tokens."""

    @property
    def ratio(self) -> float:
        """Actual over forecast."""
        return self.actual_tokens / self.forecast_tokens

    def share(self, error: FactorError) -> float:
        """Return the share of the error; those of all are 1 together."""
        return error.effect / math.log(self.ratio)

    @property
    def causes(self) -> tuple[FactorError, ...]:
        """What moved the tokens where they went, the largest first; empty near the forecast."""
        if abs(self.ratio - 1) <= _NEAR:
            return ()
        moved = [error for error in self.errors if self.share(error) >= _NEAR]
        return tuple(sorted(moved, key=self.share, reverse=True))


class _Multiplier(NamedTuple):
    """A part of a product, in the forecast and in what was measured."""

    factor: Factor
    forecast: float
    actual: float


def compare(forecast: UsageFactors, usage: MeasuredUsage) -> Accuracy:
    """Return which factors were wrong; the usage has at least a request and a token."""
    actual = _actual_factors(forecast, usage)
    growth = usage.input_tokens - actual.input_tokens
    # Conversations show all factors of the input, so that no growth remains.
    is_explained = usage.conversations is not None
    grown = () if is_explained else _grown(actual, usage.shortest_tokens, growth)
    effects = _arrival_effects(forecast, actual, usage)
    effects |= _attempt_effects(forecast, actual, grown, growth)
    return Accuracy(
        forecast_tokens=forecast.monthly(),
        actual_tokens=usage.requests * (usage.input_tokens + usage.output_tokens),
        errors=tuple(
            FactorError(
                factors=factors,
                forecast=_value(forecast, factors),
                actual=_value(actual, factors) + (growth if factors == grown else 0),
                effect=effects[factors],
            )
            for factors in sorted(effects, key=lambda each: list(Factor).index(each[0]))
        ),
    )


def _value(factors: UsageFactors, names: tuple[Factor, ...]) -> float:
    """Return a factor, the input tokens of several, or requests with those sent again."""
    if len(names) == 1:
        return float(getattr(factors, names[0]))
    if Factor.REQUESTS in names:
        return factors.requests * factors.attempts
    return factors.input_tokens - (0 if Factor.HIDDEN in names else factors.hidden_tokens)


def _arrival_effects(
    forecast: UsageFactors, actual: UsageFactors, usage: MeasuredUsage
) -> dict[tuple[Factor, ...], float]:
    """Return the effect of requests, apart from how often each was sent where that shows."""
    requests = _logarithm(actual.requests, forecast.requests)
    if usage.retries is None:
        return {(Factor.REQUESTS, Factor.RETRIES): requests}
    attempts = _logarithm(actual.attempts, forecast.attempts)
    return {(Factor.REQUESTS,): requests, (Factor.RETRIES,): attempts}


def _attempt_effects(
    forecast: UsageFactors, actual: UsageFactors, grown: tuple[Factor, ...], growth: float
) -> dict[tuple[Factor, ...], float]:
    """Return the effects of what the tokens of an attempt are made of.

    A growth that is not explained by the other factors is that of `grown`.
    """

    def multiplier(factor: Factor) -> _Multiplier:
        return _Multiplier(factor, getattr(forecast, factor), getattr(actual, factor))

    prompt, answer = multiplier(Factor.PROMPT), multiplier(Factor.ANSWER)
    exchanges = _Multiplier(Factor.TURNS, forecast.exchanges, actual.exchanges)
    products = [
        [prompt],
        [multiplier(Factor.HIDDEN)],
        [exchanges, prompt],
        [exchanges, answer],
        [answer, multiplier(Factor.ANSWERS)],
    ]
    before = forecast.input_tokens + forecast.output_tokens
    after = actual.input_tokens + actual.output_tokens + growth
    total = _logarithmic_mean(before, after)
    single = _product_effects(products, total)
    effects: dict[tuple[Factor, ...], float]
    effects = {(factor,): effect for factor, effect in single.items() if factor not in grown}
    if grown:
        effects[grown] = sum(single[factor] for factor in grown) + growth / total
    return effects


def _product_effects(
    products: Sequence[Sequence[_Multiplier]], total: float
) -> dict[Factor, float]:
    """Return what each factor does to the logarithm of a sum with this logarithmic mean."""
    effects = {each.factor: 0.0 for product in products for each in product}
    for product in products:
        before = math.prod(each.forecast for each in product)
        after = math.prod(each.actual for each in product)
        if before and after:
            weight = _logarithmic_mean(before, after) / total
            for each in product:
                effects[each.factor] += weight * _logarithm(each.actual, each.forecast)
        elif before or after:
            # The limit of what a factor does that was, or became, 0.
            cause = next(each for each in product if not each.forecast or not each.actual)
            effects[cause.factor] += (after - before) / total
    return effects


def _logarithmic_mean(first: float, second: float) -> float:
    """Return the mean by which the difference is the mean times the logarithm of the ratio."""
    if math.isclose(first, second, rel_tol=1e-9):
        return first
    return (second - first) / _logarithm(second, first)


def _logarithm(after: float, before: float) -> float:
    """Return the logarithm of a ratio, also where that is too small or large for a number."""
    return math.log(after) - math.log(before)


def _actual_factors(forecast: UsageFactors, usage: MeasuredUsage) -> UsageFactors:
    """Return the factors as far as the usage shows them, and the forecast's otherwise.

    The number of answers is never seen: an engine counts the tokens of all together.
    """
    retries = forecast.retries if usage.retries is None else usage.retries
    actual = replace(
        forecast,
        requests=usage.requests / (1 + retries),
        retries=retries,
        answer_tokens=usage.output_tokens / forecast.answers,
    )
    if usage.conversations is None:
        return actual
    hidden, history = usage.conversations
    prompt = usage.input_tokens - hidden - history
    turns = 1 + 2 * history / (prompt + actual.answer_tokens)
    return replace(actual, prompt_tokens=prompt, hidden_tokens=hidden, turns=turns)


def _grown(actual: UsageFactors, shortest: float | None, growth: float) -> tuple[Factor, ...]:
    """Return which factors of the input a growth may be of, by the shortest requests.

    A text that every request has is in the shortest too; longer prompts and a longer history are
    not. A growth of both is neither's alone.
    """
    if shortest is None:
        return _INPUT
    prompt, beyond = actual.prompt_tokens, shortest - actual.hidden_tokens
    is_in_shortest = -_SLACK * prompt <= beyond - growth <= _SHORTEST_SHARE * prompt
    if is_in_shortest and actual.hidden_tokens + growth >= 0:
        return (Factor.HIDDEN,)
    if growth > 0 and beyond <= _MINOR_SHARE * growth:
        return (Factor.PROMPT, Factor.TURNS)
    return _INPUT
