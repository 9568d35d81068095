"""The running operator: the state between cycles, and the tasks that run beside kopf."""

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from tessera.adapters import certificates
from tessera.adapters.clock import now, seconds_since_boot
from tessera.adapters.engine_client import HttpEngines
from tessera.adapters.garbage import freeze_survivors
from tessera.adapters.hub_client import HttpHub
from tessera.adapters.kube.admission_objects import AdmissionObjects
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.leader_election import LeaderElector
from tessera.adapters.layout_solver import LayoutSolverProcess
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.run_forever import run_forever
from tessera.controller.certificates import (
    CertificateRotator,
    certificate_files,
    server_context,
    write_pair,
)
from tessera.controller.cost_prices import CostPricing
from tessera.controller.demand import DemandReceiver
from tessera.controller.metrics_reader import MetricsReader
from tessera.domain.config import Config
from tessera.domain.serving_certificate import CertificatePolicy
from tessera.ports import Clock, ClusterError
from tessera.reconcile.apply import Applier
from tessera.reconcile.cycle import FleetReconciler
from tessera.reconcile.event_recorder import EventRecorder
from tessera.reconcile.layout_solving import BackgroundPlanner
from tessera.reconcile.loop import Rest, Wakes, rest_after, run_loop
from tessera.reconcile.observe import Observations, ProbeAnswers
from tessera.reconcile.prober import Prober
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.store import Store
from tessera.reconcile.trusted_clock import TrustedClock
from tessera.reconcile.writing.shared_objects import Installation
from tessera.reconcile.writing.writer import NotLeadingError, Writer
from tessera.resources.api_resources import AUTOSCALING, KINDS
from tessera.resources.defaults import newest_version
from tessera.resources.runner import RunnerImage
from tessera.settings import Settings
from tessera.telemetry.telemetry import Telemetry

log = logging.getLogger("tessera")

# Name of the leader election's Lease.
LEASE = "tessera-operator"
_LAG_SECONDS = 0.25
_SELF_SIGNED_LIFETIME = timedelta(days=3650)
_MAX_RECONCILE_AGE_SECONDS = 60.0


def _config(settings: Settings) -> Config:
    return Config(
        mig_backends=settings.partition_backends,
        node_agents=settings.node_agent,
        stall_timeout=timedelta(seconds=settings.stall_seconds),
        require_budget=settings.require_budget,
        autoscalers=settings.hpa_enabled,
        gateways=settings.gateway_account is not None,
        providers=settings.providers_enabled,
        gated_namespaces=settings.gated_namespaces,
        gated_classes=settings.gated_classes,
        builder_version=newest_version(),
        platform=settings.platform,
    )


def _installation(settings: Settings) -> Installation:
    return Installation(
        namespace=settings.namespace,
        ingress_namespaces=(settings.namespace, *settings.monitoring_namespaces),
        batch_image=RunnerImage(
            settings.batch_image,
            settings.batch_pull_policy,
            settings.batch_pull_secrets,
            charges_url=settings.batch_charges_url,
            gate_url=settings.gate_url,
            allow_pickles=settings.allow_pickles,
        ),
        egress=settings.engine_egress,
        platform=settings.platform,
        batch_role=settings.batch_role,
        monitor_labels=settings.monitor_labels,
        mig_namespace=settings.mig_manager_namespace,
    )


