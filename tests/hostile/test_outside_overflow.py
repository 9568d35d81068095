"""Attacks on the number of replicas by what overflows, and by what is reported of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.gateway_demand import ReportedDemand, read_report
from tessera.api.reasons import ScalingReason
from tessera.api.ref import Ref
from tessera.domain.observed.demand import (
    ArrivedTokens,
    GatewayDemand,
    GatewayReport,
    fleet_demand,
)
from tessera.domain.scaling.break_even import COOLDOWN, within_break_even
from tessera.domain.scaling.decisions import changed, current_replicas
from tessera.domain.scaling.state import Decided, ScalingHistory, TimestampedReplicas
from tests.builders import at
from tests.domain.scaling.test_break_even import HOURLY, STEP_SECONDS, TARGET, a_load
from tests.gateway.harness import TENANT
from tests.gateway.outside.routing import OUTSIDE, OWN, a_body, routed

pytestmark = pytest.mark.anyio


def played(tokens: ArrivedTokens, *, wanted: int = 10, rate: float = 10.0) -> list[int]:
    """Return the replicas of a service of which 10 run, while it gets so many requests."""
    history = ScalingHistory(decisions=(TimestampedReplicas(at(-7200), 10),))
    numbers = []
    for second in range(0, 2 * int(COOLDOWN.total_seconds()), STEP_SECONDS):
        load = replace(a_load(second, rate, serving=10), arrived_tokens=tokens)
        current = current_replicas(load, history)
        decided = Decided(wanted, ScalingReason.DEMAND_ABOVE_CAPACITY, "")
        policy = changed(decided, load.at, current, history)
        decision = within_break_even(policy, TARGET, load, history, HOURLY)
        history = decision.history
        numbers.append(decision.replicas)
    return numbers


def test_a_tenant_whose_requests_overflow_for_nothing_takes_no_replica_of_others() -> None:
    """Of 600 requests in a minute one is for a route, and goes to a target that costs nothing."""
    assert set(played(ArrivedTokens(routed=1, overflowed=1))) == {10}


def test_replicas_of_requests_without_another_target_stay_and_the_others_go() -> None:
    assert played(ArrivedTokens(routed=360, overflowed=1))[-1] == 4


def test_what_overflows_for_nothing_keeps_no_replica_from_requests_of_others() -> None:
    """The policy adds two replicas for the requests of others, before any of them waits."""
    tokens = ArrivedTokens(routed=1, overflowed=1)
    assert played(tokens, wanted=12, rate=12.0)[-1] == 12


def test_a_share_that_no_gateway_can_have_counted_takes_and_adds_nothing() -> None:
    assert set(played(ArrivedTokens(routed=10**6, overflowed=10**6, overflow_nanos=10**18))) == {10}
    assert min(played(ArrivedTokens(routed=10**6, overflowed=10**6))) >= 1


@pytest.mark.parametrize("nanos", [0, 10**18])
def test_no_report_of_overflow_adds_more_replicas_than_the_policy(nanos: int) -> None:
    tokens = ArrivedTokens(routed=600, overflowed=600, overflow_nanos=nanos)
    for wanted in (10, 12, 20):
        assert max(played(tokens, wanted=wanted)) <= wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"overflowNanos": -1},
        {"overflowNanos": 10**18 + 1},
        {"overflowed": -5},
        {"overflowed": 1_000_001},
        {"waited": -1},
        {"routed": -1},
        {"routed": 1_000_001},
        {"overflowNanos": 1.5},
    ],
)
def test_amounts_that_cannot_be_are_left_out_of_a_report(fields: dict[str, Any]) -> None:
    row = {"namespace": "team-a", "name": "chat", **fields}
    with pytest.raises(ValidationError):
        ReportedDemand.model_validate(row)
    body = json.dumps({"gateway": "gateway-0", "services": [row]}).encode()
    report, faults = read_report(body)
    assert (report.services, len(faults)) == ((), 1)


def test_what_a_killed_gateway_reported_counts_until_it_is_silent_and_not_for_its_successor() -> (
    None
):
    chat = Ref("team-a", "chat")
    tokens = ArrivedTokens(routed=9, overflowed=3, overflow_nanos=30)
    demand = {chat: GatewayDemand(arrived=9, tokens=tokens)}
    first = GatewayReport(at=at(0))
    killed = first.followed_by(at(0), {}).followed_by(at(1), demand)
    successor = first.followed_by(at(3), demand).followed_by(at(4), {})
    both, later = fleet_demand([killed, successor], at(4)), fleet_demand([killed, successor], at(8))
    assert both is not None
    assert later is not None
    # What a gateway says first may be of any time before.
    assert both[chat].tokens == tokens
    assert chat not in later or not any(later[chat].tokens)


@pytest.mark.parametrize("seconds", [61, 3600])
def test_what_overflowed_is_forgotten_after_a_minute(seconds: int) -> None:
    chat = Ref("team-a", "chat")
    demand = {chat: GatewayDemand(arrived=9, tokens=ArrivedTokens(routed=9, overflowed=3))}
    report = GatewayReport(at=at(0)).followed_by(at(0), {}).followed_by(at(1), demand)
    later = fleet_demand([report.followed_by(at(1 + seconds), {})], at(1 + seconds))
    assert later is not None
    assert chat not in later or not any(later[chat].tokens)


def test_an_older_gateway_that_says_nothing_of_other_targets_takes_no_replica() -> None:
    assert set(played(ArrivedTokens(overflowed=300))) == {10}


@pytest.mark.parametrize(
    ("targets", "headers"),
    [((OWN,), {}), ((OUTSIDE, OWN), {"x-tessera-allow-downgrade": "false"})],
)
async def test_a_request_with_one_target_alone_is_for_no_other_one(
    tmp_path: Path, targets: tuple[dict[str, Any], ...], headers: dict[str, str]
) -> None:
    """No replica that it needs goes since others' requests have cheaper targets."""
    async with routed(tmp_path, *targets) as world:
        await world.gateway.post(a_body(), **headers)
        came = world.gateway.admission.arrivals.take()[Ref(TENANT, "chat")]
    assert (came.requests, came.tokens.routed) == (1, 0)
