"""`tessera update`: ask for what this version would build."""

import argparse
import asyncio
import json
from http import HTTPStatus

from tessera.adapters.clock import now
from tessera.api.reasons import RevisionReason
from tessera.cli.cluster import Json, Reader, open_reader
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.explain.command import require_service
from tessera.cli.output import Output
from tessera.domain.names import UPDATE_ANNOTATION
from tessera.domain.observed.snapshot import Ref
from tessera.resources.api_resources import INFERENCE_SERVICES

CONDITION = "UpdateAvailable"
# Where a hub had something to say, or may have now.
_RESOLVABLE_REASONS = set(RevisionReason) - {
    RevisionReason.COMMIT_SPECIFIED,
    RevisionReason.RESOLUTION_DISABLED,
    RevisionReason.RESOLVING_REVISION,
}


def run(arguments: argparse.Namespace) -> Output:
    """What will happen, or that there is nothing to do."""
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> Output:
    async with open_reader(arguments) as reader:
        return await update(reader, Ref(reader.namespace, arguments.service), arguments.output)


async def update(reader: Reader, ref: Ref, output_format: str) -> Output:
    """Annotate the service if an update is available."""
    path = INFERENCE_SERVICES.path(ref.namespace, ref.name)
    body = await reader.get(path)
    if body is None:
        require_service(ref, await _list_refs(reader, ref))
        raise CommandError(f"{ref} went away just now")
    change = _available_update(body) or _revision_recheck(body)
    if change is None:
        text = f"{ref}: no update is available: it runs as this version of Tessera builds it"
        return _build_output(output_format, ref, text, requested_at=None)
    at = now().isoformat()
    patch = {"metadata": {"annotations": {UPDATE_ANNOTATION: at}}}
    status, answer = await reader.send(
        "PATCH", path, body=patch, content_type="application/merge-patch+json"
    )
    if status == HTTPStatus.FORBIDDEN:
        raise DeniedError(f"no rights to patch {ref}; ask the platform team for them")
    if status >= HTTPStatus.BAD_REQUEST:
        raise CommandError(f"{ref}: the API server says {status} {answer.get('message', '')}")
    text = (
        f"{ref}: asked for at {at}: {change}, replicas are replaced one by one, with every stream "
        f"drained; kubectl get inferenceservice {ref.name} -n {ref.namespace} -w follows it"
    )
    return _build_output(output_format, ref, text, requested_at=at)


async def _list_refs(reader: Reader, ref: Ref) -> list[Ref]:
    bodies = await reader.list_objects(INFERENCE_SERVICES, ref.namespace)
    return [Ref(body["metadata"]["namespace"], body["metadata"]["name"]) for body in bodies]


def _available_update(body: Json) -> str | None:
    """What the update would bring, in the operator's words; None without one."""
    for condition in body.get("status", {}).get("conditions", ()):
        if condition["type"] == CONDITION and condition["status"] == "True":
            return str(condition["message"])
    return None


def _revision_recheck(body: Json) -> str | None:
    """A branch may mean another commit by now, and a hub may answer that did not."""
    model = body.get("status", {}).get("model", {})
    if model.get("reason") not in _RESOLVABLE_REASONS:
        return None
    revision = model.get("asked") or "the default branch"
    return f"the hub is asked again which commit {revision} of {model['uri']} is; if it is another"


def _build_output(output_format: str, ref: Ref, text: str, requested_at: str | None) -> Output:
    if output_format == "text":
        return Output(f"{text}\n")
    fields = {
        "namespace": ref.namespace,
        "service": ref.name,
        "asked": requested_at,
        "message": text,
    }
    return Output(json.dumps(fields, indent=2) + "\n")
