import asyncio
import re
import sys

import httpx
import pytest

from tests.lab.sim.running import DEADLINE_SECONDS
from world.slots import free_port


async def _process(*argv: str) -> asyncio.subprocess.Process:
    module = ("-m", "tessera_lab.sim.main")
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *module, *argv, stderr=pipe)


async def _addresses(process: asyncio.subprocess.Process, count: int) -> list[str]:
    """Return the addresses of `count` engines, which log them once their port is open."""
    addresses: list[str] = []
    assert process.stderr is not None
    while len(addresses) < count:
        line = (await process.stderr.readline()).decode()
        assert line, f"ended after {addresses}"
        addresses += re.findall(r"http://\S+", line)
    return addresses


async def test_several_instances_take_successive_addresses_and_end_at_a_signal() -> None:
    port = free_port()
    process = await _process("tiny", "--instances", "3", "--host=127.0.1.254", "--port", str(port))
    async with asyncio.timeout(DEADLINE_SECONDS), httpx.AsyncClient() as http:
        addresses = await _addresses(process, 3)
        answers = [(await http.get(f"{address}/health")).status_code for address in addresses]
        process.terminate()
        await process.communicate()
    hosts = ("127.0.1.254", "127.0.1.255", "127.0.2.0")
    assert sorted(addresses) == [f"http://{host}:{port}" for host in hosts]
    assert answers == [200] * 3
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("argument", "code"), [("--no-such-flag", 2), ("--max-num-seqs=0", 1), ("--instances=x", 2)]
)
async def test_a_process_that_cannot_start_says_why_in_its_last_line(
    argument: str, code: int
) -> None:
    process = await _process("tiny", argument)
    async with asyncio.timeout(DEADLINE_SECONDS):
        _, stderr = await process.communicate()
    assert process.returncode == code
    assert argument.partition("=")[0] in stderr.decode().strip().splitlines()[-1]
