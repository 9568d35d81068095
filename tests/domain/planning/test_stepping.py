"""Which variant of a service replaces a replica first."""

from typing import Any

from tessera.domain.planning.rollout_draft import RolloutDraft
from tessera.domain.planning.rollout_steps import stepping_draft
from tessera.domain.rollout.template_rollout import OlderTemplate, TemplateRollout
from tests.builders import NOW, a_pod, a_workload


def a_draft(**fields: Any) -> RolloutDraft:
    """A variant whose only replica has an older template."""
    older = OlderTemplate(workload=a_workload(1), pods=(a_pod(),))
    rollout = TemplateRollout(
        **{
            "workload": None,
            "pods": (),
            "older": (older,),
            "desired": 1,
            "at": NOW,
            "has_capacity": False,
            **fields,
        }
    )
    no_decision: Any = None
    return RolloutDraft(no_decision, no_decision, rollout)


def test_a_variant_with_a_free_device_replaces_a_replica_first() -> None:
    full, free = a_draft(), a_draft(has_capacity=True)
    assert stepping_draft([full, free]) is free


def test_a_variant_that_is_to_have_no_replica_replaces_none() -> None:
    full, surplus = a_draft(), a_draft(desired=0, has_capacity=True)
    assert stepping_draft([full, surplus]) is full
    assert stepping_draft([surplus]) is None
