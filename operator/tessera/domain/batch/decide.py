"""The decision for one batch: its check, its attempts one after another, its completion.

The status holds everything that a restarted operator needs. An attempt's number is a fencing token:
it is written to the status before the attempt's Job is created, never used twice, and only the
runner with the number in the status publishes. So an attempt whose end was not observed does no
harm, and the next one need not wait for it.
"""

from dataclasses import replace
from datetime import timedelta

from tessera.api.accelerator_pool import Tier
from tessera.api.batch_inference import (
    MAX_FULL_POOLS,
    TERMINAL_STATES,
    AttemptStatus,
    ProgressStatus,
    UnavailablePool,
)
from tessera.api.batch_reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted
from tessera.domain.batch.attempt_state import (
    MAX_BACKOFF,
    STALL_TIMEOUT,
    AttemptState,
    attempt_state,
    end_attempt,
    highest_attempt_number,
    pod_refusal_message,
    retained_rows_message,
    stalled_since,
)
from tessera.domain.batch.batch_plan import (
    NOT_ACCEPTED,
    BatchContext,
    BatchJobRequest,
    BatchPlan,
    closing_plan,
    continue_plan,
    deletable_jobs,
    deleting_plan,
    idle_plan,
    terminal_plan,
    unaccepted_plan,
    unchanged_plan,
)
from tessera.domain.batch.check import evaluate_check
from tessera.domain.batch.names import errors_path, job_name
from tessera.domain.batch.options import (
    FULL_POOL_BACKOFF,
    CapacityOption,
    CapacityQuery,
    attempt_capacity,
    capacity_options,
    no_capacity_verdict,
    scheduling_timed_out,
)
from tessera.domain.batch.schedule import CapacityDecision, Schedule, choose_capacity
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import BatchModelSource, accept_spec, with_settings
from tessera.domain.budget.state import GrantRequest
from tessera.domain.hardware.spot_nodes import has_spot_labels
from tessera.domain.observed.batches import NodeHealth
from tessera.domain.observed.runner_reports import STALL_SECONDS
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.service.preparation.claims import BatchUser, ModelClaim, batch_claims
from tessera.domain.steps import planner_error

# A stopped attempt is charged for so long, until its engine has exited.
TERMINATION_TIME = timedelta(seconds=30)
# The message of the budget replaces this one, see `apply_funding`.
_BUDGET_EXHAUSTED = StatusVerdict(
    BatchRunning.BUDGET_EXHAUSTED, "spec.limits of the tenant's budget"
)
# After its deadline a batch whose rows are all done has so long to publish.
_PUBLISH_GRACE = timedelta(minutes=1)


def propose_batch(situation: Situation) -> BatchPlan:
    """Return the plan of one batch regardless of the budget, with what it would cost there."""
    batch, spec = situation.batch, situation.batch.spec
    # Another batch may write the files of an expired one by now.
    replaced = batch.status.state in TERMINAL_STATES and situation.conflict is not None
    if replaced or batch.has_ended(situation.at) or (batch.deleting and spec is None):
        return terminal_plan(situation)
    accepted, source = accept_spec(situation)
    if spec is None:
        return unaccepted_plan(situation, accepted)
    now = situation.at.replace(microsecond=0)
    context = BatchContext(
        situation=situation,
        now=now,
        spec=spec,
        accepted=accepted,
        attempt_state=attempt_state(situation, now),
        check=batch.status.check and with_settings(batch.status.check, situation),
    )
    completion = context.attempt_state.completion or _expiry_verdict(context)
    if completion is not None:
        return closing_plan(context, completion)
    return _propose_unfinished(context, source)


def apply_funding(plan: BatchPlan, shortage: str | None) -> BatchPlan:
    """Return the plan after the decision of the budget; `shortage` is why it denied the grant.

    A denial stops the running attempt, which loses only its rows in flight.
    """
    if plan.unfunded_plan is None:
        return plan
    if shortage is None:
        return replace(plan, claim=None, unfunded_plan=None)
    running = StatusVerdict(BatchRunning.BUDGET_EXHAUSTED, shortage)
    return replace(plan.unfunded_plan, running=running)


def without_unpaid_jobs(plan: BatchPlan, refusal: str | None) -> BatchPlan:
    """Return the plan of a batch for which the budget pays nothing: no Job checks or reads for it.

    Those that run go on, and results are published.
    """
    is_check = plan.create is not None and plan.create.attempt is None
    if refusal is None or not (is_check or plan.model_job is not None):
        return plan
    running = StatusVerdict(BatchRunning.BUDGET_EXHAUSTED, refusal)
    create = None if is_check else plan.create
    return replace(plan, running=running, create=create, model_job=None)


