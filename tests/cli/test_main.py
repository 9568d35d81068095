"""The command line itself: help, completion, exit codes."""

import importlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli_page import lab_commands
from tessera.cli.commands import SHELLS, root_command
from tessera.cli.complete import candidates
from tessera.cli.cost import report as cost_report
from tessera.cli.cost.arguments import COST_FIELDS
from tessera.cli.main import main
from tessera.cli.options import Command
from tessera.domain.gateway.usage_record import CHARGE_COLUMNS
from tessera_lab.cli.bench.arguments import ENDPOINTS
from tessera_lab.cli.bench.server import PATHS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("aiohttp", "kubernetes", "pydantic", "requests", "yaml", "prometheus_api_client")
COMMANDS = (
    *("doctor", "explain", "top", "update", "cost", "usage", "size", "bench", "breakeven"),
    *("forecast", "plan", "mosaic", "completion", "mix", "simulate", "engine"),
    *("claims", "levers", "version", "raise", "correct"),
)
KEY_COMMANDS = ("create", "list", "revoke", "rotate")
GATE_COMMANDS = ("compare", "import", "init", "pin", "run", "show")
PROVIDER_COMMANDS = ("add", "diff", "prices")
GROUPS = ("budget", "charges", "gate", "key", "provider", "snapshot")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "HOME": "/nonexistent"}


