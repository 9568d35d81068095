"""Which targets of a route a request asks, one after another."""

import hashlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_route import ModelRouteSpec
from tessera.domain.routes.opening import RequestOpening
from tessera.domain.routes.order import target_order
from tessera.domain.routes.reasons import RouteReason

SHORT, SIMPLE = {"maxCharacters": 5}, {"maxScore": 2}
SESSIONS = [hashlib.sha256(str(number).encode()).digest() for number in range(4000)]


def a_route(**spec: Any) -> ModelRouteSpec:
    return ModelRouteSpec.model_validate(spec)


RULES = a_route(
    targets=[
        {"name": "a", "service": "tiny", "when": SHORT},
        {"name": "b", "service": "small", "when": SIMPLE},
        {"name": "c", "service": "team-b/large"},
    ]
)


def weights(**by_name: int) -> ModelRouteSpec:
    targets = [{"service": name, "weight": weight} for name, weight in by_name.items()]
    return a_route(select="Weights", targets=targets)


def order_of(spec: ModelRouteSpec, text: str = "", **options: bool) -> tuple[str, RouteReason]:
    order = target_order(spec, RequestOpening(text=text), **options)
    return "".join(target.target_name for target in order.targets), order.reason


def first_of(spec: ModelRouteSpec, session: bytes) -> str:
    order = target_order(spec, RequestOpening(session=session))
    assert order.reason is RouteReason.WEIGHTED
    return order.targets[0].target_name


@pytest.mark.parametrize(
    ("text", "order", "reason"),
    [
        ("Hi", "abc", RouteReason.RULE_MATCHED),
        ("analyze X", "bca", RouteReason.RULE_MATCHED),
        ("analyze and compare X", "cba", RouteReason.LAST_TARGET),
    ],
)
def test_the_first_target_whose_condition_holds_comes_first(
    text: str, order: str, reason: RouteReason
) -> None:
    assert order_of(RULES, text) == (order, reason)


def test_a_target_without_a_condition_takes_all() -> None:
    spec = a_route(targets=[{"service": "a"}, {"service": "b"}])
    assert order_of(spec, "x" * 1000) == ("ab", RouteReason.RULE_MATCHED)
    assert order_of(a_route(targets=[{"service": "a"}])) == ("a", RouteReason.LAST_TARGET)


def test_the_last_target_alone_is_asked_where_no_cheaper_one_may_answer() -> None:
    for spec in (RULES, weights(a=5, b=5, c=1)):
        assert order_of(spec, "Hi", allow_downgrade=False) == ("c", RouteReason.NO_DOWNGRADE)


def test_the_cheapest_target_comes_first_whatever_its_condition_and_weight() -> None:
    for spec in (RULES, weights(a=0, b=5, c=1)):
        order = order_of(spec, "analyze and compare X", cheaper_targets=True)
        assert order == ("abc", RouteReason.CHEAPER_TARGETS)


def test_who_takes_the_last_target_alone_gets_it_whatever_is_spent() -> None:
    order = order_of(RULES, allow_downgrade=False, cheaper_targets=True)
    assert order == ("c", RouteReason.NO_DOWNGRADE)


def test_conversations_fall_to_targets_by_their_weights() -> None:
    spec = weights(a=6, b=3, c=1, d=0)
    shares = Counter(first_of(spec, session) for session in SESSIONS)
    assert shares["d"] == 0
    for name, share in {"a": 0.6, "b": 0.3, "c": 0.1}.items():
        # Three standard deviations of 4,000 draws.
        assert shares[name] / len(SESSIONS) == pytest.approx(share, abs=0.024)


def test_a_target_of_weight_0_is_asked_after_the_chosen_one() -> None:
    assert order_of(weights(a=1, b=0)) == ("ab", RouteReason.WEIGHTED)
    assert order_of(weights(a=0, b=1)) == ("ba", RouteReason.WEIGHTED)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 9), min_size=1),
    st.sampled_from("abcde"),
    st.integers(0, 9),
)
def test_a_changed_weight_moves_conversations_to_or_from_its_target_alone(
    before: dict[str, int], name: str, weight: int
) -> None:
    after = before | {name: weight}
    if not any(after.values()):
        after[name] = 1
    rises = after[name] >= before.get(name, 0)
    for session in SESSIONS[:200]:
        first, second = first_of(weights(**before), session), first_of(weights(**after), session)
        assert first == second or name == (second if rises else first)


@given(st.text(max_size=400), st.binary(max_size=16), st.sampled_from([RULES, weights(a=1, b=2)]))
def test_every_target_is_asked_once_and_equal_openings_have_equal_orders(
    text: str, session: bytes, spec: ModelRouteSpec
) -> None:
    opening = RequestOpening(text=text, session=session)
    order = target_order(spec, opening)
    assert order == target_order(spec, RequestOpening(text=text, session=session))
    assert sorted(target.target_name for target in order.targets) == sorted(
        target.target_name for target in spec.targets
    )
