"""LoRA adapters: the rank that all go by, and the memory that they take from the cache."""

import pytest

from tessera.api.model_files import Adapter
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.sizing.lora import engine_rank, slots_mib
from tests.builders import MEDIUM, a_node, a_service, a_snapshot, a_spec, compute_service_plan

B8 = models()["meta-llama/Llama-3.1-8B-Instruct"]


def adapters(*ranks: int) -> tuple[Adapter, ...]:
    return tuple(
        Adapter(name=f"a{index}", uri="hf://acme/lora", rank=rank)
        for index, rank in enumerate(ranks)
    )


@pytest.mark.parametrize(
    ("ranks", "rank"), [((), 0), ((1,), 1), ((4,), 8), ((16, 24), 32), ((512,), 512)]
)
def test_the_engine_gets_the_least_rank_that_takes_all(ranks: tuple[int, ...], rank: int) -> None:
    assert engine_rank(adapters(*ranks)) == rank


def test_a_slot_takes_at_least_what_the_adapter_of_all_projections_has() -> None:
    """42 million weights of 2 bytes for rank 16 on Llama-3.1-8B (q, k, v, o, gate, up, down)."""
    assert 80 <= slots_mib(B8, 1, 16) <= 110


def test_slots_follow_the_width_of_the_layers_where_heads_are_wider() -> None:
    """Heads twice as wide add two widths, and what they weigh is not in the inner layers."""
    wide = B8.model_copy(update={"hidden_size": 4096, "attention_heads": 2 * B8.attention_heads})
    rank, mib = 16, 2**20
    heads = 4096 * B8.layers * rank * 2
    unused_mib = 3 * B8.layers * rank * 2 * (2 * 4096 * 4096 // (3 * 4096))
    assert slots_mib(wide, 1, rank) - slots_mib(B8, 1, rank) == pytest.approx(
        (2 * heads - unused_mib) / mib, abs=1
    )


def test_slots_and_ranks_multiply() -> None:
    assert slots_mib(B8, 4, 16) == pytest.approx(slots_mib(B8, 1, 64), abs=4)
    assert slots_mib(B8, 0, 64) == 0


def test_adapters_leave_less_room_for_the_cache() -> None:
    nodes = (a_node(slices={"3g.40gb": 1}),)
    adapter_specs = [
        {"name": f"a{index}", "uri": "hf://acme/lora", "rank": 64} for index in range(8)
    ]
    plain, adapted = (
        compute_service_plan(
            a_snapshot(a_service(spec=a_spec(MEDIUM, replicas=1, model=model)), nodes=nodes)
        )
        for model in ({}, {"adapters": adapter_specs})
    )
    assert plain.choice is not None
    assert adapted.choice is not None
    taken = plain.choice.fit.memory.cache_mib - adapted.choice.fit.memory.cache_mib
    assert taken == pytest.approx(0.95 * slots_mib(B8, 8, 64), abs=2)
