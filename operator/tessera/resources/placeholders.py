"""Placeholders: pods that ask for the whole GPUs of a node that is to become slices.

No autoscaler knows the slices of a node that does not exist. A ReplicaSet has one such pod for a
pool; once the node came it is deleted, and the slices follow.
"""

from collections.abc import Iterator, Sequence

from kubernetes import client

from tessera.api.accelerator_pool import AcceleratorPoolSpec, NodeTemplate
from tessera.api.meta import GROUP
from tessera.api.template_version import Platform
from tessera.domain.hardware.device import GPU
from tessera.domain.hardware.node_templates import template_tolerations
from tessera.domain.hardware.pools import PoolView
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.domain.names import COMPONENT, deployment_name
from tessera.domain.observed.snapshot import Pool, Ref
from tessera.resources import engine, scheduling
from tessera.resources import platform as surroundings
from tessera.resources.api_resources import REPLICA_SETS
from tessera.resources.manifest import ObjectManifest, Owner, labels, manifest, owner_reference
from tessera.resources.runner import RunnerImage

_NAME = "tessera-placeholder"
_POOL_LABEL = f"{GROUP}/pool"
_PROGRAM = "/usr/local/bin/tessera-wait"
_PRIORITY_CLASS = "tessera-placeholder"
_REQUESTS = {"cpu": "1m", "memory": "4Mi", "ephemeral-storage": "1Mi"}
_LIMITS = {"cpu": "50m", "memory": "16Mi", "ephemeral-storage": "16Mi"}


def placeholders(
    pools: Sequence[PoolView], platform: Platform, image: RunnerImage, namespace: str
) -> tuple[ObjectManifest, ...]:
    """Return the placeholder of each pool that waits for a node with one."""
    return tuple(_placeholders(pools, platform, image, namespace))


def _placeholders(
    pools: Sequence[PoolView], platform: Platform, image: RunnerImage, namespace: str
) -> Iterator[ObjectManifest]:
    for view in pools:
        spec, status = view.pool.spec, view.provisioning
        if spec is None or spec.node_template is None or status is None:
            continue
        if status.placeholder_since is not None:
            pod = _pod_spec(spec, spec.node_template, platform, image)
            yield _replica_set(view.pool, pod, namespace)


def _replica_set(pool: Pool, pod: client.V1PodSpec, namespace: str) -> ObjectManifest:
    identity = {COMPONENT: "placeholder", _POOL_LABEL: pool.name}
    all_labels = labels(_NAME, pool.name, component="placeholder") | identity
    owner = Owner(ACCELERATOR_POOLS, Ref("", pool.name), pool.uid)
    metadata = client.V1ObjectMeta(
        name=deployment_name(_NAME, pool.name),
        namespace=namespace,
        labels=all_labels,
        owner_references=[owner_reference(owner, controller=True)],
    )
    wanted = client.V1ReplicaSetSpec(
        replicas=1,
        selector=client.V1LabelSelector(match_labels=identity),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels=all_labels), spec=pod
        ),
    )
    return manifest(REPLICA_SETS, metadata, spec=wanted)


def _pod_spec(
    spec: AcceleratorPoolSpec, template: NodeTemplate, platform: Platform, image: RunnerImage
) -> client.V1PodSpec:
    gpus = {GPU: str(template.gpus)}
    container = client.V1Container(
        name="placeholder",
        image=image.name,
        image_pull_policy=image.pull_policy,
        command=[_PROGRAM],
        resources=client.V1ResourceRequirements(requests=_REQUESTS | gpus, limits=_LIMITS | gpus),
        security_context=engine.restricted(),
    )
    return client.V1PodSpec(
        automount_service_account_token=False,
        enable_service_links=False,
        image_pull_secrets=surroundings.pull_secrets(platform, *image.pull_secrets),
        node_selector=dict(spec.node_selector),
        tolerations=scheduling.tolerations(template_tolerations(spec), on_spot=spec.tier == "Spot"),
        scheduler_name=spec.scheduler_name,
        priority_class_name=_PRIORITY_CLASS if platform.priority_classes else None,
        termination_grace_period_seconds=1,
        security_context=engine.restricted_pod(),
        containers=[container],
    )
