"""Getting a request is what is paid, once."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase
from tessera.domain.usage.charge import EngineWork, WorkEnd, charge, work_end

WORK = EngineWork(
    engines=1, end=WorkEnd.FAILURE, prompt=100, delivered=7, most_input=900, most_output=50
)
ENDS = st.sampled_from(WorkEnd)
TOKENS = st.integers(0, 10**6)


@pytest.mark.parametrize("end", WorkEnd)
def test_without_an_engine_nothing_is_paid(end: WorkEnd) -> None:
    work = replace(WORK, engines=0, end=end, unseen=5, counted=(80, 9))
    assert charge(work) == (0, 0, 0)


@pytest.mark.parametrize(
    ("end", "changes", "paid"),
    [
        (WorkEnd.ANSWER, {}, (100, 7)),
        (WorkEnd.ANSWER, {"counted": (80, 3)}, (80, 3)),
        (WorkEnd.ANSWER, {"counted": (10**9, 10**9)}, (900, 50)),
        (WorkEnd.FAILURE, {"delivered": 0, "unseen": 40}, (100, 0)),
        (WorkEnd.FAILURE, {"unseen": 40}, (100, 7)),
        (WorkEnd.FAILURE, {"counted": (80, 9)}, (80, 9)),
        (WorkEnd.FAILURE, {"counted": (0, 3)}, (100, 7)),
        (WorkEnd.REQUEST, {"delivered": 0, "unseen": 40}, (100, 40)),
        (WorkEnd.REQUEST, {"unseen": 40}, (100, 47)),
        (WorkEnd.REQUEST, {"unseen": 44}, (100, 50)),
        (WorkEnd.REQUEST, {"unseen": 2, "counted": (80, 30)}, (80, 30)),
        (WorkEnd.REQUEST, {"unseen": 40, "counted": (80, 1)}, (80, 47)),
    ],
)
def test_the_prompt_is_paid_and_the_largest_of_what_is_known(
    end: WorkEnd, changes: dict[str, object], paid: tuple[int, int]
) -> None:
    assert charge(replace(WORK, end=end, **changes))[:2] == paid  # type: ignore[arg-type]


def test_what_is_computed_again_is_in_no_other_count() -> None:
    once = charge(WORK)
    assert once.recomputed == 0
    assert charge(replace(WORK, engines=3, repeated=4)) == (once.input, once.output, 204)


@given(st.builds(
    EngineWork, engines=st.integers(0, 4), end=ENDS, prompt=TOKENS, delivered=TOKENS,
    repeated=TOKENS, unseen=TOKENS, counted=st.none() | st.tuples(TOKENS, TOKENS),
    most_input=TOKENS, most_output=TOKENS,
))  # fmt: skip
def test_nothing_is_paid_twice_or_beyond_what_was_reserved(work: EngineWork) -> None:
    charged = charge(work)
    assert charged.input <= work.most_input
    assert charged.output <= work.most_output
    if work.engines:
        assert charged[:2] == charge(replace(work, engines=work.engines + 1))[:2]


@pytest.mark.parametrize(
    ("phase", "reason", "end"),
    [
        (Phase.COMPLETED, "", WorkEnd.ANSWER),
        (Phase.ABORTED, RequestReason.CLIENT_GONE, WorkEnd.REQUEST),
        (Phase.FAILED, RequestReason.RESPONSE_TOO_LARGE, WorkEnd.REQUEST),
        (Phase.FAILED, RequestReason.ENGINE_TIMEOUT, WorkEnd.REQUEST),
        (Phase.FAILED, RequestReason.TARGET_TIMEOUT, WorkEnd.REQUEST),
        (Phase.ABORTED, RequestReason.HELD_BYTES_EXCEEDED, WorkEnd.REQUEST),
        (Phase.ABORTED, RequestReason.GATEWAY_DRAINING, WorkEnd.FAILURE),
        (Phase.ABORTED, RequestReason.GATEWAY_KILLED, WorkEnd.FAILURE),
        (Phase.FAILED, RequestReason.STREAM_BROKEN, WorkEnd.FAILURE),
        (Phase.FAILED, RequestReason.INTERNAL_ERROR, WorkEnd.FAILURE),
    ],
)
def test_size_time_and_leaving_are_of_the_request(phase: Phase, reason: str, end: WorkEnd) -> None:
    assert work_end(phase, reason) is end
