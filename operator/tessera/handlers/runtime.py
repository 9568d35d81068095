"""The running operator: what is kept between turns, and the tasks that run beside kopf."""

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

from tessera.adapters.admission_objects import AdmissionObjects
from tessera.adapters.clock import now
from tessera.adapters.election import Election
from tessera.adapters.engines import HttpEngines
from tessera.adapters.hub import HttpHub
from tessera.adapters.kube import KubeCluster
from tessera.adapters.layouts import LayoutSolverProcess
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.domain.autoscale import rebuild_history
from tessera.domain.bill import Bill
from tessera.domain.certificate import CertificatePolicy
from tessera.domain.draft import history_from_status, scaling_of
from tessera.domain.snapshot import Budget, ObservedService
from tessera.handlers.certificates import Certificates
from tessera.handlers.garbage import spare_what_stays
from tessera.ports import Clock, ClusterError, MetricsError
from tessera.reconcile.apply import Applier, NotLeadingError
from tessera.reconcile.asking import Asker
from tessera.reconcile.fleet import Fleet
from tessera.reconcile.loop import loop
from tessera.reconcile.mirror import Mirror
from tessera.reconcile.observe import Senses
from tessera.reconcile.planning import Planning
from tessera.reconcile.store import Store
from tessera.resources.defaults import newest
from tessera.resources.job import Image
from tessera.resources.kinds import INFERENCE_SERVICES, KINDS, PODS, TENANT_BUDGETS
from tessera.settings import Settings
from tessera.telemetry import Telemetry

log = logging.getLogger("tessera")

LEASE = "tessera-operator"
"""Name of the Lease of the election."""
_READ_SECONDS = 5.0
_LAG_SECONDS = 0.25
_SILENT_SECONDS = 60.0


