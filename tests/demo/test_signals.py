"""Curves of a run from what Prometheus has, as a table of cases."""

import pytest

from demo.recorded import Curve
from demo.signals import QUERIES, Samples, curves_of

CHAT = "team-a/chat"


def _samples(**by_query: Samples) -> dict[str, Samples]:
    return {key: {} for key in QUERIES} | by_query


def test_the_queue_is_what_waits_at_the_gateway_and_at_engines() -> None:
    curves = curves_of(
        _samples(
            ready={CHAT: {7: 1.0, 8: 1.0}},
            waiting={CHAT: {8: 3.0}},
            queued={CHAT: {7: 2.0, 8: 4.0}},
        )
    )
    assert curves.queue == (Curve(CHAT, ((7.0, 2.0), (8.0, 7.0))),)


@pytest.mark.parametrize(
    ("ended", "present", "arrivals"),
    [
        pytest.param({}, {20: 5.0}, 1.0, id="none has ended yet"),
        pytest.param({15: 10.0, 20: 30.0}, {15: 5.0, 20: 5.0}, 4.0, id="as many stay"),
        pytest.param({15: 10.0, 20: 15.0}, {15: 5.0}, 0.0, id="the last ones end"),
        pytest.param({12: 10.0, 20: 20.0}, {}, 2.0, id="a scrape is missing"),
    ],
)
def test_arrivals_are_what_ended_and_what_there_is_more(
    ended: dict[int, float], present: dict[int, float], arrivals: float
) -> None:
    curves = curves_of(
        _samples(ready={CHAT: {20: 1.0}}, ended={CHAT: ended}, in_flight={CHAT: present})
    )
    assert curves.arrivals == (Curve(CHAT, ((20.0, arrivals),)),)


def test_dollars_name_what_no_budget_and_no_tenant_has() -> None:
    curves = curves_of(
        _samples(cost={"team-a": {1: 0.5}, "": {1: 0.1}}, unused={"(unused)": {1: 2.0}})
    )
    assert [curve.name for curve in curves.dollars] == ["(no budget)", "(unused)", "team-a"]
