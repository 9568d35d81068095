"""Every service that is refused, with its reason and what to do."""

from dataclasses import dataclass
from datetime import date

from tessera.api.reasons import Accepted, PlacementReason, StatusReason
from tessera.domain.observed.snapshot import Budget, Node, Pod, Pool
from tests.builders import H100, a_budget, a_node, a_pod, a_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalCase:
    """A manifest, the fleet that it meets, and what its condition must say."""

    reason: StatusReason
    manifest: str
    field: str
    says: tuple[str, ...]
    pools: tuple[Pool, ...] = (a_pool(),)
    nodes: tuple[Node, ...] = (a_node(slices={"1g.10gb": 7}),)
    pods: tuple[Pod, ...] = ()
    budgets: tuple[Budget, ...] = ()


def service_manifest(fields: str = "", model: str = "{uri: 'hf://Qwen/Qwen3-8B'}") -> str:
    return f"""
apiVersion: tessera.dev/v1alpha1
kind: InferenceService
metadata: {{name: chat, namespace: team-a, uid: uid-chat}}
spec:
  model: {model}
{fields}
"""


LLAMA_1B = "{uri: 'hf://meta-llama/Llama-3.2-1B-Instruct'}"
LLAMA_8B = "{uri: 'hf://meta-llama/Llama-3.1-8B-Instruct'}"

