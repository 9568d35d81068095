"""Policies that configure a HorizontalPodAutoscaler, by hand or through KEDA."""

from operator import attrgetter

from tessera_lab.fleet.observation import Observation, PolicyFamily, Settings
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


def _total(name: str, target: float, *, empty: float | None = None) -> Metric:
    """Return the metric of the engines' sum, as an External metric with `AverageValue`."""
    value = attrgetter(name)
    return lambda observation: average_value(
        total_of(observation, value, empty=empty), target, observation.replicas
    )


def _mean(name: str, target: float) -> Metric:
    """Return the metric of the engines' mean, as an External metric with `Value`."""
    value = attrgetter(name)
    return lambda observation: external_value(
        mean_of(observation, value, empty=0.0), target, observation
    )


def _gpu_utilization(target: float) -> Metric:
    def metric(observation: Observation) -> int | None:
        values = [100 * engine.busy for engine in observation.engines if engine is not None]
        return pods_average(values, target, observation.replicas)

    return metric


def _hpa(settings: Settings, *metrics: Metric) -> HpaPolicy:
    """Return an HPA with one limit in pods, or the default ones, in each direction."""
    up, down = (
        DEFAULT_UP,
        ScalingBehavior(window=settings["down_window"], limits=DEFAULT_DOWN.limits),
    )
    if "up_pods" in settings:
        up = pods_behavior(settings["up_window"], settings["up_pods"], settings["up_period"])
    if "down_pods" in settings:
        down = pods_behavior(
            settings["down_window"], settings["down_pods"], settings["down_period"]
        )
    bounds = settings["min_replicas"], settings["max_replicas"]
    return HpaPolicy(HorizontalPodAutoscaler(up=up, down=down, bounds=bounds), metrics)


# The documents set a window for the way down alone, so the default limit of 100 % remains.
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
        create=lambda settings, _: _hpa(
            settings,
            _total("waiting", settings["queue_target"]),
            _gpu_utilization(settings["utilization_target"]),
        ),
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
        create=lambda settings, _: _hpa(
            settings, _total("waiting", settings["queue_target"]), lambda _: None
        ),
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
        create=lambda settings, _: _hpa(
            settings,
            _total("waiting", settings["queue_target"]),
            _total("running", settings["running_target"]),
        ),
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
        create=lambda settings, _: _hpa(
            settings,
            _mean("kv_usage", settings["kv_target"]),
            _mean("waiting", settings["queue_target"]),
        ),
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
        # KEDA ignores an empty result of the query: it is 0.
        create=lambda settings, _: _hpa(
            settings, _total("waiting", settings["threshold"], empty=0.0)
        ),
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
