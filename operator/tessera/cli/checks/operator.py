"""The operator: is it there, does it lead, does it refuse what it must?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from tessera.cli.checks.finding import Finding, State, Ward
from tessera.cli.cluster import Json, Reader
from tessera.cli.text import age
from tessera.resources.kinds import DEPLOYMENTS, INFERENCE_SERVICES

OPERATOR = "tessera-operator"
_SELECTOR = f"app.kubernetes.io/name={OPERATOR}"
_VERSION = "app.kubernetes.io/version"
_STALE = timedelta(seconds=30)
"""A leader renews every two seconds; clocks may differ by some."""
_INSTALL = "helm upgrade --install tessera charts/tessera -n tessera-system --create-namespace"


async def deployments(reader: Reader) -> list[Json]:
    """The operator's Deployments in all namespaces; there should be one."""
    return await reader.all(replace(DEPLOYMENTS, selector=None), selector=_SELECTOR)


async def operator(ward: Ward) -> Sequence[Finding]:
    """Is it running, in which version, and does one of its pods lead?"""
    found = await deployments(ward.reader)
    if not found:
        return [Finding("operator", State.PROBLEM, "it is not installed", _INSTALL)]
    if len(found) > 1:
        names = ", ".join(one["metadata"]["namespace"] for one in found)
        mend = "keep one: two operators do not know of each other and undo each other's work"
        return [Finding("operator", State.PROBLEM, f"installed {len(found)} times: {names}", mend)]
    return [_running(ward, found[0]), await _leading(ward, found[0])]


def _running(ward: Ward, deployment: Json) -> Finding:
    meta, status = deployment["metadata"], deployment.get("status", {})
    namespace, version = meta["namespace"], meta.get("labels", {}).get(_VERSION, "unknown")
    available, wanted = status.get("availableReplicas", 0), deployment["spec"].get("replicas", 1)
    told = f"{available} of {wanted} replicas in {namespace}, version {version}"
    if wanted == 0:
        mend = f"kubectl -n {namespace} scale deployment {meta['name']} --replicas=1"
        return Finding("operator", State.PROBLEM, f"{told}: scaled to 0", mend)
    if available == 0:
        mend = f"kubectl -n {namespace} describe pods -l {_SELECTOR}, and logs --previous"
        return Finding("operator", State.PROBLEM, told, mend)
    if version != ward.version:
        mend = f"this is tessera {ward.version}: use the same version, or its plans may differ"
        return Finding("operator", State.WARNING, told, mend)
    return Finding("operator", State.OK, told)


async def _leading(ward: Ward, deployment: Json) -> Finding:
    namespace = deployment["metadata"]["namespace"]
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{OPERATOR}"
    lease = await ward.reader.get(path)
    spec: Mapping[str, Any] = (lease or {}).get("spec", {})
    holder = spec.get("holderIdentity")
    logs = f"kubectl -n {namespace} logs deployment/{deployment['metadata']['name']}"
    if not holder or not spec.get("renewTime"):
        return Finding("leader", State.PROBLEM, "no operator leads, so nothing is decided", logs)
    old = ward.at - datetime.fromisoformat(spec["renewTime"])
    told = f"{holder} leads, its Lease was renewed {age(old)} ago"
    if old > _STALE:
        mend = f"{logs}; or the clock of this machine is ahead"
        return Finding("leader", State.PROBLEM, told, mend)
    return Finding("leader", State.OK, told)


_PROBE = {
    "apiVersion": INFERENCE_SERVICES.api_version,
    "kind": INFERENCE_SERVICES.kind,
    "metadata": {"name": "tessera-doctor"},
    "spec": {
        "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"},
        "engine": {"extraArgs": ["--max-num-seqs=1"]},
    },
}
"""The schema allows it, and the operator must refuse it: the flag is reserved."""


async def webhook(ward: Ward) -> Sequence[Finding]:
    """Does the operator see what is written? A dry run of a spec that it must refuse."""
    path = INFERENCE_SERVICES.path(ward.reader.namespace)
    status, body = await ward.reader.send("POST", path, {"dryRun": "All"}, _PROBE)
    message = str(body.get("message", "")) if isinstance(body, Mapping) else ""
    if status == HTTPStatus.FORBIDDEN:
        told = f"no rights to try: create inferenceservices in {ward.reader.namespace}"
        return [Finding("webhook", State.SKIPPED, told)]
    if "--max-num-seqs" in message:
        told = "it answers: a wrong spec was refused, nothing was created"
        return [Finding("webhook", State.OK, told)]
    if status == HTTPStatus.CREATED:
        return [
            Finding(
                "webhook",
                State.WARNING,
                "it does not answer, so wrong specs are taken and refused only by their condition "
                "Accepted",
                "kubectl get validatingwebhookconfigurations shows whether it is installed "
                "(webhook.enabled of the chart); can the API server reach port 9443 of the "
                "operator?",
            )
        ]
    if status == HTTPStatus.NOT_FOUND:
        told = f"there is no namespace {ward.reader.namespace} to try it in"
        return [Finding("webhook", State.SKIPPED, told, "-n NAMESPACE")]
    told = f"it could not be tried: {status} {message}"
    return [Finding("webhook", State.PROBLEM, told, "see resource types and operator")]
