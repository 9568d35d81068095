"""Tables that texts of tenants and nodes may fill fit into the operator's memory."""

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tables import TABLES, most_kibibytes, table, tables_in
from tessera.api.model_files import ModelShape
from tessera.api.service_class import BUILT_IN_CLASSES
from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuModel, gpu_models
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.sizing.scheduler_limits import Demand
from tests.builders import H100

ROOT = Path(__file__).parents[1]
# An eighth, and five eighths, of the memory that the chart gives the operator. It takes another.
MOST_KIBIBYTES, MOST_TOGETHER_KIBIBYTES = 128 * 1024, 640 * 1024


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


def nested_flags() -> tuple[str, ...]:
    """Return flags whose values are as much larger than their text as can be."""
    names = texts("--hf-overrides.k{}=", 64)
    return tuple(name + "[" * 500 + "]" * (1024 - 500 - len(name)) for name in names)


def seven_slices() -> Layout:
    return tuple(SlicePlacement(start, "1g.10gb") for start in range(7))


def a_shape() -> ModelShape:
    fields = set(ModelShape.model_fields)
    shape = models()["meta-llama/Llama-3.1-8B-Instruct"].model_dump(include=fields)
    return ModelShape.model_validate(shape)


def a_demand() -> Demand:
    return Demand(
        shape=a_shape(),
        engine=EngineTerms(draft=a_shape(), draft_tokens=5, acceptance=0.6),
        precision="fp8",
        max_model_len=8193,
        input_tokens=1201,
        output_tokens=1251,
        ttft=timedelta(seconds=1),
        inter_token=timedelta(milliseconds=33),
    )


def profiles(gpu_model: GpuModel) -> tuple[str, ...]:
    return tuple(sorted(profile.name for profile in gpu_model.profiles))


def large_keys(gpu_model: GpuModel) -> Mapping[str, Callable[[], tuple[Any, ...]]]:
    """Return what makes the arguments for the largest result of each table."""
    names, unknown, hardware = profiles(gpu_model), "p" * 63, products()[H100]
    resource = f"nvidia.com/mig-{'r' * 240}"
    adapters, mig = "tessera.adapters", "tessera.domain.mig"
    search = "tessera.domain.mig_backends.layout_search"
    return {
        f"{adapters}.nvml.profiles._error_names": lambda: (pynvml,),
        f"{adapters}.nvml.profiles._profile_constants": lambda: (pynvml,),
        f"{adapters}.kube.object_parsing._shared_devices": lambda: (
            tuple((f"nvidia.com/mig-{index:060}", 1) for index in range(16)),
        ),
        f"{adapters}.kube.object_parsing.cached_spec": lambda: (
            INFERENCE_SERVICES,
            large_spec(),
            BUILT_IN_CLASSES,
        ),
        "tessera.domain.hardware.pools.profile_of": lambda: (unknown[1:], resource[:-1]),
        "tessera.domain.hardware.pools.weight_of": lambda: (unknown[1:], resource[:-1]),
        f"{mig}.geometries._fill_counts": lambda: (gpu_model, names, 0, False),
        f"{mig}.geometries.maximal_fillings": lambda: (gpu_model, names),
        f"{mig}.geometries.possible_reshapes": lambda: (gpu_model, names, seven_slices()),
        "tessera.domain.hardware.gpu_layouts.place_geometry": lambda: (gpu_model, ((names[0], 7),)),
        f"{mig}.mix.gpu_geometries": lambda: (gpu_model, (*names, WHOLE_GPU)),
        f"{search}._densest_first": lambda: (gpu_model, tuple(names)),
        f"{search}._pack": lambda: (gpu_model, tuple((name, 2) for name in names), 16),
        f"{search}.layouts_for_counts": lambda: (
            gpu_model,
            ((names[0], 64),),
            16,
            tuple(seven_slices() for _ in range(16)),
        ),
        "tessera.domain.mig_backends.usage.share": lambda: (gpu_model, unknown[:24]),
        "tessera.domain.placement.no_hardware._tabulated_objectives": lambda: (
            a_demand(),
            whole_gpu_hardware(hardware, 8),
        ),
        "tessera.domain.placement.candidates.tabulated_size": lambda: (
            a_demand(),
            whole_gpu_hardware(hardware, 8),
        ),
        "tessera.domain.providers.dialects._dialect_at": lambda: (f"https://{'h' * 240}.example",),
        "tessera.domain.schedules._days_of_item": lambda: ("days", -1001),
        "tessera.domain.vllm.extra_args._parsed_flags": lambda: (nested_flags(), "0.32.0"),
        "tessera.domain.repartition.goals._target_layout": lambda: (
            gpu_model,
            tuple(f"{names[0]}@{start}" for start in range(7)),
            seven_slices(),
        ),
    }


@pytest.mark.parametrize("model", ["H100-80GB", "RTX-PRO-6000-96GB"])
@pytest.mark.parametrize("name", TABLES)
def test_a_large_result_has_the_size_that_the_page_says(name: str, model: str) -> None:
    function, key = table(name), large_keys(gpu_models()[model])[name]
    named = {"exact": True} if name.endswith("_target_layout") else {}
    function(*key(), **named)  # and with it the tables that it needs
    function.cache_clear()
    gc.freeze()  # so that what the other tests left is not looked through
    tracemalloc.start()
    try:
        function(*key(), **named)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    results = function.cache_info().currsize
    assert results >= 1
    assert size / results <= TABLES[name].kibibytes * 1024


def test_full_tables_fit_into_memory() -> None:
    sizes = {name: most_kibibytes(name) for name in TABLES}
    assert max(sizes.values()) <= MOST_KIBIBYTES
    assert sum(sizes.values()) <= MOST_TOGETHER_KIBIBYTES


def missing(tables: Iterable[str]) -> list[str]:
    """Return the tables that the page of bounds does not name."""
    page = (ROOT / "docs/reference/bounds.md").read_text(encoding="utf-8")
    return [name for name in tables if f"`{name}`" not in page]


def test_no_table_is_missing_on_the_page_of_bounds() -> None:
    tables = set(tables_in(ROOT))
    assert missing(tables) == []
    assert tables == TABLES.keys()


PLANTED = {
    "from functools import cache\n\n@cache\ndef days(text): ...\n": "days",
    "import functools\n\n@functools.lru_cache(9)\ndef days(text): ...\n": "days",
    "import functools as f\n\ndays: object = f.lru_cache(9)(parse)\n": "days",
    "from functools import lru_cache as memo\n\ndays = memo(9)(parse)\n": "days",
    "from functools import partial\nfrom tessera.domain.incremental import tabulated\n\n"
    "class Dates:\n    @partial(tabulated, size=9)\n    def days(text): ...\n": "days",
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_table_is_missing(code: str, tmp_path: Path) -> None:
    module = tmp_path / "operator/tessera/domain/dates.py"
    module.parent.mkdir(parents=True)
    module.write_text(code, encoding="utf-8")
    assert missing(tables_in(tmp_path)) == [f"tessera.domain.dates.{PLANTED[code]}"]


def test_a_planted_table_without_a_name_is_told_by_its_place(tmp_path: Path) -> None:
    module = tmp_path / "operator/tessera/dates.py"
    module.parent.mkdir(parents=True)
    module.write_text("from functools import cache\n\nuse(cache(parse))\n", encoding="utf-8")
    assert missing(tables_in(tmp_path)) == ["operator/tessera/dates.py:3"]