def planner_error_plan(situation: Situation, error: Exception) -> BatchPlan:
    """Return the plan of a batch whose planning raised; its objects stay unchanged."""
    ref = situation.batch.ref
    message = planner_error(error, "batchinference", ref.name, ref.namespace)
    return unaccepted_plan(situation, StatusVerdict(BatchAccepted.PLANNER_ERROR, message))


def _propose_unfinished(context: BatchContext, source: BatchModelSource | None) -> BatchPlan:
    if context.batch.deleting:
        return deleting_plan(context)
    if source is None:
        plan = continue_plan(context, NOT_ACCEPTED)
        job = context.situation.shape_job
        if job is None or context.accepted.reason is not BatchAccepted.READING_MODEL:
            return plan
        return replace(plan, model_job=job.job_to_create)
    if context.spec.suspend:
        text = (
            f"spec.suspend is true; the deadline {context.deadline:%Y-%m-%dT%H:%MZ} does not move"
        )
        verdict = StatusVerdict(BatchRunning.SUSPENDED, text)
        return idle_plan(context, verdict)
    if context.check is None or context.attempt_state.progress is None:
        return _propose_check(context, source)
    return _propose_attempt(context, source, context.attempt_state.progress)


def _expiry_verdict(context: BatchContext) -> StatusVerdict[BatchComplete] | None:
    grace = _PUBLISH_GRACE if context.attempt_state.publishing else timedelta()
    if context.now < context.deadline + grace:
        return None
    progress = context.attempt_state.progress
    done_text = (
        "0 rows" if progress is None else f"{progress.done} of {counted(progress.rows, 'row')}"
    )
    return StatusVerdict(
        BatchComplete.DEADLINE_EXCEEDED,
        f"spec.deadline: passed at {context.deadline:%Y-%m-%dT%H:%M:%SZ} with {done_text} done; "
        f"{retained_rows_message(context.situation)}",
    )


def _backoff_verdict(context: BatchContext) -> StatusVerdict[BatchRunning] | None:
    """Return why the next attempt waits; None when it may start."""
    attempt = context.attempt_state.attempt
    retry_at = None if attempt is None else attempt.retry_at
    # A time further ahead was written by a clock that was ahead.
    if (
        attempt is None
        or retry_at is None
        or not timedelta() < retry_at - context.now <= MAX_BACKOFF
    ):
        return None
    if attempt.input_changed:
        text = f"spec.input: attempt {attempt.number} ended: {attempt.termination_message}"
        text += f"; the next one compares the file at {retry_at:%H:%M:%SZ} without a GPU"
        return StatusVerdict(BatchRunning.INPUT_CHANGED, text)
    if attempt.budget_exceeded:
        if attempt.budget not in ("", context.situation.budget):
            return None
        text = f"status.attempt: attempt {attempt.number} ended: {attempt.termination_message}"
        text += f"; the next one asks again at {retry_at:%H:%M:%SZ} without a GPU"
        return StatusVerdict(BatchRunning.BUDGET_EXHAUSTED, text)
    return StatusVerdict(
        BatchRunning.BACKING_OFF,
        f"status.attempt: attempt {attempt.number} on {attempt.variant or 'no GPU'} ended: "
        f"{attempt.termination_message}; the next attempt starts at {retry_at:%H:%M:%SZ}",
    )


def _propose_check(context: BatchContext, source: BatchModelSource) -> BatchPlan:
    check = evaluate_check(context.situation, context.spec, context.now)
    if check.refused is not None:
        return closing_plan(context, check.refused)
    passed = check.passed
    if passed is not None:
        passed = with_settings(passed, context.situation)
        progress = ProgressStatus(rows=passed.rows, at=context.now)
        checked_context = replace(
            context, check=passed, attempt_state=replace(context.attempt_state, progress=progress)
        )
        if not {*passed.files} <= {context.spec.output, errors_path(context.spec)}:
            # The next cycle knows whether another batch writes where the links lead.
            return unchanged_plan(checked_context, check.running)
        return _propose_attempt(checked_context, source, progress)
    obsolete_jobs = tuple(
        job.ref for job in context.situation.jobs if job.attempt is None and check.recreate
    )
    return replace(
        unchanged_plan(context, check.running),
        create=context.job_request(None, source) if check.create else None,
        delete=(*obsolete_jobs, *deletable_jobs(context.situation, (None,), None)),
    )


