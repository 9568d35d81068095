"""`tessera-batch check …` and `run …` for batches: see docs/batch-files.md; `tessera-batch shape …`
and `fetch …` for models of services: see docs/tasks/serve.md."""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tessera.adapters.fence import kube_fence
from tessera.batch import report
from tessera.batch.check import Places, check
from tessera.batch.engine import PATIENCE_SECONDS, ROW_SECONDS
from tessera.batch.feed import Terms
from tessera.batch.fetch import fetch
from tessera.batch.progress import Progress
from tessera.batch.pulse import Pulse
from tessera.batch.run import KILLED, Attempt, Options
from tessera.batch.shape import shape
from tessera.settings import RunnerSettings

log = logging.getLogger(__name__)


def main() -> int:
    """Exit code 0: done, or stopped as told; 1: may pass; 3: the user's; 4: fenced off."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    given = _parser().parse_args()
    if given.command == "check":
        return _check(given)
    if given.command in _ERRANDS:
        code, told = asyncio.run(_ERRANDS[given.command](given))
        log.log(logging.ERROR if code else logging.INFO, "%s", told.get("message", "done"))
        report.write(given.report, told)
        return code
    _many_files()
    return asyncio.run(_run(given))


def _check(given: argparse.Namespace) -> int:
    places = Places(input=given.input, output=given.output, work=given.work)
    code, told = check(places, Pulse(time.monotonic))
    log.log(logging.ERROR if code else logging.INFO, "%s", told.get("message", "the file is valid"))
    report.write(given.report, told)
    return code


async def _shape(given: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    told = RunnerSettings()
    return await shape(given.uri, given.revision, given.path, told.hub_endpoint, told.hub_token)


async def _fetch(given: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    told = RunnerSettings()
    return await fetch(
        given.uri,
        given.revision,
        given.into,
        endpoint=told.hub_endpoint,
        token=told.hub_token,
        host=given.host,
        port=given.port,
    )


_ERRANDS = {"shape": _shape, "fetch": _fetch}


async def _run(given: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(wanted, stop.set)
    report.write(given.report, Progress(given.attempt).report("failed", KILLED))
    namespace, _, name = given.batch.partition("/")
    kubeconfig = given.kubeconfig or RunnerSettings().kubeconfig
    async with kube_fence(kubeconfig, namespace, name, uid=given.work.name) as fence:
        code = await Attempt(_options(given), fence, stop).run()
    logging.shutdown()
    # A thread that waits for a hanging volume would hold a regular end up.
    os._exit(code)


def _options(given: argparse.Namespace) -> Options:
    terms = Terms(
        model=given.model,
        concurrency=given.concurrency,
        retries=given.retries,
        seed=f"{given.batch} {given.attempt}",
    )
    return Options(
        input=given.input,
        output=given.output,
        errors=given.errors,
        work=given.work,
        report=given.report,
        attempt=given.attempt,
        engine=given.engine,
        terms=terms,
        host=given.host,
        port=given.port,
        row_seconds=given.row_seconds,
        patience_seconds=given.engine_seconds,
    )


def _many_files() -> None:
    """Connections and part files may be more than the usual 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tessera-batch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="check the input and write the manifest")
    running = commands.add_parser("run", help="answer the rows that have no answer yet")
    for command in (checking, running):
        command.add_argument("--input", type=Path, required=True, help="JSONL file of requests")
        command.add_argument("--output", type=Path, required=True, help="where answers appear")
        command.add_argument("--work", type=Path, required=True, help="folder named by the uid")
        command.add_argument("--report", type=Path, required=True, help="termination message")
    _add_errands(commands)
    running.add_argument("--errors", type=Path, required=True, help="where failed rows appear")
    running.add_argument("--attempt", type=_count, required=True, help="the fencing number")
    running.add_argument("--batch", type=_batch, required=True, help="NAMESPACE/NAME")
    running.add_argument("--engine", type=base_url, required=True, help="base URL of the engine")
    running.add_argument("--model", required=True, help="for rows that name none")
    running.add_argument("--concurrency", type=_count, required=True, help="rows in flight")
    running.add_argument("--retries", type=int, required=True, help="per row")
    running.add_argument("--host", default="0.0.0.0", help="of /healthz, /progress and /metrics")
    running.add_argument("--port", type=int, default=8001)
    running.add_argument("--kubeconfig", help="instead of KUBECONFIG or the ServiceAccount")
    running.add_argument(
        "--row-seconds", type=float, default=ROW_SECONDS, help="how long an answer may take"
    )
    running.add_argument(
        "--engine-seconds", type=float, default=PATIENCE_SECONDS, help="how long it may be away"
    )
    return parser


def _add_errands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What services need before their engines start."""
    reading = commands.add_parser("shape", help="read a model's config.json")
    reading.add_argument("--path", type=Path, help="folder with the files, if they are mounted")
    fetching = commands.add_parser("fetch", help="bring the files of a model onto a volume")
    fetching.add_argument("--into", type=Path, required=True, help="folder on the volume")
    fetching.add_argument("--host", default="0.0.0.0", help="of /progress")
    fetching.add_argument("--port", type=int, default=8000)
    for command in (reading, fetching):
        command.add_argument("--uri", required=True, help="as in spec.model.uri")
        command.add_argument("--revision", help="branch, tag or commit")
        command.add_argument("--report", type=Path, required=True, help="termination message")


def base_url(text: str) -> str:
    """The URL; a Job can only write the bare address of its pod, which IPv6 wants in brackets."""
    scheme, slashes, rest = text.partition("//")
    host, colon, port = rest.rpartition(":")
    bare = ":" in host and not host.startswith("[")
    return f"{scheme}{slashes}[{host}]{colon}{port}" if bare else text


def _count(text: str) -> int:
    if (number := int(text)) >= 1:
        return number
    raise argparse.ArgumentTypeError(f"{text} is less than 1")


def _batch(text: str) -> str:
    if all(text.partition("/")):
        return text
    raise argparse.ArgumentTypeError(f"{text} is not NAMESPACE/NAME")


if __name__ == "__main__":
    sys.exit(main())
