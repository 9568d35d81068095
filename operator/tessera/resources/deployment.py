"""The Deployment of one variant: engines on MIG slices or whole GPUs, restricted and drainable."""

from kubernetes import client

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain import names
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.resources.api_resources import DEPLOYMENTS
from tessera.resources.arguments import whole_seconds
from tessera.resources.engine import HEALTH, EngineTemplate, restricted_pod
from tessera.resources.manifest import ObjectManifest, owned_manifest, service_labels
from tessera.resources.platform import pull_secrets
from tessera.resources.scheduling import bind_to_pool, spread_constraints


def deployment_manifest(
    service_plan: ServicePlan, variant: VariantPlan, spec: InferenceServiceSpec
) -> ObjectManifest:
    """Return the Deployment of a variant, whose engines see this spec."""
    service, choice = service_plan.service, variant.choice
    template = EngineTemplate(service.ref.name, spec, choice, variant.template.version)
    name = names.deployment_name(service.ref.name, choice.variant)
    identity = {names.SERVICE_LABEL: service.ref.name, names.VARIANT_LABEL: choice.variant}
    all_labels = service_labels(service, spec) | identity
    annotations = None
    if (pinned := service_plan.pinned_revision.status) is not None:
        # How it was pinned, without what was found out about the model since.
        text = pinned.model_dump_json(
            by_alias=True,
            exclude_none=True,
            exclude={"shape", "source", "cache", "other_caches", "draft"},
        )
        annotations = {names.REVISION_ANNOTATION: text}
    wanted = client.V1DeploymentSpec(
        replicas=variant.replicas,
        # The default; applied, so that the pause of somebody else is taken back.
        paused=False,
        revision_history_limit=3,
        progress_deadline_seconds=template.start_seconds,
        selector=client.V1LabelSelector(match_labels=identity),
        strategy=client.V1DeploymentStrategy(
            type="RollingUpdate",
            rolling_update=client.V1RollingUpdateDeployment(
                max_surge=1 if variant.surge else 0,
                max_unavailable=0 if variant.surge else 1,
            ),
        ),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(
                labels={**spec.pod_template.labels, **all_labels},
                annotations=dict(spec.pod_template.annotations) or None,
            ),
            spec=_pod_spec(template),
        ),
    )
    return owned_manifest(DEPLOYMENTS, service, name, all_labels, wanted, annotations=annotations)


def _pod_spec(template: EngineTemplate) -> client.V1PodSpec:
    rules, drain = template.rules, whole_seconds(template.spec.drain.timeout)
    pod = client.V1PodSpec(
        service_account_name=names.ENGINE_ACCOUNT,
        automount_service_account_token=False,
        enable_service_links=False,
        image_pull_secrets=pull_secrets(template.version.platform),
        topology_spread_constraints=spread_constraints(template.name),
        readiness_gates=[client.V1PodReadinessGate(condition_type=names.SERVING_GATE)],
        termination_grace_period_seconds=rules.pre_stop_seconds + drain + rules.exit_seconds,
        security_context=restricted_pod(),
        containers=[_replica_container(template)],
        volumes=template.volumes(),
    )
    return bind_to_pool(pod, template, unreachable_seconds=rules.unreachable_seconds)


def _replica_container(template: EngineTemplate) -> client.V1Container:
    """Return the engine's container with a readiness probe, and a preStop delay for draining."""
    container = template.container()
    container.readiness_probe = client.V1Probe(
        http_get=HEALTH, period_seconds=5, timeout_seconds=5, failure_threshold=3
    )
    sleep = client.V1SleepAction(seconds=template.rules.pre_stop_seconds)
    container.lifecycle = client.V1Lifecycle(pre_stop=client.V1LifecycleHandler(sleep=sleep))
    return container
