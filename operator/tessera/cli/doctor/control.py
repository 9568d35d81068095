"""The API server, the resource types, and the rights of the user."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from tessera.api.schema import KINDS, CustomResourceType, crd
from tessera.cli.doctor.finding import CheckContext, Finding, FindingState, join_names
from tessera.cli.fleet import PLAN_INPUT_KINDS
from tessera.resources.api_resources import INFERENCE_SERVICES

# Minor versions of Kubernetes 1 that are meant to work.
OLDEST_MINOR, NEWEST_MINOR = 32, 36
_CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_ACCESS_REVIEW_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


async def kubernetes(context: CheckContext) -> Sequence[Finding]:
    """Does the API server answer, and which version is it?"""
    body = await context.reader.get("/version") or {}
    message = f"the API server answers, version {body.get('gitVersion', 'unknown')}"
    minor = int(re.sub(r"\D", "", str(body.get("minor", ""))) or 0)
    if body.get("major") != "1" or minor < OLDEST_MINOR:
        fix = f"Tessera needs Kubernetes 1.{OLDEST_MINOR} to 1.{NEWEST_MINOR}: upgrade the cluster"
        return [Finding("kubernetes", FindingState.PROBLEM, message, fix)]
    if minor > NEWEST_MINOR:
        fix = (
            f"nobody tried Tessera {context.version} with more than 1.{NEWEST_MINOR}; look for a "
            "newer one"
        )
        return [Finding("kubernetes", FindingState.WARNING, message, fix)]
    return [Finding("kubernetes", FindingState.OK, message)]


async def resource_types(context: CheckContext) -> Sequence[Finding]:
    """Are the CRDs there, and those of this version?"""
    installed = await asyncio.gather(
        *(context.reader.get(f"{_CRD_PATH}/{crd(kind)['metadata']['name']}") for kind in KINDS)
    )
    missing = [kind.name for kind, body in zip(KINDS, installed, strict=True) if body is None]
    if missing:
        return [
            Finding(
                "resource types",
                FindingState.PROBLEM,
                f"not installed: {', '.join(missing)}",
                "helm upgrade --install tessera charts/tessera, or kubectl apply -f crds/",
            )
        ]
    differing = [
        kind.name
        for kind, body in zip(KINDS, installed, strict=True)
        if body is not None and not _has_same_schema(kind, body)
    ]
    if differing:
        return [
            Finding(
                "resource types",
                FindingState.PROBLEM,
                f"not those of tessera {context.version}: {', '.join(differing)}",
                "use the tessera of the installed version, or helm upgrade to this one",
            )
        ]
    return [
        Finding(
            "resource types", FindingState.OK, f"{len(KINDS)} CRDs of tessera {context.version}"
        )
    ]


def _has_same_schema(kind: CustomResourceType, body: Mapping[str, Any]) -> bool:
    """The schema decides; what the API server adds elsewhere does not matter."""
    schemas = {version["name"]: version.get("schema") for version in body["spec"]["versions"]}
    return all(
        schemas.get(version["name"]) == version["schema"]
        for version in crd(kind)["spec"]["versions"]
    )


async def rights(context: CheckContext) -> Sequence[Finding]:
    """May the user read what the commands plan from?"""
    permissions = [("list", kind.group, kind.plural) for kind in PLAN_INPUT_KINDS]
    permissions.append(("patch", INFERENCE_SERVICES.group, INFERENCE_SERVICES.plural))
    allowed = await asyncio.gather(
        *(_is_allowed(context, *permission) for permission in permissions)
    )
    if None in allowed:
        return [Finding("rights", FindingState.SKIPPED, "no rights to ask what rights there are")]
    denied = [
        f"{verb} {plural}"
        for (verb, _, plural), granted in zip(permissions, allowed, strict=True)
        if not granted
    ]
    if denied:
        return [
            Finding(
                "rights",
                FindingState.WARNING,
                f"you may not {join_names(denied)}",
                "explain and top tell less, snapshot saves less, update needs patch; ask the "
                "platform team for these rights",
            )
        ]
    return [Finding("rights", FindingState.OK, "you may read all that is planned from, and update")]


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
