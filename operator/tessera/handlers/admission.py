"""Admission: one object against what must hold, and against the pools there are."""

from collections.abc import Mapping, MutableSequence
from typing import Any

import kopf

from tessera.adapters import wire
from tessera.domain.checks import check, flags_unchecked
from tessera.reconcile.store import Store
from tessera.resources.kinds import ACCELERATOR_POOLS


def judge(body: Mapping[str, Any], store: Store) -> tuple[list[str], list[str]]:
    """The reasons to refuse an InferenceService, and the warnings, as sentences with field paths.

    What only needs another object (a pool that is still to come) is a warning: the turn says the
    same in the condition, and it passes by itself.
    """
    service = wire.service(body)
    if service is None:
        return [], []
    if service.spec is None:
        return [service.problem or "spec: unreadable"], []
    pools = {key.name for key in store.all(ACCELERATOR_POOLS)}
    denials = check(service.spec, pools)
    refusals = [denial.sentence for denial in denials if not denial.passing]
    warnings = [denial.sentence for denial in denials if denial.passing]
    if (warning := flags_unchecked(service.spec)) is not None:
        warnings.append(warning)
    return refusals, warnings


def validator(store: Store) -> Any:
    """The handler that kopf calls for InferenceServices."""

    async def validate(
        body: Mapping[str, Any], warnings: MutableSequence[str], **_: object
    ) -> None:
        refusals, told = judge(body, store)
        warnings.extend(told)
        if refusals:
            raise kopf.AdmissionError("; ".join(refusals), code=422)

    return validate
