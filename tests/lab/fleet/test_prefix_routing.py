"""Fleets that send prompts to where their beginnings are cached."""

from dataclasses import replace
from typing import Any

import pytest

from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.fleet.conversations import Conversations
from tessera_lab.fleet.course import Course
from tessera_lab.fleet.documents import document_questions
from tessera_lab.fleet.model import Router
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.trace import Trace
from tests.lab.fleet.builders import LIMITS, REPLICA, STEP, Planned, a_fleet

SHARED_LIMITS = replace(
    LIMITS,
    max_model_len=16384,
    blocks=6001,
    max_num_batched_tokens=2048,
    prefix_cache=True,
    shared_tokens=16,
)
CHATS = Conversations(tenants=8).draw(1.0, 300.0, 2)


def course_of(
    trace: Trace, router: Router, *, gateways: int = 1, session_tokens: int = 0, **settings: Any
) -> Course:
    replica = replace(REPLICA, kv_tokens=96_000)
    fleet = a_fleet(
        replica=replica,
        limits=SHARED_LIMITS,
        router=router,
        router_settings=settings,
        gateways=gateways,
        session_tokens=session_tokens,
        initial_replicas=4,
    )
    return Simulation(trace, fleet, Planned((0, 4))).run()


def test_documents_are_asked_for_by_their_rank() -> None:
    trace = document_questions(50.0, 100.0, seed=1)
    asked = [names[0] for names in trace.prefixes or ()]
    units = len((trace.prefixes or ())[0])
    assert asked.count(0) > 1.5 * asked.count(units) > 1.5 * asked.count(4 * units)


def test_a_salt_parts_the_documents_of_tenants() -> None:
    shared = document_questions(50.0, 20.0, seed=1)
    salted = document_questions(50.0, 20.0, seed=1, tenants=8)
    assert salted.repeated_tokens() < 0.95 * shared.repeated_tokens()


@pytest.mark.parametrize("router", [Router.PREFIXES, Router.CACHES])
def test_who_knows_the_prefixes_finds_more_of_them_cached(router: Router) -> None:
    blind, seeing = course_of(CHATS, Router.GATEWAY), course_of(CHATS, router)
    assert seeing.cached_tokens > 1.15 * blind.cached_tokens
    assert sum(seeing.ttft) < sum(blind.ttft)


@pytest.mark.parametrize("router", [Router.LLM_D, Router.DYNAMO])
def test_rivals_that_see_prefixes_find_more_of_them_cached(router: Router) -> None:
    blind, seeing = course_of(CHATS, Router.LEAST_REQUESTS), course_of(CHATS, router)
    assert seeing.cached_tokens > 1.05 * blind.cached_tokens
    assert seeing.promised_tokens > 0.9 * seeing.cached_tokens


@pytest.mark.parametrize(
    ("router", "settings"),
    [
        (Router.LLM_D, {"prefix": 0, "queue": 0, "kv": 0, "active": 1}),
        (Router.LLM_D, {"prefix": 0, "queue": 1, "kv": 0, "active": 0.01}),
        (Router.DYNAMO, {"overlap_credit": 0}),
    ],
)
def test_rivals_without_weight_on_prefixes_balance_the_load(
    router: Router, settings: dict[str, Any]
) -> None:
    balanced, other = course_of(CHATS, Router.LEAST_REQUESTS), course_of(CHATS, router, **settings)
    assert other.cached_tokens == pytest.approx(balanced.cached_tokens, rel=0.1)
    assert sum(other.ttft) < 1.3 * sum(balanced.ttft)


def test_gateways_with_a_record_each_find_less_unless_sessions_keep_theirs() -> None:
    alone = course_of(CHATS, Router.PREFIXES)
    apart = course_of(replace(CHATS, turns=None), Router.PREFIXES, gateways=4)
    by_session = course_of(CHATS, Router.PREFIXES, gateways=4, session_tokens=1216)
    assert apart.cached_tokens < 0.95 * alone.cached_tokens
    assert by_session.cached_tokens > 0.97 * alone.cached_tokens


@pytest.mark.parametrize("gateways", [2, 4])
def test_gateways_that_know_the_owner_of_a_conversation_find_most_of_it(gateways: int) -> None:
    alone = course_of(CHATS, Router.PREFIXES)
    apart = course_of(CHATS, Router.PREFIXES, gateways=gateways)
    assert apart.cached_tokens > 0.95 * alone.cached_tokens


def test_without_another_gateway_owners_change_nothing() -> None:
    alone = course_of(CHATS, Router.PREFIXES)
    assert alone.ttft == course_of(replace(CHATS, turns=None), Router.PREFIXES).ttft


def test_a_record_promises_what_engines_find_less_the_answers() -> None:
    course = course_of(CHATS, Router.PREFIXES)
    assert 0.8 * course.cached_tokens < course.promised_tokens <= course.cached_tokens


def test_a_hashed_beginning_stays_at_its_replica_up_to_the_bound() -> None:
    loose = course_of(CHATS, Router.BOUNDED_HASH, hashed_tokens=1232, load_factor=100.0)
    tight = course_of(CHATS, Router.BOUNDED_HASH, hashed_tokens=1232, load_factor=1.0)
    assert loose.cached_tokens > 1.1 * tight.cached_tokens


def test_an_engine_says_what_its_cache_has() -> None:
    engine = EngineCore(SHARED_LIMITS, STEP)
    names = tuple(range(32))
    engine.submit(EngineRequest(id=1, prompt_tokens=300, output_tokens=300, shared_prefixes=names))
    assert engine.cached_tokens(names) == 0
    engine.step()
    assert engine.cached_tokens(names) == 288
    while engine.step():
        pass
    assert engine.cached_tokens((*names, 99)) == 512
    assert engine.cached_tokens((99, *names)) == 0
