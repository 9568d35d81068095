"""The queueing model of the Workload Variant Autoscaler and the filter that learns it.

A step takes alpha and, for each of the requests in it, time for the tokens that it computes (beta)
and for the cached tokens that it reads (gamma). At utilization rho the mean step takes
alpha / (1 - rho), TTFT adds the own prompt and ITL the own token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tessera_lab.fleet.policies.series import LoadMeans

# Alpha in seconds, beta and gamma in seconds per token.
Parameters = tuple[float, float, float]

START: Parameters = (5e-3, 5e-5, 5e-8)
# Of chi-squared with two degrees of freedom; a sample further off is no sample of this model.
MAX_NIS = 7.378
# The filter's noises: 5 % of a parameter per update, and 5 % of an objective at 1.96 deviations.
_DRIFT = 0.05
_SAMPLE_ERROR = 0.05 / 1.96
# A utilization of 1 has no mean.
_MAX_RHO = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTarget:
    """Mean TTFT and ITL to keep, in seconds."""

    ttft: float
    itl: float


def request_seconds(parameters: Parameters, prompt: float, output: float) -> float:
    """Return the seconds of a replica that a request takes: the utilization per request/s."""
    _, beta, gamma = parameters
    return beta * (prompt + output) + gamma * (output + 1) * (prompt + output / 2)


def own_seconds(parameters: Parameters, prompt: float, output: float) -> tuple[float, float]:
    """Return what a request adds to the step for its prompt and for a token of its output."""
    _, beta, gamma = parameters
    return (beta + gamma) * prompt, beta + gamma * (prompt + (output + 1) / 2)


def latencies(
    parameters: Parameters, rate: float, prompt: float, output: float
) -> tuple[float, float]:
    """Return mean TTFT and ITL of a replica at requests per second."""
    rho = min(_MAX_RHO, rate * request_seconds(parameters, prompt, output))
    step = parameters[0] / (1 - rho)
    for_prompt, for_token = own_seconds(parameters, prompt, output)
    return step + for_prompt, step + for_token


def inferred_slo(
    parameters: Parameters, multiplier: float, prompt: float, output: float
) -> SloTarget:
    """Return the latencies at the utilization 1 - 1 / multiplier."""
    for_prompt, for_token = own_seconds(parameters, prompt, output)
    step = multiplier * parameters[0]
    return SloTarget(ttft=step + for_prompt, itl=step + for_token)


def max_rate(parameters: Parameters, slo: SloTarget, prompt: float, output: float) -> float:
    """Return the requests per second of a replica that keep both targets, or 0."""
    for_prompt, for_token = own_seconds(parameters, prompt, output)
    step = min(slo.ttft - for_prompt, slo.itl - for_token)
    if step <= parameters[0]:
        return 0.0
    rho = 1 - parameters[0] / step
    return rho / request_seconds(parameters, prompt, output)


def first_guess(ttft: float, itl: float, prompt: float, output: float) -> Parameters:
    """Return parameters from one sample at light load, or the defaults."""
    alpha = 0.9 * itl
    both = (ttft - alpha) / prompt
    gamma = (itl - alpha - both) / (prompt + (output + 1) / 2 - 1)
    beta = both - gamma
    return (alpha, beta, gamma) if min(alpha, beta, gamma) > 0 else START


class QueueingModel:
    """Parameters that an extended Kalman filter learns from mean TTFT and ITL."""

    def __init__(self, expected: SloTarget) -> None:
        self.parameters: Parameters | None = None
        self._deviations = (_SAMPLE_ERROR * expected.ttft, _SAMPLE_ERROR * expected.itl)
        self._covariance: list[list[float]] = []
        self._bounds: tuple[Parameters, Parameters] = (START, START)

    def learn(self, load: LoadMeans, ready: int) -> None:
        """Correct the parameters by a sample, unless it is an outlier."""
        if load.ttft is None or load.itl is None or load.ttft <= 0 or load.itl <= 0:
            return
        prompt, output = load.input_tokens, load.output_tokens
        if self.parameters is None:
            self.parameters = first_guess(load.ttft, load.itl, prompt, output)
            alpha, beta, gamma = self.parameters
            self._bounds = (
                (alpha / 100, beta / 100, gamma / 100),
                (alpha * 100, beta * 100, gamma * 100),
            )
            self._covariance = _noise(self.parameters)
        self._update(self.parameters, (load.rate / ready, prompt, output), (load.ttft, load.itl))

    def max_rate(self, load: LoadMeans, slo: SloTarget | None, multiplier: float) -> float | None:
        """Return the requests per second that a replica carries; None if nothing says so."""
        if self.parameters is None:
            return None
        prompt, output = load.input_tokens, load.output_tokens
        target = slo or inferred_slo(self.parameters, multiplier, prompt, output)
        return max_rate(self.parameters, target, prompt, output) or None

    def _update(
        self,
        parameters: Parameters,
        load: tuple[float, float, float],
        sample: tuple[float, float],
    ) -> None:
        predicted = latencies(parameters, *load)
        slopes = _slopes(parameters, load, predicted)
        prior = [
            [value + noise for value, noise in zip(row, noises, strict=True)]
            for row, noises in zip(self._covariance, _noise(parameters), strict=True)
        ]
        cross = [[_dot(row, [slope[j] for slope in slopes]) for j in (0, 1)] for row in prior]
        total = [
            [_dot([slope[i] for slope in slopes], [row[j] for row in cross]) for j in (0, 1)]
            for i in (0, 1)
        ]
        for i in (0, 1):
            total[i][i] += self._deviations[i] ** 2
        inverse = _inverse(total)
        error = [value - guess for value, guess in zip(sample, predicted, strict=True)]
        weighted = [_dot(row, error) for row in inverse]
        if _dot(error, weighted) >= MAX_NIS:
            # WVA restores the covariance, too, and may reject for ever after a poor first guess.
            self._covariance = prior
            return
        gain = [[_dot(row, [inverse[0][j], inverse[1][j]]) for j in (0, 1)] for row in cross]
        low, high = self._bounds
        alpha, beta, gamma = (
            min(max(value + _dot(row, error), floor), ceiling)
            for value, row, floor, ceiling in zip(parameters, gain, low, high, strict=True)
        )
        self.parameters = (alpha, beta, gamma)
        self._covariance = [
            [prior[i][j] - _dot(gain[i], cross[j]) for j in range(3)] for i in range(3)
        ]


def _noise(parameters: Parameters) -> list[list[float]]:
    return [
        [(_DRIFT * value) ** 2 if i == j else 0.0 for j in range(3)]
        for i, value in enumerate(parameters)
    ]


def _slopes(
    parameters: Parameters, load: tuple[float, float, float], predicted: tuple[float, float]
) -> list[list[float]]:
    """Return the slopes of both latencies, by parameter."""
    slopes = []
    for i, value in enumerate(parameters):
        delta = 1e-4 * value
        alpha, beta, gamma = (
            other + delta if i == j else other for j, other in enumerate(parameters)
        )
        moved = latencies((alpha, beta, gamma), *load)
        slopes.append(
            [(after - before) / delta for after, before in zip(moved, predicted, strict=True)]
        )
    return slopes


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    (a, b), (c, d) = matrix
    determinant = a * d - b * c
    return [[d / determinant, -b / determinant], [-c / determinant, a / determinant]]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
