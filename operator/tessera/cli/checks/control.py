"""The API server, the resource types, and the rights of the user."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from tessera.api.schema import KINDS, CustomResourceType, crd
from tessera.cli.checks.finding import Finding, State, Ward, listed
from tessera.cli.fleet import PLANNED
from tessera.resources.kinds import INFERENCE_SERVICES

OLDEST, NEWEST = 32, 36
"""Minor versions of Kubernetes 1 that are meant to work."""
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


async def kubernetes(ward: Ward) -> Sequence[Finding]:
    """Does the API server answer, and which version is it?"""
    body = await ward.reader.get("/version") or {}
    told = f"the API server answers, version {body.get('gitVersion', 'unknown')}"
    minor = int(re.sub(r"\D", "", str(body.get("minor", ""))) or 0)
    if body.get("major") != "1" or minor < OLDEST:
        mend = f"Tessera needs Kubernetes 1.{OLDEST} to 1.{NEWEST}: upgrade the cluster"
        return [Finding("kubernetes", State.PROBLEM, told, mend)]
    if minor > NEWEST:
        mend = (
            f"nobody tried Tessera {ward.version} with more than 1.{NEWEST}; look for a newer one"
        )
        return [Finding("kubernetes", State.WARNING, told, mend)]
    return [Finding("kubernetes", State.OK, told)]


async def resource_types(ward: Ward) -> Sequence[Finding]:
    """Are the CRDs there, and those of this version?"""
    found = await asyncio.gather(
        *(ward.reader.get(f"{_CRDS}/{crd(kind)['metadata']['name']}") for kind in KINDS)
    )
    missing = [kind.name for kind, body in zip(KINDS, found, strict=True) if body is None]
    if missing:
        return [
            Finding(
                "resource types",
                State.PROBLEM,
                f"not installed: {', '.join(missing)}",
                "helm upgrade --install tessera charts/tessera, or kubectl apply -f crds/",
            )
        ]
    differing = [
        kind.name
        for kind, body in zip(KINDS, found, strict=True)
        if body is not None and not _same(kind, body)
    ]
    if differing:
        return [
            Finding(
                "resource types",
                State.PROBLEM,
                f"not those of tessera {ward.version}: {', '.join(differing)}",
                "use the tessera of the installed version, or helm upgrade to this one",
            )
        ]
    return [Finding("resource types", State.OK, f"{len(KINDS)} CRDs of tessera {ward.version}")]


def _same(kind: CustomResourceType, body: Mapping[str, Any]) -> bool:
    """The schema decides; what the API server adds elsewhere does not matter."""
    schemas = {one["name"]: one.get("schema") for one in body["spec"]["versions"]}
    return all(schemas.get(one["name"]) == one["schema"] for one in crd(kind)["spec"]["versions"])


async def rights(ward: Ward) -> Sequence[Finding]:
    """May the user read what the commands plan from?"""
    wanted = [("list", kind.group, kind.plural) for kind in PLANNED]
    wanted.append(("patch", INFERENCE_SERVICES.group, INFERENCE_SERVICES.plural))
    allowed = await asyncio.gather(*(_may(ward, *one) for one in wanted))
    if None in allowed:
        return [Finding("rights", State.SKIPPED, "no rights to ask what rights there are")]
    refused = [f"{verb} {plural}" for (verb, _, plural), yes in zip(wanted, allowed, strict=True)
               if not yes]  # fmt: skip
    if refused:
        return [
            Finding(
                "rights",
                State.WARNING,
                f"you may not {listed(refused)}",
                "explain and top tell less, snapshot saves less, update needs patch; ask the "
                "platform team for these rights",
            )
        ]
    return [Finding("rights", State.OK, "you may read all that is planned from, and update")]


async def _may(ward: Ward, verb: str, group: str, resource: str) -> bool | None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource}},
    }
    status, body = await ward.reader.send("POST", _REVIEWS, body=review)
    if status != HTTPStatus.CREATED:
        return None
    return bool(body["status"]["allowed"])
