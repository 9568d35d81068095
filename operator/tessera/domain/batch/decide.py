"""What becomes of one batch: its check, its attempts one after another, its end.

The status holds all that a restarted operator needs. An attempt's number is a fence: it is written
before the attempt's Job is created, never used twice, and only the runner whose number stands in
the status publishes. So an attempt whose end nobody heard of does no harm, and the next one need
not wait for it.
"""

from dataclasses import dataclass, replace
from datetime import timedelta

from tessera.api.batch_inference import AttemptStatus, ProgressStatus, UnavailablePool
from tessera.domain.batch.allotment import (
    NOT_ACCEPTED,
    TERMINAL,
    BatchAllotment,
    Start,
    Turn,
    closed,
    deletable,
    finished,
    held,
    idle,
    left,
    told,
)
from tessera.domain.batch.attempt import Standing, ended, highest, kept_at, standing
from tessera.domain.batch.check import checked
from tessera.domain.batch.facts import NodeHealth
from tessera.domain.batch.names import job_name
from tessera.domain.batch.reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.domain.batch.roads import FULL, Outlook, Road, nowhere, roads, waits, way_of
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import Source, accept
from tessera.domain.budget.purse import Claim
from tessera.domain.deadline import Course, Lot, choose
from tessera.domain.placement import HardwareChoice
from tessera.domain.reasons import StatusVerdict
from tessera.domain.spot import labelled