def _propose_attempt(
    context: BatchContext, source: BatchModelSource, progress: ProgressStatus
) -> BatchPlan:
    """Continue the attempt, start the next one, or wait."""
    attempt = context.attempt_state.attempt
    backoff = _backoff_verdict(context)
    # After an interruption the other capacity class may be used at once.
    if backoff is not None and attempt is not None and not attempt.consecutive_interruptions:
        return idle_plan(context, backoff)
    if (
        attempt is not None
        and context.attempt_state.alive
        and (context.attempt_state.publishing or not attempt.has_engine)
    ):
        verdict = _stuck_verdict(context, attempt) or _publishing_verdict(
            context, attempt, progress
        )
        return continue_plan(context, verdict)
    if (
        attempt is not None
        and not context.attempt_state.alive
        and (progress.done >= progress.rows or attempt.waits)
    ):
        if backoff is not None:
            return idle_plan(context, backoff)
        return _publishing_plan(context, source, attempt, progress)
    context = _record_full_pool(context)
    schedule = Schedule(
        start=context.batch.created,
        end=context.deadline,
        at=context.now,
        rows=progress.rows,
        done=progress.done,
    )
    query = CapacityQuery(
        situation=context.situation,
        source=source,
        policy=context.spec.spot.policy,
        attempt_state=context.attempt_state,
        progress=progress,
        schedule=schedule,
    )
    return _propose_on_capacity(context, query)


def _publishing_plan(
    context: BatchContext,
    source: BatchModelSource,
    previous: AttemptStatus,
    progress: ProgressStatus,
) -> BatchPlan:
    """Return the plan that starts an attempt without a GPU: no row may be sent."""
    attempt = _next_attempt(context, previous.tier, pool="", variant="", replacement="")
    verdict = _publishing_verdict(context, attempt, progress)
    request = context.job_request(attempt.number, source)
    return _starting_plan(context, attempt, request, verdict)


def _publishing_verdict(
    context: BatchContext, attempt: AttemptStatus, progress: ProgressStatus
) -> StatusVerdict[BatchRunning]:
    rows = counted(progress.rows, "row")
    if progress.done < progress.rows:
        if attempt.budget_exceeded:
            text = f"status.attempt: attempt {attempt.number} asks without a GPU whether limits "
            text += f"of the tenant's budget have money for a row ({progress.done} of {rows} done)"
            return StatusVerdict(BatchRunning.BUDGET_EXHAUSTED, text + _history(attempt))
        text = f"spec.input: attempt {attempt.number} compares the file with the one that was "
        text += f"checked, without a GPU ({progress.done} of {rows} done)"
        return StatusVerdict(BatchRunning.INPUT_CHANGED, text + _history(attempt))
    text = f"status.attempt: attempt {attempt.number} publishes all results ({rows})"
    if attempt.has_engine:
        return StatusVerdict(_running_reason(context, attempt), text)
    text += f" without a GPU, see kubectl describe job {attempt.job}"
    return StatusVerdict(BatchRunning.PUBLISHING, text + _history(attempt))


def _propose_on_capacity(context: BatchContext, query: CapacityQuery) -> BatchPlan:
    options = capacity_options(query)
    context = replace(
        context, attempt_state=replace(context.attempt_state, progress=options.progress)
    )
    attempt = query.active_attempt
    scheduled = context.attempt_state.scheduled
    if attempt is not None and scheduled:
        excluded = query.policy == ("Never" if attempt.tier == "Spot" else "Only")
        # Its hardware cannot be assessed now.
        if options.of(attempt_capacity(attempt) or "spot") is None and not excluded:
            return continue_plan(context, _unjudged_verdict(context, attempt))
    decision = choose_capacity(
        query.policy,
        query.schedule,
        spot=None if options.spot is None else options.spot.estimate,
        non_spot=None if options.non_spot is None else options.non_spot.estimate,
        current=attempt_capacity(context.attempt_state.attempt),
    )
    option = None if decision.capacity_class is None else options.of(decision.capacity_class)
    if option is None:
        if options.spot is None and options.non_spot is None:
            return idle_plan(context, no_capacity_verdict(query))
        return idle_plan(context, StatusVerdict(decision.reason, decision.message))
    if (
        backoff := _backoff_verdict(context)
    ) is not None and decision.capacity_class == attempt_capacity(context.attempt_state.attempt):
        return idle_plan(context, backoff)
    stays = attempt is not None and (scheduled or option.choice.variant == attempt.variant)
    if attempt is not None and stays and attempt_capacity(attempt) == decision.capacity_class:
        plan = continue_plan(context, _attempt_verdict(context, attempt, decision))
        same_variant = option.choice.variant == attempt.variant
        return _funded_plan(context, plan, option.choice, running=1) if same_variant else plan
    return _propose_next(context, query.source, option, decision)


