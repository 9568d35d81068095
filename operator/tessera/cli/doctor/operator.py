"""Checks of the operator: Deployment, Lease and webhook."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from tessera.cli.cluster import Json
from tessera.cli.doctor.finding import CheckContext, Finding, FindingState
from tessera.cli.installation import OPERATOR, OPERATOR_SELECTOR, operator_deployments
from tessera.cli.text import format_age
from tessera.resources.api_resources import INFERENCE_SERVICES

_VERSION = "app.kubernetes.io/version"
# A leader renews its Lease every two seconds; the rest allows for clock skew.
_STALE_LEASE_AGE = timedelta(seconds=30)
_INSTALL_FIX = "helm upgrade --install tessera charts/tessera -n tessera-system --create-namespace"


async def check_operator(context: CheckContext) -> Sequence[Finding]:
    """Check that one operator runs, in this version, and that one of its pods leads."""
    installed = await operator_deployments(context.reader)
    if not installed:
        return [Finding("operator", FindingState.PROBLEM, "not installed", _INSTALL_FIX)]
    if len(installed) > 1:
        names = ", ".join(deployment["metadata"]["namespace"] for deployment in installed)
        fix = "keep one: two operators revert each other's changes"
        return [
            Finding(
                "operator",
                FindingState.PROBLEM,
                f"installed more than once: {names}",
                fix,
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
    message = f"replicas available in {namespace}: {available} of {desired}, version {version}"
    if desired == 0:
        fix = f"kubectl -n {namespace} scale deployment {meta['name']} --replicas=1"
        return Finding("operator", FindingState.PROBLEM, f"{message}: scaled to 0", fix)
    if available == 0:
        fix = f"kubectl -n {namespace} describe pods -l {OPERATOR_SELECTOR}, and logs --previous"
        return Finding("operator", FindingState.PROBLEM, message, fix)
    if version != context.version:
        fix = f"use the same version: this is tessera {context.version}, its plans may differ"
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
            "leader",
            FindingState.PROBLEM,
            "no operator holds the Lease, so nothing is reconciled",
            logs_command,
        )
    lease_age = context.at - datetime.fromisoformat(spec["renewTime"])
    message = f"{holder} leads; its Lease was renewed {format_age(lease_age)} ago"
    if lease_age > _STALE_LEASE_AGE:
        fix = f"{logs_command}; or correct the clock of this machine if it is fast"
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


async def check_webhook(context: CheckContext) -> Sequence[Finding]:
    """Check that admission denies an invalid spec, by a dry run."""
    path = INFERENCE_SERVICES.path(context.reader.namespace)
    status, body = await context.reader.send("POST", path, {"dryRun": "All"}, _INVALID_SERVICE)
    message = str(body.get("message", "")) if isinstance(body, Mapping) else ""
    if status == HTTPStatus.FORBIDDEN:
        reason = f"permission denied: create inferenceservices in {context.reader.namespace}"
        return [Finding("webhook", FindingState.SKIPPED, reason)]
    if "--max-num-seqs" in message:
        reason = "denied an invalid spec in a dry run"
        return [Finding("webhook", FindingState.OK, reason)]
    if status == HTTPStatus.CREATED:
        return [
            Finding(
                "webhook",
                FindingState.WARNING,
                "no response: an invalid spec is admitted, and only its condition Accepted shows "
                "why",
                "check webhook.enabled of the chart, kubectl get validatingwebhookconfigurations, "
                "and that the API server reaches port 9443 of the operator",
            )
        ]
    if status == HTTPStatus.NOT_FOUND:
        reason = f"namespace {context.reader.namespace} not found"
        return [Finding("webhook", FindingState.SKIPPED, reason, "-n NAMESPACE")]
    reason = f"dry run failed: {status} {message}"
    return [Finding("webhook", FindingState.PROBLEM, reason, "see crds and operator")]
