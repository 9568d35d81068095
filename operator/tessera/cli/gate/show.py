"""`tessera gate show`: what QualityGates know and decided."""

from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import cast

from tessera.adapters.kube.object_parsing import parse_own
from tessera.api.meta import find_condition
from tessera.api.quality_gate import AnswerShares, StratumVerdict, VerdictStatus
from tessera.api.text import counted
from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.gate.table import AskedVersion, report
from tessera.cli.output import Output
from tessera.cli.text import cell, format_time, table
from tessera.domain.kinds.kinds import QUALITY_GATES
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.quality.verdict import TOTAL, LossOutcome, StratumLoss, Verdict
from tessera.resources.manifest import wire_format

_GATES_HEAD = ("GATE", "ACCEPTED", "PROMPTS", "PINNED", "SERVICE", "VERDICT", "DECIDED")
_VERDICTS_HEAD = (
    "SERVICE",
    "VERDICT",
    "DECIDED",
    "CANDIDATE",
    "BASELINE",
    "SUITE",
    "PRECISION",
    "VARIANT",
)
_DIGEST_LENGTH = 12


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Show one gate, or all of the namespace."""
    return await show(reader, arguments.gate, arguments.output)


async def show(reader: Reader, name: str | None, form: str) -> Output:
    """Return the report; CommandError for a gate that does not exist."""
    if name is None:
        bodies = await reader.list_objects(QUALITY_GATES, reader.namespace)
        gates = sorted(
            (parse_own(QUALITY_GATES, body) for body in bodies), key=lambda gate: gate.ref
        )
        return Output.of(form, _list_lines(gates), lambda: [_body(gate) for gate in gates])
    body = await reader.get(QUALITY_GATES.path(reader.namespace, name))
    if body is None:
        raise CommandError(
            f"QualityGate/{name} not found in {reader.namespace}; tessera gate show lists all"
        )
    gate = parse_own(QUALITY_GATES, body)
    return Output.of(form, _lines(gate), lambda: _body(gate))


def _body(gate: ObservedGate) -> dict[str, object]:
    return {"namespace": gate.ref.namespace, "gate": gate.ref.name, **wire_format(gate.status)}


def _list_lines(gates: list[ObservedGate]) -> Iterator[str]:
    if not gates:
        yield "no QualityGate; examples/35-quality-gate.yaml is one to start with"
        return
    rows = []
    for gate in gates:
        latest = next(iter(gate.status.verdicts), None)
        verdict = ("-", "-", "-") if latest is None else _decided(latest)
        rows.append((gate.ref.name, _accepted(gate), *_prompts(gate), *verdict))
    yield from table(_GATES_HEAD, rows)


def _accepted(gate: ObservedGate) -> str:
    condition = find_condition(gate.status.conditions, "Accepted")
    return condition.reason if condition is not None else "-"


def _prompts(gate: ObservedGate) -> tuple[str, str]:
    suite, spec = gate.status.suite, gate.spec
    read = None if suite is None else sum(suite.prompts.values())
    return cell(read), "yes" if spec is not None and spec.suite.digest is not None else "no"


def _decided(verdict: VerdictStatus) -> tuple[str, str, str]:
    return verdict.service, verdict.reason, format_time(verdict.decided_at)


def _lines(gate: ObservedGate) -> Iterator[str]:
    condition = find_condition(gate.status.conditions, "Accepted")
    problem = gate.problem or (condition.message if condition is not None else "not observed yet")
    yield f"{gate.ref}: {_accepted(gate)}: {problem}"
    if (suite := gate.status.suite) is not None:
        counts = ", ".join(f"{count} {stratum}" for stratum, count in sorted(suite.prompts.items()))
        yield f"suite {suite.digest[:_DIGEST_LENGTH]}: {counts}"
    for progress in gate.status.progress:
        prompts = counted(progress.prompts, "prompt")
        failure = f"; the last Job failed: {progress.failure}" if progress.failure else ""
        yield (
            f"{progress.role} of {progress.service}: {progress.answered} of {prompts} answered"
            f"{failure}"
        )
    if not gate.status.verdicts:
        return
    yield ""
    yield from _verdict_lines(gate.status.verdicts[0])
    yield ""
    yield from table(_VERDICTS_HEAD, [_verdict_row(each) for each in gate.status.verdicts])


def _verdict_row(verdict: VerdictStatus) -> tuple[str, ...]:
    digests = (verdict.candidate, verdict.baseline, verdict.suite)
    short = (digest[:_DIGEST_LENGTH] or "-" for digest in digests)
    return *_decided(verdict), *short, verdict.precision or "-", verdict.variant or "-"


def _verdict_lines(verdict: VerdictStatus) -> Iterator[str]:
    """Yield what `tessera gate compare` prints of two files, or why nothing was compared."""
    total = next((row for row in verdict.strata if row.name == TOTAL), None)
    before, after = verdict.baseline_answers, verdict.candidate_answers
    if total is None or after is None:
        if before is not None and after is not None:
            # A change that changes no answers: quality is not asked.
            versions = (_asked("candidate", None, after), _asked("baseline", None, before))
            yield from (*report("text", *versions, None).text.splitlines(), "")
        yield f"{verdict.service}: {verdict.reason}: {verdict.message}"
        return
    largest = total.largest_loss_points
    compared = Verdict(
        outcome=cast(LossOutcome, verdict.reason),
        total=_loss(total),
        strata=tuple(_loss(row) for row in verdict.strata if row is not total),
        largest_loss_points=None if largest is None else float(largest),
        missing_prompts=verdict.missing_prompts,
        message=verdict.message,
    )
    candidate = _asked("candidate", total.candidate, after)
    baseline = _asked("baseline", total.baseline, before) if before is not None else None
    yield from report("text", candidate, baseline, compared if before else None).text.splitlines()


def _loss(row: StratumVerdict) -> StratumLoss:
    return StratumLoss(
        name=row.name,
        prompts=row.prompts,
        baseline=float(row.baseline),
        candidate=float(row.candidate),
        loss_points=float(row.loss_points),
        unseen_loss_points=float(row.unseen_loss_points),
        is_lost=row.is_lost,
    )


def _asked(name: str, score: Decimal | None, shares: AnswerShares) -> AskedVersion:
    price = shares.usd_per_million_tokens
    per_million = None if price is None else float(price)
    points = None if score is None else float(score)
    return AskedVersion(name=name, score=points, shares=shares, price=per_million)
