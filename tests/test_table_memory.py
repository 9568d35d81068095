"""Tables that texts of tenants and nodes may fill fit into the operator's memory."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tessera.adapters.object_parsing import cached_spec
from tessera.api.service_class import BUILT_IN_CLASSES
from tessera.domain.mig.geometries import possible_reshapes
from tessera.domain.mig.gpu_models import gpu_models
from tessera.domain.mig.layouts import SlicePlacement

# An eighth of the memory that the chart gives the operator.
MOST_BYTES = 128 * 1024**2


def texts(form: str, count: int) -> list[str]:
    return [form.format(index) for index in range(count)]


def large_spec() -> str:
    """Return a spec whose short text has as many parts as are allowed."""
    spec = {
        "model": {
            "uri": "hf://a/b",
            "adapters": [{"name": name, "uri": "hf://a/b"} for name in texts("a{}", 16)],
        },
        "scaling": {"schedules": [{"cron": "*"}] * 16},
        "engine": {"extraArgs": texts("{}", 64)},
        "podTemplate": {"env": [{"name": name, "value": ""} for name in texts("A{}", 24)]},
    }
    return json.dumps(spec, separators=(",", ":"))


def reshape_seven_slices() -> object:
    gpu_model = gpu_models()["H100-80GB"]
    profiles = tuple(sorted(profile.name for profile in gpu_model.profiles))
    return possible_reshapes(
        gpu_model, profiles, tuple(SlicePlacement(start, "1g.10gb") for start in range(7))
    )


@pytest.mark.parametrize(
    ("table", "fill"),
    [
        (cached_spec, partial(cached_spec, large_spec(), BUILT_IN_CLASSES)),
        (possible_reshapes, reshape_seven_slices),
    ],
    ids=["specs", "reshapes"],
)
def test_a_table_full_of_large_entries_fits_into_memory(
    table: Any, fill: Callable[[], object]
) -> None:
    fill()  # and with it the tables that it needs
    table.cache_clear()
    gc.collect()
    tracemalloc.start()
    try:
        fill()
        gc.collect()
        entry_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.cache_info().currsize == 1
    assert table.cache_info().maxsize * entry_bytes <= MOST_BYTES
