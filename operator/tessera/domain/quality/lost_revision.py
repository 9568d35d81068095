"""The ControllerRevision of a version in force that was deleted, or that cannot be read.

A Deployment has digests of what its template was made from, and no spec. So a lost revision is
written again from a spec of its digest, or its service stays as it is until somebody writes one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tessera.api.ref import Ref
from tessera.api.text import first_names
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.quality.change import gated_digest
from tessera.domain.quality.rollout_state import revision_name


@dataclass(frozen=True)
class RevisionMissingError(Exception):
    """No spec of the version in force is known; the service stays as it is."""

    message: str
    closed: frozenset[tuple[str, str]]
    """Variant and template digest of Deployments that are not of it: they serve no user."""


def lost_revision(
    service: ObservedService,
    numbered: Sequence[ServiceRevision],
    last: ServiceRevision | None,
) -> str | None:
    """Return the name of the version in force if it is not there, not read or unnumbered.

    The spec may be that of the newest one by now, which took its place. While the one that the
    operator knows (`last`) is there, a status that names another one is wrong.
    """
    name, names = service.status.stable_revision, {each.ref.name for each in numbered}
    if last is not None and last.service_uid == service.uid:
        name = last.ref.name
    if name is None or service.spec is None or name in names:
        return None
    newest = max(numbered, key=lambda each: each.number, default=None)
    update = service.update
    if update is None and newest is not None:
        update = newest.update
    is_newest = newest is not None and newest.digest == gated_digest(service.spec, update)
    return None if is_newest else name


def found_revision(
    service: ObservedService,
    name: str,
    numbered: Sequence[ServiceRevision],
    last: ServiceRevision | None,
    serving: Collection[str],
) -> ServiceRevision | None:
    """Return the lost version as it is known otherwise; None if no spec has its digest.

    The operator may remember it (`last`), or the service has its spec and replicas of it are
    `serving`: who forges a status puts nothing in force that serves no user.
    """
    if last is not None and (last.ref.name, last.service_uid) == (name, service.uid):
        return last
    number = max((each.number for each in numbered), default=0) + 1
    spec, status = service.spec, service.status
    if spec is None:
        return None
    digest = gated_digest(spec, service.update)
    if revision_name(service.ref.name, digest) != name:
        return None
    versions = [each.partition("/") for each in serving]
    tried = frozenset(precision for version, _, precision in versions if version == digest)
    if not tried:
        return None
    template = status.pod_template_version
    return ServiceRevision(
        ref=Ref(service.ref.namespace, name),
        service=service.ref,
        service_uid=service.uid,
        number=number,
        digest=digest,
        spec=spec,
        update=service.update,
        model=status.model,
        precisions=status.precisions,
        builder_version=template.builder_version if template is not None else 1,
        tried=(tried - {""}) or None,
    )


def missing_text(name: str, numbered: Sequence[ServiceRevision]) -> str:
    """Return what holds a service whose version in force is not known, and the ways out."""
    earlier = sorted(numbered, key=lambda each: -each.number)
    back = ""
    if earlier:
        names = first_names([f"ControllerRevision/{each.ref.name}" for each in earlier])
        back = f"or that of an earlier version ({names}), "
    return (
        f"ControllerRevision/{name}, the version in force, is gone, unreadable or unnumbered, and "
        "spec is not of that version, so its replicas stay as they are, in templates and counts. "
        f"Write the spec of that version again, {back}or set spec.rollout.skipGate, which needs "
        "the verb bypass on qualitygates and puts the present spec in force."
    )
