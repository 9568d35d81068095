"""Whatever a question to Prometheus raises, or how long it takes, the operator goes on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from typing_extensions import override

from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.controller.metrics_reader import MetricsReader, rest_seconds
from tessera.domain.budget.meter import SpendMeter, SpendRecord
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.observed.energy import EnergyReadings
from tessera.domain.observed.load_history import LoadHistory, PackedSpans
from tessera.domain.observed.snapshot import PodReading, Readings, Ref
from tessera.domain.scaling.state import ServiceLoad
from tessera.ports import MetricsError
from tessera.reconcile.observe import Observations
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.store import Store
from tessera.resources.api_resources import KINDS
from tessera.telemetry.process import ProcessMetrics
from tests.builders import NOW, at
from tests.memory_operator import MemoryOperator

SPEND = {
    "asOf": "2026-11-20T11:59:00Z",
    "windows": [],
    "running": [
        {
            "uid": "uid-gone",
            "pod": "team-a/gone",
            "pool": "a100",
            "weight": "1",
            "perGPUHour": "2",
            "chargedUntil": "2026-11-20T11:59:00Z",
        }
    ],
}

VARIANT = {
    "name": "a100-1g-10gb",
    "pool": "a100",
    "product": "NVIDIA-A100-SXM4-80GB",
    "gpus": 1,
    "precision": "checkpoint",
    "maxModelLen": 8192,
    "maxNumSeqs": 30,
    "maxNumBatchedTokens": 256,
    "kvCacheTokens": 138064,
    "tokensPerSecond": 1028,
    "source": "Table",
}


class _Prometheus:
    """Answers well, but for one question."""

    def __init__(self, failing: str, fail: Callable[[], Awaitable[Any]]) -> None:
        self._failing, self._fail = failing, fail
        self.energy = self

    async def ended(self, now: datetime) -> Any:
        return await self._answer("energy", EnergyReadings(at=now))

    async def _answer(self, question: str, answer: Any) -> Any:
        return await self._fail() if question == self._failing else answer

    async def read(self, edges: Any, *, samples: bool) -> Any:
        assert samples
        assert edges.itl == {0.025, 0.05}
        return await self._answer("read", Readings(at=NOW))

    async def load_history(self, span: timedelta) -> Any:
        del span
        load = ServiceLoad(at=at(-30), replicas=2, ready=2, waiting=80.0, running=4, activity=0.5)
        return await self._answer("load_history", {Ref("team-a", "chat"): (load,)})

    async def billed_until(self) -> Any:
        return await self._answer("billed_until", at(-60))

    async def spend_records(self) -> Any:
        record = SpendRecord(currency="USD", meter=SpendMeter())
        return await self._answer("spend_records", {"team-a": record})

    async def last_seen(self, pods: Any, span: timedelta) -> Any:
        del span
        return await self._answer("last_seen", dict.fromkeys(pods, at(-30)))

    async def query_range(self, *_: Any) -> Any:
        return await self._answer("query_range", [])

    def take_rejected(self) -> Any:
        return {}


async def _raise(error: Exception) -> Any:
    raise error


async def _hang() -> Any:
    await asyncio.Event().wait()


async def _error_of(reader: MetricsReader) -> Exception | None:
    """Return what ends a leader before its first cycle, a wait without end included."""
    try:
        async with asyncio.timeout(60):
            await reader.restore_scaling()
            await reader.restore_spend()
            await reader.read()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    return None


FAILURES: dict[str, Callable[[], Awaitable[Any]]] = {
    "year out of range": lambda: _raise(ValueError("year 31690708 is out of range")),
    "infinity": lambda: _raise(OverflowError("cannot convert float infinity to integer")),
    "no label": lambda: _raise(KeyError("namespace")),
    "refused": lambda: _raise(MetricsError("503")),
    "dripping": _hang,
}


@pytest.mark.parametrize(
    "question", ["read", "load_history", "billed_until", "energy", "spend_records", "last_seen"]
)
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_question_that_fails_is_counted_and_all_others_are_asked(
    question: str, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    operator, store, observations = MemoryOperator(), Store(KINDS), Observations()
    operator.body(operator.serve())["status"] = {"variant": VARIANT}
    limits = [{"window": "Hour", "amount": "1"}]
    spec = {"owner": "a@example.org", "tenant": {"namespaces": ["team-a"]}, "limits": limits}
    operator.cluster.put(
        TENANT_BUDGETS,
        {"metadata": {"name": "team-a"}, "spec": spec, "status": {"spend": SPEND}},
    )
    await Reflector(operator.cluster, store, observations, lambda _: None).list_all()
    process = ProcessMetrics()
    reader = MetricsReader(
        cast(PrometheusMetrics, _Prometheus(question, FAILURES[failure])),
        store,
        observations,
        process,
        lambda: NOW,
        answer_seconds=0.05,
    )
    with caplog.at_level(logging.WARNING):
        ended = await _error_of(reader)
    assert ended is None
    answered = {
        "load_history": bool(observations.history.scaling),
        "billed_until": observations.history.billed_until is not None,
        "energy": observations.history.energy is not None,
        "spend_records": bool(observations.history.spend_records),
        "last_seen": bool(observations.history.last_seen),
        "read": observations.readings is not None and observations.readings.problem is None,
    }
    assert [name for name, known in answered.items() if not known] == [question]
    assert "Prometheus: no " in caplog.text
    assert "Traceback" not in caplog.text
    failures = "tessera_prometheus_query_failures_total"
    assert process.registry.get_sample_value(failures) == 1


class _Loads(_Prometheus):
    """Answers with one load after the other."""

    def __init__(self, *running: int) -> None:
        super().__init__("", FAILURES["refused"])
        self._running = iter(running)

    @override
    async def read(self, edges: Any, *, samples: bool) -> Any:
        del edges, samples
        pods = {Ref("team-a", "chat-1"): PodReading(running=next(self._running))}
        return Readings(at=NOW, pods=pods)


async def test_another_load_than_before_wakes_a_cycle_and_the_same_one_does_not() -> None:
    wakes: list[int] = []
    reader = MetricsReader(
        cast(PrometheusMetrics, _Loads(1, 1, 2, 2)),
        Store(KINDS),
        Observations(),
        ProcessMetrics(),
        lambda: NOW,
        wake=lambda: wakes.append(1),
    )
    woken = []
    for _ in range(4):
        await reader.read()
        woken.append(len(wakes))
    assert woken == [1, 1, 2, 2]


@pytest.mark.parametrize("failing", ["", "query_range"])
async def test_the_load_of_services_that_follow_it_is_read_beside_the_readings(
    failing: str,
) -> None:
    operator, store, observations = MemoryOperator(), Store(KINDS), Observations()
    operator.serve("chat")
    operator.serve("others", scaling={"mode": "External"})
    operator.serve("fixed", replicas=2)
    operator.serve("queued", scaling={"policy": "QueueAndActivity"})
    await Reflector(operator.cluster, store, observations, lambda _: None).list_all()
    prometheus = _Prometheus(failing, FAILURES["refused"])
    reader = MetricsReader(
        cast(PrometheusMetrics, prometheus), store, observations, ProcessMetrics(), lambda: NOW
    )
    rests = [await reader.read_load_history() for _ in range(8)]
    await reader.read()
    assert observations.readings is not None
    histories = observations.readings.load_histories
    if failing:
        # The load is asked for again after some minutes.
        assert (rests, histories) == ([60.0] + [5.0] * 7, {})
    else:
        # It takes a query for each of seven days.
        assert [rest >= 5 for rest in rests] == [False] * 7 + [True]
        assert histories == {Ref("team-a", "chat"): LoadHistory(read_at=NOW, spans=PackedSpans([]))}


def test_reads_that_take_long_are_made_less_often() -> None:
    assert [rest_seconds(seconds) for seconds in (0.01, 0.15, 0.2, 3.0)] == [2.0, 3.0, 4.0, 5.0]
