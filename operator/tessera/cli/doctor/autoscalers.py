"""Checks of the autoscalers of others."""

from collections import defaultdict

from tessera.api.ref import Ref
from tessera.api.text import first_names
from tessera.cli.cluster import Json
from tessera.cli.doctor.finding import CheckContext, Findings, ok, warning
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import FOREIGN_AUTOSCALERS


async def check_autoscalers(context: CheckContext) -> Findings:
    """Name the autoscalers of services that Tessera scales itself, and of those with several."""
    by_service: dict[Ref, list[str]] = defaultdict(list)
    # Not only those that Tessera writes; a ScaledObject of KEDA has one, too.
    for body in await context.reader.list_objects(FOREIGN_AUTOSCALERS):
        if (target := _target(body)) is not None:
            by_service[target].append(body["metadata"]["name"])
    findings = []
    for service in await context.services():
        names = sorted(by_service.get(service.ref, ()))
        if not names or service.spec is None:
            continue
        written = f"spec.replicas is written by HorizontalPodAutoscaler {first_names(names, 5)}"
        if service.spec.scaling.mode == "Native":
            message = f"{written}, and spec.scaling of mode Native rests meanwhile"
            fix = (
                f"kubectl delete hpa {names[0]} -n {service.ref.namespace} (or the ScaledObject "
                "that it is of) and remove spec.replicas, or set spec.scaling.mode to External"
            )
        elif len(names) > 1:
            message, fix = f"{written}: each undoes what another wrote", "keep one of them"
        else:
            continue
        findings.append(warning(f"service {service.ref}", message, fix))
    return findings or ok("autoscalers", "no service has two")


def _target(body: Json) -> Ref | None:
    """Return the InferenceService that an autoscaler scales; None for any other target."""
    target = body["spec"]["scaleTargetRef"]
    group = str(target.get("apiVersion", "")).partition("/")[0]
    if (group, target["kind"]) != (INFERENCE_SERVICES.group, INFERENCE_SERVICES.kind):
        return None
    return Ref(body["metadata"]["namespace"], target["name"])
