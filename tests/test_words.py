"""Every rule about names and comments catches a violation that is planted for it."""

from pathlib import Path

import pytest

from check_words import GLOSSARY, REST, SUBJECT_ROOMS, violations

CLEAN = '''"""A module."""

# Why this is so.
LIMIT = 3


class Pool:
    """A pool."""


def describe(pools: int) -> str:
    """Describe pools."""
    # Numbers agree with their nouns.
    return f"{pools} in all"
'''

PLANTED = {
    "two classes of one name": ("\n\nclass Pool:\n    pass\n", "class Pool is defined in"),
    "a banned function": ("\n\ndef told() -> None:\n    pass\n", "a name is 'told'"),
    "a banned parameter": ("\n\ndef scale(found: int) -> None:\n    pass\n", "a name is 'found'"),
    "a banned local": ("\n\ndef scale() -> None:\n    made = 1\n", "a name is 'made'"),
    "a banned loop": (
        "\n\ndef scale() -> list[int]:\n    return [one for one in (1, 2)]\n",
        "'one'",
    ),
    "a wrong plural": (
        '\n\ndef describe(n: int) -> str:\n    return f"{n} GPUs"\n',
        "use counted()",
    ),
    "a string after a constant": ('\n\nTOP = 1\n"""The top."""\n', "a string explains a constant"),
    "a large class": (
        "\n\nclass Node:\n"
        + "".join(f"    def method_{index}(self) -> None: ...\n" for index in range(21)),
        "class Node has 21 methods",
    ),
    "a long function": (
        '\n\ndef scale() -> None:\n    """Scale."""\n' + "    print()\n" * 76,
        "scale has a body of 76 lines, at most 75",
    ),
    "a noun without an entry": ("\n\nclass Quota:\n    pass\n", f"{GLOSSARY} has no `Quota`"),
    "too few comments": ("\n" * 400, "comments per 1,000 lines"),
}


def tree(folder: Path, more: str = "") -> Path:
    (folder / "operator/tessera/api").mkdir(parents=True)
    (folder / "operator/tessera/api/pools.py").write_text(CLEAN + more, encoding="utf-8")
    (folder / "docs").mkdir()
    (folder / GLOSSARY).write_text("| pool | `Pool` | Nodes. |\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(name: str, tmp_path: Path) -> None:
    more, message = PLANTED[name]
    caught = [str(violation) for violation in violations(tree(tmp_path, more))]
    assert [text for text in caught if message in text]


def test_a_clean_tree_has_no_violation(tmp_path: Path) -> None:
    assert violations(tree(tmp_path)) == []


@pytest.mark.parametrize("folder", REST)
def test_a_banned_name_outside_the_product_is_caught(folder: str, tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / folder).mkdir()
    (root / folder / "planted.py").write_text("def kept() -> None:\n    pass\n", encoding="utf-8")
    assert ["kept: a name is 'kept'" in str(violation) for violation in violations(root)] == [True]


@pytest.mark.parametrize("room", SUBJECT_ROOMS)
@pytest.mark.parametrize("text", ["# Of one pool.\nMOST = 1\n", 'MOST: int\n"""Of one pool."""\n'])
def test_a_text_without_a_subject_is_caught_in_the_rooms_that_have_none(
    room: str, text: str, tmp_path: Path
) -> None:
    folder = tree(tmp_path) / "operator/tessera" / room
    folder.mkdir(parents=True)
    (folder / "planted.py").write_text(text, encoding="utf-8")
    assert any("a text begins with 'Of'" in str(violation) for violation in violations(tmp_path))
