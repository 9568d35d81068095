"""The programs of a world are built once, visibly, and go on after an interruption."""

import asyncio
import multiprocessing
import socket
import threading
from pathlib import Path

import pytest

from world import WorldError, binaries
from world.folders import HERE, make_once
from world.slots import free_port

COMPILER = """#!/bin/sh
[ "$1" = version ] && exit {version}
arguments="$*"
while [ "$1" != -o ]; do shift; done
folder="$2"
shift 2
for package in "$@"; do
  case "$package" in */{fails}) echo "cannot find package"; exit 1;; esac
  name="${{package%/v[0-9]}}"
  echo "$arguments" > "$folder${{name##*/}}"
done
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a PATH with nothing but what the test puts there and a shell."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def install_go(path: Path, *, version: int = 0, fails: str = "none") -> None:
    compiler = path / "go"
    compiler.write_text(COMPILER.format(version=version, fails=fails))
    compiler.chmod(0o755)


def test_one_command_builds_all_programs(path: Path) -> None:
    install_go(path)
    said: list[str] = []

    folder = binaries.ensure(said.append)

    assert {file.name for file in folder.iterdir()} == {*binaries.PACKAGES}
    assert said == [f"building {', '.join(binaries.PACKAGES)}"]
    assert len({(folder / name).read_text() for name in binaries.PACKAGES}) == 1


def test_only_what_is_needed_is_built_and_the_others_later(path: Path) -> None:
    install_go(path)
    folder = binaries.ensure(lambda _: None, binaries.EVERY_WORLD)
    assert {*binaries.PACKAGES} - {file.name for file in folder.iterdir()} == {"kwok", "promtool"}
    said: list[str] = []

    assert binaries.ensure(said.append) == folder

    assert said == ["building kwok, promtool"]


def test_prometheus_is_built_without_the_discoveries_of_clouds(path: Path) -> None:
    install_go(path)
    folder = binaries.ensure(lambda _: None)
    assert "-tags=remove_all_sd,enable_kubernetes_sd" in (folder / "prometheus").read_text()


def test_nothing_is_built_twice(path: Path) -> None:
    install_go(path)
    binaries.ensure(lambda _: None)
    (path / "go").unlink()
    said: list[str] = []

    binaries.ensure(said.append)

    assert said == []


def test_a_build_that_failed_is_made_again(path: Path) -> None:
    install_go(path, fails="kwok")
    with pytest.raises(WorldError, match=r"cannot find package\n\n.*kwok, .* failed \(all of it: "):
        binaries.ensure(lambda _: None)
    install_go(path)

    folder = binaries.ensure(lambda _: None)

    assert {file.name for file in folder.iterdir()} == {*binaries.PACKAGES}


def test_two_starters_do_not_build_twice(path: Path) -> None:
    install_go(path)
    said: list[str] = []
    starters = [
        threading.Thread(target=binaries.ensure, args=(said.append,), daemon=True) for _ in range(2)
    ]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(timeout=120)

    assert sum(line.startswith("building") for line in said) == 1


@pytest.mark.usefixtures("path")
def test_a_missing_compiler_is_named_with_its_version() -> None:
    with pytest.raises(WorldError, match=r"needs `go` on PATH: install Go 1\.\d+\.\d+ or newer"):
        binaries.ensure(lambda _: None)


def test_an_old_compiler_is_refused_in_one_line(path: Path) -> None:
    install_go(path, version=1)

    with pytest.raises(WorldError, match=r"this `go` is too old: install Go 1\.\d+") as refused:
        binaries.ensure(lambda _: None)

    assert "\n" not in str(refused.value)


def test_the_module_lists_every_program_as_a_tool() -> None:
    module = (HERE / "binaries" / "go.mod").read_text()

    assert all(f"\t{package}\n" in module for package in binaries.PACKAGES.values())


def make_slowly(folder: Path, makers: Path) -> None:
    """Make a folder as one of several processes that need it at once; note who made it."""

    def make(partial: Path) -> None:
        with makers.open("a") as log:
            log.write(f"{partial.name}\n")
        for number in range(200):
            (partial / str(number)).write_text("content")

    assert len([*make_once(folder, make, lambda _: None).iterdir()]) == 200


def test_a_folder_of_the_cache_is_made_by_one_process_and_seen_when_it_is_whole(
    tmp_path: Path,
) -> None:
    folder, makers = tmp_path / "cache" / "environment", tmp_path / "makers"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make_slowly, args=(folder, makers)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert makers.read_text() == "environment.partial\n"


def test_a_folder_whose_maker_failed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "environment"

    def fail(partial: Path) -> None:
        (partial / "half").touch()
        raise WorldError("the disk is full")

    with pytest.raises(WorldError):
        make_once(folder, fail, lambda _: None)
    assert not folder.exists()
    make_once(folder, lambda partial: (partial / "whole").touch(), lambda _: None)
    assert [file.name for file in folder.iterdir()] == ["whole"]


async def test_a_free_port_is_kept_for_a_server_of_this_process_or_its_children() -> None:
    port = free_port()
    with pytest.raises(OSError, match="in use"), socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
    for _ in range(2):  # a server that is started again gets its port again
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
        socket.create_connection(("127.0.0.1", port)).close()
        server.close()
        await server.wait_closed()
