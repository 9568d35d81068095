"""Whatever function of a plan raises for one tenant's object, the plan of the others is made.

No list of steps is needed here: each function that gets an object of the tenant as its own argument
raises once, so a step that is added without a guard fails this test.
"""

import sys
from types import CodeType, FrameType
from typing import Any

from tessera.domain.incremental import Incremental
from tessera.domain.planning.plan import Plan, PlanMemory
from tests.builders import NO_MEMORY
from tests.domain.test_steps import EVIL, cycles, good_part, owner_of

# They only join names, sort by name, ask for a type, look up what is known of a service, or compare
# fields that were checked at the border.
PLAIN = {
    "batch_run",
    "billing_ref",
    "_billed_ref",
    "_revision_in_force",
    "_named_namespaces",
    "_last_good_view",
    "_objects_in_order",
    "_is_replica",
    "_class_rank",
    "is_gated",
    "_policy_inputs",
    "inputs",
    "demand_of",
    "weight",
    "unfinished",
    "has_ended",
}


def _is_own(frame: FrameType) -> bool:
    """Return whether a function of the domain begins, whose objects are all the tenant's."""
    code = frame.f_code
    if "tessera/domain" not in code.co_filename or code.co_name.startswith("<"):
        return False
    if code.co_name in PLAIN:
        return False
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        owners = {owner_of(frame.f_locals[name]) for name in names if name in frame.f_locals}
    except AttributeError:  # an object that is being created
        return False
    return owners - {None} == {EVIL}


def _plan(memory: PlanMemory, failing: CodeType | None, seen: set[CodeType]) -> Plan:
    def trace(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and _is_own(frame):
            seen.add(frame.f_code)
            if frame.f_code is failing:
                raise OverflowError("cannot convert float infinity to integer")

    sys.settrace(trace)
    try:
        return cycles(Incremental(), memory, 1)[0]
    finally:
        sys.settrace(None)


def test_no_function_that_raises_for_one_tenant_ends_the_plan() -> None:
    _, memory = cycles(Incremental(), NO_MEMORY, 2)
    functions: set[CodeType] = set()
    expected = good_part(_plan(memory, None, functions))
    leaks = []
    for code in sorted(functions, key=lambda code: (code.co_filename, code.co_firstlineno)):
        try:
            if good_part(_plan(memory, code, set())) != expected:
                leaks.append(f"{code.co_qualname} changes others")
        except OverflowError:
            leaks.append(f"{code.co_qualname} ends the plan")
    assert len(functions) > 50
    assert not leaks, "\n".join(leaks)
