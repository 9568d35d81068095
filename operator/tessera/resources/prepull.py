"""Pre-pull of engine images onto the nodes of a pool, before a replica needs them.

No code of an image runs: its container executes a program of the batch image that only waits. It is
a regular container, since init containers and image volumes hold up their pod: an image that cannot
be pulled delays no other one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from kubernetes import client

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.engine_options import EngineOptions
from tessera.api.meta import GROUP
from tessera.api.template_version import Platform
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import reused
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.domain.names import deployment_name
from tessera.domain.observed.snapshot import Pool, Ref
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.resources import engine, scheduling
from tessera.resources import platform as surroundings
from tessera.resources.api_resources import DAEMON_SETS
from tessera.resources.defaults import defaults
from tessera.resources.manifest import ObjectManifest, Owner, labels, manifest, owner_reference
from tessera.resources.runner import RunnerImage

# How many images one namespace, and all together, may put on the nodes of a pool.
MAX_IMAGES_PER_NAMESPACE = 4
MAX_IMAGES = 64
_NAME = "tessera-prepull"
_POOL_LABEL = f"{GROUP}/pool"
_SOURCE_LABEL = f"{GROUP}/image-source"
_PROGRAM = "/usr/local/bin/tessera-wait"
_FOLDER = "/tessera"
_REQUESTS = {"cpu": "1m", "memory": "4Mi", "ephemeral-storage": "1Mi"}
_LIMITS = {"cpu": "50m", "memory": "16Mi", "ephemeral-storage": "16Mi"}
# What a container runtime and its hooks read from the environment of an image: `void` requests no
# device, and no library of the image is loaded.
_ENVIRONMENT = {"NVIDIA_VISIBLE_DEVICES": "void", "LD_PRELOAD": ""}


@reused
def prepull_daemon_sets(
    pools: Sequence[PoolView],
    service_plans: Mapping[Ref, ServicePlan],
    platform: Platform,
    builder_version: int,
    program_image: RunnerImage,
    namespace: str,
) -> tuple[ObjectManifest, ...]:
    """Return the DaemonSets of each pool that asks for them, one for each source of images.

    Those for images that tenants name have no pull secrets, so that the platform's credentials
    bring no image of a tenant's choice to a node.
    """
    default = surroundings.mirror_image(
        surroundings.default_image(EngineOptions().version, defaults(builder_version)),
        platform.image_registry,
    )
    secrets = surroundings.pull_secrets(platform, *program_image.pull_secrets)
    daemon_sets = []
    for view in pools:
        if (spec := view.pool.spec) is None or not spec.pre_pull:
            continue
        variants = _granted_variants(view, service_plans)
        vllm = _images_to_pull(each for each in variants if not _names_image(*each))
        tenants = _images_to_pull(each for each in variants if _names_image(*each))
        for source, images, pull_secrets in (
            ("vllm", vllm or [default], secrets),
            ("tenants", tenants, None),
        ):
            if images:
                pod = _pod_spec(spec, images, program_image, pull_secrets)
                daemon_sets.append(_daemon_set(view.pool, source, pod, namespace))
    return tuple(daemon_sets)


def _granted_variants(
    view: PoolView, service_plans: Mapping[Ref, ServicePlan]
) -> Sequence[tuple[ServicePlan, VariantPlan]]:
    """Return the services with a granted replica on the pool, sorted by name."""
    return [
        (service_plan, variant)
        for _, service_plan in sorted(service_plans.items())
        for variant in service_plan.variants
        if variant.desired > 0 and variant.choice.offer.pool == view.pool.name
    ]


def _names_image(service_plan: ServicePlan, variant: VariantPlan) -> bool:
    spec = service_plan.located_spec(variant)
    return spec is not None and spec.engine.image is not None


def _images_to_pull(variants: Iterable[tuple[ServicePlan, VariantPlan]]) -> Sequence[str]:
    """Return the images of the services; when there are too many, each namespace has its share."""
    by_namespace: dict[str, dict[str, None]] = defaultdict(dict)
    for service_plan, variant in variants:
        if (spec := service_plan.located_spec(variant)) is not None:
            image = surroundings.engine_image(spec, variant.template.version)
            by_namespace[service_plan.service.ref.namespace][image] = None
    shares = (list(images)[:MAX_IMAGES_PER_NAMESPACE] for images in by_namespace.values())
    rounds = zip_longest(*shares)
    images = dict.fromkeys(image for turn in rounds for image in turn if image is not None)
    return sorted(list(images)[:MAX_IMAGES])


def _daemon_set(pool: Pool, source: str, pod: client.V1PodSpec, namespace: str) -> ObjectManifest:
    name = deployment_name(_NAME, f"{pool.name}-{source}")
    identity = {_POOL_LABEL: pool.name, _SOURCE_LABEL: source}
    all_labels = labels(_NAME, pool.name, component="prepull") | identity
    owner = Owner(ACCELERATOR_POOLS, Ref("", pool.name), pool.uid)
    owner_references = [owner_reference(owner, controller=True)]
    metadata = client.V1ObjectMeta(
        name=name, namespace=namespace, labels=all_labels, owner_references=owner_references
    )
    wanted = client.V1DaemonSetSpec(
        selector=client.V1LabelSelector(match_labels=identity),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels=all_labels), spec=pod
        ),
    )
    return manifest(DAEMON_SETS, metadata, spec=wanted)


def _pod_spec(
    spec: AcceleratorPoolSpec,
    images: Sequence[str],
    program_image: RunnerImage,
    pull_secrets: list[client.V1LocalObjectReference] | None,
) -> client.V1PodSpec:
    copy = _container("program", program_image.name, ["cp", _PROGRAM, _FOLDER], read_only=False)
    copy.image_pull_policy = program_image.pull_policy
    return client.V1PodSpec(
        automount_service_account_token=False,
        enable_service_links=False,
        image_pull_secrets=pull_secrets,
        node_selector=dict(spec.node_selector),
        tolerations=scheduling.tolerations(spec.tolerations, on_spot=spec.tier == "Spot"),
        termination_grace_period_seconds=1,
        security_context=engine.restricted_pod(),
        init_containers=[copy],
        containers=[
            _container(
                f"image-{hashlib.sha256(image.encode()).hexdigest()[:8]}",
                image,
                [f"{_FOLDER}/tessera-wait"],
                read_only=True,
            )
            for image in images
        ],
        volumes=[engine.empty_volume("program", size_limit="8Mi")],
    )


def _container(name: str, image: str, command: list[str], *, read_only: bool) -> client.V1Container:
    return client.V1Container(
        name=name,
        image=image,
        command=command,
        working_dir="/",
        env=[client.V1EnvVar(name=key, value=value) for key, value in _ENVIRONMENT.items()],
        resources=client.V1ResourceRequirements(requests=_REQUESTS, limits=_LIMITS),
        security_context=engine.restricted(),
        volume_mounts=[
            client.V1VolumeMount(name="program", mount_path=_FOLDER, read_only=read_only)
        ],
    )