SERVICES = [
    RefusalCase(
        reason=Accepted.INVALID_SPEC,
        manifest=service_manifest(model="{uri: 'ftp://somewhere'}"),
        field="spec.model.uri",
        says=("hf://", "kubectl explain"),
    ),
    RefusalCase(
        reason=Accepted.INVALID_NAME,
        manifest=service_manifest().replace("name: chat", "name: qwen3.8b"),
        field="metadata.name",
        says=("a dot or more than 63 characters", "create the InferenceService under another"),
    ),
    RefusalCase(
        reason=Accepted.READING_MODEL,
        manifest=service_manifest(model="{uri: 'hf://acme/own-model'}"),
        field="spec.model.shape",
        says=("hf://acme/own-model", "kubectl logs -n team-a job/chat-shape-"),
    ),
    RefusalCase(
        reason=Accepted.BUDGET_EXHAUSTED,
        manifest=service_manifest(model="{uri: 'hf://acme/own-model'}"),
        field="spec.model.uri",
        says=("no Job reads", "TenantBudget/team-a: hour limit 0.00 USD", "Raise spec.limits[0]"),
        budgets=(a_budget(amount="0.00"),),
    ),
    RefusalCase(
        reason=Accepted.CONTEXT_TOO_LONG,
        manifest=service_manifest("  context: {maxModelLen: 65536}"),
        field="spec.context.maxModelLen",
        says=("65536", "40960"),
    ),
    RefusalCase(
        reason=Accepted.PRECISION_MISMATCH,
        manifest=service_manifest(
            "  precision: {variants: [{precision: fp8}]}", model="{uri: 'hf://Qwen/Qwen3-8B-FP8'}"
        ),
        field="spec.precision.variants[0].precision",
        says=("quantized to fp8 already", "remove fp8"),
    ),
    RefusalCase(
        reason=Accepted.RUNNER_MISMATCH,
        manifest=service_manifest(
            "  engine: {runner: Generate}",
            model="{uri: 'hf://acme/bge', shape: {parameters: 567754752, layers: 24,"
            " attentionHeads: 16, kvHeads: 16, headDim: 64, maxPositionEmbeddings: 8192,"
            " pooling: Embed, encoderOnly: true}}",
        ),
        field="spec.engine.runner",
        says=("an encoder of 24 layers generates no text", "set Pooling"),
    ),
    RefusalCase(
        reason=Accepted.ADAPTER_NAME_CONFLICT,
        manifest=service_manifest(
            model="{uri: 'hf://Qwen/Qwen3-8B', servedName: sql,"
            " adapters: [{name: sql, uri: 'hf://acme/sql'}]}"
        ),
        field="spec.model.adapters[0].name",
        says=("sql", "spec.model.servedName", "rename"),
    ),
    RefusalCase(
        reason=Accepted.RESERVED_POD_TEMPLATE_FIELD,
        manifest=service_manifest("  podTemplate: {labels: {tessera.dev/service: other}}"),
        field="spec.podTemplate.labels",
        says=("tessera.dev/service", "set by Tessera"),
    ),
    RefusalCase(
        reason=Accepted.POD_KEY_NOT_ALLOWED,
        manifest=service_manifest("  podTemplate: {annotations: {iam.amazonaws.com/role: admin}}"),
        field="spec.podTemplate.annotations",
        says=("iam.amazonaws.com/role", "podTemplate.allowedKeys", "0 listed"),
    ),
    RefusalCase(
        reason=Accepted.INVALID_POD_TEMPLATE,
        manifest=service_manifest("  podTemplate: {labels: {'my key': a}}"),
        field="spec.podTemplate.labels",
        says=("'my key'", "63 letters"),
    ),
    RefusalCase(
        reason=Accepted.INVALID_ENGINE_OPTION,
        manifest=service_manifest("  engine: {maxNumSeqs: 512, maxNumBatchedTokens: 512}"),
        field="spec.engine.maxNumBatchedTokens",
        says=("512", "set at least 513"),
    ),
    RefusalCase(
        reason=Accepted.RESERVED_FLAG,
        manifest=service_manifest("  engine: {extraArgs: ['--max-model-len=100']}"),
        field="spec.engine.extraArgs",
        says=("--max-model-len", "spec.context.maxModelLen"),
    ),
    RefusalCase(
        reason=Accepted.RESERVED_FLAG,
        manifest=service_manifest("  engine: {extraArgs: ['--cpu_offload_gb=4', '--nnodes=2']}"),
        field="spec.engine.extraArgs",
        says=("--cpu-offload-gb", "--nnodes", "tensorParallelSize"),
    ),
    RefusalCase(
        reason=Accepted.RESERVED_FLAG,
        manifest=service_manifest("  engine: {extraArgs: ['-sc.method', ngram]}"),
        field="spec.engine.extraArgs",
        says=("--speculative-config", "spec.engine.speculation"),
    ),
    RefusalCase(
        reason=Accepted.DRAFT_MISMATCH,
        manifest=service_manifest(
            "  engine:\n"
            "    speculation:\n"
            "      method: DraftModel\n"
            "      model: {uri: 'hf://meta-llama/Llama-3.2-1B-Instruct'}"
        ),
        field="spec.engine.speculation.model.uri",
        says=("128256", "151936", "same family"),
    ),
    RefusalCase(
        reason=Accepted.INVALID_FLAG,
        manifest=service_manifest("  engine: {extraArgs: ['--max-logprobs=x']}"),
        field="spec.engine.extraArgs",
        says=("--max-logprobs", "0.32.0"),
    ),
    RefusalCase(
        reason=Accepted.FLAGS_UNCHECKED,
        manifest=service_manifest(
            "  engine: {version: 0.99.0, extraArgs: ['--anything']}", model=LLAMA_1B
        ),
        field="spec.engine.extraArgs",
        says=("0.99.0", "0.32.0"),
    ),
    RefusalCase(
        reason=Accepted.UNTESTED_ENGINE_VERSION,
        manifest=service_manifest("  engine: {version: 0.9.2}", model=LLAMA_1B),
        field="spec.engine.version",
        says=("0.9.2", "older than 0.30.0"),
    ),
    RefusalCase(
        reason=Accepted.POOL_NOT_FOUND,
        manifest=service_manifest("  placement: {pools: [a100, b200]}"),
        field="spec.placement.pools[1]",
        says=("b200", "kubectl get acceleratorpools"),
    ),
    RefusalCase(
        reason=Accepted.LOADER_MISMATCH,
        manifest=service_manifest("  engine: {loader: {type: Tensorizer}}"),
        field="spec.engine.loader.type",
        says=("hf://Qwen/Qwen3-8B", "pvc://", "set another type"),
    ),
    RefusalCase(
        reason=Accepted.INVALID_SCHEDULE,
        manifest=service_manifest("  scaling: {schedules: [{cron: 0 8 30 2 *}]}", model=LLAMA_1B),
        field="spec.scaling.schedules[0].cron",
        says=("'0 8 30 2 *' never comes", "correct its days or months"),
    ),
    RefusalCase(
        reason=Accepted.INTERACTIVE_ON_SPOT,
        manifest=service_manifest("  placement: {pools: [a100, spot]}", model=LLAMA_1B),
        field="spec.placement.pools[1]",
        says=("tier Spot", "within 15 s", "spec.class"),
        pools=(a_pool(), a_pool("spot", tier="Spot")),
    ),
    RefusalCase(
        reason=PlacementReason.NOT_ACCEPTED,
        manifest=service_manifest(model="{uri: 'hf://acme/own-model'}"),
        field="Accepted",
        says=("nothing is placed",),
    ),
    RefusalCase(
        reason=PlacementReason.NO_POOL,
        manifest=service_manifest(),
        field="spec.placement.pools",
        says=("kubectl get acceleratorpools", "0"),
        pools=(),
    ),
    RefusalCase(
        reason=PlacementReason.POOL_NOT_ALLOWED,
        manifest=service_manifest(),
        field="spec.placement.pools",
        says=("spec.namespaces of AcceleratorPool a100", "team-a", "kubectl get acceleratorpools"),
        pools=(a_pool(namespaces=["team-b"]),),
    ),
    RefusalCase(
        reason=PlacementReason.NO_POOL,
        manifest=service_manifest("  placement: {pools: [spot]}\n  class: Standard"),
        field="spec.placement.pools",
        says=("spot", "another tier"),
        pools=(a_pool("spot", tier="Spot"),),
        nodes=(a_node("spot", {"3g.40gb": 2}),),
    ),
    RefusalCase(
        reason=PlacementReason.NO_HARDWARE,
        manifest=service_manifest(),
        field="spec.placement.pools",
        says=("a100", "kubectl get nodes -l pool=a100"),
        nodes=(),
    ),
    RefusalCase(
        reason=PlacementReason.ENGINE_LIMITS_UNMET,
        manifest=service_manifest("  engine: {maxNumSeqs: 256}", model=LLAMA_8B),
        field="spec.engine.maxNumSeqs",
        says=("256 requests of typically 1325 cached tokens", "3g.40gb", "set at most"),
        nodes=(a_node(slices={"3g.40gb": 2}),),
    ),
    RefusalCase(
        reason=PlacementReason.LAYOUT_PENDING,
        manifest=service_manifest("  placement: {mig: Auto}"),
        field="a100",
        says=("a100",),
        pools=(a_pool(mig={"mode": "Auto"}),),
        nodes=(a_node(slices={"1g.10gb": 7}),),
    ),
    RefusalCase(
        reason=PlacementReason.BUDGET_EXHAUSTED,
        manifest=service_manifest("  placement: {mig: Auto}", model=LLAMA_1B),
        field="spec.placement.mig",
        says=("no slice is planned", "hour limit 0.00 USD", "needs 0.2679 USD: raise spec.limits"),
        pools=(a_pool(mig={"mode": "Auto"}),),
        budgets=(a_budget(amount="0.00"),),
    ),
    RefusalCase(
        reason=PlacementReason.BUDGET_EXHAUSTED,
        manifest=service_manifest("  placement: {mig: Auto}", model=LLAMA_1B),
        field="spec.placement.mig",
        says=(
            "TenantBudget/team-a: month limit 100.00 USD from 2026-12-01T00:00Z until 2027-01-01",
            "spent 0.00 USD, committed to minReplicas 0.00 USD, reserved 0.00 USD",
            "1 more replica of minReplicas needs 199.29 USD",
            "raise spec.limits[0].amount to 199.30 USD; this month it fits",
        ),
        pools=(a_pool(mig={"mode": "Auto"}),),
        budgets=(a_budget(window="Month", amount="100.00"),),
    ),
    RefusalCase(
        reason=PlacementReason.MIXED_CURRENCIES,
        manifest=service_manifest(model=LLAMA_1B),
        field="spec.placement.pools",
        says=("2 currencies (EUR, USD)", "name pools of one"),
        pools=(
            a_pool(),
            a_pool(
                "h100",
                prices=[{"from": date(2026, 1, 1), "perGPUHour": "3", "currency": "EUR"}],
            ),
        ),
        nodes=(a_node(slices={"1g.10gb": 7}), a_node("h100", whole=1, product=H100)),
    ),
    RefusalCase(
        reason=PlacementReason.TOO_LARGE,
        manifest=service_manifest(model="{uri: 'hf://meta-llama/Llama-3.1-70B-Instruct'}"),
        field="spec.model.uri",
        says=("9728 MiB", "devices of", "more whole GPUs", "fp8 in spec.precision.variants"),
    ),
    RefusalCase(
        reason=PlacementReason.TOO_LARGE,
        manifest=service_manifest(model=LLAMA_8B),
        field="spec.model.uri",
        says=("2g.20gb", "spec.context.maxModelLen of at most 7616"),
        nodes=(a_node(slices={"2g.20gb": 3}),),
    ),
    RefusalCase(
        reason=PlacementReason.TOO_SLOW,
        manifest=service_manifest("  slo: {itlP95: 10ms}", model=LLAMA_8B),
        field="spec.slo.itlP95",
        says=("10 ms", "22.6 ms", "itlP95 27ms with ttftP95 1s", "faster pool"),
        nodes=(a_node(slices={"3g.40gb": 2}),),
    ),
    RefusalCase(
        reason=PlacementReason.TOO_SLOW,
        manifest=service_manifest(
            "  context: {maxModelLen: 32768, typicalInputTokens: 30000}", model=LLAMA_8B
        ),
        field="spec.slo.ttftP95",
        says=("30000 tokens", "1000 ms", "spec.context.typicalInputTokens"),
        nodes=(a_node(slices={"3g.40gb": 2}),),
    ),
    RefusalCase(
        reason=PlacementReason.LAYOUT_PENDING,
        manifest=service_manifest("  placement: {mig: Auto}", model=LLAMA_1B),
        field="spec.placement.mig",
        says=("a100", "6 instance types", "kubectl get acceleratorpool"),
        pools=(a_pool(mig={"mode": "Auto"}),),
    ),
    RefusalCase(
        reason=PlacementReason.UNSCHEDULABLE,
        manifest=service_manifest(model=LLAMA_1B),
        field="spec.placement.pools",
        says=("1 of 2 replicas", "no free 1g.10gb", "1 node without enough free"),
        pods=(
            a_pod("chat-0"),
            a_pod(
                "chat-1",
                ready_since=None,
                containers_ready=False,
                unschedulable="1 node without enough free nvidia.com/mig-1g.10gb",
            ),
        ),
    ),
]
