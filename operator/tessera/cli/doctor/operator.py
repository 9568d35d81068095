"""Checks of the operator: Deployment, Lease and webhook."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from tessera.cli.cluster import Json
from tessera.cli.doctor.finding import (
    CheckContext,
    Finding,
    Findings,
    ok,
    problem,
    skipped,
    warning,
)
from tessera.cli.installation import (
    GATEWAY_SELECTOR,
    OPERATOR,
    OPERATOR_SELECTOR,
    gateway_deployments,
    operator_deployments,
)
from tessera.cli.text import format_age
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import APP_VERSION
from tessera.resources.api_resources import CLAIMS

# A leader renews its Lease every two seconds; the rest allows for clock skew.
_STALE_LEASE_AGE = timedelta(seconds=30)
_INSTALL_FIX = "helm upgrade --install tessera charts/tessera -n tessera-system --create-namespace"


async def check_operator(context: CheckContext) -> Findings:
    """Check that one operator runs, in this version, and that one of its pods leads."""
    installed = await operator_deployments(context.reader)
    if not installed:
        return problem("operator", "not installed", _INSTALL_FIX)
    if len(installed) > 1:
        names = ", ".join(deployment["metadata"]["namespace"] for deployment in installed)
        fix = "keep one: two operators revert each other's changes"
        return problem("operator", f"installed more than once: {names}", fix)
    [deployment] = installed
    return [_deployment_finding(context, deployment), await _leader_finding(context, deployment)]


def _deployment_finding(context: CheckContext, deployment: Json) -> Finding:
    meta, status = deployment["metadata"], deployment.get("status", {})
    namespace, version = meta["namespace"], meta.get("labels", {}).get(APP_VERSION, "unknown")
    available, desired = status.get("availableReplicas", 0), deployment["spec"].get("replicas", 1)
    message = f"replicas available in {namespace}: {available} of {desired}, version {version}"
    if desired == 0:
        fix = f"kubectl -n {namespace} scale deployment {meta['name']} --replicas=1"
        return problem("operator", f"{message}: scaled to 0", fix)
    if available == 0:
        fix = f"kubectl -n {namespace} describe pods -l {OPERATOR_SELECTOR}, and logs --previous"
        return problem("operator", message, fix)
    if version != context.version:
        fix = f"use the same version: this is tessera {context.version}, its plans may differ"
        return warning("operator", message, fix)
    return ok("operator", message)


async def check_gateway(context: CheckContext) -> Findings:
    """Check that an installed gateway answers, or say what its volume waits for."""
    findings = []
    for body in await gateway_deployments(context.reader):
        namespace, desired = body["metadata"]["namespace"], body["spec"].get("replicas", 1)
        available = body.get("status", {}).get("availableReplicas", 0)
        message = f"replicas available in {namespace}: {available} of {desired}"
        if available:
            findings.append(ok("gateway", message))
            continue
        fix = f"kubectl -n {namespace} describe pods -l {GATEWAY_SELECTOR}"
        claim = await context.reader.get(CLAIMS.path(namespace, body["metadata"]["name"]))
        if (claim or {}).get("status", {}).get("phase") == "Pending":
            message += f"; PersistentVolumeClaim/{body['metadata']['name']} is Pending"
            fix += (
                "; make a StorageClass the default, or set "
                "gateway.database.sqlite.storageClassName or gateway.database.secretName"
            )
        findings.append(problem("gateway", message, fix))
    return findings


async def _leader_finding(context: CheckContext, deployment: Json) -> Finding:
    namespace = deployment["metadata"]["namespace"]
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{OPERATOR}"
    lease = await context.reader.get(path)
    spec: Mapping[str, Any] = (lease or {}).get("spec", {})
    holder = spec.get("holderIdentity")
    logs_command = f"kubectl -n {namespace} logs deployment/{deployment['metadata']['name']}"
    if not holder or not spec.get("renewTime"):
        message = "no operator holds the Lease, so nothing is reconciled"
        return problem("leader", message, logs_command)
    lease_age = context.at - datetime.fromisoformat(spec["renewTime"])
    message = f"{holder} leads; its Lease was renewed {format_age(lease_age)} ago"
    if lease_age > _STALE_LEASE_AGE:
        fix = f"{logs_command}; or correct the clock of this machine if it is fast"
        return problem("leader", message, fix)
    return ok("leader", message)


_ADMISSION_PATH = "/apis/admissionregistration.k8s.io/v1"
# Suffixes of the policies that keep others from writing the Deployments of engines.
_DEPLOYMENT_POLICIES = ("deployments", "scale")


async def check_policies(context: CheckContext) -> Findings:
    """Check that admission keeps others from writing the Deployments of engines."""
    findings = []
    for deployment in await operator_deployments(context.reader):
        namespace = deployment["metadata"]["namespace"]
        missing = [await _missing_object(context, name) for name in policy_names(namespace)]
        if not any(missing):
            findings.append(ok("policies", "only Tessera and the platform team write Deployments"))
            continue
        message = (
            f"{', '.join(filter(None, missing))}: a HorizontalPodAutoscaler or kubectl scale can "
            "take a Deployment below minReplicas, and Tessera can only set it back afterwards"
        )
        fix = (
            f"helm upgrade --reset-then-reuse-values {_release_of(deployment)} charts/tessera "
            f"-n {namespace}"
        )
        findings.append(problem("policies", message, fix))
    return findings


def policy_names(namespace: str) -> list[str]:
    """Return the names of the policies for Deployments of a release, as the chart writes them."""
    prefix = f"{OPERATOR}-{namespace}"[:63].removesuffix("-")
    return [f"{prefix}-{suffix}" for suffix in _DEPLOYMENT_POLICIES]


async def _missing_object(context: CheckContext, name: str) -> str:
    """Return the object without which a policy denies nothing; empty if it denies."""
    policy = await context.reader.get(f"{_ADMISSION_PATH}/validatingadmissionpolicies/{name}")
    if policy is None:
        return f"ValidatingAdmissionPolicy/{name} not found"
    path = f"{_ADMISSION_PATH}/validatingadmissionpolicybindings/{name}"
    binding = await context.reader.get(path)
    if binding is None:
        return f"ValidatingAdmissionPolicyBinding/{name} not found"
    actions = binding.get("spec", {}).get("validationActions", ())
    if "Deny" not in actions:
        return f"ValidatingAdmissionPolicyBinding/{name}: spec.validationActions lacks Deny"
    return ""


def _release_of(deployment: Json) -> str:
    """Return the name of the Helm release."""
    labels = deployment["metadata"].get("labels", {})
    return str(labels.get("app.kubernetes.io/instance", "tessera"))


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


async def check_webhook(context: CheckContext) -> Finding:
    """Check that admission denies an invalid spec, by a dry run."""
    namespace = context.reader.namespace
    path = INFERENCE_SERVICES.path(namespace)
    status, body = await context.reader.send("POST", path, {"dryRun": "All"}, _INVALID_SERVICE)
    message = str(body.get("message", "")) if isinstance(body, Mapping) else ""
    if status == HTTPStatus.FORBIDDEN:
        return skipped("webhook", f"permission denied: create inferenceservices in {namespace}")
    if "--max-num-seqs" in message:
        return ok("webhook", "denied an invalid spec in a dry run")
    if status == HTTPStatus.CREATED:
        return warning(
            "webhook",
            "no response: an invalid spec is admitted, and only its condition Accepted shows why",
            "check webhook.enabled of the chart, kubectl get validatingwebhookconfigurations, "
            "and that the API server reaches port 9443 of the operator",
        )
    if status == HTTPStatus.NOT_FOUND:
        return skipped("webhook", f"namespace {namespace} not found", "-n NAMESPACE")
    return problem("webhook", f"dry run failed: {status} {message}", "see crds and operator")