class Runtime:
    """Everything that lives as long as the process; wiring is done here and nowhere else."""

    def __init__(self, settings: Settings, cluster: KubeCluster, wall: Clock = now) -> None:
        self._clock = clock = TrustedClock(wall, time.monotonic, lambda: cluster.server_date)
        self._wakes = wakes = Wakes()
        self.synced = asyncio.Event()
        """Set when every kind was listed once."""
        observations = Observations(answers=ProbeAnswers(resolutions={}))
        self.telemetry = Telemetry()
        process = self.telemetry.process
        kinds = (*KINDS, *AUTOSCALING) if settings.hpa_enabled else KINDS
        self.store = store = Store(kinds)
        self.elector = LeaderElector(
            cluster,
            namespace=settings.namespace,
            name=LEASE,
            identity=settings.pod_name,
            clock=clock,
            monotonic=seconds_since_boot,
        )
        is_leader = self.elector.is_leader
        process.leader.set_function(is_leader)
        self._metrics: MetricsReader | None = None
        self._cost_pricing: CostPricing | None = None
        if settings.prometheus_url:
            prometheus = PrometheusMetrics(
                settings.prometheus_url, clock, settings.prometheus_access
            )
            self._metrics = MetricsReader(
                prometheus, store, observations, process, clock, wake=wakes.change
            )
            writer = Writer(cluster, store, is_leader)
            self._cost_pricing = CostPricing(cluster, store, writer, prometheus, clock)
        self._engines, self._hub = HttpEngines(), HttpHub(settings.platform)
        self._prober = Prober(
            self._engines, observations.answers, clock, wakes.change, self._hub, cluster
        )
        self._layouts = LayoutSolverProcess()
        self._planning = BackgroundPlanner(self._layouts, observations, clock, wakes.change)
        self._last_reconcile = time.monotonic()
        self.reflector = Reflector(cluster, store, observations, wakes.observe, kinds)
        self.demand = DemandReceiver(
            observations, clock, wakes.change, is_leader, process.record_rejected_demand
        )
        if settings.gateway_account is not None:
            process.watch_gateways(settings.gateway_account, self.demand.count_gateways)
        self._events = EventRecorder(
            cluster,
            instance=settings.pod_name,
            clock=clock,
            monotonic=time.monotonic,
            count=process.record_event,
        )
        self._fleet = self._build_fleet(settings, cluster, observations)
        self._certificate_interval = settings.webhook_certificate_poll_interval
        self._folder = Path(tempfile.mkdtemp(prefix="tessera-"))
        # Metrics are served before, and without, the certificate of admission.
        self_signed = certificates.issue(settings.pod_name, now(), _SELF_SIGNED_LIFETIME)
        write_pair(certificate_files(self._folder), self_signed.pair)
        self.tls = server_context(certificate_files(self._folder))
        """The certificate of the metrics: that of admission once it is loaded."""
        self.rotator = self._build_rotator(settings, cluster)

    def _build_fleet(
        self, settings: Settings, cluster: KubeCluster, observations: Observations
    ) -> FleetReconciler:
        config = _config(settings)
        applier = Applier(
            config,
            cluster,
            self.store,
            _installation(settings),
            self.elector.is_leader,
            record_events=self._events.record,
            wake=self._wakes.change,
            end_burst=self._wakes.end_burst,
        )
        return FleetReconciler(
            config,
            self.store,
            observations,
            applier,
            self._prober,
            self._clock,
            background_planner=self._planning,
        )

    async def run(self) -> None:
        """Reflect objects, and lead when elected.

        Returns when leadership is lost; raises any error.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._run_reflector()),
                group.create_task(self._lead()),
                group.create_task(self._keep_running("lag", self._watch_lag)),
                group.create_task(self._keep_running("garbage", freeze_survivors)),
            ]
            if self.rotator is not None:
                rotate = partial(self.rotator.run, self._certificate_interval)
                tasks.append(group.create_task(self._keep_running("certificate", rotate)))
            await self.elector.run()
            log.error("leader election lost, exiting for restart")
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Stop the probes, release the lease, and close the clients."""
        await self._prober.stop()
        await self._planning.stop()
        self._layouts.close()
        with contextlib.suppress(ClusterError):
            await self.elector.release()
        await self._engines.close()
        await self._hub.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def is_alive(self) -> bool:
        """Return whether the process is live: a leader must reconcile, a standby need not."""
        return (
            not self.elector.is_leader()
            or time.monotonic() - self._last_reconcile < _MAX_RECONCILE_AGE_SECONDS
        )

    async def _run_reflector(self) -> None:
        await self.reflector.list_all()
        self.synced.set()
        await self.reflector.run()

    def _build_rotator(self, settings: Settings, cluster: KubeCluster) -> CertificateRotator | None:
        """Return the rotator of the webhook certificate; None without webhooks."""
        if settings.webhook_service is None:
            return None
        manages_certificate = settings.webhook_certificate_owner == "tessera"
        return CertificateRotator(
            AdmissionObjects(
                cluster,
                namespace=settings.namespace,
                secret=settings.webhook_service,
                webhooks=settings.webhook_configuration,
            ),
            folder=self._folder,
            terms=CertificatePolicy(
                host=f"{settings.webhook_service}.{settings.namespace}.svc",
                lifetime=settings.webhook_certificate_duration,
                trust_delay=6 * settings.webhook_certificate_poll_interval,
            ),
            may_renew=lambda: manages_certificate and self.elector.is_leader(),
            clock=now,
            on_loaded=partial(self._use_certificate, settings.webhook_service),
        )

    def _use_certificate(self, secret: str, expires: datetime) -> None:
        self.telemetry.process.record_certificate(secret, expires)
        self.tls = server_context(certificate_files(self._folder))

    async def _lead(self) -> None:
        # Wait until all kinds are listed: missing TenantBudgets must not mean that there are no
        # limits.
        await self.synced.wait()
        await self.elector.elected.wait()
        log.info("became leader")
        self._last_reconcile = time.monotonic()
        reconcile = partial(run_loop, self._wakes, self._reconcile)
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "events": self._events.run,
            "writes": self._fleet.write,
            "cycles": reconcile,
        }
        if self._metrics is not None:
            await self._restore(self._metrics)
            parts["metrics"] = self._metrics.run
            parts["load histories"] = self._metrics.run_load_histories
        if self._cost_pricing is not None:
            parts["prices by cost"] = self._cost_pricing.run
        async with asyncio.TaskGroup() as group:
            for name, run in parts.items():
                group.create_task(self._keep_running(name, run))

    async def _restore(self, metrics: MetricsReader) -> None:
        for restore in (metrics.restore_scaling, metrics.restore_spend):
            try:
                await restore()
            except Exception as error:  # noqa: BLE001 - as without a history
                self.telemetry.process.record_failure(error)

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a part of the process forever; its errors are counted, and end no other part."""
        await run_forever(name, run, failed=self.telemetry.process.count_failure)

    async def _reconcile(self) -> Rest:
        """Run one cycle, and return how long the loop idles after it.

        Any error is counted, logged and retried.
        """
        started = time.monotonic()
        self.telemetry.process.clock_error.set(self._clock.error.total_seconds())
        try:
            outcome = await self._fleet.reconcile()
            self._last_reconcile = time.monotonic()
            self.telemetry.process.record_malformed(self.store.malformed)
            self.telemetry.record_reconcile(outcome, self._last_reconcile - started)
            for defect in outcome.defects:
                self.telemetry.process.record_failure(defect)
        except* NotLeadingError:
            log.warning("not the leader anymore, reconcile aborted")
        except* Exception as errors:  # noqa: BLE001 - the loop must continue
            self.telemetry.process.record_failure(errors)
        else:
            return rest_after(outcome.cpu_seconds, outcome.backlog)
        return Rest()

    async def _watch_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self.telemetry.process.loop_lag.observe(max(0.0, time.monotonic() - due))
