"""Policies that configure a HorizontalPodAutoscaler, by hand or through KEDA."""

from functools import partial

from tessera_lab.fleet.observation import (
    EngineSample,
    Observation,
    PolicyFamily,
    ReplicaModel,
    Settings,
)
from tessera_lab.fleet.policies.hpa import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    HorizontalPodAutoscaler,
    HpaPolicy,
    Metric,
    ScalingBehavior,
    average_value,
    external_value,
    mean_of,
    pods_average,
    pods_behavior,
    total_of,
)
from tessera_lab.fleet.policies.knobs import MOST_REPLICAS, grid


def _waiting(engine: EngineSample) -> float:
    return engine.waiting


def _running(engine: EngineSample) -> float:
    return engine.running


def _kv_usage(engine: EngineSample) -> float:
    return engine.kv_usage


def _behavior(settings: Settings) -> tuple[ScalingBehavior, ScalingBehavior]:
    """Return both directions, each with one limit in pods."""
    return (
        pods_behavior(settings["up_window"], settings["up_pods"], settings["up_period"]),
        pods_behavior(settings["down_window"], settings["down_pods"], settings["down_period"]),
    )


def _bounds(settings: Settings) -> tuple[float, float]:
    return settings["min_replicas"], settings["max_replicas"]


def _waiting_total(target: float, observation: Observation) -> int | None:
    return average_value(total_of(observation, _waiting), target, observation.replicas)


def _running_total(target: float, observation: Observation) -> int | None:
    return average_value(total_of(observation, _running), target, observation.replicas)


def _gpu_utilization(target: float, observation: Observation) -> int | None:
    values = [100 * engine.busy for engine in observation.engines if engine is not None]
    return pods_average(values, target, observation.replicas)


def _unreadable(_: Observation) -> None:
    return None


def _documents(utilization: Metric, settings: Settings) -> HpaPolicy:
    up = pods_behavior(settings["up_window"], settings["up_pods"], settings["up_period"])
    # The documents set a window alone, so the default limit of 100 % remains.
    down = ScalingBehavior(window=settings["down_window"], limits=DEFAULT_DOWN.limits)
    hpa = HorizontalPodAutoscaler(up=up, down=down, bounds=_bounds(settings))
    return HpaPolicy(hpa, [partial(_waiting_total, settings["queue_target"]), utilization])


def _documents_busy(settings: Settings, _: ReplicaModel) -> HpaPolicy:
    return _documents(partial(_gpu_utilization, settings["utilization_target"]), settings)


def _documents_mig(settings: Settings, _: ReplicaModel) -> HpaPolicy:
    return _documents(_unreadable, settings)


def _tuned(settings: Settings, _: ReplicaModel) -> HpaPolicy:
    up, down = _behavior(settings)
    metrics = [
        partial(_waiting_total, settings["queue_target"]),
        partial(_running_total, settings["running_target"]),
    ]
    return HpaPolicy(HorizontalPodAutoscaler(up=up, down=down, bounds=_bounds(settings)), metrics)


def _kv_mean(target: float, observation: Observation) -> int | None:
    return external_value(mean_of(observation, _kv_usage, empty=0.0), target, observation)


def _queue_mean(target: float, observation: Observation) -> int | None:
    return external_value(mean_of(observation, _waiting, empty=0.0), target, observation)


def _keda_llm_d(settings: Settings, _: ReplicaModel) -> HpaPolicy:
    up, down = _behavior(settings)
    metrics = [
        partial(_kv_mean, settings["kv_target"]),
        partial(_queue_mean, settings["queue_target"]),
    ]
    return HpaPolicy(HorizontalPodAutoscaler(up=up, down=down, bounds=_bounds(settings)), metrics)


def _queue_total(target: float, observation: Observation) -> int | None:
    # KEDA ignores an empty result of the query: it is 0.
    total = total_of(observation, _waiting, empty=0.0)
    return average_value(total, target, observation.replicas)


def _keda_queue(settings: Settings, _: ReplicaModel) -> HpaPolicy:
    down = ScalingBehavior(window=settings["down_window"], limits=DEFAULT_DOWN.limits)
    hpa = HorizontalPodAutoscaler(up=DEFAULT_UP, down=down, bounds=_bounds(settings))
    return HpaPolicy(hpa, [partial(_queue_total, settings["threshold"])])


_DOCUMENTS = {
    "queue_target": 50.0,
    "up_window": 60.0,
    "up_pods": 2.0,
    "up_period": 120.0,
    "down_window": 300.0,
    "min_replicas": 2.0,
    "max_replicas": 8.0,
}

HPA_FAMILIES = {
    "hpa-documents-busy": PolicyFamily(
        title="HPA of the documents, GPU_UTIL of whole GPUs (Kubernetes 1.35)",
        create=_documents_busy,
        published=_DOCUMENTS | {"utilization_target": 75.0},
        grid=grid(
            queue_target=(5, 25, 50),
            utilization_target=(75, 85, 95),
            down_window=(60, 300),
            max_replicas=(8, MOST_REPLICAS),
        ),
    ),
    "hpa-documents-mig": PolicyFamily(
        title="HPA of the documents, no GPU_UTIL on MIG (Kubernetes 1.35)",
        create=_documents_mig,
        published=_DOCUMENTS,
        grid=grid(
            queue_target=(2, 5, 10, 25, 50),
            up_window=(0, 60),
            up_pods=(1, 2, 4),
            max_replicas=(MOST_REPLICAS,),
        ),
    ),
    "hpa-tuned": PolicyFamily(
        title="HPA, waiting and running requests (Kubernetes 1.35)",
        create=_tuned,
        published={
            "queue_target": 2.0,
            # llm-d's newer configuration for a replica.
            "running_target": 16.0,
            "up_window": 0.0,
            "up_pods": 4.0,
            "up_period": 15.0,
            "down_window": 300.0,
            "down_pods": 4.0,
            "down_period": 15.0,
            "min_replicas": 1.0,
            "max_replicas": MOST_REPLICAS,
        },
        grid=grid(
            queue_target=(2, 5),
            running_target=(8, 12, 16, 24, 32, 48, 64, 96),
            down_window=(120, 600),
        ),
    ),
    "keda-llm-d": PolicyFamily(
        title="KEDA as llm-d tunes it (8b4f083; WVA docs/benchmark.md)",
        create=_keda_llm_d,
        published={
            "kv_target": 0.7,
            "queue_target": 2.0,
            "up_window": 0.0,
            "up_pods": 1.0,
            "up_period": 180.0,
            "down_window": 300.0,
            "down_pods": 1.0,
            "down_period": 300.0,
            "min_replicas": 1.0,
            "max_replicas": 10.0,
        },
        grid=grid(
            kv_target=(0.1, 0.2, 0.4, 0.7),
            queue_target=(0.5, 2),
            up_period=(60, 180),
            down_period=(60, 300),
            max_replicas=(MOST_REPLICAS,),
        ),
    ),
    "keda-queue": PolicyFamily(
        title="KEDA on the waiting requests (8b4f083)",
        create=_keda_queue,
        published={
            "threshold": 5.0,
            "down_window": 300.0,
            "min_replicas": 1.0,
            # KEDA's default of maxReplicaCount.
            "max_replicas": 100.0,
        },
        grid=grid(
            threshold=(0.5, 1, 2, 5, 10),
            down_window=(300, 1800),
            min_replicas=(1, 2, 4),
        ),
    ),
}
