"""Which pages are tried, after what, and which are not."""

import re
from collections.abc import Iterable, Mapping, Sequence

from demo.stage import ROOT
from docs_tests.blocks import Step, steps

TUTORIAL = "docs/tutorial.md"
# The sections of the tutorial after which all tasks begin; done once for all of them.
INSTALLED = ("Start a cluster", "Install Tessera")
SERVED = ("Say what hardware there is", "Serve a model")
# Each task that is tried, and the further sections of the tutorial that come before it.
TASKS: Mapping[str, Sequence[str]] = {
    "load-test": SERVED,
    "pools": (),
    "read-the-bill": SERVED,
    "run-a-batch": (*SERVED, "The input"),
    "serve": SERVED,
    "set-a-budget": SERVED,
    "size-a-model": (),
    "troubleshoot": SERVED,
    # The last one, since its traffic is measured, and later pages would show the speed.
    "scale": SERVED,
}
_NOT_TRIED = re.compile(r"^<!-- not tried: (?P<reason>.+) -->$", re.MULTILINE)


def page_of(task: str) -> str:
    return f"docs/tasks/{task}.md"


def steps_of(page: str, sections: Iterable[str] | None = None) -> list[Step]:
    """The steps of a page, or those of some sections, which must be there."""
    found = steps((ROOT / page).read_text(encoding="utf-8"))
    if sections is None:
        return found
    wanted = set(sections)
    assert wanted <= {step.section for step in found}, f"{page} has lost a section"
    return [step for step in found if step.section in wanted]


def not_tried() -> dict[str, str]:
    """Task pages that say why nobody tries them."""
    found = {}
    for path in sorted((ROOT / "docs" / "tasks").glob("*.md")):
        if (told := _NOT_TRIED.search(path.read_text(encoding="utf-8"))) is not None:
            found[path.stem] = told["reason"]
    return found


def shell_blocks(page: str) -> int:
    """How many blocks to type a page has, tried or not."""
    return len(re.findall(r"^```sh$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
