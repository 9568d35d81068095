"""Fleets that send prompts to where their beginnings are cached."""

from dataclasses import replace

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


def course_of(trace: Trace, router: Router, **fields: float) -> Course:
    replica = replace(REPLICA, kv_tokens=96_000)
    fleet = a_fleet(
        replica=replica, limits=SHARED_LIMITS, router=router, initial_replicas=4, **fields
    )
    return Simulation(trace, fleet, Planned((0, 4))).run()


def test_documents_are_asked_for_by_their_rank() -> None:
    trace = document_questions(50.0, 100.0, seed=1)
    asked = [names[0] for names in trace.prefixes or ()]
    units = len((trace.prefixes or ())[0])
    assert asked.count(0) > 1.5 * asked.count(units) > 1.5 * asked.count(4 * units)


@pytest.mark.parametrize("router", [Router.PREFIXES, Router.CACHES])
def test_who_knows_the_prefixes_finds_more_of_them_cached(router: Router) -> None:
    blind, seeing = course_of(CHATS, Router.GATEWAY), course_of(CHATS, router)
    assert seeing.cached_tokens > 1.15 * blind.cached_tokens
    assert sum(seeing.ttft) < sum(blind.ttft)


def test_a_record_promises_what_engines_find_less_the_answers() -> None:
    course = course_of(CHATS, Router.PREFIXES)
    assert 0.8 * course.cached_tokens < course.promised_tokens <= course.cached_tokens


def test_a_hashed_beginning_stays_at_its_replica_up_to_the_bound() -> None:
    hashed = {"hashed_tokens": 1232}
    loose = course_of(CHATS, Router.BOUNDED_HASH, load_factor=100.0, **hashed)
    tight = course_of(CHATS, Router.BOUNDED_HASH, load_factor=1.0, **hashed)
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