def _stuck_verdict(
    context: BatchContext, attempt: AttemptStatus
) -> StatusVerdict[BatchRunning] | None:
    """Return why an attempt does not move, if it has no pod or its runner is idle."""
    refusal = pod_refusal_message(context.situation, attempt.number)
    if refusal is not None:
        text = f"status.attempt: attempt {attempt.number}: {refusal}"
        return StatusVerdict(BatchRunning.FAILED_CREATE, text)
    since = stalled_since(context.situation, context.now)
    if since is None:
        return None
    text = (
        f"status.attempt: no row and no byte of attempt {attempt.number} moved since "
        f"{since:%H:%M:%SZ}; its runner ends it after {STALL_SECONDS // 60} min, and the operator "
        f"after {STALL_TIMEOUT // timedelta(minutes=1)}. See kubectl logs job/{attempt.job} "
        "--all-containers"
    )
    return StatusVerdict(BatchRunning.STALLED, text)


def _running_reason(context: BatchContext, attempt: AttemptStatus) -> BatchRunning:
    if attempt.tier == "Spot":
        return BatchRunning.ON_SPOT
    never = context.spec.spot.policy == "Never"
    return BatchRunning.SPOT_DISABLED if never else BatchRunning.NOT_YET_AHEAD


def _unjudged_verdict(context: BatchContext, attempt: AttemptStatus) -> StatusVerdict[BatchRunning]:
    return StatusVerdict(
        _running_reason(context, attempt)
        if context.attempt_state.started
        else BatchRunning.STARTING,
        f"spec.placement.pools: attempt {attempt.number} continues in AcceleratorPool/"
        f"{attempt.pool}, which cannot be assessed now; see kubectl get acceleratorpool "
        f"{attempt.pool}",
    )


def _record_full_pool(context: BatchContext) -> BatchContext:
    """Record a pool in which the attempt found no node in time."""
    state, attempt = context.attempt_state, context.attempt_state.attempt
    views = context.situation.views
    if attempt is None or not scheduling_timed_out(state, context.now, views):
        return context
    if any(
        entry.pool == attempt.pool and entry.at >= attempt.started_at
        for entry in attempt.unavailable_pools
    ):
        return context
    known = {
        entry.pool: entry
        for entry in attempt.unavailable_pools
        if context.now - entry.at < FULL_POOL_BACKOFF
    }
    known[attempt.pool] = UnavailablePool(pool=attempt.pool, at=context.now)
    latest = sorted(known.values(), key=lambda entry: entry.at)[-MAX_FULL_POOLS:]
    update = {"unavailable_pools": tuple(sorted(latest, key=lambda entry: entry.pool))}
    updated_attempt = attempt.model_copy(update=update)
    return replace(context, attempt_state=replace(state, attempt=updated_attempt))


def _propose_next(
    context: BatchContext,
    source: BatchModelSource,
    option: CapacityOption,
    decision: CapacityDecision,
) -> BatchPlan:
    """Propose the next attempt, with an unused number; it replaces the running one."""
    choice, previous = option.choice, context.attempt_state.attempt
    claims = _attempt_claims(context, source, choice)
    leaving = [claim.ref.name for claim in claims if claim.volume and claim.volume.terminating]
    if leaving:
        return continue_plan(context, _leaving_claim_verdict(context, leaving[0]))
    attempt = _next_attempt(
        context,
        choice.offer.tier,
        pool=choice.offer.pool,
        variant=choice.variant,
        replacement=f"replaced: {decision.reason}",
        claims=tuple(claim.ref.name for claim in claims),
    )
    request = replace(
        context.job_request(attempt.number, source),
        choice=choice,
        claims=claims,
        avoided_node="" if previous is None else previous.failed_node,
        spot_affinity=attempt.tier == "Spot"
        and has_spot_labels(_pool_nodes(context.situation, attempt.pool)),
    )
    plan = _starting_plan(context, attempt, request, _starting_verdict(attempt, decision))
    return _funded_plan(context, plan, choice, running=0)


def _attempt_claims(
    context: BatchContext, source: BatchModelSource, choice: HardwareChoice
) -> tuple[ModelClaim, ...]:
    situation, spec = context.situation, source.spec_in(choice.fit.precision)
    user = BatchUser(context.batch.ref, context.batch.uid)
    return batch_claims(situation.volumes, user, spec, situation.claim_users)


