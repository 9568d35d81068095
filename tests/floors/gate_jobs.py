"""The Job controller as far as gates need it: the pod of a Job asks a version and reports."""

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tessera.domain.names import PORT
from tessera.domain.quality import names as gate_names
from tessera.resources.api_resources import CLAIMS, JOBS, PODS
from tessera.resources.manifest import ObjectKey
from tests.repartition.kube import Body

if TYPE_CHECKING:
    from tests.floors.kube import FloorKube

SUITE = hashlib.sha256(b"suite").hexdigest()
PROMPTS = 400
# The shortest and longest time in seconds in which a version answers the suite.
_ASKING = (20.0, 60.0)
# Name, prompts, scores of both versions, losses in points, and whether it is lost.
_TOTAL = ("total", PROMPTS, 0.8, 0.8, 0, 1.5, 4, False)
# Truncated, empty and refused answers, tokens of each, and P95 of TTFT and ITL.
_ANSWERS = (0, 0, 0, 100, 0.3, 0.02)


def run_gate_jobs(kube: "FloorKube") -> None:
    """Create the pods of Jobs, let them report what they asked, and end them with their Job."""
    for key in [key for key, body in kube.objects.items() if _is_gate_job(key, body)]:
        pod = _pod_of(kube, key)
        if _has_finished(kube.objects[key]):
            continue
        if pod is None:
            _create_pod(kube, key)
        elif kube.has_ended(pod):
            phase = kube.objects[pod]["status"]["phase"]
            _finish(kube, key, "Complete" if phase == "Succeeded" else "Failed")
        elif kube.pod(pod).terminating:
            _finish(kube, key, "Failed")
        else:
            _ask(kube, key, pod)
    for at, seen in list(kube.pods()):
        if seen.gate_job_run is not None and _job_of(kube, at) is None:
            kube.collect(at)


def arguments_of(job: Body) -> Mapping[str, str]:
    """Return the options of the container of a Job."""
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    options = (text.removeprefix("--").split("=", 1) for text in arguments if "=" in text)
    return {name: value for name, value in options}


def _is_gate_job(key: ObjectKey, body: Body) -> bool:
    labels = body["metadata"].get("labels", {})
    return key.plural == JOBS.plural and gate_names.GATE_LABEL in labels


def _has_finished(job: Body) -> bool:
    return bool(job.get("status", {}).get("conditions"))


def _pod_of(kube: "FloorKube", job: ObjectKey) -> ObjectKey | None:
    uid = kube.objects[job]["metadata"]["uid"]
    pods = (key for key, pod in kube.pods() if pod.gate_job_run is not None)
    return next((key for key in pods if _owner(kube.objects[key]) == uid), None)


def _job_of(kube: "FloorKube", pod: ObjectKey) -> ObjectKey | None:
    uid = _owner(kube.objects[pod])
    jobs = (key for key, body in kube.objects.items() if _is_gate_job(key, body))
    return next((key for key in jobs if kube.objects[key]["metadata"]["uid"] == uid), None)


def _owner(pod: Body) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def _claim_of(kube: "FloorKube", job: ObjectKey) -> Body | None:
    name = gate_names.answers_claim_name(
        kube.objects[job]["metadata"]["labels"][gate_names.GATE_LABEL]
    )
    return kube.objects.get(ObjectKey(CLAIMS.plural, job.namespace, name))


def _create_pod(kube: "FloorKube", job: ObjectKey) -> None:
    """Create the pod of a Job, which stays unbound while the claim of the answers is missing."""
    if _claim_of(kube, job) is None:
        return
    meta = kube.objects[job]["metadata"]
    owner = {"kind": "Job", "name": job.name, "uid": meta["uid"], "controller": True}
    pod_meta = {
        "name": f"{job.name}-x",
        "namespace": job.namespace,
        "labels": meta["labels"],
        "ownerReferences": [owner],
        "creationTimestamp": kube.moment,
    }
    spec = {"nodeSelector": {}, "containers": [], "nodeName": "cpu-0"}
    key = kube.put(PODS, {"metadata": pod_meta, "spec": spec}, "job-controller")
    seconds = kube.rng.uniform(*_ASKING)
    kube.due_reports[key] = kube.steady + timedelta(seconds=seconds)


def _ask(kube: "FloorKube", job: ObjectKey, pod: ObjectKey) -> None:
    if kube.steady < kube.due_reports[pod]:
        return
    del kube.due_reports[pod]
    report = json.dumps(_report(kube, job))
    terminated = {"exitCode": 0, "message": report, "finishedAt": kube.moment}
    states = [{"name": gate_names.GATE_CONTAINER, "state": {"terminated": terminated}}]
    kube.set(pod, status={"phase": "Succeeded", "containerStatuses": states})


def _report(kube: "FloorKube", job: ObjectKey) -> dict[str, Any]:
    options, claim = arguments_of(kube.objects[job]), _claim_of(kube, job)
    volume = claim["metadata"]["uid"] if claim is not None else ""
    answers = hashlib.sha256(f"{volume}{options['version']}".encode()).hexdigest()
    report = {
        "phase": "gate",
        "version": options["version"],
        "baseline": options.get("baseline", ""),
        "suite": SUITE,
        "scorer": options["scorer"],
        "prompts": {"all": PROMPTS},
        "answersDigest": answers,
    }
    addresses = {f"http://{pod.address}:{PORT}" for _, pod in kube.pods() if pod.containers_ready}
    if options["url"] not in addresses:
        return {**report, "state": "engineAway", "message": "the engine went away"}
    if options["role"] == "baseline":
        return {**report, "state": "answered", "answers": _ANSWERS, **kube.gate_problem}
    baseline = hashlib.sha256(f"{volume}{options.get('baseline', '')}".encode()).hexdigest()
    if options.get("baseline-digest", baseline) != baseline:
        return {**report, "state": "baselineMissing", "message": "the claim lacks the baseline"}
    judged = {"verdict": "Passed", "strata": [_TOTAL], "answers": _ANSWERS}
    return {**report, "state": "judged", **judged, **kube.gate_verdict, **kube.gate_problem}


def _finish(kube: "FloorKube", job: ObjectKey, type: str) -> None:
    kube.set(job, status={"conditions": [{"type": type, "status": "True"}]})
