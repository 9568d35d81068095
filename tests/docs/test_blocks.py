"""Pages are parsed and run, and a wrong page fails."""

from pathlib import Path

import pytest

from docs_tests.blocks import Command, File, PageError, SkippedBlock, read_steps
from docs_tests.reader import Reader, TrialError

PAGE = """\
# Serve

```sh
make world
```

```text
up
```

<!-- not run: needs a GPU -->
```sh
nvidia-smi
```

## More

```yaml title="chat.yaml"
kind: InferenceService
```

```yaml
kind: Shown
```
"""


def follow(folder: Path, page: str) -> Reader:
    reader = Reader(folder, {"PATH": "/usr/bin:/bin"})
    reader.follow("page.md", read_steps(page))
    return reader


def test_commands_files_and_reasons_are_taken_in_order() -> None:
    assert read_steps(PAGE) == [
        Command(line=3, section="Serve", text="make world\n", output="up\n"),
        SkippedBlock(line=12, section="Serve", text="nvidia-smi\n", reason="needs a GPU"),
        File(line=18, section="More", name="chat.yaml", text="kind: InferenceService\n"),
    ]


@pytest.mark.parametrize(
    "page",
    [
        "Then:\n\n    make world\n",
        "```sh\nmake world\n",
        "```sh\nmake world\n```\n\nProse.\n\n```text\nup\n```\n",
        "```sh {.fancy}\nmake world\n```\n",
    ],
)
def test_a_block_that_would_be_overlooked_is_an_error(page: str) -> None:
    with pytest.raises(PageError):
        read_steps(page)


def test_variables_and_files_stay_from_block_to_block(tmp_path: Path) -> None:
    page = (
        '```yaml title="chat.yaml"\nkind: Pod\n```\n'
        "```sh\nFOUND=$(cat chat.yaml)\n```\n"
        "```sh\necho $FOUND\n```\n"
        "```text\nkind: Pod\n```\n"
    )
    assert follow(tmp_path, page).ran == 2


def test_what_still_runs_in_the_background_does_not_disturb_the_next_block(tmp_path: Path) -> None:
    page = (
        "```sh\nmkfifo go gone\n(read line < go; echo much too late; echo > gone) &\n```\n"
        "```sh\necho > go\nread line < gone\necho next\n```\n"
        "```text\nnext\n```\n"
    )
    assert follow(tmp_path, page).ran == 2


@pytest.mark.parametrize(
    "page",
    [
        "```sh\nfalse\n```\n",
        "```sh\nfalse\ntrue\n```\n",
        "```sh\nfalse | cat\n```\n",
        "```sh\necho one\n```\n\n```text\ntwo\n```\n",
    ],
)
def test_a_page_that_does_not_do_what_it_says_fails_the_trial(tmp_path: Path, page: str) -> None:
    with pytest.raises(TrialError, match=r"page\.md:1"):
        follow(tmp_path, page)


def test_a_block_that_is_not_run_is_recorded_with_its_reason(tmp_path: Path) -> None:
    page = "<!-- not run: needs a GPU -->\n```sh\nfalse\n```\n"
    reader = follow(tmp_path, page)
    assert (reader.ran, [block.reason for block in reader.skipped_blocks]) == (0, ["needs a GPU"])
