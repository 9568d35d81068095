"""`tessera-batch check` and `run` process a batch (see docs/batch-files.md); `tessera-batch shape`
and `fetch` prepare the model of a service (see docs/tasks/serve.md); `tessera-batch gate` asks it
the suite of a gate (see docs/tasks/gate-changes.md)."""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from tessera.adapters.kube.attempt_fence import kube_fence
from tessera.adapters.logs import configure_logging
from tessera.batch_runner.check import BatchPaths, check
from tessera.batch_runner.engine import ENGINE_TIMEOUT_SECONDS, ROW_TIMEOUT_SECONDS
from tessera.batch_runner.errors import TransientError
from tessera.batch_runner.gate.job import GateJobRunner, add_gate_command, wire_report
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input.rows import URLS, RequestTarget
from tessera.batch_runner.model.jobs import fetch, shape
from tessera.batch_runner.model.locations import open_source
from tessera.batch_runner.progress import Progress, serve, status_app, write_report
from tessera.batch_runner.run import CHARGES_TOKEN, KILLED_MESSAGE, AttemptRunner, RunOptions
from tessera.batch_runner.sender import SendOptions
from tessera.domain.observed.runner_reports import CHECK_NUMBER
from tessera.settings import RunnerSettings

log = logging.getLogger(__name__)

# What `shape` and `fetch` may take of the 1 GiB of their pod: an answer of a store that is read as
# a whole has a few MiB, and the library that reads it has no bound of its own.
_MAX_DATA_BYTES = 768 * 2**20


def main() -> int:
    """Run the command and return its exit code.

    0: done, or stopped by a signal; 1: transient failure; 3: the user has to change something;
    4: fenced.
    """
    configure_logging(logging.INFO)
    arguments = _parser().parse_args()
    if arguments.command == "check":
        return asyncio.run(_serve_check(arguments))
    if arguments.command in ("shape", "fetch"):
        code, fields = _prepare_within_memory(arguments)
        # The threads of obstore may abort an interpreter that ends in order.
        _exit_now(_finish(arguments, code, fields, "done"))
    if arguments.command == "gate":
        code, fields = asyncio.run(_try_version(arguments))
        _exit_now(_finish(arguments, code, fields, "the suite is answered"))
    # A row that the check could read may not be nested too deeply here.
    sys.setrecursionlimit(3 * sys.getrecursionlimit())
    # Connections and part files may exceed the usual soft limit of 1,024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(_run_attempt(arguments))


async def _serve_check(arguments: argparse.Namespace) -> int:
    """Check the input in a thread: a volume that hangs does not keep `/progress` from answering."""
    progress = Progress(CHECK_NUMBER)
    heartbeat = WorkHeartbeat(time.monotonic, record_movement=progress.record_movement)
    async with serve(status_app(progress), arguments.host, arguments.port):
        return await asyncio.to_thread(_check_input, arguments, heartbeat)


def _check_input(arguments: argparse.Namespace, heartbeat: WorkHeartbeat) -> int:
    served = RequestTarget(
        name=arguments.model,
        adapters=tuple(arguments.adapter),
        aliases=tuple(arguments.alias),
        urls=tuple(arguments.url or URLS),
    )
    code, fields = check(BatchPaths.model_validate(arguments), served, heartbeat)
    return _finish(arguments, code, fields, "the file is valid")


