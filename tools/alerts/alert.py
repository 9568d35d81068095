"""An alert, and what is made of it: the rule in the chart, and its section in the runbook."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PAGE = "docs/tasks/alerts.md"
# The owner of each budget, as 1: of two for a moment, when it changes, only one, since an
# expression that finds both fails.
OWNERS = "topk by (budget) (1, group by (budget, owner) (tessera_budget_within_budget))"
_OF_PODS = 'pod!=""'
# Samples by series, in the notation of promtool: one a minute.
Series = Mapping[str, str]


def always(value: float) -> str:
    """Return the samples of a constant gauge over three hours, one per minute."""
    return f"{value}x180"


def growing(a_second: float) -> str:
    """Return the samples of a growing counter over three hours, one per minute."""
    return f"0+{a_second * 60:g}x180"


def by_gateway(series: str, *labels: str) -> str:
    """Return one series for each gateway, of those that several targets may have of it.

    `series` has `%s` for the end of its matchers, and `labels` are those of the metric itself.
    """
    names = ", ".join(("namespace", "pod", *labels))
    return f"max by ({names}) ({series % _OF_PODS})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """Series on which an alert fires after some minutes, not a minute earlier, and goes on."""

    series: Series
    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    """The value in the alert's texts."""
    after: int | None = None
    """Minutes; by default those for which the expression has to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert; the tests play `fires` and every state of `silent` by promtool."""

    name: str
    expr: str
    minutes: int
    """For how long the expression holds before the alert fires."""
    severity: Literal["info", "warning", "critical"]
    summary: str
    description: str
    cause: str
    look: str
    """What to look at: commands, one a line, or prose."""
    act: str
    """What to do."""
    fires: Firing
    silent: Mapping[str, Series]
    """Series by the state that they show."""

    @property
    def anchor(self) -> str:
        return self.name.lower()

    def rule(self) -> dict[str, Any]:
        """Return the alerting rule."""
        hours, minutes = divmod(self.minutes, 60)
        return {
            "alert": self.name,
            "expr": textwrap.dedent(self.expr).strip(),
            "for": f"{self.minutes}m" if minutes else f"{hours}h",
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook": f"{PAGE}#{self.anchor}",
            },
        }

    def section(self) -> str:
        """Return the section of the runbook."""
        cause, look = (textwrap.dedent(text).strip() for text in (self.cause, self.look))
        # Lists and commands begin on a line of their own.
        cause = f"\n\n{cause}" if cause.startswith("- ") else f" {cause}"
        is_code = look.startswith("kubectl")
        look = f"\n\n{textwrap.indent(look, '    ')}" if is_code else f" {look}"
        duration = self.rule()["for"].replace("m", " minutes").replace("h", " hour")
        parts = (
            f"## {self.name}",
            f"*{self.severity.capitalize()}, after {duration}.*",
            f"**Cause.**{cause}",
            f"**Look at.**{look}",
            f"**Do.** {textwrap.dedent(self.act).strip()}",
        )
        return "\n\n".join(parts) + "\n"
