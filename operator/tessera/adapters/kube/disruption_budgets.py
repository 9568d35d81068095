"""Why the API server refused to evict a pod."""

from collections.abc import Iterable, Mapping
from typing import Any

# Part of the message of an eviction that no budget decides, since several select the pod.
HAS_SEVERAL = "more than one PodDisruptionBudget"


def refusal(body: Any) -> str | None:
    """Return the message of the PodDisruptionBudget that refused an eviction."""
    causes = (body.get("details") or {}).get("causes") or ()
    budget_causes = [cause for cause in causes if cause.get("reason") == "DisruptionBudget"]
    return (
        str(budget_causes[0].get("message") or body.get("message", "")) if budget_causes else None
    )


def several_budgets(budgets: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Return that a pod with these labels has several of the budgets, with their names."""
    names = sorted(
        f"poddisruptionbudget/{budget['metadata']['name']}"
        for budget in budgets
        if _selects(budget["spec"].get("selector") or {}, labels)
    )
    return (
        f"{' and '.join(names) or HAS_SEVERAL} select it, and the API server evicts no pod with "
        "more than one"
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a `LabelSelector` of Kubernetes selects an object with these labels."""
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        _holds(entry, labels.get(entry["key"])) for entry in selector.get("matchExpressions", ())
    )


def _holds(requirement: Mapping[str, Any], value: str | None) -> bool:
    match requirement["operator"]:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in requirement["values"]
        case _:
            return value not in requirement["values"]