def _leaving_claim_verdict(context: BatchContext, name: str) -> StatusVerdict[BatchRunning]:
    return StatusVerdict(
        BatchRunning.MODEL_CLAIM_TERMINATING,
        f"PersistentVolumeClaim/{name} with the model's files is being deleted, so no further pod "
        "can mount it; the attempt starts on another of that name once it is gone (kubectl "
        f"describe pvc -n {context.batch.ref.namespace} {name} names the pods that use it)",
    )


def _starting_plan(
    context: BatchContext,
    attempt: AttemptStatus,
    request: BatchJobRequest,
    running: StatusVerdict[BatchRunning],
) -> BatchPlan:
    state = AttemptState(attempt=attempt, progress=context.attempt_state.progress)
    return replace(
        unchanged_plan(replace(context, attempt_state=state), running),
        create=request,
        delete=deletable_jobs(context.situation, (attempt.number,), attempt),
    )


def _next_attempt(
    context: BatchContext,
    tier: Tier,
    *,
    pool: str,
    variant: str,
    replacement: str,
    claims: tuple[str, ...] = (),
) -> AttemptStatus:
    """Return the attempt with the next number; `replacement` is why a running one ends."""
    previous, progress = context.attempt_state.attempt, context.attempt_state.progress
    number = highest_attempt_number(context.situation) + 1
    if previous is not None and previous.finished_at is None:
        previous = end_attempt(previous, progress, context.now, replacement)
    return AttemptStatus(
        number=number,
        tier=tier,
        pool=pool,
        variant=variant,
        claims=claims,
        job=job_name(context.batch.ref.name, number),
        started_at=context.now,
        previous_outcome=""
        if previous is None
        else f"attempt {previous.number}: {previous.termination_message}",
        done_before=0 if progress is None else progress.done,
        consecutive_failures=0 if previous is None else previous.consecutive_failures,
        failing_since=None if previous is None else previous.failing_since,
        input_changed=previous is not None and previous.input_changed,
        budget_exceeded=previous is not None and previous.budget_exceeded,
        consecutive_interruptions=0 if previous is None else previous.consecutive_interruptions,
        unavailable_pools=() if previous is None else previous.unavailable_pools,
    )


def _pool_nodes(situation: Situation, pool: str) -> list[NodeHealth]:
    members = [view.node_names for view in situation.views if view.pool.name == pool]
    names = sorted(frozenset[str]().union(*members))
    return [situation.nodes[name] for name in names if name in situation.nodes]


def _funded_plan(
    context: BatchContext, plan: BatchPlan, choice: HardwareChoice, running: int
) -> BatchPlan:
    """Return the plan with its claim on the budget: its one replica, without a minimum."""
    pods = context.situation.pods
    claim = GrantRequest(
        ref=context.batch.ref,
        tariff=choice.offer.tariff,
        min_replicas=0,
        desired=1,
        existing_pods=sum(pod.attempt is not None and pod.ended is None for pod in pods),
        running=running,
        termination_time=TERMINATION_TIME,
        is_batch=True,
    )
    unfunded_plan = idle_plan(context, _BUDGET_EXHAUSTED)
    return replace(plan, choice=choice, claim=claim, unfunded_plan=unfunded_plan)


def _attempt_verdict(
    context: BatchContext, attempt: AttemptStatus, decision: CapacityDecision
) -> StatusVerdict[BatchRunning]:
    if (stuck := _stuck_verdict(context, attempt)) is not None:
        return stuck
    pod = context.attempt_state.pod
    if pod is not None and pod.bound is None and pod.unschedulable is not None:
        spot = attempt.tier == "Spot"
        return StatusVerdict(
            BatchRunning.WAITING_FOR_SPOT if spot else BatchRunning.UNSCHEDULABLE,
            f"spec.placement.pools: no node for attempt {attempt.number} on {attempt.variant}: "
            f"{pod.unschedulable}; {decision.message}",
        )
    if not context.attempt_state.started:
        return _starting_verdict(attempt, decision)
    message = f"attempt {attempt.number} on {attempt.variant}: {decision.message}"
    sample = context.situation.progress_sample
    if sample is not None and sample.progress.input_changed:
        message += "; spec.input is another file since its check, whose rows are answered"
    return StatusVerdict(decision.reason, message)


def _starting_verdict(
    attempt: AttemptStatus, decision: CapacityDecision
) -> StatusVerdict[BatchRunning]:
    text = (
        f"status.attempt: attempt {attempt.number} starts on {attempt.variant} (kubectl describe "
        f"job {attempt.job}); {decision.message}"
    )
    return StatusVerdict(BatchRunning.STARTING, text + _history(attempt))


def _history(attempt: AttemptStatus) -> str:
    return f"; previous {attempt.previous_outcome}" if attempt.previous_outcome else ""
