"""Checks of the API server, the CRDs, and the permissions of the user."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from tessera.api.schema import CustomResource, crd
from tessera.api.text import first_names
from tessera.cli.doctor.finding import CheckContext, Finding, ok, problem, skipped, warning
from tessera.cli.fleet import PLAN_INPUT_KINDS
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, KINDS

# Minor versions of Kubernetes 1 that are supported.
OLDEST_MINOR, NEWEST_MINOR = 32, 36
_CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_KSERVE_CRD = "inferenceservices.serving.kserve.io"
_ACCESS_REVIEW_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


async def check_kubernetes(context: CheckContext) -> Finding:
    """Check that the API server responds, and its version."""
    body = await context.reader.get("/version") or {}
    message = f"API server version {body.get('gitVersion', 'unknown')}"
    minor = int(re.sub(r"\D", "", str(body.get("minor", ""))) or 0)
    if body.get("major") != "1" or minor < OLDEST_MINOR:
        fix = f"upgrade the cluster: Tessera supports 1.{OLDEST_MINOR} to 1.{NEWEST_MINOR}"
        return problem("kubernetes", message, fix)
    if minor > NEWEST_MINOR:
        message = f"Kubernetes 1.{minor} is newer than the tested 1.{NEWEST_MINOR}"
        fix = f"upgrade Tessera, this is {context.version}"
        return warning("kubernetes", message, fix)
    return ok("kubernetes", message)


async def check_crds(context: CheckContext) -> Finding:
    """Check that the CRDs are installed, in this version."""
    installed = await asyncio.gather(
        *(context.reader.get(f"{_CRD_PATH}/{crd(kind)['metadata']['name']}") for kind in KINDS)
    )
    missing = [kind.kind for kind, body in zip(KINDS, installed, strict=True) if body is None]
    if missing:
        return problem(
            "crds",
            f"not installed: {', '.join(missing)}",
            "helm upgrade --install tessera charts/tessera, or kubectl apply -f crds/",
        )
    differing = [
        kind.kind
        for kind, body in zip(KINDS, installed, strict=True)
        if body is not None and not _has_same_schema(kind, body)
    ]
    if differing:
        return problem(
            "crds",
            f"differ from tessera {context.version}: {', '.join(differing)}",
            "use the tessera command of the installed version, or helm upgrade to this one",
        )
    return ok("crds", f"{len(KINDS)} CRDs of tessera {context.version}")


def _has_same_schema(kind: CustomResource, body: Mapping[str, Any]) -> bool:
    """Compare the schemas; what the API server adds elsewhere does not matter."""
    schemas = {version["name"]: version.get("schema") for version in body["spec"]["versions"]}
    return all(
        schemas.get(version["name"]) == version["schema"]
        for version in crd(kind)["spec"]["versions"]
    )


async def check_kserve(context: CheckContext) -> Sequence[Finding]:
    """Warn of KServe, whose CRD has the same kind: kubectl may mean its objects."""
    if await context.reader.get(f"{_CRD_PATH}/{_KSERVE_CRD}") is None:
        return []
    return [
        warning(
            "kserve",
            f"{_KSERVE_CRD} is installed too: `kubectl get inferenceservices` may list its objects",
            "use kubectl get tsvc, and inferenceservices.tessera.dev in scripts",
        )
    ]


async def check_permissions(context: CheckContext) -> Finding:
    """Check that the user may read the input of a plan."""
    requests = [("list", kind.group, kind.plural) for kind in PLAN_INPUT_KINDS]
    requests.append(("patch", INFERENCE_SERVICES.group, INFERENCE_SERVICES.plural))
    allowed = await asyncio.gather(*(_is_allowed(context, *request) for request in requests))
    if None in allowed:
        return skipped("permissions", "no permission to review permissions")
    denied = [
        f"{verb} {plural}"
        for (verb, _, plural), granted in zip(requests, allowed, strict=True)
        if not granted
    ]
    if denied:
        return warning(
            "permissions",
            f"you may not {first_names(denied, 5)}",
            "ask the platform team: without it explain and top show less, snapshot saves less, "
            "update fails",
        )
    return ok("permissions", "you may read the whole input of a plan, and update")


async def _is_allowed(context: CheckContext, verb: str, group: str, resource: str) -> bool | None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource}},
    }
    status, body = await context.reader.send("POST", _ACCESS_REVIEW_PATH, body=review)
    if status != HTTPStatus.CREATED:
        return None
    return bool(body["status"]["allowed"])
