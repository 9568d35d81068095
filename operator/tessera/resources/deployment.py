"""The Deployment of a template: engines on MIG slices or whole GPUs, restricted and drainable."""

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
    """Return the Deployment of a variant's newest template, whose engines see this spec.

    Its template never changes, so its strategy only bounds what somebody else's edit takes.
    """
    service, choice = service_plan.service, variant.choice
    template = EngineTemplate(service.ref.name, spec, choice, variant.template.version)
    name, digest = deployment_identity(service_plan, variant)
    identity = {names.SERVICE_LABEL: service.ref.name, names.VARIANT_LABEL: choice.variant}
    if digest:
        identity[names.TEMPLATE_LABEL] = digest
    all_labels = service_labels(service, spec) | identity
    annotations = {
        names.TEMPLATE_ANNOTATION: variant.template.record.model_dump_json(
            by_alias=True, exclude_none=True
        )
    }
    if (pinned := service_plan.pinned_revision.status) is not None:
        # How it was pinned, without what was found out about the model since.
        text = pinned.model_dump_json(
            by_alias=True,
            exclude_none=True,
            exclude={"shape", "source", "cache", "other_caches", "draft"},
        )
        annotations[names.REVISION_ANNOTATION] = text
    wanted = client.V1DeploymentSpec(
        replicas=variant.replicas,
        # The default; applied, so that the pause of somebody else is taken back.
        paused=False,
        revision_history_limit=0,
        progress_deadline_seconds=template.start_seconds,
        selector=client.V1LabelSelector(match_labels=identity),
        strategy=client.V1DeploymentStrategy(
            type="RollingUpdate",
            rolling_update=client.V1RollingUpdateDeployment(
                max_surge=0 if variant.rolls_in_place else 1,
                max_unavailable=1 if variant.rolls_in_place else 0,
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


def deployment_identity(service_plan: ServicePlan, variant: VariantPlan) -> tuple[str, str]:
    """Return the name and the digest of a Deployment; one that has the first name has no digest."""
    if variant.workload is not None:
        return variant.workload.ref.name, variant.workload.template_digest
    service, name = service_plan.service.ref.name, variant.choice.variant
    # Tessera 0.1 takes pods of no other Deployment for replicas: the name is used when it is free.
    first = names.deployment_name(service, name)
    if variant.is_first and first not in {each.name for each in variant.older}:
        return first, ""
    digest = variant.template.digest
    return names.template_deployment_name(service, name, digest), digest


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
