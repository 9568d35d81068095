"""The plan of one service: what is decided for it and its Deployments."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.precision import CHECKPOINT
from tessera.api.reasons import Accepted, StatusVerdict
from tessera.api.template_version import PodTemplateVersion
from tessera.domain.aspects.aspect import NOT_MEASURED, PlacedService, Reported
from tessera.domain.health.stall import Stall
from tessera.domain.model.fetched import located
from tessera.domain.model.precision_files import spec_in
from tessera.domain.money import Money
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.observed.snapshot import ObservedService, Pod, Ref, Workload
from tessera.domain.perf.sources import SpeedMeasurement
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.cover import NO_NEED, Need
from tessera.domain.placement.placement import PlacementDecision
from tessera.domain.placement.split_state import VariantChange
from tessera.domain.quality.gates import TrialDecision
from tessera.domain.quality.readiness import VersionReadiness
from tessera.domain.quality.rollout_state import VersionState
from tessera.domain.rollout.disruptions import NO_DISRUPTIONS, Disruptions
from tessera.domain.rollout.drain import DrainPlan
from tessera.domain.rollout.replica_conflict import ContestedReplicas
from tessera.domain.rollout.rollout_floor import RolloutFloor
from tessera.domain.scaling.state import ScaleDecision
from tessera.domain.schedules import BoundsSchedule
from tessera.domain.service.pinned_revision import PinnedRevision, pinned_spec
from tessera.domain.service.preparation.claims import ModelClaim, own_claim
from tessera.domain.service.preparation.preparation import Preparation
from tessera.domain.service.template_version import TemplateDecision, spec_with_effective_values
from tessera.domain.speed.measurements import own_measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlan:
    """The decision for the Deployment of the newest template of one variant."""

    template: TemplateDecision
    """The pod template version of its replicas, with their hardware."""
    desired: int
    """Replicas that are desired of it."""
    drain: DrainPlan
    """The replicas of its Deployment meanwhile, and those that leave."""
    surge: bool = False
    """A rollout starts a new replica before an old one leaves."""
    extra_on: HardwareChoice | None = None
    """Where one more replica serves while one of this is replaced in place."""
    is_surge_unpaid: bool = False
    """It would, but the budget grants no replica beyond the desired ones."""
    older: tuple[Ref, ...] = ()
    """The Deployments of its older templates."""
    is_withdrawn: bool = False
    """Its newest template did not become ready in time, and gave its devices back."""
    rolls_in_place: bool = False
    """Its Deployment, of an older Tessera, replaces pods itself, and no device is free for one."""
    blocker: str | None = None
    """Whose pod waits for the device that a replica would free for its successor."""
    unusable_nodes: tuple[str, ...] = ()
    """The nodes of its replicas, whose devices the successor that waits cannot take."""
    waits: bool = False
    """The Deployment of its newest template is not created yet."""
    is_first: bool = True
    """Its Deployment may have the first name, which a version that is tried leaves to others."""
    change: VariantChange | None = None
    """Why its number changed last; None with one variant."""

    @property
    def workload(self) -> Workload | None:
        """Return the Deployment, if it exists."""
        return self.template.workload

    @property
    def choice(self) -> HardwareChoice:
        return self.template.choice

    @property
    def replicas(self) -> int:
        """Return the replicas of the Deployment, which draining ones still count for."""
        return self.drain.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedPlan:
    """What is decided on the versions of a service whose changes wait for a gate."""

    state: VersionState
    builder_version: int
    """Of the templates of the edited version."""
    is_resolved: bool
    """It is known what the edited version loads, so that its revision may be recorded."""
    pod: Pod | None = None
    """The replica that is tried; it answers once its containers are ready."""
    missing_device: str | None = None
    """What its device waits for; None where it has one."""
    is_overdue: bool = False
    """The replica did not get ready in time."""
    own_templates: frozenset[tuple[str, str]] = frozenset()
    """Variant and template digest of the Deployments of the version in force."""
    is_restored: bool = False
    """The record of the version in force was lost, and is written again."""
    readiness: VersionReadiness | None = None
    """What is known of the replicas of the version in force; None before there is one."""
    trial: TrialDecision | None = None
    """What its gate does about it; None while nothing is tried."""

    @property
    def changed_revision(self) -> ServiceRevision | None:
        """Return the version in force as it is to be recorded, if its record says less.

        It may be lost, or what is known of its replicas is new.
        """
        stable, readiness = self.state.stable, self.readiness
        if stable is None or readiness is None:
            return None
        is_known = readiness.readiness == stable.readiness and not self.is_restored
        return None if is_known else replace(stable, readiness=readiness.readiness)

    @property
    def address(self) -> str | None:
        """Return where the version that is tried answers; None until its replica is ready."""
        return self.pod.address if self.pod is not None and self.pod.containers_ready else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """The decision for one service, with its reasons."""

    service: ObservedService
    accepted: StatusVerdict[Accepted]
    placement: PlacementDecision
    scale: ScaleDecision
    start_refusal: str | None = None
    """Why the budget would start no replica of it, where it has none, or plan no slice for it."""
    need: Need = NO_NEED
    """What its replicas have to have together."""
    disruptions: Disruptions = NO_DISRUPTIONS
    """Its healthy replicas, and how many of them stay."""
    drain: DrainPlan
    """Those of its replicas that leave, of all variants."""
    rollout_floor: RolloutFloor | None = None
    """What is kept while its replicas are replaced."""
    schedule: BoundsSchedule | None = None
    """The bounds of the autoscaler that schedules set."""
    has_autoscaler: bool = False
    """A HorizontalPodAutoscaler is written for it."""
    preparation: Preparation | None = None
    """State of its model files; None for a spec that is not accepted."""
    holds_rollout: bool = False
    """Its Deployment keeps its template: a rollout would take replicas beside a repartition."""
    pods: tuple[Pod, ...] = ()
    """Existing replicas."""
    workloads: tuple[Workload, ...] = ()
    """Its existing Deployments, also of previous variants."""
    contested: tuple[ContestedReplicas, ...] = ()
    """Those of them whose replicas somebody else writes."""
    removable_deployments: tuple[Ref, ...] = ()
    """Deployments of previous variants to delete now."""
    previous_deployments: Mapping[Ref, int] = field(default_factory=dict)
    """Temporary replica counts of Deployments of previous variants."""
    withheld: int = 0
    """Healthy replicas that stay although they were to leave, since the floor needs them."""
    stall: Stall = field(default_factory=Stall)
    """A stalled engine, and the reaction to it."""
    pinned_revision: PinnedRevision = field(default_factory=PinnedRevision)
    """The commit of the weights, or the query for the hub that comes first."""
    claims: tuple[ModelClaim, ...] = ()
    """The claims of its model files."""
    variants: tuple[VariantPlan, ...] = ()
    """Its Deployments, first that of the variant it was placed on; none without a choice."""
    reported: Reported = NOT_MEASURED
    """What is measured of it, for its status."""
    gated: GatedPlan | None = None
    """Its versions, where changes wait for a gate."""
    candidate: "ServicePlan | None" = None
    """The plan of the version that is tried, with one replica that serves no user."""
    is_moving: bool = False
    """The time, or what is probed, may change it, so it is planned in every cycle."""

    @property
    def versions(self) -> tuple["ServicePlan", ...]:
        """Return the plan, and that of the version that is tried beside it."""
        return (self,) if self.candidate is None else (self, self.candidate)

    @property
    def template(self) -> TemplateDecision | None:
        """The pod template version of the variant that it was placed on."""
        return self.variants[0].template if self.variants else None

    @property
    def current_workloads(self) -> tuple[Workload, ...]:
        """The existing Deployments of its variants; without a choice all of them."""
        if not self.variants:
            return self.workloads
        workloads = (variant.workload for variant in self.variants)
        return tuple(workload for workload in workloads if workload is not None)

    @property
    def template_version(self) -> PodTemplateVersion:
        return self.template.version if self.template else PodTemplateVersion()

    @property
    def used_variants(self) -> tuple[VariantPlan, ...]:
        """Its variants with replicas; the one that it was placed on may have none."""
        variants = self.variants
        if len(variants) < 2:
            return variants
        names = {pod.variant for pod in self.pods}
        used = [each for each in variants if each.desired or each.choice.variant in names]
        return tuple(used) or variants[:1]

    @property
    def desired_pods(self) -> int:
        """The replicas that are desired of all variants; without a choice those that stay."""
        if not self.variants:
            return self.scale.replicas
        return sum(variant.desired for variant in self.variants)

    @property
    def desired_hourly(self) -> Money | None:
        """The price of an hour of the desired replicas; None without a choice."""
        if self.choice is None:
            return None
        prices = [variant.choice.hourly.times(variant.desired) for variant in self.variants]
        return Money(sum(price.nanos for price in prices), self.choice.hourly.currency)

    def located_spec(self, variant: VariantPlan) -> InferenceServiceSpec | None:
        """Return the spec with the defaults, files and revision of a variant, as its engines see
        it: what is downloaded lies on claims."""
        spec, record = self.service.spec, variant.template.record
        if spec is None:
            return None
        effective = spec_with_effective_values(spec, record.effective_values)
        pinned = pinned_spec(effective, self.pinned_revision)
        pinned = spec_in(pinned, shape_of(spec), variant.choice.fit.precision)
        return located(pinned, own_claim(self.service, pinned))

    @property
    def served_precisions(self) -> frozenset[str]:
        """Return the precisions that serve users, else that in which the service is placed."""
        serving = {pod.variant for pod in self.pods if pod.takes_requests}
        choices = [each.choice for each in self.variants]
        running = [each for each in choices if each.variant in serving] or choices[:1]
        return frozenset(each.fit.precision or CHECKPOINT for each in running)

    @property
    def choice(self) -> HardwareChoice | None:
        return self.placement.choice

    @property
    def is_pooling(self) -> bool:
        """Return whether its engines generate no text."""
        return self.placed.is_pooling

    @property
    def measured_speed(self) -> SpeedMeasurement | None:
        """Its own measured speed, which corrects predictions."""
        return own_measurement(self.service, self.reported.speed)

    @property
    def placed(self) -> PlacedService:
        """Return what its aspects know of it."""
        choices = tuple([variant.choice for variant in self.variants])
        return PlacedService(self.service, self.choice, self.pods, choices)