def tessera(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base_environment = {name: value for name, value in ENVIRONMENT.items() if name != "KUBECONFIG"}
    return subprocess.run(
        [sys.executable, "-m", "tessera.cli.main", *arguments],
        env=base_environment | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_and_completion_import_nothing_heavy() -> None:
    script = (
        "import sys\nfrom tessera.cli.complete import candidates\n"
        "from tessera.cli.main import main\n"
        "assert candidates(['ex']) == ['explain']\n"
        "for words in (['--help'], ['explain', '--help']):\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


BASH_COMPLETION = {
    "_TESSERA_COMPLETE": "bash_complete",
    "COMP_WORDS": "tessera ex",
    "COMP_CWORD": "1",
}


@pytest.mark.parametrize(
    ("arguments", "environment", "output"),
    [(["--help"], {}, "Usage: tessera"), ([], BASH_COMPLETION, "plain,explain\n")],
    ids=["help", "completion"],
)
def test_help_and_completion_take_less_than_half_a_second_of_the_processor(
    arguments: list[str], environment: dict[str, str], output: str
) -> None:
    used = []
    for _ in range(5):  # other processes empty the caches of the processor
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = tessera(*arguments, **environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0
        assert done.stdout.startswith(output)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used) < 0.5, used


def test_control_characters_of_arguments_are_escaped_in_messages() -> None:
    done = tessera("plan", "--demand", "x", "--throughput", "y", "--gpu", "\x1b[2J\x9b")
    assert done.returncode == 1
    assert "--gpu \\x1b[2J\\x9b is not a known GPU model" in done.stderr


def leaves(group: click.Group) -> Iterator[Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from leaves(command)
        else:
            assert isinstance(command, Command)
            yield command


def test_every_command_has_a_module_that_runs_it() -> None:
    root = root_command(lab_commands())
    names = [command.name for command in leaves(root)]
    of_groups = ("override", "plan", "save", *KEY_COMMANDS, *GATE_COMMANDS, *PROVIDER_COMMANDS)
    assert sorted(map(str, names)) == sorted((*COMMANDS, *of_groups))
    for command in leaves(root):
        assert callable(importlib.import_module(command.module).run)


def test_the_choices_of_the_parser_are_those_of_the_reports() -> None:
    assert {*COST_FIELDS} == {*cost_report.GROUPINGS, *CHARGE_COLUMNS}
    assert set(ENDPOINTS) == set(PATHS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [""],
            [*sorted({*COMMANDS, *GROUPS} - {"raise", "correct"})],
        ),
        (["ex"], ["explain"]),
        (["snapshot", ""], ["plan", "save"]),
        (["budget", ""], ["override", "raise"]),
        (["key", ""], [*KEY_COMMANDS]),
        (["gate", ""], [*GATE_COMMANDS]),
        (["bench", "--endpoint", ""], ["chat", "completions"]),
        (["cost", "--by", ""], sorted(COST_FIELDS)),
        (["cost", "--by", "t"], ["tag", "target", "team", "tenant", "tenant,service"]),
        (["top", "-o", ""], ["json", "text"]),
        (["top", "--all"], ["--all-namespaces"]),
        (["top", "-n", ""], []),
        (["explain", ""], []),
        (["explain", "--js"], ["--json"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["completion", "bash", ""], []),
        (["snapshot", "save", ""], []),
    ],
)
def test_the_next_word_is_completed(words: list[str], expected: list[str]) -> None:
    assert candidates(words) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "tessera"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tessera.cli.main "$@"\n')
    program.chmod(0o755)
    script = (
        'source <(tessera completion bash)\nCOMP_WORDS=(tessera cost --by ""); COMP_CWORD=3\n'
        '_tessera_completion tessera\necho "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=ENVIRONMENT | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.split()) == sorted(COST_FIELDS)


def test_paths_are_completed_where_a_file_is_meant() -> None:
    words = {"COMP_WORDS": "tessera mosaic --svg pic", "COMP_CWORD": "3"}
    assert tessera(**BASH_COMPLETION | words).stdout == "file,pic\n"
    words = {"COMP_WORDS": "tessera mosaic --context pic", "COMP_CWORD": "3"}
    assert tessera(**BASH_COMPLETION | words).stdout == "\n"


def test_kubectl_completes_by_its_own_protocol() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tessera.cli.complete import main; main()", "top", "-o", "j"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "json\n:4\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    assert "_TESSERA_COMPLETE=" in capsys.readouterr().out


def kubeconfig(path: Path, server: str) -> Path:
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n"
        f"clusters: [{{name: here, cluster: {{server: '{server}'}}}}]\n"
        "users: [{name: me, user: {token: x}}]\n"
        "contexts: [{name: here, context: {cluster: here, user: me, namespace: team-a}}]\n"
    )
    return path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without any kubeconfig."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")


@pytest.mark.usefixtures("nowhere")
def test_no_cluster_is_a_sentence_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = kubeconfig(tmp_path / "config", "http://127.0.0.1:9")
    broken = tmp_path / "broken"
    broken.write_text("][")
    for arguments, words in (
        (["top"], "/nonexistent/.kube/config not found. Give --kubeconfig"),
        (["plan"], "/nonexistent/.kube/config not found. Give --kubeconfig"),
        (["mosaic", "--kubeconfig", str(away)], "kubectl cluster-info"),
        (["top", "--kubeconfig", "/nowhere"], "/nowhere not found"),
        (["top", "--kubeconfig", str(broken)], "Give --kubeconfig FILE"),
        (["top", "--kubeconfig", str(away)], "kubectl cluster-info"),
        (["top", "--kubeconfig", str(away), "--context", "other"], "get-contexts"),
        (["snapshot", "save", "f", "--kubeconfig", str(away)], "tessera snapshot save: "),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert words in str(ended.value.code)
        assert capsys.readouterr().out == ""


def test_the_doctor_finds_an_api_server_that_is_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = kubeconfig(tmp_path / "config", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--kubeconfig", str(away)])
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith("FAIL  kubernetes")


def test_an_interrupt_ends_quietly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = kubeconfig(tmp_path / "c", f"http://127.0.0.1:{silent.getsockname()[1]}")
        process = subprocess.Popen(
            [sys.executable, "-m", "tessera.cli.main", "top", "--kubeconfig", str(config)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()  # it has sent a request and waits for the response
        with connection:
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (130, "", "")


@pytest.mark.parametrize("name", ["tessera", "kubectl-tessera", "kubectl_complete-tessera"])
def test_every_program_of_the_package_has_its_function(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_an_object_that_cannot_be_read_is_a_sentence_on_stderr(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text(
        '{"kind": "TesseraSnapshot", "formatVersion": 2, "tessera": "0.1.0", '
        '"at": "2026-11-20T12:00:00Z", "objects": '
        '{"nodes": [{"metadata": {"name": "odd"}, "spec": 5}]}}'
    )
    done = tessera("snapshot", "plan", str(file))
    assert done.returncode == 0
    assert done.stderr == (
        "tessera snapshot plan: nodes/odd: malformed and ignored: "
        "AttributeError: 'int' object has no attribute 'get'\n"
    )


def test_a_wrong_option_is_reported_with_the_usage() -> None:
    done = tessera("top", "--wrong")
    assert done.returncode == 2
    assert "Usage: tessera top" in done.stderr