def _prepare_within_memory(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Prepare a model; an answer without end ends this process, and the report says so."""
    ended = {
        "phase": arguments.command,
        "ok": False,
        "message": f"{arguments.uri}: ended without notice, by an answer of more than "
        f"{_MAX_DATA_BYTES // 2**20} MiB where the source should list files or say an error, or "
        "since the pod was killed; correct spec.model.uri or spec.model.store.endpoint",
    }
    write_report(arguments.report, ended)
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES, _MAX_DATA_BYTES))
    try:
        return asyncio.run(_prepare_model(arguments))
    except MemoryError:
        return TransientError.code, ended
    except BaseException:
        arguments.report.write_bytes(b"")  # the log says what went wrong
        raise


async def _prepare_model(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    uri, settings = arguments.uri, RunnerSettings()
    source = open_source(uri, arguments.revision, settings, arguments.endpoint, arguments.region)
    if arguments.command == "shape":
        return await shape(uri, arguments.path, source)
    host, port, allow_pickles = arguments.host, arguments.port, arguments.allow_pickles
    return await fetch(source, arguments.into, host=host, port=port, allow_pickles=allow_pickles)


def _finish(arguments: argparse.Namespace, code: int, fields: dict[str, Any], good: str) -> int:
    """Write the report of a command, and return its exit code."""
    log.log(logging.ERROR if code else logging.INFO, "%s", fields.get("message", good))
    write_report(arguments.report, fields)
    return code


async def _try_version(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    stop = _stop_by_signal()
    runner = GateJobRunner(arguments)
    write_report(arguments.report, wire_report(runner.report | {"message": KILLED_MESSAGE}))
    code, fields = await runner.run(stop)
    return code, wire_report(fields)


def _stop_by_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    return stop


async def _run_attempt(arguments: argparse.Namespace) -> NoReturn:
    stop = _stop_by_signal()
    write_report(arguments.report, Progress(arguments.attempt).report("failed", KILLED_MESSAGE))
    namespace, _, name = arguments.batch.partition("/")
    kubeconfig = arguments.kubeconfig or RunnerSettings().kubeconfig
    async with kube_fence(kubeconfig, namespace, name, uid=arguments.work.name) as fence:
        code = await AttemptRunner(_options(arguments), fence, stop).run()
    # A thread blocked on a hanging volume would delay a regular exit.
    _exit_now(code)


def _exit_now(code: int) -> NoReturn:
    logging.shutdown()
    os._exit(code)


def _options(arguments: argparse.Namespace) -> RunOptions:
    arguments.send_options = SendOptions(
        served=RequestTarget(name=arguments.model, aliases=tuple(arguments.alias)),
        concurrency=arguments.concurrency,
        retries=arguments.retries,
        seed=f"{arguments.batch} {arguments.attempt}",
    )
    return RunOptions.model_validate(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tessera-batch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check_parser = commands.add_parser("check", help="check the input and write the manifest")
    run_parser = commands.add_parser("run", help="answer the rows that have no answer yet")
    for command in (check_parser, run_parser):
        command.add_argument("--input", type=Path, required=True, help="JSONL file of requests")
        command.add_argument("--output", type=Path, required=True, help="file of the answers")
        command.add_argument(
            "--work", type=Path, required=True, help="work folder, named by the uid"
        )
        command.add_argument("--errors", type=Path, required=True, help="file of the failed rows")
        command.add_argument("--report", type=Path, required=True, help="termination message")
        command.add_argument(
            "--host", default="0.0.0.0", help="address of /healthz, /progress and /metrics"
        )
        command.add_argument("--port", type=int, default=8001)
        command.add_argument("--model", required=True, help="name of the model at the engine")
        command.add_argument(
            "--alias", action="append", default=[], help="another name of the model in the rows"
        )
    check_parser.add_argument(
        "--adapter", action="append", default=[], help="name of a LoRA adapter of the engine"
    )
    check_parser.add_argument(
        "--url", action="append", choices=URLS, help="path that the engine serves; default: all"
    )
    _add_model_commands(commands)
    add_gate_command(commands.add_parser("gate", help="ask a version the suite of a gate"))
    run_parser.add_argument(
        "--attempt", type=_positive_int, required=True, help="its number, the fencing token"
    )
    run_parser.add_argument("--batch", type=_batch_name, required=True, help="NAMESPACE/NAME")
    run_parser.add_argument(
        "--engine", type=base_url, help="base URL of the engine; omit it to publish finished rows"
    )
    run_parser.add_argument("--uri", default="", help="model of the engine, noted in each part")
    run_parser.add_argument("--revision", help="its branch, tag or commit")
    run_parser.add_argument("--charges", help="base URL of a gateway at which rows are paid")
    run_parser.add_argument(
        "--charges-token", type=Path, default=CHARGES_TOKEN, help="token for that gateway"
    )
    run_parser.add_argument("--concurrency", type=_positive_int, default=1, help="rows in flight")
    run_parser.add_argument("--retries", type=int, default=3, help="retries per row")
    run_parser.add_argument("--kubeconfig", help="replaces KUBECONFIG and the ServiceAccount")
    run_parser.add_argument(
        "--row-seconds", type=float, default=ROW_TIMEOUT_SECONDS, help="time limit of a request"
    )
    run_parser.add_argument(
        "--engine-seconds",
        dest="patience_seconds",
        type=float,
        default=ENGINE_TIMEOUT_SECONDS,
        help="time limit for a restart of the engine",
    )
    return parser


def _add_model_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    shape_parser = commands.add_parser("shape", help="read a model's config.json")
    shape_parser.add_argument("--path", type=Path, help="folder of the files, if they are mounted")
    fetch_parser = commands.add_parser("fetch", help="download the files of a model to a volume")
    fetch_parser.add_argument("--into", type=Path, required=True, help="folder on the volume")
    fetch_parser.add_argument("--host", default="0.0.0.0", help="address of /progress")
    fetch_parser.add_argument("--port", type=int, default=8000)
    fetch_parser.add_argument(
        "--allow-pickles", action="store_true", help="fetch weights that can run code when loaded"
    )
    for command in (shape_parser, fetch_parser):
        command.add_argument("--uri", required=True, help="as in spec.model.uri")
        command.add_argument("--revision", help="branch, tag or commit")
        command.add_argument("--endpoint", help="address of the object store")
        command.add_argument("--region", help="region of an S3 bucket")
        command.add_argument("--report", type=Path, required=True, help="termination message")


def base_url(text: str) -> str:
    """Return the URL with an IPv6 address in brackets."""
    # A Job can only pass the bare address of its pod.
    scheme, slashes, rest = text.partition("//")
    host, colon, port = rest.rpartition(":")
    bare = ":" in host and not host.startswith("[")
    return f"{scheme}{slashes}[{host}]{colon}{port}" if bare else text


def _positive_int(text: str) -> int:
    if (number := int(text)) >= 1:
        return number
    raise argparse.ArgumentTypeError(f"{text} is below the minimum of 1")


def _batch_name(text: str) -> str:
    if all(text.partition("/")):
        return text
    raise argparse.ArgumentTypeError(f"{text} is not NAMESPACE/NAME")


if __name__ == "__main__":
    sys.exit(main())
