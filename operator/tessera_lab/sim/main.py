"""`tessera-sim MODEL …`: takes the arguments of `vllm serve`, and `--instances N`."""

import asyncio
import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from aiohttp import web

from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import version_facts
from tessera_lab.sim.assembly import AssembledEngine, assemble_engine
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.engine_config import VERSION, EngineConfig, load_config

log = logging.getLogger(__name__)

# Address of the first of several instances; the others follow it.
FIRST_INSTANCE_ADDRESS = "127.0.1.1"
# For so long the ends of aborted answers may take to reach their clients.
_FLUSH_SECONDS = 5.0
# From an engine's death to the end of its process; a real one takes up to two seconds.
_CRASH_EXIT_SECONDS = 1.5


def main() -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    try:
        count, argv = _split_instances(sys.argv[1:])
    except EngineExit as end:
        log.error("%s", end.message)
        raise
    asyncio.run(_serve_all(argv, _hosts(argv, count), os.environ))


async def serve(
    argv: Sequence[str], *, host: str, env: Mapping[str, str], stop: asyncio.Event | None = None
) -> None:
    """Run one engine on `host` until cancelled, or drain and return once `stop` is set.

    Raises EngineExit, after logging its message, where the engine's process would end by itself.
    """
    stop = stop or asyncio.Event()
    try:
        config = load_config(argv, env)
        if await _stopped_within(config.start_seconds, stop):
            return
        await _run(config, host, stop)
    except EngineExit as end:
        log.error("%s", end.message)
        raise


async def _serve_all(argv: Sequence[str], hosts: Sequence[str], env: Mapping[str, str]) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await asyncio.gather(*(serve(argv, host=host, env=env, stop=stop) for host in hosts))


async def _stopped_within(seconds: float, stop: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def _run(config: EngineConfig, host: str, stop: asyncio.Event) -> None:
    engine = assemble_engine(config)
    http_runner = web.AppRunner(
        engine.app, access_log=None, handler_cancellation=True, shutdown_timeout=_FLUSH_SECONDS
    )
    await http_runner.setup()
    try:
        await _listen(http_runner, host, config.arguments.port)
        _log_start(config, host)
        async with asyncio.TaskGroup() as tasks:
            stepping = tasks.create_task(engine.runner.run())
            watching = tasks.create_task(_exit_after_crash(engine.crashed))
            await stop.wait()
            watching.cancel()
            await _drain(engine, config.arguments.shutdown_timeout)
            stepping.cancel()
    except* _EngineDeadError:
        raise EngineExit(0, "the engine died, and with it the API server shut down") from None
    finally:
        engine.dispatcher.close_connections()
        await http_runner.cleanup()
        engine.runner.log_lateness()


class _EngineDeadError(Exception):
    """The engine behind the API server has died."""


async def _exit_after_crash(crashed: asyncio.Event) -> None:
    """Keep the API server up for a moment after its engine has died."""
    await crashed.wait()
    await asyncio.sleep(_CRASH_EXIT_SECONDS)
    raise _EngineDeadError


async def _listen(http_runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(http_runner, host, port).start()
    except OSError as error:
        raise EngineExit(1, f"{host}:{port}: {error.strerror or error}") from error


async def _drain(engine: AssembledEngine, seconds: int) -> None:
    """Let requests end within `seconds`, or abort them at once; close connections after it."""
    engine.dispatcher.stop_accepting()
    if seconds == 0:
        engine.runner.abort_all()
    allowed = seconds or _FLUSH_SECONDS
    try:
        async with asyncio.timeout(allowed):
            await engine.dispatcher.wait_idle()
    except TimeoutError:
        log.warning("requests did not end within %s s: their connections are cut", allowed)


def _log_start(config: EngineConfig, host: str) -> None:
    hardware = f"{config.hardware.product} {config.hardware.name}"
    log.info("%s on http://%s:%s as on %s", config.names[0], host, config.arguments.port, hardware)
    log.info(
        "KV cache of %s tokens; max_model_len %s, max_num_seqs %s, max_num_batched_tokens %s",
        config.kv_cache.tokens,
        config.limits.max_model_len,
        config.limits.max_num_seqs,
        config.limits.max_num_batched_tokens,
    )


def _split_instances(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Take `--instances N` out of the arguments."""
    count, argv, remaining = "1", [], iter(arguments)
    for word in remaining:
        name, _, value = word.partition("=")
        if name == "--instances":
            count = value or next(remaining, "")
        else:
            argv.append(word)
    if not count.isdecimal() or int(count) < 1:
        raise EngineExit(2, f"tessera-sim: error: --instances {count}: expected a number from 1 on")
    return int(count), argv


def _hosts(argv: Sequence[str], count: int) -> list[str]:
    """Return one address for each instance, from `--host` on."""
    facts = version_facts(VERSION)
    host = facts and vllm_flags.parse(argv, facts).get("host")
    first = host or ("0.0.0.0" if count == 1 else FIRST_INSTANCE_ADDRESS)
    if count == 1:
        return [first]
    return [str(ipaddress.ip_address(first) + number) for number in range(count)]


if __name__ == "__main__":
    main()
