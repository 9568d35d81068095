"""The Deployment of one variant: engines on MIG slices or whole GPUs, restricted and drainable."""

from kubernetes import client

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.template_version import PodTemplateVersion
from tessera.domain import names
from tessera.domain.placement.placement import HardwareChoice
from tessera.domain.planning.service_plan import ServicePlan
from tessera.resources.api_resources import DEPLOYMENTS
from tessera.resources.arguments import whole_seconds
from tessera.resources.defaults import defaults
from tessera.resources.engine import HEALTH, engine, restricted_pod, start_seconds, volumes
from tessera.resources.manifest import ObjectManifest, owned_manifest, service_labels
from tessera.resources.platform import pull_secrets
from tessera.resources.scheduling import bind_to_pool, spread_constraints


def deployment_manifest(
    service_plan: ServicePlan, spec: InferenceServiceSpec, choice: HardwareChoice
) -> ObjectManifest:
    """Return the Deployment of a variant, with the number of replicas that draining allows."""
    service = service_plan.service
    name = names.deployment_name(service.ref.name, choice.variant)
    identity = {names.SERVICE_LABEL: service.ref.name, names.VARIANT_LABEL: choice.variant}
    all_labels = service_labels(service, spec) | identity
    annotations = None
    if (pinned := service_plan.pinned_revision.status) is not None:
        # How it was pinned, without what was found out about the model since.
        text = pinned.model_dump_json(
            by_alias=True, exclude_none=True, exclude={"shape", "source", "cache"}
        )
        annotations = {names.REVISION_ANNOTATION: text}
    wanted = client.V1DeploymentSpec(
        replicas=service_plan.drain.replicas,
        # The default; applied, so that the pause of somebody else is taken back.
        paused=False,
        revision_history_limit=3,
        progress_deadline_seconds=start_seconds(choice, service_plan.template_version),
        selector=client.V1LabelSelector(match_labels=identity),
        strategy=client.V1DeploymentStrategy(
            type="RollingUpdate",
            rolling_update=client.V1RollingUpdateDeployment(
                max_surge=1 if service_plan.surge else 0,
                max_unavailable=0 if service_plan.surge else 1,
            ),
        ),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(
                labels={**spec.pod_template.labels, **all_labels},
                annotations=dict(spec.pod_template.annotations) or None,
            ),
            spec=_pod_spec(service.ref.name, spec, choice, service_plan.template_version),
        ),
    )
    return owned_manifest(DEPLOYMENTS, service, name, all_labels, wanted, annotations=annotations)


def _pod_spec(
    name: str,
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
    template_version: PodTemplateVersion,
) -> client.V1PodSpec:
    rules, drain = defaults(template_version.builder_version), whole_seconds(spec.drain.timeout)
    pod = client.V1PodSpec(
        service_account_name=names.ENGINE_ACCOUNT,
        automount_service_account_token=False,
        enable_service_links=False,
        image_pull_secrets=pull_secrets(template_version.platform),
        topology_spread_constraints=spread_constraints(name),
        readiness_gates=[client.V1PodReadinessGate(condition_type=names.SERVING_GATE)],
        termination_grace_period_seconds=rules.pre_stop_seconds + drain + rules.exit_seconds,
        security_context=restricted_pod(),
        containers=[_replica_container(name, spec, choice, template_version)],
        volumes=volumes(name, spec, choice, template_version),
    )
    return bind_to_pool(
        pod, spec, choice, template_version, unreachable_seconds=rules.unreachable_seconds
    )


def _replica_container(
    name: str,
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
    template_version: PodTemplateVersion,
) -> client.V1Container:
    """Return the engine's container with a readiness probe, and a preStop delay for draining."""
    container = engine(name, spec, choice, template_version)
    container.readiness_probe = client.V1Probe(
        http_get=HEALTH, period_seconds=5, timeout_seconds=5, failure_threshold=3
    )
    sleep = client.V1SleepAction(
        seconds=defaults(template_version.builder_version).pre_stop_seconds
    )
    container.lifecycle = client.V1Lifecycle(pre_stop=client.V1LifecycleHandler(sleep=sleep))
    return container