LEAVING = timedelta(seconds=30)
"""An attempt that is let go costs so long, until its engine has exited."""
_UNPAID = StatusVerdict(BatchRunning.BUDGET_EXHAUSTED, "spec.limits of the tenant's budget")
_PUBLISHING = timedelta(minutes=1)
"""A batch whose rows are all done may publish for so long after its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDraft:
    """What a batch would get if money were no object."""

    allotment: BatchAllotment
    claim: Claim | None = None
    """What has to be paid for it; None when nothing is wanted that costs."""
    unpaid: BatchAllotment | None = None
    """What it gets without that, still without the reason."""


def draft_batch(situation: Situation) -> BatchDraft:
    """Decide for one batch, as far as the budget allows."""
    if situation.batch.status.state in TERMINAL:
        return BatchDraft(allotment=finished(situation))
    accepted, source = accept(situation)
    if situation.batch.spec is None:
        return BatchDraft(allotment=held(situation, accepted))
    now = situation.at.replace(microsecond=0)
    turn = Turn(
        situation=situation,
        now=now,
        spec=situation.batch.spec,
        accepted=accepted,
        standing=standing(situation, now),
        check=situation.batch.status.check,
    )
    over = turn.standing.over or _expired(turn)
    return _going_on(turn, source) if over is None else BatchDraft(allotment=closed(turn, over))


def finish_batch(draft: BatchDraft, shortage: str | None) -> BatchAllotment:
    """The decision, once the budget has spoken; `shortage` says why it refused the claim.

    Without money the running attempt is let go, which keeps all of its rows but those in flight.
    """
    if shortage is None or draft.unpaid is None:
        return draft.allotment
    return replace(draft.unpaid, running=StatusVerdict(BatchRunning.BUDGET_EXHAUSTED, shortage))


def set_aside(situation: Situation, error: Exception) -> BatchAllotment:
    """A batch whose planning raised is left as it is."""
    text = (
        f"spec: planning raised {type(error).__name__} ({error}); please report it with the output "
        "of kubectl get batchinference -o yaml"
    )
    return held(situation, StatusVerdict(BatchAccepted.INTERNAL_ERROR, text))


def _going_on(turn: Turn, source: Source | None) -> BatchDraft:
    if source is None:
        return BatchDraft(allotment=left(turn, NOT_ACCEPTED))
    if turn.spec.suspend:
        return BatchDraft(allotment=idle(turn, _suspended(turn)))
    if turn.check is None or turn.standing.progress is None:
        return _checking(turn, source)
    return _attempting(turn, source, turn.standing.progress)


def _expired(turn: Turn) -> StatusVerdict[BatchComplete] | None:
    grace = _PUBLISHING if turn.standing.publishing else timedelta()
    if turn.now < turn.deadline + grace:
        return None
    progress = turn.standing.progress
    rows = "0 rows" if progress is None else f"{progress.done} of {progress.rows} rows"
    return StatusVerdict(
        BatchComplete.DEADLINE_EXCEEDED,
        f"spec.deadline: it passed at {turn.deadline:%Y-%m-%dT%H:%M:%SZ} with {rows} done; "
        f"{kept_at(turn.situation)}",
    )


def _suspended(turn: Turn) -> StatusVerdict[BatchRunning]:
    text = f"spec.suspend is true; the deadline of {turn.deadline:%Y-%m-%dT%H:%MZ} goes on"
    return StatusVerdict(BatchRunning.SUSPENDED, text)


def _pause(turn: Turn) -> StatusVerdict[BatchRunning] | None:
    """The next attempt has to wait; after losses only one on hardware that is bought alike."""
    attempt = turn.standing.attempt
    begins = None if attempt is None else attempt.retry_at
    if attempt is None or begins is None or turn.now >= begins:
        return None
    return StatusVerdict(
        BatchRunning.BACKING_OFF,
        f"status.attempt: attempt {attempt.number} on {attempt.variant} ended: "
        f"{attempt.last_words}; the next one begins at {begins:%H:%M:%SZ}",
    )


def _checking(turn: Turn, source: Source) -> BatchDraft:
    """The input is checked before anything is spent; when it has passed, the attempts begin."""
    check = checked(turn.situation, turn.spec, turn.now)
    if check.refused is not None:
        return BatchDraft(allotment=closed(turn, check.refused))
    if check.passed is not None:
        progress = ProgressStatus(rows=check.passed.rows, at=turn.now)
        passed = replace(
            turn, check=check.passed, standing=replace(turn.standing, progress=progress)
        )
        return _attempting(passed, source, progress)
    name = job_name(turn.batch.ref.name, None)
    start = Start(attempt=None, name=name, source=source, lasting=turn.lasting)
    again = tuple(job.ref for job in turn.situation.jobs if job.attempt is None and check.again)
    return BatchDraft(
        allotment=replace(
            told(turn, check.running),
            create=start if check.create else None,
            delete=(*again, *deletable(turn.situation, (None,), None)),
        )
    )


def _attempting(turn: Turn, source: Source, progress: ProgressStatus) -> BatchDraft:
    """Go on with the attempt, begin the next one, or wait."""
    attempt = turn.standing.attempt
    pause = _pause(turn)
    if pause is not None and attempt is not None and not attempt.lost:
        return BatchDraft(allotment=idle(turn, pause))
    if attempt is not None and turn.standing.alive and turn.standing.publishing:
        text = f"status.attempt: attempt {attempt.number} publishes all {progress.rows} rows"
        return BatchDraft(allotment=left(turn, StatusVerdict(_at_work(turn, attempt), text)))
    turn = _with_patience(turn)
    course = Course(
        start=turn.batch.created,
        end=turn.deadline,
        at=turn.now,
        rows=progress.rows,
        done=progress.done,
    )
    outlook = Outlook(
        situation=turn.situation,
        source=source,
        policy=turn.spec.spot.policy,
        standing=turn.standing,
        progress=progress,
        course=course,
    )
    return _on_a_road(turn, outlook)


def _on_a_road(turn: Turn, outlook: Outlook) -> BatchDraft:
    found = roads(outlook)
    turn = replace(turn, standing=replace(turn.standing, progress=found.progress))
    mine = outlook.mine
    bound = turn.standing.bound
    if mine is not None and bound and _unseen(turn, mine, found.of(way_of(mine) or "spot")):
        return BatchDraft(allotment=left(turn, _as_before(turn, mine)))
    lot = choose(
        outlook.policy,
        outlook.course,
        spot=None if found.spot is None else found.spot.lane,
        steady=None if found.steady is None else found.steady.lane,
        current=way_of(turn.standing.attempt),
    )
    road = None if lot.way is None else found.of(lot.way)
    if road is None:
        missing = found.spot is None and found.steady is None
        return BatchDraft(
            allotment=idle(
                turn, nowhere(outlook) if missing else StatusVerdict(lot.reason, lot.message)
            )
        )
    if (pause := _pause(turn)) is not None and lot.way == way_of(turn.standing.attempt):
        return BatchDraft(allotment=idle(turn, pause))
    stays = mine is not None and (bound or road.choice.variant == mine.variant)
    if mine is not None and stays and way_of(mine) == lot.way:
        return _kept(turn, mine, road, lot)
    return _begun(turn, outlook.source, road, lot)


def _unseen(turn: Turn, mine: AttemptStatus, road: Road | None) -> bool:
    """The hardware under a running attempt is not to be seen now; that is no reason to leave it."""
    excluded = turn.spec.spot.policy == ("never" if mine.tier == "spot" else "only")
    return road is None and not excluded


def _at_work(turn: Turn, mine: AttemptStatus) -> BatchRunning:
    if mine.tier == "spot":
        return BatchRunning.ON_SPOT
    never = turn.spec.spot.policy == "never"
    return BatchRunning.SPOT_DISABLED if never else BatchRunning.NOT_YET_AHEAD


def _as_before(turn: Turn, mine: AttemptStatus) -> StatusVerdict[BatchRunning]:
    return StatusVerdict(
        _at_work(turn, mine) if turn.standing.started else BatchRunning.STARTING,
        f"spec.placement.pools: attempt {mine.number} goes on in {mine.pool}, which cannot be "
        f"judged now: kubectl get acceleratorpool {mine.pool}",
    )


def _with_patience(turn: Turn) -> Turn:
    """Remember that a pool was waited for in vain."""
    state, attempt = turn.standing, turn.standing.attempt
    if attempt is None or not waits(state, turn.now):
        return turn
    if any(one.pool == attempt.pool and one.at >= attempt.started_at for one in attempt.full):
        return turn
    known = {one.pool: one for one in attempt.full if turn.now - one.at < FULL}
    known[attempt.pool] = UnavailablePool(pool=attempt.pool, at=turn.now)
    noted = attempt.model_copy(update={"full": tuple(known[name] for name in sorted(known))})
    return replace(turn, standing=replace(state, attempt=noted))


def _kept(turn: Turn, mine: AttemptStatus, road: Road, lot: Lot) -> BatchDraft:
    seen = road.choice.variant == mine.variant
    return BatchDraft(
        allotment=replace(
            left(turn, _running(turn, mine, lot)), choice=road.choice if seen else None
        ),
        claim=_claim(turn, road.choice, kept=1) if seen else None,
        unpaid=idle(turn, _UNPAID),
    )


def _begun(turn: Turn, source: Source, road: Road, lot: Lot) -> BatchDraft:
    """The next attempt, with a number that nothing ever had; one that lasts gives way to it."""
    attempt = _next(turn, road.choice, lot.reason)
    start = Start(
        attempt=attempt.number,
        name=attempt.job,
        source=source,
        choice=road.choice,
        lasting=turn.lasting,
        labelled=attempt.tier == "spot" and labelled(_nodes(turn.situation, attempt.pool)),
    )
    begun = Standing(attempt=attempt, progress=turn.standing.progress)
    return BatchDraft(
        allotment=replace(
            told(replace(turn, standing=begun), _starting(attempt, lot)),
            create=start,
            delete=deletable(turn.situation, (attempt.number,), attempt),
            choice=road.choice,
        ),
        claim=_claim(turn, road.choice, kept=0),
        unpaid=idle(turn, _UNPAID),
    )


def _next(turn: Turn, choice: HardwareChoice, why: BatchRunning) -> AttemptStatus:
    before, progress = turn.standing.attempt, turn.standing.progress
    number = highest(turn.situation) + 1
    if before is not None and before.ended_at is None:
        before = ended(before, progress, turn.now, f"it gave way: {why}")
    return AttemptStatus(
        number=number,
        tier=choice.offer.tier,
        pool=choice.offer.pool,
        variant=choice.variant,
        job=job_name(turn.batch.ref.name, number),
        started_at=turn.now,
        after="" if before is None else f"attempt {before.number}: {before.last_words}",
        done_before=0 if progress is None else progress.done,
        barren=0 if before is None else before.barren,
        barren_since=None if before is None else before.barren_since,
        lost=0 if before is None else before.lost,
        full=() if before is None else before.full,
    )


def _nodes(situation: Situation, pool: str) -> list[NodeHealth]:
    members = [view.node_names for view in situation.views if view.pool.name == pool]
    names = sorted(frozenset[str]().union(*members))
    return [situation.nodes[name] for name in names if name in situation.nodes]


def _claim(turn: Turn, choice: HardwareChoice, kept: int) -> Claim:
    """A batch has no floor: all of it is granted or not."""
    pods = turn.situation.pods
    return Claim(
        ref=turn.batch.ref,
        tariff=choice.offer.tariff,
        floor=0,
        wanted=1,
        alive=sum(pod.attempt is not None and pod.ended is None for pod in pods),
        running=kept,
        leaving=LEAVING,
    )


def _running(turn: Turn, mine: AttemptStatus, lot: Lot) -> StatusVerdict[BatchRunning]:
    """What the attempt does there, beside why it is there."""
    pod = turn.standing.pod
    if pod is not None and pod.bound is None and pod.unschedulable is not None:
        spot = mine.tier == "spot"
        return StatusVerdict(
            BatchRunning.WAITING_FOR_SPOT if spot else BatchRunning.UNSCHEDULABLE,
            f"spec.placement.pools: attempt {mine.number} finds no node for {mine.variant}: "
            f"{pod.unschedulable}; {lot.message}",
        )
    if not turn.standing.started:
        return _starting(mine, lot)
    return StatusVerdict(lot.reason, f"attempt {mine.number} on {mine.variant}: {lot.message}")


def _starting(attempt: AttemptStatus, lot: Lot) -> StatusVerdict[BatchRunning]:
    text = (
        f"status.attempt: attempt {attempt.number} starts on {attempt.variant}, see kubectl "
        f"describe job {attempt.job}; {lot.message}"
    )
    before = f"; before, {attempt.after}" if attempt.after else ""
    return StatusVerdict(BatchRunning.STARTING, text + before)
