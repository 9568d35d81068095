import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch_runner.retry import (
    RequestOutcome,
    RetryVerdict,
    Trial,
    delay_seconds,
    judge,
    rounds,
)

ENDLESS = 1000
OUTCOMES = st.sampled_from(RequestOutcome)


@pytest.mark.parametrize("outcome", [RequestOutcome.ANSWERED, RequestOutcome.REFUSED])
def test_an_answer_or_a_refusal_is_final(outcome: RequestOutcome) -> None:
    assert judge(Trial(), outcome, retries=3, alone=False) == (Trial(), RetryVerdict.FINISH)


@pytest.mark.parametrize("outcome", [RequestOutcome.FAILED, RequestOutcome.TIMED_OUT])
def test_a_failure_is_repeated_as_often_as_there_are_retries(outcome: RequestOutcome) -> None:
    trial, verdicts = Trial(), []
    for _ in range(3):
        trial, verdict = judge(trial, outcome, retries=2, alone=False)
        verdicts.append(verdict)
    assert verdicts == [RetryVerdict.RETRY, RetryVerdict.RETRY, RetryVerdict.FINISH]


@pytest.mark.parametrize("outcome", [RequestOutcome.UNSENT, RequestOutcome.UNAVAILABLE])
def test_an_absent_engine_costs_a_row_nothing(outcome: RequestOutcome) -> None:
    trial = Trial()
    for _ in range(ENDLESS):
        trial, verdict = judge(trial, outcome, retries=0, alone=True)
        assert (trial, verdict) == (Trial(), RetryVerdict.WAIT)


@pytest.mark.parametrize(
    ("alone", "end"), [(False, RetryVerdict.SET_ASIDE), (True, RetryVerdict.FINISH)]
)
def test_a_row_that_was_in_flight_whenever_the_engine_ended_is_suspected(
    alone: bool, end: RetryVerdict
) -> None:
    trial, first = judge(Trial(), RequestOutcome.LOST, retries=0, alone=alone)
    _, second = judge(trial, RequestOutcome.LOST, retries=0, alone=alone)
    assert (first, second) == (RetryVerdict.WAIT, end)


@given(st.lists(OUTCOMES, max_size=30), st.integers(0, 5), st.booleans())
def test_losses_never_cost_retries(
    outcomes: list[RequestOutcome], retries: int, alone: bool
) -> None:
    trial = Trial()
    for number, outcome in enumerate(outcomes):
        trial, _ = judge(trial, outcome, retries=retries, alone=alone)
        seen = outcomes[: number + 1]
        assert trial.failures == seen.count(RequestOutcome.FAILED) + seen.count(
            RequestOutcome.TIMED_OUT
        )
        assert trial.losses == seen.count(RequestOutcome.LOST)


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_positive_and_capped(failures: int, chance: float) -> None:
    assert 0.25 <= delay_seconds(failures, chance) <= 30


def test_delays_grow() -> None:
    assert [delay_seconds(failures, 0.0) for failures in (1, 2, 3, 4, 20)] == [
        *(0.25, 0.5, 1, 2, 15)
    ]


@pytest.mark.parametrize(
    ("concurrency", "widths"),
    [(1, (1, 1, 1)), (16, (16, 1, 1)), (64, (64, 4, 1)), (512, (512, 32, 1))],
)
def test_the_last_round_sends_rows_alone(concurrency: int, widths: tuple[int, ...]) -> None:
    assert rounds(concurrency) == widths
