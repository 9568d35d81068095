"""`tessera update`: request the pod template of this version."""

from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.api.reasons import RevisionReason
from tessera.cli.cluster import Json, Reader, check_status, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.explain.command import require_service
from tessera.cli.output import Output
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import UPDATE_ANNOTATION
from tessera.domain.observed.snapshot import Ref

CONDITION = "UpdateAvailable"
# Reasons under which the hub may now resolve another commit.
_RESOLVABLE_REASONS = set(RevisionReason) - {
    RevisionReason.COMMIT_SPECIFIED,
    RevisionReason.RESOLUTION_DISABLED,
    RevisionReason.RESOLVING_REVISION,
}


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Request an update, or say that none is available."""
    return await update(reader, Ref(reader.namespace, arguments.service), arguments.output)


async def update(reader: Reader, ref: Ref, output_format: str) -> Output:
    """Annotate the service if an update is available."""
    path = INFERENCE_SERVICES.path(ref.namespace, ref.name)
    body = await reader.get(path)
    if body is None:
        require_service(ref, await _list_refs(reader, ref))
        raise CommandError(f"InferenceService/{ref.name} in {ref.namespace}: not found")
    change = _available_update(body) or _revision_recheck(body) or _files_recheck(body)
    if change is None:
        text = f"{ref}: no update available, its replicas have the newest pod template"
        return _build_output(output_format, ref, text, requested_at=None)
    at = now().isoformat()
    patch = {"metadata": {"annotations": {UPDATE_ANNOTATION: at}}}
    status, answer = await reader.patch(path, patch)
    check_status(status, answer, f"patch {ref}", str(ref))
    text = (
        f"{ref}: update requested at {at}: {change}, replicas are drained and replaced one by one; "
        f"watch it with kubectl get tsvc {ref.name} -n {ref.namespace} -w"
    )
    return _build_output(output_format, ref, text, requested_at=at)


async def _list_refs(reader: Reader, ref: Ref) -> list[Ref]:
    bodies = await reader.list_objects(INFERENCE_SERVICES, ref.namespace)
    return [Ref(body["metadata"]["namespace"], body["metadata"]["name"]) for body in bodies]


def _available_update(body: Json) -> str | None:
    """Return what the update changes, as the operator reports it; None without an update."""
    for condition in body.get("status", {}).get("conditions", ()):
        if condition["type"] == CONDITION and condition["status"] == "True":
            return str(condition["message"])
    return None


def _revision_recheck(body: Json) -> str | None:
    """Return what the hub will be asked again; None if the revision is a commit."""
    model = body.get("status", {}).get("model", {})
    if model.get("reason") not in _RESOLVABLE_REASONS:
        return None
    revision = model.get("requestedRevision") or "the default branch"
    return f"the hub is asked for the commit of {revision} of {model['uri']}; if it changed"


def _files_recheck(body: Json) -> str | None:
    """Return which files are read again; None if no listed precision has files of its own."""
    uris = [entry["uri"] for entry in body.get("status", {}).get("precisions", ())]
    return f"config.json of {', '.join(uris)} is read again; if files changed" if uris else None


def _build_output(output_format: str, ref: Ref, text: str, requested_at: str | None) -> Output:
    body = {
        "namespace": ref.namespace,
        "service": ref.name,
        "requestedAt": requested_at,
        "message": text,
    }
    return Output.of(output_format, [text], lambda: body)
