"""Values for tests, with defaults: a test shows only what matters to it."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_provider import ModelProviderSpec
from tessera.api.template_version import PodTemplateVersionStatus
from tessera.api.tenant_budget import TenantBudgetSpec, TenantBudgetStatus
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.model.fetched import fetched_files
from tessera.domain.model.names import Task, model_job_name
from tessera.domain.names import deployment_name, template_deployment_name
from tessera.domain.observed.model_jobs import ModelJobRun, ObservedModelJob
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.snapshot import (
    Budget,
    Node,
    ObservedService,
    Pod,
    PodReading,
    Pool,
    Readings,
    Ref,
    Snapshot,
    SpeedReading,
    Workload,
)
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.service.template_version import template_digest

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SMALL = "hf://meta-llama/Llama-3.2-1B-Instruct"
MEDIUM = "hf://meta-llama/Llama-3.1-8B-Instruct"
LARGE = "hf://meta-llama/Llama-3.1-70B-Instruct"
A100 = "NVIDIA-A100-SXM4-80GB"
H100 = "NVIDIA-H100-80GB-HBM3"
A_MODEL_OUTSIDE: dict[str, Any] = {
    "name": "Big",
    "maxContextTokens": 4096,
    "maxOutputTokens": 1000,
    "cost": {"input": "2", "output": "20"},
}
DEFAULT_CONFIG = Config()
NO_MEMORY = PlanMemory()


def at(seconds: float) -> datetime:
    """Return the moment `seconds` after NOW."""
    return NOW + timedelta(seconds=seconds)


def a_spec(uri: str = SMALL, **fields: Any) -> InferenceServiceSpec:
    """A spec as it stands in a manifest; `model` fields are merged into the uri."""
    model = {"uri": uri, **fields.pop("model", {})}
    return InferenceServiceSpec.model_validate({"model": model, **fields})


def a_service(
    name: str = "chat", spec: InferenceServiceSpec | None = None, **fields: Any
) -> ObservedService:
    return ObservedService(
        **{
            "ref": Ref("team-a", name),
            "uid": f"uid-{name}",
            "generation": 1,
            "spec": a_spec() if spec is None and "problem" not in fields else spec,
            **fields,
        }
    )


def a_pool(name: str = "a100", per_gpu_hour: str = "2.00", **fields: Any) -> Pool:
    spec = {
        "nodeSelector": {"pool": name},
        "tier": "Reserved",
        "prices": [{"from": date(2026, 1, 1), "perGPUHour": per_gpu_hour}],
        **fields,
    }
    checked = AcceleratorPoolSpec.model_validate(spec)
    return Pool(ref=Ref("", name), uid=f"uid-{name}", generation=1, spec=checked)


def a_budget(
    name: str = "team-a", amount: str = "10.00", window: str = "Hour", **fields: Any
) -> Budget:
    """Build a budget of the namespace with the same name."""
    status = fields.pop("status", TenantBudgetStatus())
    spec = {
        "owner": "team-a@example.org",
        "tenant": {"namespaces": [name]},
        "limits": [{"window": window, "amount": amount}],
        **fields,
    }
    return Budget(
        ref=Ref("", name), generation=1, spec=TenantBudgetSpec.model_validate(spec), status=status
    )


def a_provider_spec(name: str = "acme", **fields: Any) -> dict[str, Any]:
    """Return the spec of a provider with the model Big, which lists team-a."""
    return {
        "baseUrl": "https://api.example.com/v1",
        "protocols": ["OpenAIChat"],
        "secret": {"name": name},
        "tenants": ["team-a"],
        "models": [A_MODEL_OUTSIDE],
        **fields,
    }


def a_provider(name: str = "acme", **fields: Any) -> ObservedProvider:
    return ObservedProvider(
        ref=Ref("", name),
        uid=f"uid-{name}",
        created=NOW,
        generation=3,
        spec=ModelProviderSpec.model_validate(a_provider_spec(name, **fields)),
    )


def a_node(
    pool: str = "a100",
    slices: Mapping[str, int] | None = None,
    *,
    whole: int = 0,
    partitioned: int = 1,
    product: str = A100,
    name: str | None = None,
    ready: bool = True,
    labels: Mapping[str, str] | None = None,
) -> Node:
    """Build a node with `partitioned` GPUs in `slices`, and `whole` other ones."""
    slices = {} if slices is None else slices
    return Node(
        name=name or f"{pool}-0",
        labels={
            "pool": pool,
            "nvidia.com/gpu.product": product,
            "nvidia.com/gpu.count": str(whole + (partitioned if slices else 0)),
            **(labels or {}),
        },
        schedulable=ready,
        allocatable={
            **({"nvidia.com/gpu": whole} if whole else {}),
            **{f"nvidia.com/mig-{profile}": count for profile, count in slices.items()},
        },
    )


def a_pod(
    name: str = "chat-0",
    service: str = "chat",
    variant: str = "a100-1g-10gb",
    **fields: Any,
) -> Pod:
    """Build a replica that is ready for a minute, by default."""
    return Pod(
        **{
            "ref": Ref("team-a", name),
            "uid": f"uid-{name}",
            "service": Ref("team-a", service),
            "variant": variant,
            "template": "one",
            "created": at(-120),
            "address": "127.10.0.5",
            "ready_since": at(-60),
            "containers_ready": True,
            "serving": True,
            **fields,
        }
    )


def a_workload(
    replicas: int = 2, service: str = "chat", variant: str = "a100-1g-10gb", **fields: Any
) -> Workload:
    return Workload(
        **{
            "ref": Ref("team-a", deployment_name(service, variant)),
            "service": Ref("team-a", service),
            "variant": variant,
            "replicas": replicas,
            "rollout_complete": True,
            **fields,
        }
    )


def a_template_workload(
    record: PodTemplateVersionStatus, replicas: int = 2, service: str = "chat", **fields: Any
) -> Workload:
    """Build the Deployment of a template that came after the first one of its variant."""
    digest = template_digest(record)
    variant = fields.get("variant", "a100-1g-10gb")
    name = template_deployment_name(service, variant, digest)
    identity = {"ref": Ref("team-a", name), "template_digest": digest, "record": record}
    return a_workload(replicas, service, **{**identity, **fields})


def replica_of(workload: Workload, name: str, **fields: Any) -> Pod:
    """Build a ready replica of a Deployment."""
    digest = workload.template_digest
    template = {"template_digest": digest, **({"template": digest} if digest else {})}
    return a_pod(name, workload.service.name, workload.variant, **{**template, **fields})


def a_model_job(task: str, service: ObservedService, **fields: Any) -> dict[str, Any]:
    """The Job and the pod of a model job, as fields of a snapshot; `report` is what it left."""
    assert service.spec is not None
    model = service.spec.model
    if task == "draft":
        assert service.spec.engine.speculation is not None
        draft = service.spec.engine.speculation.model
        assert draft is not None
        model = Model(uri=draft.uri, revision=draft.revision)
    kind: Task = "draft" if task == "draft" else "shape"
    name = model_job_name(service.ref.name, service.uid, kind, model)
    if task == "fetch":
        files = (*fields.pop("files", ()), *fetched_files(service.spec))
        name = files[0].job_name if files else "fetch-of-another-model"
    report, code = fields.pop("report", ""), fields.pop("exit_code", None)
    phase = "fetch" if task == "fetch" else "shape"
    text = report if isinstance(report, str) else json.dumps({"phase": phase, **report})
    run = ModelJobRun(service=service.ref, job_uid=f"uid-{name}", exit_code=code, report=text)
    job = ObservedModelJob(
        ref=Ref("team-a", name), service=service.ref, task=task, uid=f"uid-{name}"
    )
    ended = None if code is None else NOW
    bare = {"service": Ref("team-a", ""), "variant": "", "ready_since": None, "ended": ended}
    pod = a_pod(f"{name}-x", **{**bare, "model_job_run": run, **fields})
    return {"model_jobs": (job,), "pods": (pod,)}


def readings_of(pods: Iterable[Pod], **fields: Any) -> Readings:
    """Build the same reading for every pod, taken just now."""
    known = {"waiting": 0.0, "running": 0.0, "activity": 0.0}
    reading = PodReading(**{**known, **{key: fields.pop(key) for key in known if key in fields}})
    return Readings(**{"at": NOW, "pods": {pod.ref: reading for pod in pods}, **fields})


def a_speed_reading(**fields: Any) -> SpeedReading:
    """Build a reading of five busy minutes: two replicas, prompts of 400 tokens, answers of 100."""
    return SpeedReading(
        **{
            "requests": 1200.0,
            "tokens_per_second": 400.0,
            "sequences": 8.0,
            "prefill_tokens": 32.0,
            "prompt_tokens": 400.0,
            "itl_seconds": 0.012,
            "running": 4.0,
            "kv_usage": 0.02,
            "kv_tokens": 120_000,
            **fields,
        }
    )


def a_snapshot(*services: ObservedService, **fields: Any) -> Snapshot:
    """Build a fleet with one A100 of seven 1g.10gb slices by default."""
    return Snapshot(
        **{
            "at": NOW,
            "services": services,
            "pools": (a_pool(),),
            "nodes": (a_node(slices={"1g.10gb": 7}),),
            **fields,
        }
    )


class PlanInputs(NamedTuple):
    """Everything that a plan is made from; `plan_of(*inputs)` makes it."""

    snapshot: Snapshot
    config: Config = DEFAULT_CONFIG
    memory: PlanMemory = NO_MEMORY


def plan_of(
    snapshot: Snapshot,
    config: Config = DEFAULT_CONFIG,
    memory: PlanMemory = NO_MEMORY,
    *,
    incremental: Incremental | None = None,
) -> Plan:
    """Plan a snapshot, with default settings and no memory."""
    if incremental is None:
        return plan(config, snapshot, memory)
    return incremental.run(plan, config, snapshot, memory)


def compute_service_plan(
    snapshot: Snapshot, name: str = "chat", config: Config = DEFAULT_CONFIG
) -> ServicePlan:
    """Return the plan of one service."""
    return plan_of(snapshot, config).service_plans[Ref("team-a", name)]


def dollars(amount: str) -> int:
    """Convert an amount to nano-units."""
    return int(Decimal(amount) * 10**9)
