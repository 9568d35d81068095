"""The pages that are run, the steps before each, and the pages that are not run."""

import re
from collections.abc import Iterable, Mapping, Sequence

from demo.cluster import ROOT
from docs_tests.blocks import Step, read_steps

TUTORIAL = "docs/tutorial.md"
# The sections of the tutorial after which all tasks begin; done once for all of them.
INSTALLED = ("Start a cluster", "Install Tessera")
SERVED = ("Describe the hardware", "Serve a model")
# Those from `helm install` to the first answer with a key, and the seconds that they may take.
FIRST_ANSWER = ("Install Tessera", *SERVED, "Ask with a key")
MAX_FIRST_ANSWER_SECONDS = 180
# Each task that is run, and the further sections of the tutorial that come before it.
TASKS: Mapping[str, Sequence[str]] = {
    "chargeback": (*SERVED, "Ask with a key"),
    "coming-from-litellm": (*SERVED, "Ask with a key"),
    "embeddings": SERVED,
    "energy": SERVED,
    "forecast": (),
    "gate-changes": (*SERVED, "Ask with a key"),
    "gateway": (),
    "keys": SERVED,
    "levers": (),
    "load-test": SERVED,
    "outside-providers": (),
    "pools": (),
    "price-models": (*SERVED, "Ask with a key"),
    "read-the-bill": SERVED,
    "route-requests": (*SERVED, "Ask with a key"),
    "run-a-batch": (*SERVED, "The input"),
    "serve": SERVED,
    "set-a-budget": SERVED,
    "several-pools": ("Describe the hardware",),
    "share-a-model": SERVED,
    "simulate": (),
    "size-a-model": (),
    "troubleshoot": SERVED,
    "scale": SERVED,
    "what-a-tenant-sees": (*SERVED, "Ask with a key"),
}
# Typed on a machine without a cluster.
WITHOUT_CLUSTER: Sequence[str] = ("forecast", "levers", "simulate", "size-a-model")
# Each round is typed into one cluster: what a page leaves there changes nothing that later ones
# show. All other pages have a cluster each, and wait for `--full`.
ROUNDS: Sequence[Sequence[str]] = (
    ("gate-changes", "serve", "embeddings"),
    ("run-a-batch", "route-requests"),
    ("gateway", "outside-providers", "pools", "several-pools"),
)
_NOT_TRIED_COMMENT = re.compile(r"^<!-- not tried: (?P<reason>.+) -->$", re.MULTILINE)


def page_of(task: str) -> str:
    return f"docs/tasks/{task}.md"


def read_page_steps(page: str, sections: Iterable[str] | None = None) -> list[Step]:
    """Return the steps of a page, or those of some sections, all of which must exist."""
    steps = read_steps((ROOT / page).read_text(encoding="utf-8"))
    if sections is None:
        return steps
    names = set(sections)
    assert names <= {step.section for step in steps}, f"{page} has lost a section"
    return [step for step in steps if step.section in names]


def skip_reasons() -> dict[str, str]:
    """Return the task pages that say why they are not run, with the reason."""
    reasons = {}
    for path in sorted((ROOT / "docs" / "tasks").glob("*.md")):
        if (comment := _NOT_TRIED_COMMENT.search(path.read_text(encoding="utf-8"))) is not None:
            reasons[path.stem] = comment["reason"]
    return reasons


def count_shell_blocks(page: str) -> int:
    """Count the blocks to type of a page, run or not."""
    return len(re.findall(r"^```sh$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
