"""Pre-pull of engine images onto the nodes of a pool, before a replica needs them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from kubernetes import client

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.inference_service import EngineOptions
from tessera.api.meta import GROUP
from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.hardware.pools import PoolView
from tessera.domain.names import deployment_name
from tessera.domain.observed.snapshot import Pool, Ref
from tessera.domain.service_plan import ServicePlan
from tessera.resources import engine, scheduling
from tessera.resources import platform as surroundings
from tessera.resources.api_resources import ACCELERATOR_POOLS, DAEMON_SETS
from tessera.resources.defaults import defaults
from tessera.resources.manifest import ObjectManifest, Owner, labels, manifest, owner_reference

_NAME = "tessera-prepull"
_POOL_LABEL = f"{GROUP}/pool"
# A program of the image itself, so that no other image has to be pulled.
_WAIT_COMMAND = ["sleep", "infinity"]
_RESOURCES = {"cpu": "1m", "memory": "16Mi"}


def prepull_daemon_sets(
    pools: Sequence[PoolView],
    service_plans: Mapping[Ref, ServicePlan],
    platform: Platform,
    builder_version: int,
    namespace: str,
) -> tuple[ObjectManifest, ...]:
    """Return a DaemonSet for each pool that asks for it, in the operator's namespace."""
    newest_template = PodTemplateVersion(builder_version=builder_version, platform=platform)
    return tuple(
        _daemon_set(
            view.pool,
            spec,
            _images_to_pull(view, service_plans, newest_template),
            platform,
            namespace,
        )
        for view in pools
        if (spec := view.pool.spec) is not None and spec.pre_pull
    )


def _images_to_pull(
    view: PoolView, service_plans: Mapping[Ref, ServicePlan], newest_template: PodTemplateVersion
) -> Sequence[str]:
    """Return the images of the services placed on the pool; without any, the default image."""
    images = {
        surroundings.engine_image(spec, service_plan.template_version)
        for service_plan in service_plans.values()
        if service_plan.choice is not None and service_plan.choice.offer.pool == view.pool.name
        if (spec := service_plan.effective_spec) is not None
    }
    version, builder_defaults = EngineOptions().version, defaults(newest_template.builder_version)
    default = surroundings.default_image(version, builder_defaults)
    return sorted(images) or [
        surroundings.mirror_image(default, newest_template.platform.image_registry)
    ]


def _daemon_set(
    pool: Pool, spec: AcceleratorPoolSpec, images: Sequence[str], platform: Platform, namespace: str
) -> ObjectManifest:
    name = deployment_name(_NAME, pool.name)
    all_labels = labels(_NAME, pool.name, component="prepull") | {_POOL_LABEL: pool.name}
    owner = Owner(ACCELERATOR_POOLS, Ref("", pool.name), pool.uid)
    owner_references = [owner_reference(owner, controller=True)]
    daemon_set = client.V1DaemonSet(
        metadata=client.V1ObjectMeta(
            name=name, namespace=namespace, labels=all_labels, owner_references=owner_references
        ),
        spec=client.V1DaemonSetSpec(
            selector=client.V1LabelSelector(match_labels={_POOL_LABEL: pool.name}),
            template=client.V1PodTemplateSpec(
                metadata=client.V1ObjectMeta(labels=all_labels),
                spec=_pod_spec(spec, images, platform),
            ),
        ),
    )
    return manifest(DAEMON_SETS, namespace, name, daemon_set)


def _pod_spec(
    spec: AcceleratorPoolSpec, images: Sequence[str], platform: Platform
) -> client.V1PodSpec:
    return client.V1PodSpec(
        automount_service_account_token=False,
        enable_service_links=False,
        image_pull_secrets=surroundings.pull_secrets(platform),
        node_selector=dict(spec.node_selector),
        tolerations=scheduling.tolerations(spec.tolerations, on_spot=spec.tier == "Spot"),
        termination_grace_period_seconds=1,
        security_context=engine.restricted_pod(),
        containers=list(_containers(images)),
    )


def _containers(images: Sequence[str]) -> Iterator[client.V1Container]:
    for image in images:
        yield client.V1Container(
            name=f"image-{hashlib.sha256(image.encode()).hexdigest()[:8]}",
            image=image,
            command=_WAIT_COMMAND,
            resources=client.V1ResourceRequirements(
                requests=_RESOURCES, limits={"memory": _RESOURCES["memory"]}
            ),
            security_context=engine.restricted(),
        )