class Runtime:
    """Everything that lives as long as the process; wiring is done here and nowhere else."""

    def __init__(self, settings: Settings, cluster: KubeCluster, clock: Clock = now) -> None:
        self._clock = clock
        self._changed = asyncio.Event()
        self.seeded = asyncio.Event()
        """Set when every kind was listed once."""
        self._senses = Senses(
            patience=timedelta(seconds=settings.stall_seconds),
            builder=newest(),
            platform=settings.platform,
            resolutions={},
            cutters=settings.partition_backends,
        )
        self.telemetry = Telemetry()
        self._engines = HttpEngines()
        self._hub = HttpHub(settings.platform)
        self._metrics = (
            PrometheusMetrics(settings.prometheus_url, clock) if settings.prometheus_url else None
        )
        self._asker = Asker(self._engines, self._senses, clock, self._changed.set, self._hub)
        self._layouts = LayoutSolverProcess()
        self._planning = Planning(self._layouts, self._senses, clock, self._changed.set)
        self._turned = time.monotonic()
        self.store = Store(KINDS)
        self.mirror = Mirror(cluster, self.store, self._senses, self._changed.set)
        self.election = Election(
            cluster,
            namespace=settings.namespace,
            name=LEASE,
            identity=settings.pod_name,
            clock=clock,
            monotonic=time.monotonic,
        )
        applier = Applier(
            cluster,
            self.store,
            visitors=(settings.namespace, *settings.monitoring_namespaces),
            batch_image=Image(
                settings.batch_image, settings.batch_pull_policy, settings.batch_pull_secrets
            ),
            batch_role=settings.batch_role,
            mig_namespace=settings.mig_manager_namespace,
            leading=self.election.leading,
        )
        self._fleet = Fleet(self.store, self._senses, applier, self._asker, clock, self._planning)
        self._look = settings.webhook_certificate_poll_interval
        self._folder = Path(tempfile.mkdtemp(prefix="tessera-"))
        self.certificates = self._certificates(settings, cluster)

    async def run(self) -> None:
        """Mirror and elect; lead when elected. Ends when leadership is lost, as any error does."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._mirror()),
                group.create_task(self._lead()),
                group.create_task(self._watch_lag()),
                group.create_task(spare_what_stays()),
            ]
            if self.certificates is not None:
                tasks.append(group.create_task(self.certificates.keep(self._look)))
            await self.election.run()
            log.error("leadership was lost; the process ends and begins anew")
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Let go of what others may wait for."""
        await self._asker.stop()
        await self._planning.stop()
        self._layouts.close()
        with contextlib.suppress(ClusterError):
            await self.election.release()
        await self._engines.close()
        await self._hub.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def alive(self) -> bool:
        """The loop of a leader turns; one that only stands by is alive anyway."""
        return not self.election.leading() or time.monotonic() - self._turned < _SILENT_SECONDS

    async def _mirror(self) -> None:
        await self.mirror.seed()
        self.seeded.set()
        await self.mirror.keep()

    def _certificates(self, settings: Settings, cluster: KubeCluster) -> Certificates | None:
        """What admission serves with; None without admission."""
        if settings.webhook_service is None:
            return None
        own = settings.webhook_certificate_owner == "tessera"
        return Certificates(
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
            renews=lambda: own and self.election.leading(),
            clock=now,
            told=partial(self.telemetry.record_certificate, settings.webhook_service),
        )

    async def _lead(self) -> None:
        """Only with all kinds listed: no budgets seen must not mean no limits."""
        await self.seeded.wait()
        await self.election.elected.wait()
        log.info("this process leads")
        self._turned = time.monotonic()
        await self._recall()
        await self._recall_spend()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(loop(self._changed, self._turn))

    async def _turn(self) -> None:
        """One turn; whatever goes wrong in it is counted, logged and tried again."""
        begun, cpu_begun = time.monotonic(), time.thread_time()
        self.telemetry.set_leader(leading=self.election.leading())
        try:
            outcome = await self._fleet.turn(self._changed.is_set)
        except* NotLeadingError:
            log.warning("not leading any more: the turn was given up")
        except* Exception as errors:  # noqa: BLE001 - the loop must go on
            self.telemetry.record_failure(errors)
        else:
            self._turned = time.monotonic()
            self.telemetry.record_reconcile(
                outcome, self._turned - begun, time.thread_time() - cpu_begun
            )

    async def _read(self) -> None:
        """Ask Prometheus beside the turns, so that a slow one holds up nothing."""
        if self._metrics is None:
            return
        while True:
            readings = await self._metrics.read()
            before = self._senses.readings
            self._senses.readings = readings
            if readings.problem and (before is None or before.problem is None):
                log.warning("no readings: %s", readings.problem)
            await asyncio.sleep(_READ_SECONDS)

    async def _recall(self) -> None:
        """Rebuild the autoscaler's windows, so that a new leader goes on where the last stopped."""
        if self._metrics is None:
            return
        policies = {
            seen.value.ref: (scaling_of(seen.value.spec), history_from_status(seen.value.status))
            for seen in self.store.all(INFERENCE_SERVICES).values()
            if isinstance(seen.value, ObservedService) and seen.value.spec
        }
        if not policies:
            return
        span = max(
            max(policy.scale_up.window, policy.scale_down.window) for policy, _ in policies.values()
        )
        try:
            past = await self._metrics.load_history(span)
        except MetricsError as error:
            log.warning("the past could not be read, so windows begin anew: %s", error)
            return
        for ref, (policy, memory) in policies.items():
            self._senses.memory[ref] = rebuild_history(policy, past.get(ref, ()), memory)

    async def _recall_spend(self) -> None:
        """From when on nobody billed, and until when pods lived that went since then."""
        if self._metrics is None:
            return
        records = [
            seen.value.status.spend
            for seen in self.store.all(TENANT_BUDGETS).values()
            if isinstance(seen.value, Budget) and seen.value.status.spend is not None
        ]
        here = {f"{key.namespace}/{key.name}" for key in self.store.all(PODS)}
        gone = {one.pod for record in records for one in record.running} - here
        try:
            self._senses.bill = Bill(as_of=await self._metrics.billed_until())
            if gone:
                since = self._clock() - min(record.as_of for record in records)
                self._senses.last_seen = dict(await self._metrics.last_seen(sorted(gone), since))
        except MetricsError as error:
            log.warning("the time without an operator could not be read: %s", error)

    async def _watch_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self.telemetry.record_loop_lag(max(0.0, time.monotonic() - due))
