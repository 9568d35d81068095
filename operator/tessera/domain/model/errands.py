"""The Job of an errand: is it to be made, what came of it, may it go?"""

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum, auto

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.model.names import Task, errand_name
from tessera.domain.ref import Ref
from tessera.domain.snapshot import Pod, Service, Snapshot
from tessera.domain.trouble import unmade

_AGAIN = timedelta(seconds=30)
"""What failed for a reason that may pass is tried again after this time."""
_REFUSED = 3
"""Exit code: the user has to change something."""
_SHOWN = 600


class Outcome(Enum):
    """What came of an errand."""

    DONE = auto()
    REFUSED = auto()
    OPEN = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """A Job to make for the model of a service."""

    task: Task
    name: str
    spec: InferenceServiceSpec
    """As it is carried out: of the commit, if one is pinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an errand stands."""

    name: str
    """Of its Job."""
    namespace: str
    outcome: Outcome = Outcome.OPEN
    report: str = ""
    said: str = ""
    """What holds it up, in words."""
    errand: Errand | None = None
    over: tuple[Ref, ...] = ()
    """Jobs that came to nothing, or served another spec."""
    former: tuple[Ref, ...] = ()
    """Of these those of another spec alone."""
    jobs: tuple[Ref, ...] = ()
    """All Jobs of the task."""
    address: str | None = None
    """Of its pod, while it runs."""

    @property
    def where(self) -> str:
        return f"kubectl logs -n {self.namespace} job/{self.name}"


def standing(
    snapshot: Snapshot, service: Service, spec: InferenceServiceSpec, task: Task
) -> Standing:
    """Judge an errand by its Job and its pod."""
    name = errand_name(service.ref.name, service.uid, task, spec.model)
    mine = [job for job in snapshot.errands if job.service == service.ref and job.task == task]
    jobs = tuple(sorted(job.ref for job in mine))
    job = next((one for one in mine if one.ref.name == name), None)
    told = Standing(
        name=name,
        namespace=service.ref.namespace,
        jobs=jobs,
        former=tuple(ref for ref in jobs if ref.name != name),
    )
    if job is None:
        return replace(told, errand=Errand(task=task, name=name, spec=spec), over=told.former)
    own = [pod for pod in snapshot.pods if pod.errand is not None and pod.errand.owner == job.uid]
    pod = max(own, key=lambda one: (one.created, one.ref), default=None)
    lost = job.failed and pod is None
    if pod is None or pod.errand is None:
        return replace(told, over=jobs if lost else told.former)
    code, text = pod.errand.exit_code, pod.errand.report
    if code is None and pod.ended is None:
        return replace(told, over=told.former, said=_held_up(spec, pod), address=pod.address)
    if code == 0:
        return replace(told, over=told.former, report=text, outcome=Outcome.DONE)
    if code == _REFUSED:
        return replace(told, over=told.former, report=text, outcome=Outcome.REFUSED)
    again = snapshot.at - (pod.ended or pod.created) >= _AGAIN
    words = text.strip() or pod.last_words
    said = f"exit code {code}: {words[-_SHOWN:]}; it is tried again after {_AGAIN.seconds} s"
    return replace(told, over=jobs if again else told.former, said=said)


def _held_up(spec: InferenceServiceSpec, pod: Pod) -> str:
    if pod.trouble is not None:
        advice = unmade(spec, pod)
        words = f"{pod.ref.name}: {pod.trouble}: {pod.last_words[-_SHOWN:]}"
        return f"{advice}; {words}" if advice else words
    if pod.unschedulable is not None:
        return f"{pod.ref.name} waits for a node: {pod.unschedulable}"
    return ""
