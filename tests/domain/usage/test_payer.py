"""Who pays for what ends well and badly: each row of the table."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase
from tessera.domain.usage.payer import (
    ChargeEnd,
    KnownWork,
    TokenParts,
    charge_end,
    paid_tokens,
    unpaid_tokens,
)

WORK = KnownWork(
    engines=1,
    end=ChargeEnd.ANSWER,
    prompt=100,
    delivered=7,
    unseen=40,
    counted=None,
    most_input=900,
    most_output=50,
    most_counted=10**9,
)
COUNTED = TokenParts(80, 60, 9, 4)
NOTHING = TokenParts()
_TOKENS = st.integers(0, 10**6)


@pytest.mark.parametrize(
    ("end", "changes", "paid"),
    [
        # Complete: its tokens, within what is possible.
        (ChargeEnd.ANSWER, {"counted": COUNTED}, COUNTED),
        (ChargeEnd.ANSWER, {"counted": TokenParts(10**9, 10**9, 10**9, 10**9)}, (900, 900, 50, 50)),
        (ChargeEnd.ANSWER, {"counted": COUNTED, "most_counted": 8}, (80, 60, 8, 4)),
        (ChargeEnd.ANSWER, {}, (100, 0, 7, 0)),
        # Its own size, or its client left: the largest of what is known.
        (ChargeEnd.REQUEST, {}, (100, 0, 47, 0)),
        (ChargeEnd.REQUEST, {"unseen": 60}, (100, 0, 50, 0)),
        (ChargeEnd.REQUEST, {"unseen": 1, "counted": COUNTED}, (80, 60, 9, 4)),
        (ChargeEnd.REQUEST, {"delivered": 0}, (100, 0, 40, 0)),
        (ChargeEnd.REQUEST, {"delivered": 0, "most_counted": 0}, (100, 0, 40, 0)),
        (
            ChargeEnd.REQUEST,
            {"unseen": 0, "counted": TokenParts(80, 0, 49, 0), "most_counted": 28},
            (80, 0, 28, 0),
        ),
        # Its time was over: no estimate.
        (ChargeEnd.TIME, {}, (100, 0, 7, 0)),
        (ChargeEnd.TIME, {"delivered": 0}, (100, 0, 0, 0)),
        # The engine refused it, failed or vanished before a token.
        (ChargeEnd.FAILURE, {"delivered": 0}, NOTHING),
        (ChargeEnd.FAILURE, {"delivered": 0, "counted": COUNTED}, NOTHING),
        (ChargeEnd.FAILURE, {"delivered": 0, "engines": 2}, NOTHING),
        # The same after a token, and no other one went on.
        (ChargeEnd.FAILURE, {}, (100, 0, 7, 0)),
        # Retried, moved, resumed: as if it never moved.
        (ChargeEnd.ANSWER, {"engines": 3, "counted": COUNTED}, COUNTED),
        # The gateway was killed: as known.
        (ChargeEnd.KILLED, {}, (100, 0, 7, 0)),
        (ChargeEnd.KILLED, {"delivered": 0}, (100, 0, 0, 0)),
    ],
)
def test_each_ending_has_its_payer(
    end: ChargeEnd, changes: dict[str, Any], paid: tuple[int, ...]
) -> None:
    assert paid_tokens(replace(WORK, end=end, **changes)).tokens == paid


@pytest.mark.parametrize("end", ChargeEnd)
def test_what_no_engine_got_is_free(end: ChargeEnd) -> None:
    work = replace(WORK, engines=0, end=end, counted=COUNTED)
    assert paid_tokens(work) == (NOTHING, False)


def test_what_an_engine_did_not_say_so_is_flagged() -> None:
    assert not paid_tokens(replace(WORK, counted=COUNTED)).flagged
    assert paid_tokens(WORK).flagged
    assert paid_tokens(replace(WORK, counted=COUNTED, most_output=8)).flagged
    assert paid_tokens(replace(WORK, end=ChargeEnd.KILLED)).flagged


@given(
    st.builds(
        KnownWork,
        engines=st.integers(0, 4),
        end=st.sampled_from(ChargeEnd),
        prompt=_TOKENS,
        delivered=_TOKENS,
        unseen=_TOKENS,
        counted=st.none() | st.builds(TokenParts, _TOKENS, _TOKENS, _TOKENS, _TOKENS),
        most_input=_TOKENS,
        most_output=_TOKENS,
        most_counted=_TOKENS,
    )
)
def test_nothing_is_paid_twice_or_beyond_what_was_possible(work: KnownWork) -> None:
    tokens = paid_tokens(work).tokens
    assert 0 <= tokens.cached <= tokens.input <= work.most_input
    assert 0 <= tokens.reasoning <= tokens.output <= work.most_output
    if work.engines:
        assert tokens == paid_tokens(replace(work, engines=work.engines + 1)).tokens


@pytest.mark.parametrize(
    ("phase", "reason", "end"),
    [
        (Phase.COMPLETED, "", ChargeEnd.ANSWER),
        (Phase.ABORTED, RequestReason.CLIENT_GONE, ChargeEnd.REQUEST),
        (Phase.ABORTED, RequestReason.BUDGET_EXCEEDED, ChargeEnd.TIME),
        (Phase.FAILED, RequestReason.RESPONSE_TOO_LARGE, ChargeEnd.REQUEST),
        (Phase.ABORTED, RequestReason.HELD_BYTES_EXCEEDED, ChargeEnd.REQUEST),
        (Phase.FAILED, RequestReason.ENGINE_TIMEOUT, ChargeEnd.TIME),
        (Phase.FAILED, RequestReason.TARGET_TIMEOUT, ChargeEnd.TIME),
        (Phase.FAILED, RequestReason.ENGINE_REFUSED, ChargeEnd.FAILURE),
        (Phase.FAILED, RequestReason.STREAM_BROKEN, ChargeEnd.FAILURE),
        (Phase.FAILED, RequestReason.INTERNAL_ERROR, ChargeEnd.FAILURE),
        (Phase.ABORTED, RequestReason.GATEWAY_DRAINING, ChargeEnd.FAILURE),
        (Phase.ABORTED, RequestReason.GATEWAY_KILLED, ChargeEnd.KILLED),
    ],
)
def test_a_reason_says_who_is_to_blame(phase: Phase, reason: str, end: ChargeEnd) -> None:
    assert charge_end(phase, reason) is end


@pytest.mark.parametrize("end", ChargeEnd)
def test_the_owner_bears_what_failed_engines_made_and_what_others_read_again(
    end: ChargeEnd,
) -> None:
    used = COUNTED if end is ChargeEnd.FAILURE else NOTHING
    assert unpaid_tokens(end, COUNTED, 0) == used
    assert unpaid_tokens(end, COUNTED, 30) == used._replace(input=used.input + 30)
