"""The product's own decision for conversations whose beginnings are cached."""

from dataclasses import replace

from tessera.api.ref import Ref
from tessera_lab.fleet.conversations import Conversations
from tessera_lab.fleet.course import Course
from tessera_lab.fleet.model import Router
from tessera_lab.fleet.policies.product import ProductPolicy, WholeGpuPool
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.trace import Trace

POOL = WholeGpuPool(name="pool", product="NVIDIA-A100-SXM4-80GB", price="2.00", nodes=1)
SPEC = {
    "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"},
    "scaling": {"minReplicas": 1, "maxReplicas": 8},
}
# Of 16 requests per second.
CHATS = Conversations(tenants=8).draw(16 / 6, 600.0, 1)


def course_of(trace: Trace) -> Course:
    objects = POOL.objects(Ref("lab", "chat"), SPEC)
    fleet = sized_fleet(objects.spec, objects.choice().fit)
    limits = replace(fleet.limits, shared_tokens=trace.prefix_tokens)
    fleet = replace(fleet, limits=limits, router=Router.PREFIXES, initial_replicas=3)
    return Simulation(trace, fleet, ProductPolicy(objects)).run()


def test_conversations_need_fewer_replicas_than_as_many_prompts_with_nothing_in_common() -> None:
    chats, others = course_of(CHATS), course_of(replace(CHATS, prefixes=None))
    assert chats.cached_tokens > 0.85 * chats.prompt_tokens
    assert chats.replica_seconds < 0.8 * others.replica_seconds
    for course in (chats, others):
        assert sum(ttft <= 1.0 for ttft in course.ttft) > 0.95 * len(CHATS)
