"""Rows of DCGM exporters become readings of GPUs; no server runs."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.adapters.prometheus.energy import (
    JOULES,
    EnergyReader,
    gpu_queries,
    gpu_readings,
    service_energies,
)
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import SERVICE, Bounds
from tessera.adapters.prometheus.rows import QueryRow
from tessera.domain.observed.energy import (
    DeviceReading,
    EnergySource,
    GPUReading,
    ServiceEnergy,
)
from tessera.domain.observed.snapshot import Ref
from tests.builders import NOW, at

COUNTER, POWER, ACTIVITY = gpu_queries(PrometheusAccess().gpu_target)
EXPORTER = "10.0.0.1:9400"
GPU = "GPU-6f2a"
CHAT, MAIL = Ref("team-a", "chat-0"), Ref("team-a", "mail-0")


def row(value: float, seconds: float = 0, /, **labels: str) -> QueryRow:
    """A sample of the GPU by its exporter; the time is in seconds after NOW."""
    known = {"UUID": GPU, "instance": EXPORTER, "gpu": "0", "Hostname": "a100-0", **labels}
    moment = at(seconds).timestamp()
    return {
        "metric": {name: value for name, value in known.items() if value},
        "value": (moment, value),
        "values": [(moment, value)],
    }


def of_slice(number: int, pod: Ref | None = None, profile: str = "1g.10gb") -> dict[str, str]:
    owner = {} if pod is None else {"namespace": pod.namespace, "pod": pod.name}
    return {"GPU_I_ID": str(number), "GPU_I_PROFILE": profile, **owner}


def of_pod(pod: Ref) -> dict[str, str]:
    return {"namespace": pod.namespace, "pod": pod.name}


def gpus_of(
    counters: Iterable[QueryRow] = (),
    powers: Iterable[QueryRow] = (),
    activities: Iterable[QueryRow] = (),
) -> tuple[GPUReading, ...]:
    return gpu_readings(NOW, list(counters), list(powers), list(activities)).gpus


def the_gpu(*rows: Iterable[QueryRow]) -> GPUReading:
    (gpu,) = gpus_of(*rows)
    return gpu


def test_a_gpu_is_its_counter_and_power_at_the_time_of_the_scrape() -> None:
    gpu = the_gpu([row(5e9, -3)], [row(87.5, -3)], [row(0.25, **of_pod(CHAT))])
    assert (gpu.uuid, gpu.node, gpu.gpu, gpu.exporter) == (GPU, "a100-0", "0", EXPORTER)
    assert (gpu.at, gpu.millijoules, gpu.watts) == (at(-3), 5_000_000_000, 87.5)


def test_a_partitioned_gpu_is_one_with_its_instances_and_without_itself() -> None:
    instances = [of_slice(7, CHAT), of_slice(8)]
    gpu = the_gpu(
        [row(100), *(row(100, **labels) for labels in instances)],
        [row(80.2), *(row(80.1, **labels) for labels in instances)],
        [row(0.4), row(0.9, **of_slice(7, CHAT)), row(0, **of_slice(8))],
    )
    assert (gpu.millijoules, gpu.watts) == (100, 80.2)
    assert gpu.devices == (
        DeviceReading("7", "1g.10gb", CHAT, 0.9),
        DeviceReading("8", "1g.10gb", None, 0.0),
    )


def test_the_pod_of_a_scraped_target_is_not_the_holder() -> None:
    """Where the scrape does not honor labels, those of the page are `exported_`."""
    scraped = {"namespace": "gpu-operator", "pod": "dcgm-exporter-x2z"}
    exported = {"exported_namespace": CHAT.namespace, "exported_pod": CHAT.name}
    gpu = the_gpu([row(1, **scraped, **exported)], (), [row(0.5, **scraped, **exported)])
    assert gpu.devices == (DeviceReading("", "", CHAT, 0.5),)


@pytest.mark.parametrize(
    ("labels", "node"),
    [
        ({"Hostname": "a"}, "a"),
        ({"Hostname": "", "hostname": "b"}, "b"),
        ({"Hostname": "", "node": "c"}, "c"),
        ({"Hostname": "", "hostname": "b", "node": "c"}, "b"),
        ({"Hostname": ""}, ""),
    ],
)
def test_the_node_is_by_the_label_that_the_exporter_has(labels: dict[str, str], node: str) -> None:
    assert the_gpu([row(1, **labels)]).node == node


def test_the_pod_that_left_a_device_is_seen_by_its_activity_alone() -> None:
    gpu = the_gpu(
        [row(100, -45, **of_pod(CHAT)), row(160, **of_pod(MAIL))],
        [row(80, -45, **of_pod(CHAT)), row(90, **of_pod(MAIL))],
        [row(0.9, **of_pod(CHAT)), row(0.2, **of_pod(MAIL))],
    )
    assert (gpu.at, gpu.millijoules, gpu.watts) == (NOW, 160, 90)
    assert gpu.devices == (
        DeviceReading("", "", CHAT, 0.9, is_held=False),
        DeviceReading("", "", MAIL, 0.2),
    )


def test_an_instance_that_is_no_more_is_none() -> None:
    gpu = the_gpu(
        [row(100, -15, **of_slice(7, CHAT)), row(160, **of_slice(8))],
        (),
        [row(0.9, **of_slice(7, CHAT)), row(0.5, **of_slice(8))],
    )
    assert gpu.devices == (DeviceReading("8", "1g.10gb", None, 0.5),)


def test_two_pods_that_share_a_device_both_have_it() -> None:
    pods = [of_pod(CHAT), of_pod(MAIL)]
    gpu = the_gpu([row(1, **pod) for pod in pods], (), [row(0.3, **pod) for pod in pods])
    assert gpu.devices == (
        DeviceReading("", "", CHAT, 0.3),
        DeviceReading("", "", MAIL, 0.3),
    )


def test_without_a_counter_a_gpu_has_its_power_alone() -> None:
    gpu = the_gpu((), [row(75, -1)])
    assert (gpu.at, gpu.millijoules, gpu.watts) == (at(-1), None, 75)
    assert gpus_of((), (), [row(0.5)]) == ()


def test_two_exporters_of_a_gpu_are_two_readings() -> None:
    gpus = gpus_of([row(5), row(6, instance="10.0.0.2:9400")])
    assert [(gpu.exporter, gpu.millijoules) for gpu in gpus] == [
        (EXPORTER, 5),
        ("10.0.0.2:9400", 6),
    ]


def test_a_gpu_of_more_devices_than_any_has_no_more_than_64() -> None:
    counters = [row(1, **of_slice(index, Ref("evil", f"pod-{index}"))) for index in range(10_000)]
    assert len(the_gpu(counters, counters, counters).devices) == 64


def test_ten_thousand_gpus_of_a_page_are_read_and_sorted() -> None:
    rows = [row(index, UUID=f"GPU-{index:05d}") for index in range(10_000)]
    gpus = gpus_of(reversed(rows), rows, rows)
    assert [gpu.uuid for gpu in gpus] == [f"GPU-{index:05d}" for index in range(10_000)]


@dataclass
class _Series:
    """Answers each query with its rows, and remembers when and how often it was asked."""

    rows: dict[str, list[QueryRow]]
    queries: list[str] = field(default_factory=list)
    problem: Exception | None = None

    def custom_query(self, query: str, *_: Any, **__: Any) -> list[QueryRow]:
        self.queries.append(query)
        if self.problem is not None:
            raise self.problem
        return self.rows.get(query, [])


def _metrics(**rows: list[QueryRow]) -> tuple[PrometheusMetrics, _Series]:
    by_query = {"counter": COUNTER.text, "power": POWER.text, "activity": ACTIVITY.text}
    series = _Series({by_query[name]: samples for name, samples in rows.items()})
    metrics = PrometheusMetrics("http://unused", lambda: NOW)
    metrics._client = series
    return metrics, series


@pytest.mark.parametrize(
    "bad",
    [
        {"UUID": ""},
        {"instance": ""},
    ],
)
def test_rows_without_a_gpu_or_an_exporter_are_left_out(bad: dict[str, str]) -> None:
    metrics, _ = _metrics(counter=[row(1, **bad), row(2)])
    gpus = asyncio.run(metrics.energy.gpus_at(NOW)).gpus
    assert [gpu.millijoules for gpu in gpus] == [2]


@pytest.mark.parametrize("value", [-1.0, 1e19, float("nan"), float("inf")])
def test_a_counter_that_is_none_leaves_the_power(value: float) -> None:
    metrics, _ = _metrics(counter=[row(value)], power=[row(60), row(-5, UUID="GPU-negative")])
    (gpu,) = asyncio.run(metrics.energy.gpus_at(NOW)).gpus
    assert (gpu.uuid, gpu.millijoules, gpu.watts) == (GPU, None, 60)


def test_no_page_of_an_engine_is_asked_for_gpus() -> None:
    for query in (COUNTER, POWER, ACTIVITY):
        assert f'{SERVICE}=""' in query.text


async def test_readings_stay_while_queries_fail_and_services_are_asked_each_five_minutes() -> None:
    metrics, series = _metrics(counter=[row(1)])
    reader = metrics.energy
    await reader.read(NOW, samples=True)
    first = reader.gpus
    assert first is not None
    assert sum(JOULES in query for query in series.queries) == 1

    series.problem = OSError("no route to host")
    await reader.read(at(2), samples=True)
    assert reader.gpus is first


def joules(value: float, service: str = "chat", **labels: str) -> QueryRow:
    known = {"namespace": "team-a", "service": service, "source": "Measured", **labels}
    return {"metric": known, "value": (0, value)}


def test_the_energy_of_a_service_is_known_as_its_worst_row() -> None:
    tokens: QueryRow = {"metric": {"namespace": "team-a", SERVICE: "chat"}, "value": (0, 400.0)}
    energies = service_energies(
        {
            "joules": [
                joules(60),
                joules(40, source="Model"),
                joules(0, source="Power"),
                joules(9, ""),
            ],
            "tokens": [tokens],
            "requests": [],
        }
    )
    assert energies == {
        Ref("team-a", "chat"): ServiceEnergy(
            joules=100, source=EnergySource.MODEL, output_tokens=400.0, requests=0.0
        )
    }


def test_a_source_that_this_version_does_not_know_is_no_energy() -> None:
    rows: dict[str, list[QueryRow]] = {
        "joules": [joules(60, source="Guess")],
        "tokens": [],
        "requests": [],
    }
    assert service_energies(rows) == {}


def test_a_job_of_exporters_leaves_out_every_other_page() -> None:
    target = PrometheusAccess(gpu_job='gpus/"dcgm"').gpu_target
    for query in gpu_queries(target):
        assert 'tessera_dev_service="",job="gpus/\\"dcgm\\""}' in query.text
    assert "job" not in PrometheusAccess().gpu_target


async def test_a_new_leader_reads_the_samples_at_which_the_last_one_ended() -> None:
    asked: list[Any] = []

    async def query(text: str, _bounds: Bounds, moment: Any) -> list[QueryRow]:
        asked.append(moment)
        if text == COUNTER.text:
            return [row(7, -40)]
        end = (NOW - timedelta(seconds=30)).timestamp()
        return [{"metric": {}, "value": (0, end)}] if text.startswith("max_over_time") else []

    async def union(_queries: Any) -> dict[str, list[QueryRow]]:
        return {}

    ended = await EnergyReader(query, union, 'job="tessera"', (COUNTER, POWER, ACTIVITY)).ended(NOW)
    assert ended is not None
    assert (ended.at, [gpu.millijoules for gpu in ended.gpus]) == (at(-30), [7])
    assert asked == [None, *[at(-30)] * 3]


def test_a_target_with_a_source_of_its_own_hides_that_of_no_service() -> None:
    sample = joules(60, source="pods", exported_source="Power")
    (energy,) = service_energies({"joules": [sample], "tokens": [], "requests": []}).values()
    assert (energy.joules, energy.source) == (60, EnergySource.POWER)
