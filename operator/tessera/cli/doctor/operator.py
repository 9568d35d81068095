"""The operator: is it there, does it lead, does it refuse what it must?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from tessera.cli.cluster import Json, Reader
from tessera.cli.doctor.finding import CheckContext, Finding, FindingState
from tessera.cli.text import format_age
from tessera.resources.api_resources import DEPLOYMENTS, INFERENCE_SERVICES

OPERATOR = "tessera-operator"
_SELECTOR = f"app.kubernetes.io/name={OPERATOR}"
_VERSION = "app.kubernetes.io/version"
# A leader renews every two seconds; clocks may differ by some.
_STALE_LEASE_AGE = timedelta(seconds=30)
_INSTALL_FIX = "helm upgrade --install tessera charts/tessera -n tessera-system --create-namespace"


async def deployments(reader: Reader) -> list[Json]:
    """The operator's Deployments in all namespaces; there should be one."""
    return await reader.list_objects(replace(DEPLOYMENTS, selector=None), selector=_SELECTOR)


async def operator(context: CheckContext) -> Sequence[Finding]:
    """Is it running, in which version, and does one of its pods lead?"""
    installed = await deployments(context.reader)
    if not installed:
        return [Finding("operator", FindingState.PROBLEM, "it is not installed", _INSTALL_FIX)]
    if len(installed) > 1:
        names = ", ".join(deployment["metadata"]["namespace"] for deployment in installed)
        fix = "keep one: two operators do not know of each other and undo each other's work"
        return [
            Finding(
                "operator", FindingState.PROBLEM, f"installed {len(installed)} times: {names}", fix
            )
        ]
    return [
        _deployment_finding(context, installed[0]),
        await _leader_finding(context, installed[0]),
    ]


def _deployment_finding(context: CheckContext, deployment: Json) -> Finding:
    meta, status = deployment["metadata"], deployment.get("status", {})
    namespace, version = meta["namespace"], meta.get("labels", {}).get(_VERSION, "unknown")
    available, desired = status.get("availableReplicas", 0), deployment["spec"].get("replicas", 1)
    message = f"{available} of {desired} replicas in {namespace}, version {version}"
    if desired == 0:
        fix = f"kubectl -n {namespace} scale deployment {meta['name']} --replicas=1"
        return Finding("operator", FindingState.PROBLEM, f"{message}: scaled to 0", fix)
    if available == 0:
        fix = f"kubectl -n {namespace} describe pods -l {_SELECTOR}, and logs --previous"
        return Finding("operator", FindingState.PROBLEM, message, fix)
    if version != context.version:
        fix = f"this is tessera {context.version}: use the same version, or its plans may differ"
        return Finding("operator", FindingState.WARNING, message, fix)
    return Finding("operator", FindingState.OK, message)


async def _leader_finding(context: CheckContext, deployment: Json) -> Finding:
    namespace = deployment["metadata"]["namespace"]
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{OPERATOR}"
    lease = await context.reader.get(path)
    spec: Mapping[str, Any] = (lease or {}).get("spec", {})
    holder = spec.get("holderIdentity")
    logs_command = f"kubectl -n {namespace} logs deployment/{deployment['metadata']['name']}"
    if not holder or not spec.get("renewTime"):
        return Finding(
            "leader", FindingState.PROBLEM, "no operator leads, so nothing is decided", logs_command
        )
    lease_age = context.at - datetime.fromisoformat(spec["renewTime"])
    message = f"{holder} leads, its Lease was renewed {format_age(lease_age)} ago"
    if lease_age > _STALE_LEASE_AGE:
        fix = f"{logs_command}; or the clock of this machine is ahead"
        return Finding("leader", FindingState.PROBLEM, message, fix)
    return Finding("leader", FindingState.OK, message)


# The schema allows it, and the operator must refuse it: the flag is reserved.
_INVALID_SERVICE = {
    "apiVersion": INFERENCE_SERVICES.api_version,
    "kind": INFERENCE_SERVICES.kind,
    "metadata": {"name": "tessera-doctor"},
    "spec": {
        "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"},
        "engine": {"extraArgs": ["--max-num-seqs=1"]},
    },
}


async def webhook(context: CheckContext) -> Sequence[Finding]:
    """Does the operator see what is written? A dry run of a spec that it must refuse."""
    path = INFERENCE_SERVICES.path(context.reader.namespace)
    status, body = await context.reader.send("POST", path, {"dryRun": "All"}, _INVALID_SERVICE)
    message = str(body.get("message", "")) if isinstance(body, Mapping) else ""
    if status == HTTPStatus.FORBIDDEN:
        reason = f"no rights to try: create inferenceservices in {context.reader.namespace}"
        return [Finding("webhook", FindingState.SKIPPED, reason)]
    if "--max-num-seqs" in message:
        reason = "it answers: a wrong spec was refused, nothing was created"
        return [Finding("webhook", FindingState.OK, reason)]
    if status == HTTPStatus.CREATED:
        return [
            Finding(
                "webhook",
                FindingState.WARNING,
                "it does not answer, so wrong specs are taken and refused only by their condition "
                "Accepted",
                "kubectl get validatingwebhookconfigurations shows whether it is installed "
                "(webhook.enabled of the chart); can the API server reach port 9443 of the "
                "operator?",
            )
        ]
    if status == HTTPStatus.NOT_FOUND:
        reason = f"there is no namespace {context.reader.namespace} to try it in"
        return [Finding("webhook", FindingState.SKIPPED, reason, "-n NAMESPACE")]
    reason = f"it could not be tried: {status} {message}"
    return [Finding("webhook", FindingState.PROBLEM, reason, "see resource types and operator")]
