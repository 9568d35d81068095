"""What a service will use in a month, from what is assumed of its requests.

    tokens = requests x attempts x (prompt + hidden + history + answer x answers)
    history = (turns - 1) / 2 x (prompt + answer)

Each factor is a range, and the ranges are taken to be independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Annotated, NamedTuple, Self

from pydantic import StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from typing_extensions import override

from tessera.api.meta import Wire
from tessera.domain.economics.break_even import MONTH_DAYS, MONTH_HOURS

# By which a rate is multiplied to be one of a month.
PER_MONTH: Mapping[str, int] = {
    "s": MONTH_HOURS * 3600,
    "min": MONTH_HOURS * 60,
    "h": MONTH_HOURS,
    "day": MONTH_DAYS,
    "month": 1,
}

_DRAWS = 4096
# Of a normal distribution, below which 90 % are.
_P90_DEVIATIONS = NormalDist().inv_cdf(0.9)
_MAX_VALUE = 1e15
_SERVICE = r"^[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9.-]{0,252}$"


class Factor(StrEnum):
    """What the tokens of a month are a product of: a field of Assumptions and UsageFactors."""

    REQUESTS = "requests"
    RETRIES = "retries"
    PROMPT = "prompt_tokens"
    HIDDEN = "hidden_tokens"
    TURNS = "turns"
    ANSWER = "answer_tokens"
    ANSWERS = "answers"


# The least that each factor can be; the others are above 0.
LEAST: Mapping[Factor, float] = {
    Factor.RETRIES: 0,
    Factor.PROMPT: 0,
    Factor.HIDDEN: 0,
    Factor.TURNS: 1,
    Factor.ANSWER: 1,
    Factor.ANSWERS: 1,
}


class FactorRange(Wire):
    """A factor that is not known: in four of five cases it is from `low` to `high`."""

    low: float
    """P10."""
    likely: float
    """P50."""
    high: float
    """P90."""

    @model_validator(mode="after")
    def _is_ascending(self) -> Self:
        if not 0 <= self.low <= self.likely <= self.high <= _MAX_VALUE:
            raise ValueError(f"{self} is no low:likely:high of ascending numbers from 0 to 1e15")
        return self

    @classmethod
    def exactly(cls, value: float) -> Self:
        return cls(low=value, likely=value, high=value)

    @override
    def __str__(self) -> str:
        return f"{self.low:g}:{self.likely:g}:{self.high:g}"

    def quantile(self, share: float) -> float:
        """Return the value below which this share of the cases is.

        Both sides are those of a log-normal distribution, as of what grows by factors; a side that
        begins at 0 is that of a normal one, cut there.
        """
        deviations = NormalDist().inv_cdf(share) / _P90_DEVIATIONS
        edge = self.high if deviations > 0 else self.low
        if self.likely and edge:
            return self.likely * math.pow(edge / self.likely, abs(deviations))
        return max(0.0, self.likely + (edge - self.likely) * abs(deviations))


class Assumptions(Wire):
    """What is assumed of a service before its launch; the file of a forecast."""

    service: Annotated[str, StringConstraints(pattern=_SERVICE)] | None = None
    """Namespace and name, `team-a/chat`."""
    requests: FactorRange
    """What users ask in a month."""
    retries: FactorRange = FactorRange.exactly(0)
    """How often a request is sent again, on average; 1 doubles the requests."""
    prompt_tokens: FactorRange
    """What the user writes in one request."""
    hidden_tokens: FactorRange = FactorRange.exactly(0)
    """What the application adds to each request: system prompt, tools, documents."""
    turns: FactorRange = FactorRange.exactly(1)
    """Requests of a conversation, each of which sends all earlier ones and their answers."""
    answer_tokens: FactorRange
    """One answer, with its reasoning."""
    answers: FactorRange = FactorRange.exactly(1)
    """The field `n` of a request."""

    @model_validator(mode="after")
    def _has_possible_factors(self) -> Self:
        for factor, factor_range in self.ranges.items():
            least = LEAST.get(factor)
            if factor_range.low < (least or 0) or (least is None and not factor_range.low):
                bound = "above 0" if least is None else f"at least {least:g}"
                raise ValueError(f"{to_camel(factor)} {factor_range} has to be {bound}")
        return self

    @property
    def ranges(self) -> Mapping[Factor, FactorRange]:
        """The range of each factor."""
        return {factor: getattr(self, factor) for factor in Factor}

    @property
    def likely(self) -> "UsageFactors":
        """The factors at their likely values: what the forecast is compared by."""
        return UsageFactors(**{factor: each.likely for factor, each in self.ranges.items()})


class TokenWeights(NamedTuple):
    """What an input token and an output token count: 1 and 1 for tokens, or their prices."""

    input: float
    output: float


TOKENS = TokenWeights(1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFactors:
    """One value of each factor: means over the requests of a month."""

    requests: float
    retries: float
    prompt_tokens: float
    hidden_tokens: float
    turns: float
    answer_tokens: float
    answers: float

    @property
    def attempts(self) -> float:
        """How often a request is sent."""
        return 1 + self.retries

    @property
    def exchanges(self) -> float:
        """Earlier prompts and answers that a request sends again, on average over the turns."""
        return (self.turns - 1) / 2

    @property
    def history_tokens(self) -> float:
        return self.exchanges * (self.prompt_tokens + self.answer_tokens)

    @property
    def input_tokens(self) -> float:
        """Input tokens of one attempt."""
        return self.prompt_tokens + self.hidden_tokens + self.history_tokens

    @property
    def output_tokens(self) -> float:
        """Output tokens of one attempt."""
        return self.answer_tokens * self.answers

    def monthly(self, weights: TokenWeights = TOKENS) -> float:
        """Return what the tokens of a month count."""
        attempt = weights.input * self.input_tokens + weights.output * self.output_tokens
        return self.requests * self.attempts * attempt


class Percentiles(NamedTuple):
    """A forecast quantity: in four of five cases it is from `p10` to `p90`."""

    p10: float
    p50: float
    p90: float


def draws(assumptions: Assumptions) -> Sequence[UsageFactors]:
    """Return equally likely cases that cover the ranges evenly; the same each time.

    They are the points of an additive sequence, which is nearer to the distribution than as many
    random ones, and needs no seed.
    """
    steps = _additive_steps(len(Factor))
    columns = [
        _column(factor_range, LEAST.get(factor, 0.0), step)
        for (factor, factor_range), step in zip(assumptions.ranges.items(), steps, strict=True)
    ]
    return [
        UsageFactors(**dict(zip(Factor, values, strict=True)))
        for values in zip(*columns, strict=True)
    ]


def percentiles(cases: Sequence[UsageFactors], weights: TokenWeights) -> Percentiles:
    """Return what the tokens of a month count, over equally likely cases."""
    counts = sorted(each.monthly(weights) for each in cases)
    return Percentiles(*(counts[math.ceil(share * len(counts)) - 1] for share in (0.1, 0.5, 0.9)))


def _additive_steps(dimensions: int) -> Sequence[float]:
    """Return the steps of the R sequence: powers of the root of x ** (dimensions + 1) = x + 1."""
    root = 1.0
    for _ in range(64):
        root = (1 + root) ** (1 / (dimensions + 1))
    return [root ** -(number + 1) for number in range(dimensions)]


def _column(factor_range: FactorRange, least: float, step: float) -> Sequence[float]:
    if factor_range.low == factor_range.high:
        return [factor_range.likely] * _DRAWS
    shares = ((0.5 + number * step) % 1 for number in range(1, _DRAWS + 1))
    return [max(least, factor_range.quantile(share)) for share in shares]
