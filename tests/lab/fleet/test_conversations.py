"""Conversations, and what the prefix caches of a fleet have of them."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tessera_lab.fleet.conversations import Conversations
from tessera_lab.fleet.course import Course
from tessera_lab.fleet.model import FleetModel, Router
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.trace import Trace
from tests.lab.fleet.builders import LIMITS, REPLICA, Planned, a_fleet

SYSTEM_BLOCKS = 1200 // 16


def sessions(trace: Trace) -> list[list[int]]:
    """Return the rows of each session, by the first block after its system prompt."""
    rows: dict[int, list[int]] = {}
    for row, names in enumerate(trace.prefixes or ()):
        rows.setdefault(names[SYSTEM_BLOCKS], []).append(row)
    return list(rows.values())


def test_each_turn_begins_with_all_that_was_said_before() -> None:
    load = Conversations(tenants=3)
    trace = load.draw(0.3, 1200, 1)
    assert trace == load.draw(0.3, 1200, 1) != load.draw(0.3, 1200, 2)
    prefixes, clients = trace.prefixes, trace.clients
    assert prefixes is not None
    assert clients is not None
    for rows in sessions(trace):
        assert len(rows) <= 6
        for earlier, later in pairwise(rows):
            assert trace.input_tokens[later] > (
                trace.input_tokens[earlier] + trace.output_tokens[earlier]
            )
            assert prefixes[later][: len(prefixes[earlier])] == prefixes[earlier]
            assert trace.arrivals[later] > trace.arrivals[earlier]
            assert clients[later] == clients[earlier]
    systems = {(clients[row], names[:SYSTEM_BLOCKS]) for row, names in enumerate(prefixes)}
    assert len(systems) == len({client for client, _ in systems}) == 3
    own = [set(prefixes[rows[-1]][SYSTEM_BLOCKS:]) for rows in sessions(trace)]
    assert sum(map(len, own)) == len(set.union(*own))


def test_what_is_repeated_is_the_beginning_that_an_earlier_request_had() -> None:
    # The first of each tenant has nothing, later sessions have the system prompt.
    trace = Conversations(turns=1, tenants=2).draw(1.0, 60, 1)
    assert trace.repeated_tokens() == (len(trace) - 2) * SYSTEM_BLOCKS * 16
    assert replace(trace, prefixes=None).repeated_tokens() == 0


def fleet_of(replicas: int, trace: Trace) -> FleetModel:
    limits = replace(LIMITS, max_model_len=8192, blocks=40_001, prefix_cache=True)
    return a_fleet(
        limits=replace(limits, shared_tokens=trace.prefix_tokens),
        replica=replace(REPLICA, max_model_len=8192, kv_tokens=640_000),
        initial_replicas=replicas,
        router=Router.GATEWAY,
    )


def course_of(replicas: int, trace: Trace) -> Course:
    return Simulation(trace, fleet_of(replicas, trace), Planned((0, replicas))).run()


def test_one_replica_has_what_is_repeated_and_four_have_less() -> None:
    trace = Conversations().draw(0.1, 600, 3)
    alone, four = course_of(1, trace), course_of(4, trace)
    assert alone.prompt_tokens == four.prompt_tokens == sum(trace.input_tokens)
    # The last token of an answer is in no cache, so sometimes its block is not.
    assert alone.cached_tokens == pytest.approx(trace.repeated_tokens(), rel=0.01)
    assert alone.cached_tokens <= trace.repeated_tokens()
    assert len(trace) * 1000 < four.cached_tokens < 0.9 * alone.cached_tokens


def test_prefixes_of_another_length_than_the_engines_are_refused() -> None:
    trace = Conversations().draw(0.1, 60, 1)
    fleet = fleet_of(1, replace(trace, prefix_tokens=512))
    with pytest.raises(
        ValueError, match="prefixes of 16 tokens for an engine that finds those of 512"
    ):
        Simulation(trace, fleet, Planned((0, 1)))
