"""Apply the objects that several services share, and delete those that nothing needs anymore."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from tessera.api.engine_egress import EngineEgress
from tessera.api.template_version import Platform
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import BATCH_ROLE
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.names import prepull_namespace
from tessera.domain.observed.snapshot import Ref
from tessera.domain.planning.plan import Plan
from tessera.ports import ClusterObject
from tessera.reconcile.store import forget_all_but
from tessera.reconcile.writing.service_work import CHILD_KINDS
from tessera.reconcile.writing.write_order import Stage, Work, WorkKey
from tessera.reconcile.writing.writer import Writer, WriteStep, attempt
from tessera.resources import prepull
from tessera.resources.api_resources import DAEMON_SETS, REPLICA_SETS
from tessera.resources.children import NamespaceOwners, namespace_owners
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tessera.resources.placeholders import placeholders
from tessera.resources.runner import RunnerImage

log = logging.getLogger("tessera")


_NO_BATCHES: Mapping[Ref, BatchPlan] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What all objects need to know of how the operator is installed."""

    namespace: str
    """The operator's own."""
    ingress_namespaces: tuple[str, ...]
    """From which engines may be reached, besides their own."""
    batch_image: RunnerImage
    egress: EngineEgress = field(default_factory=EngineEgress)
    platform: Platform = field(default_factory=Platform)
    batch_role: str = BATCH_ROLE
    monitor_labels: Mapping[str, str] = field(default_factory=dict)
    """Of PodMonitors, by which Prometheus selects them."""
    mig_namespace: str | None = None
    """With the ConfigMap of mig-manager; None where it is not used."""


class SharedInputs(NamedTuple):
    """All inputs of the shared objects of a namespace."""

    sharing: NamespaceOwners
    monitored: bool
    existing: tuple[ClusterObject, ...]
    """The shared objects of the namespace."""


class SharedObjectApplier:
    """Applies the shared objects of namespaces, and prunes."""

    def __init__(self, writer: Writer, installation: Installation) -> None:
        self._writer = writer
        self._installation = installation
        self._sharing = Incremental()
        self._applied: dict[str, tuple[SharedInputs, tuple[ObjectManifest, ...]]] = {}
        """What was applied last, by namespace, if nothing was refused."""
        self._in_place: dict[str, SharedInputs] = {}
        """The inputs of namespaces whose objects are all in place."""
        self.refusals: dict[str, list[str]] = {}
        """What was refused last, by namespace."""

    def work(
        self, plan: Plan, existing: tuple[ClusterObject, ...], *, monitored: bool
    ) -> Iterator[Work]:
        """Yield the work of namespaces whose shared objects may not be in place."""
        of_namespace = defaultdict[str, list[ClusterObject]](list)
        for observed in existing:
            of_namespace[observed.key.namespace].append(observed)
        for sharing in self._sharing.run(
            namespace_owners, plan.service_plans, plan.active_batches or _NO_BATCHES
        ):
            namespace = sharing.namespace
            inputs = SharedInputs(sharing, monitored, tuple(of_namespace[namespace]))
            if inputs != self._in_place.get(namespace):
                # A burst of services adds owners in each cycle, which nothing waits for.
                stage = Stage.STATUS if self._adds_owners(inputs) else Stage.CHILDREN
                yield Work(shared_key(namespace, stage), partial(self.apply, inputs))

    def _adds_owners(self, inputs: SharedInputs) -> bool:
        """Return whether the objects are as they were applied, and only have further owners."""
        applied, manifests = self._applied.get(inputs.sharing.namespace, (None, ()))
        return (
            applied is not None
            and applied.monitored == inputs.monitored
            and inputs.sharing.adds_owners(applied.sharing)
            and self._writer.are_in_place(manifests)
        )

    async def apply(self, inputs: SharedInputs) -> None:
        """Apply the shared objects of a namespace."""
        namespace = inputs.sharing.namespace
        self._in_place.pop(namespace, None)
        self.refusals[namespace] = await self.apply_shared(inputs)

    @WriteStep
    async def apply_shared(self, inputs: SharedInputs) -> list[str]:
        manifests = inputs.sharing.manifests(
            operator_namespace=self._installation.namespace,
            ingress_namespaces=self._installation.ingress_namespaces,
            monitor_labels=self._installation.monitor_labels if inputs.monitored else None,
            egress=self._installation.egress,
            platform=self._installation.platform,
            batch_role=self._installation.batch_role,
        )
        namespace = inputs.sharing.namespace
        self._applied.pop(namespace, None)
        # A newer plan may have further owners, with which it would begin with the first one again.
        with self._writer.completing():
            problems, unchanged = await self._writer.apply_changed(manifests)
        if unchanged:
            self._in_place[namespace] = inputs
        if not problems:
            self._applied[namespace] = inputs, manifests
        return problems

    async def prune(
        self,
        plan: Plan,
        existing: Mapping[Ref | None, tuple[ClusterObject, ...]],
        pull_keys: Collection[ObjectKey] | None,
    ) -> None:
        """Delete the shared objects of namespaces and pools that no longer need them.

        `pull_keys` are the DaemonSets that are needed, None if that is not known.
        """
        # Their owners may end together. While the garbage collector removes one owner from an
        # object, an apply may just have set it as the only one; then only the operator removes it.
        used = {
            ref.namespace for ref in (*plan.service_plans, *plan.active_batches, *existing) if ref
        }
        used |= {job.ref.namespace for job in plan.orphaned_jobs}
        for observed in existing.get(None, ()):
            is_unused = (
                pull_keys is not None and observed.key not in pull_keys
                if observed.key.plural in (DAEMON_SETS.plural, REPLICA_SETS.plural)
                else observed.key.namespace not in used
            )
            if observed.owned_fields_digest and is_unused:
                await attempt(self._writer.delete(CHILD_KINDS[observed.key.plural], observed.key))

    def forget(self, namespaces: Collection[str]) -> None:
        """Forget all other namespaces."""
        forget_all_but(namespaces, self._applied, self._in_place, self.refusals)


def shared_key(namespace: str, stage: Stage = Stage.CHILDREN) -> WorkKey:
    """Return the key of the work of a namespace's shared objects."""
    return WorkKey(ObjectKey("namespaces", namespace, ""), stage)


class PrePullApplier:
    """Applies what pulls images, and starts nodes, before services need them."""

    def __init__(self, writer: Writer, config: Config, installation: Installation) -> None:
        self._writer = writer
        self._config = config
        self._image = installation.batch_image
        self.namespace = prepull_namespace(installation.namespace)
        self._incremental = Incremental()
        self._problems: list[str] = []
        self.keys: Collection[ObjectKey] | None = None
        """The needed DaemonSets and placeholders; None where they could not be built."""

    async def apply(self, plan: Plan) -> None:
        """Apply them; a failed pre-pull delays nothing, so a log line reports it."""
        problems = await self.apply_pulls(plan)
        if problems and problems != self._problems:
            log.warning("image pre-pull failed: %s", "; ".join(problems))
        self._problems = problems

    @WriteStep
    async def apply_pulls(self, plan: Plan) -> list[str]:
        """Apply the DaemonSets; where that raises, those that exist stay."""
        self.keys = None
        manifests = self._incremental.run(
            prepull.prepull_daemon_sets,
            plan.pools,
            plan.service_plans,
            self._config.platform,
            self._config.builder_version,
            self._image,
            self.namespace,
        )
        manifests += placeholders(plan.pools, self._config.platform, self._image, self.namespace)
        self.keys = {manifest.key for manifest in manifests}
        problems, _ = await self._writer.apply_changed(manifests)
        return problems
